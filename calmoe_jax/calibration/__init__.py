"""Calibration of a mixture and of its experts: metrics, intervals, calibrators.

    probs, labels                                            # [examples, classes], [examples]
    expected_calibration_error(probs, labels)                # the common choice
    bins = top_label_bins(probs, labels)                     # or classwise_, equal_mass_, expert_
    calibration_error(bins, norm="l2"), debiased_calibration_error(bins), reliability_curve(bins)
    smooth_calibration_error(*top_label(probs, labels))      # no bins
    accuracy, negative_log_likelihood, brier_score           # the scores
    binary_log_loss(p, y), multilabel_bins(p, y)             # [examples]; [examples, events]
    mixture_calibration(expert_probs, routing, labels)       # the aggregate against its experts
    state = update_state(init_state(num_classes=10), probs, labels)  # a stream: summarise(state)
    intervals.calibration_error(key, bins)                   # with an interval
    fit = calibrators.fit_temperature(logits, labels)        # a calibrator

All take `weights=` and `where=` of examples and an explicit `from_logits=`; the common ones take
labels as classes, with `ignore_label=`, or as distributions over the classes (votes). Examples that
cannot be scored give NaN. Results are NamedTuples, defined in the modules whose functions return
them.
"""

from calmoe_jax._export import register_named_tuples as _register_named_tuples
from calmoe_jax.calibration import calibrators as calibrators
from calmoe_jax.calibration import intervals as intervals
from calmoe_jax.calibration._inputs import check_predictions as check_predictions
from calmoe_jax.calibration.diagrams import gap_by_statistic as gap_by_statistic
from calmoe_jax.calibration.diagrams import reliability_curve as reliability_curve
from calmoe_jax.calibration.metrics.binning import ReliabilityBins as ReliabilityBins
from calmoe_jax.calibration.metrics.binning import classwise_bins as classwise_bins
from calmoe_jax.calibration.metrics.binning import reliability_bins as reliability_bins
from calmoe_jax.calibration.metrics.binning import top_label_bins as top_label_bins
from calmoe_jax.calibration.metrics.decomposition import brier_decomposition as brier_decomposition
from calmoe_jax.calibration.metrics.decomposition import corp_decomposition as corp_decomposition
from calmoe_jax.calibration.metrics.decomposition import (
    murphy_decomposition as murphy_decomposition,
)
from calmoe_jax.calibration.metrics.disagreement import (
    disagreement_identity as disagreement_identity,
)
from calmoe_jax.calibration.metrics.equal_mass import equal_mass_bins as equal_mass_bins
from calmoe_jax.calibration.metrics.errors import calibration_error as calibration_error
from calmoe_jax.calibration.metrics.errors import (
    debiased_calibration_error as debiased_calibration_error,
)
from calmoe_jax.calibration.metrics.errors import (
    debiased_squared_calibration_error as debiased_squared_calibration_error,
)
from calmoe_jax.calibration.metrics.errors import (
    expected_calibration_error as expected_calibration_error,
)
from calmoe_jax.calibration.metrics.events import binary_brier_score as binary_brier_score
from calmoe_jax.calibration.metrics.events import binary_log_loss as binary_log_loss
from calmoe_jax.calibration.metrics.events import multilabel_bins as multilabel_bins
from calmoe_jax.calibration.metrics.events import two_classes as two_classes
from calmoe_jax.calibration.metrics.experts import chosen_region as chosen_region
from calmoe_jax.calibration.metrics.experts import expert_bins as expert_bins
from calmoe_jax.calibration.metrics.experts import expert_calibration as expert_calibration
from calmoe_jax.calibration.metrics.experts import mixture_calibration as mixture_calibration
from calmoe_jax.calibration.metrics.kernel import kernel_test as kernel_test
from calmoe_jax.calibration.metrics.kernel import (
    maximum_mean_calibration_error as maximum_mean_calibration_error,
)
from calmoe_jax.calibration.metrics.kernel import (
    squared_kernel_calibration_error as squared_kernel_calibration_error,
)
from calmoe_jax.calibration.metrics.scores import accuracy as accuracy
from calmoe_jax.calibration.metrics.scores import brier_score as brier_score
from calmoe_jax.calibration.metrics.scores import confidence_gap as confidence_gap
from calmoe_jax.calibration.metrics.scores import negative_log_likelihood as negative_log_likelihood
from calmoe_jax.calibration.metrics.scores import top_label as top_label
from calmoe_jax.calibration.metrics.smooth import (
    smooth_calibration_error as smooth_calibration_error,
)
from calmoe_jax.calibration.metrics.smooth import smooth_null_level as smooth_null_level
from calmoe_jax.calibration.metrics.smooth import soft_binned_error as soft_binned_error
from calmoe_jax.calibration.metrics.worst import worst_group as worst_group
from calmoe_jax.calibration.metrics.worst import worst_reweighting as worst_reweighting
from calmoe_jax.calibration.states import CalibrationState as CalibrationState
from calmoe_jax.calibration.states import init_state as init_state
from calmoe_jax.calibration.states import merge_states as merge_states
from calmoe_jax.calibration.states import psum_state as psum_state
from calmoe_jax.calibration.states import summarise as summarise
from calmoe_jax.calibration.states import update_state as update_state

_register_named_tuples(__name__)
