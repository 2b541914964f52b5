"""Intervals of scores and calibration errors, for independent and clustered examples."""

from calmoe_jax.calibration.intervals.bootstrap import bootstrap_bins as bootstrap_bins
from calmoe_jax.calibration.intervals.bootstrap import bootstrap_counts as bootstrap_counts
from calmoe_jax.calibration.intervals.bootstrap import bootstrap_sums as bootstrap_sums
from calmoe_jax.calibration.intervals.bootstrap import cluster_bins as cluster_bins
from calmoe_jax.calibration.intervals.bootstrap import cluster_sums as cluster_sums
from calmoe_jax.calibration.intervals.errors import (
    calibration_error_interval as calibration_error_interval,
)
from calmoe_jax.calibration.intervals.errors import (
    cluster_calibration_error_interval as cluster_calibration_error_interval,
)
from calmoe_jax.calibration.intervals.errors import (
    squared_calibration_error_difference_interval as squared_calibration_error_difference_interval,
)
from calmoe_jax.calibration.intervals.scores import Interval as Interval
from calmoe_jax.calibration.intervals.scores import ScoreIntervals as ScoreIntervals
from calmoe_jax.calibration.intervals.scores import mean_interval as mean_interval
from calmoe_jax.calibration.intervals.scores import (
    score_difference_intervals as score_difference_intervals,
)
from calmoe_jax.calibration.intervals.scores import score_intervals as score_intervals
from calmoe_jax.calibration.intervals.scores import statistic_interval as statistic_interval
