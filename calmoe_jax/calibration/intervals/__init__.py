"""Bootstrap intervals of scores and calibration errors, for independent and clustered examples.

    mean(key, losses, clusters=users, num_clusters=50)       # whole clusters are drawn
    scores(key, probs, labels)                               # accuracy, NLL, Brier score, gap
    score_differences(key, first, second, labels)            # of two models, in pairs
    statistic(key, function_of_weights, weights)             # an AUC, a fitted temperature
    calibration_error(key, bins, norm="l1")                  # by inverting a test
    clustered_calibration_error(key, cluster_bins(...))
    squared_error_difference(key, cluster_bins(...), cluster_bins(...))

Each gives an `Interval(value, low, high)`, or one for each score. `bootstrap_counts` with
`cluster_sums` and `bootstrap_sums` resamples any statistic of sums; `bootstrap_bins` needs only the
bins.
"""

from calmoe_jax.calibration.intervals._interval import Interval as Interval
from calmoe_jax.calibration.intervals.bootstrap import bootstrap_bins as bootstrap_bins
from calmoe_jax.calibration.intervals.bootstrap import bootstrap_counts as bootstrap_counts
from calmoe_jax.calibration.intervals.bootstrap import bootstrap_sums as bootstrap_sums
from calmoe_jax.calibration.intervals.bootstrap import cluster_bins as cluster_bins
from calmoe_jax.calibration.intervals.bootstrap import cluster_sums as cluster_sums
from calmoe_jax.calibration.intervals.errors import calibration_error as calibration_error
from calmoe_jax.calibration.intervals.errors import (
    clustered_calibration_error as clustered_calibration_error,
)
from calmoe_jax.calibration.intervals.errors import (
    squared_error_difference as squared_error_difference,
)
from calmoe_jax.calibration.intervals.means import ScoreIntervals as ScoreIntervals
from calmoe_jax.calibration.intervals.means import mean as mean
from calmoe_jax.calibration.intervals.means import score_differences as score_differences
from calmoe_jax.calibration.intervals.means import scores as scores
from calmoe_jax.calibration.intervals.means import statistic as statistic
