"""Calibration: measure it, with intervals, and repair it, of the whole or of every expert."""

from calmoe_jax.calibration import calibrators as calibrators
from calmoe_jax.calibration import intervals as intervals
from calmoe_jax.calibration._inputs import check_predictions as check_predictions
from calmoe_jax.calibration.diagrams import ReliabilityCurve as ReliabilityCurve
from calmoe_jax.calibration.diagrams import StatisticGap as StatisticGap
from calmoe_jax.calibration.diagrams import gap_by_statistic as gap_by_statistic
from calmoe_jax.calibration.diagrams import reliability_curve as reliability_curve
from calmoe_jax.calibration.metrics.binning import ReliabilityBins as ReliabilityBins
from calmoe_jax.calibration.metrics.binning import (
    binned_calibration_error as binned_calibration_error,
)
from calmoe_jax.calibration.metrics.binning import (
    debiased_binned_calibration_error as debiased_binned_calibration_error,
)
from calmoe_jax.calibration.metrics.binning import (
    debiased_squared_binned_calibration_error as debiased_squared_binned_calibration_error,
)
from calmoe_jax.calibration.metrics.binning import reliability_bins as reliability_bins
from calmoe_jax.calibration.metrics.decomposition import BrierDecomposition as BrierDecomposition
from calmoe_jax.calibration.metrics.decomposition import CorpDecomposition as CorpDecomposition
from calmoe_jax.calibration.metrics.decomposition import MurphyDecomposition as MurphyDecomposition
from calmoe_jax.calibration.metrics.decomposition import brier_decomposition as brier_decomposition
from calmoe_jax.calibration.metrics.decomposition import (
    classwise_brier_decomposition as classwise_brier_decomposition,
)
from calmoe_jax.calibration.metrics.decomposition import corp_decomposition as corp_decomposition
from calmoe_jax.calibration.metrics.decomposition import (
    murphy_decomposition as murphy_decomposition,
)
from calmoe_jax.calibration.metrics.disagreement import DisagreementIdentity as DisagreementIdentity
from calmoe_jax.calibration.metrics.disagreement import (
    disagreement_identity as disagreement_identity,
)
from calmoe_jax.calibration.metrics.equal_mass import equal_mass_bins as equal_mass_bins
from calmoe_jax.calibration.metrics.equal_mass import (
    equal_mass_calibration_error as equal_mass_calibration_error,
)
from calmoe_jax.calibration.metrics.errors import classwise_bins as classwise_bins
from calmoe_jax.calibration.metrics.errors import (
    classwise_calibration_error as classwise_calibration_error,
)
from calmoe_jax.calibration.metrics.errors import (
    classwise_calibration_errors as classwise_calibration_errors,
)
from calmoe_jax.calibration.metrics.errors import (
    debiased_calibration_error as debiased_calibration_error,
)
from calmoe_jax.calibration.metrics.errors import (
    debiased_squared_calibration_error as debiased_squared_calibration_error,
)
from calmoe_jax.calibration.metrics.errors import (
    expected_calibration_error as expected_calibration_error,
)
from calmoe_jax.calibration.metrics.errors import (
    maximum_calibration_error as maximum_calibration_error,
)
from calmoe_jax.calibration.metrics.errors import (
    root_mean_square_calibration_error as root_mean_square_calibration_error,
)
from calmoe_jax.calibration.metrics.errors import top_label_bins as top_label_bins
from calmoe_jax.calibration.metrics.experts import ExpertErrors as ExpertErrors
from calmoe_jax.calibration.metrics.experts import MixtureCalibration as MixtureCalibration
from calmoe_jax.calibration.metrics.experts import MixtureErrors as MixtureErrors
from calmoe_jax.calibration.metrics.experts import active_region as active_region
from calmoe_jax.calibration.metrics.experts import chosen_region as chosen_region
from calmoe_jax.calibration.metrics.experts import expert_bins as expert_bins
from calmoe_jax.calibration.metrics.experts import (
    expert_calibration_errors as expert_calibration_errors,
)
from calmoe_jax.calibration.metrics.experts import (
    expert_region_calibration_errors as expert_region_calibration_errors,
)
from calmoe_jax.calibration.metrics.experts import mixture_calibration as mixture_calibration
from calmoe_jax.calibration.metrics.kernel import KernelCalibrationTest as KernelCalibrationTest
from calmoe_jax.calibration.metrics.kernel import kernel_calibration_test as kernel_calibration_test
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
from calmoe_jax.calibration.metrics.smooth import SmoothCalibrationError as SmoothCalibrationError
from calmoe_jax.calibration.metrics.smooth import SmoothNullLevel as SmoothNullLevel
from calmoe_jax.calibration.metrics.smooth import (
    smooth_calibration_error as smooth_calibration_error,
)
from calmoe_jax.calibration.metrics.smooth import smooth_null_level as smooth_null_level
from calmoe_jax.calibration.metrics.smooth import (
    soft_binned_calibration_error as soft_binned_calibration_error,
)
from calmoe_jax.calibration.metrics.worst import WorstGroup as WorstGroup
from calmoe_jax.calibration.metrics.worst import WorstReweighting as WorstReweighting
from calmoe_jax.calibration.metrics.worst import (
    worst_group_calibration_error as worst_group_calibration_error,
)
from calmoe_jax.calibration.metrics.worst import (
    worst_reweighting_calibration_error as worst_reweighting_calibration_error,
)
from calmoe_jax.calibration.states import CalibrationState as CalibrationState
from calmoe_jax.calibration.states import CalibrationSummary as CalibrationSummary
from calmoe_jax.calibration.states import CalibrationSums as CalibrationSums
from calmoe_jax.calibration.states import compute_calibration as compute_calibration
from calmoe_jax.calibration.states import init_calibration as init_calibration
from calmoe_jax.calibration.states import merge_calibration as merge_calibration
from calmoe_jax.calibration.states import psum_calibration as psum_calibration
from calmoe_jax.calibration.states import update_calibration as update_calibration
