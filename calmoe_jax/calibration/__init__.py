"""Calibration: measure it, with intervals, and repair it: of the whole or of every expert."""

from calmoe_jax.calibration.beta import BetaFit as BetaFit
from calmoe_jax.calibration.beta import apply_beta as apply_beta
from calmoe_jax.calibration.beta import fit_beta as fit_beta
from calmoe_jax.calibration.binning import ReliabilityBins as ReliabilityBins
from calmoe_jax.calibration.binning import binned_calibration_error as binned_calibration_error
from calmoe_jax.calibration.binning import (
    debiased_binned_calibration_error as debiased_binned_calibration_error,
)
from calmoe_jax.calibration.binning import (
    debiased_squared_binned_calibration_error as debiased_squared_binned_calibration_error,
)
from calmoe_jax.calibration.binning import reliability_bins as reliability_bins
from calmoe_jax.calibration.bootstrap import bootstrap_bins as bootstrap_bins
from calmoe_jax.calibration.bootstrap import bootstrap_counts as bootstrap_counts
from calmoe_jax.calibration.bootstrap import bootstrap_sums as bootstrap_sums
from calmoe_jax.calibration.bootstrap import cluster_bins as cluster_bins
from calmoe_jax.calibration.bootstrap import cluster_sums as cluster_sums
from calmoe_jax.calibration.decomposition import BrierDecomposition as BrierDecomposition
from calmoe_jax.calibration.decomposition import CorpDecomposition as CorpDecomposition
from calmoe_jax.calibration.decomposition import MurphyDecomposition as MurphyDecomposition
from calmoe_jax.calibration.decomposition import brier_decomposition as brier_decomposition
from calmoe_jax.calibration.decomposition import (
    classwise_brier_decomposition as classwise_brier_decomposition,
)
from calmoe_jax.calibration.decomposition import corp_decomposition as corp_decomposition
from calmoe_jax.calibration.decomposition import murphy_decomposition as murphy_decomposition
from calmoe_jax.calibration.diagrams import ReliabilityCurve as ReliabilityCurve
from calmoe_jax.calibration.diagrams import StatisticGap as StatisticGap
from calmoe_jax.calibration.diagrams import gap_by_statistic as gap_by_statistic
from calmoe_jax.calibration.diagrams import reliability_curve as reliability_curve
from calmoe_jax.calibration.dirichlet import MatrixFit as MatrixFit
from calmoe_jax.calibration.dirichlet import apply_dirichlet as apply_dirichlet
from calmoe_jax.calibration.dirichlet import apply_matrix_scaling as apply_matrix_scaling
from calmoe_jax.calibration.dirichlet import fit_dirichlet as fit_dirichlet
from calmoe_jax.calibration.dirichlet import fit_matrix_scaling as fit_matrix_scaling
from calmoe_jax.calibration.disagreement import DisagreementIdentity as DisagreementIdentity
from calmoe_jax.calibration.disagreement import disagreement_identity as disagreement_identity
from calmoe_jax.calibration.ensemble import EnsembleFit as EnsembleFit
from calmoe_jax.calibration.ensemble import apply_ensemble_temperature as apply_ensemble_temperature
from calmoe_jax.calibration.ensemble import fit_ensemble_temperature as fit_ensemble_temperature
from calmoe_jax.calibration.equal_mass import equal_mass_bins as equal_mass_bins
from calmoe_jax.calibration.equal_mass import (
    equal_mass_calibration_error as equal_mass_calibration_error,
)
from calmoe_jax.calibration.error_intervals import (
    calibration_error_interval as calibration_error_interval,
)
from calmoe_jax.calibration.error_intervals import (
    cluster_calibration_error_interval as cluster_calibration_error_interval,
)
from calmoe_jax.calibration.error_intervals import (
    squared_calibration_error_difference_interval as squared_calibration_error_difference_interval,
)
from calmoe_jax.calibration.errors import (
    classwise_bins as classwise_bins,
)
from calmoe_jax.calibration.errors import (
    classwise_calibration_error as classwise_calibration_error,
)
from calmoe_jax.calibration.errors import (
    classwise_calibration_errors as classwise_calibration_errors,
)
from calmoe_jax.calibration.errors import (
    debiased_calibration_error as debiased_calibration_error,
)
from calmoe_jax.calibration.errors import (
    debiased_squared_calibration_error as debiased_squared_calibration_error,
)
from calmoe_jax.calibration.errors import (
    expected_calibration_error as expected_calibration_error,
)
from calmoe_jax.calibration.errors import (
    maximum_calibration_error as maximum_calibration_error,
)
from calmoe_jax.calibration.errors import (
    root_mean_square_calibration_error as root_mean_square_calibration_error,
)
from calmoe_jax.calibration.errors import (
    top_label_bins as top_label_bins,
)
from calmoe_jax.calibration.experts import ExpertErrors as ExpertErrors
from calmoe_jax.calibration.experts import MixtureCalibration as MixtureCalibration
from calmoe_jax.calibration.experts import MixtureErrors as MixtureErrors
from calmoe_jax.calibration.experts import active_region as active_region
from calmoe_jax.calibration.experts import chosen_region as chosen_region
from calmoe_jax.calibration.experts import expert_bins as expert_bins
from calmoe_jax.calibration.experts import expert_calibration_errors as expert_calibration_errors
from calmoe_jax.calibration.experts import (
    expert_region_calibration_errors as expert_region_calibration_errors,
)
from calmoe_jax.calibration.experts import mixture_calibration as mixture_calibration
from calmoe_jax.calibration.gate import GateTemperatureFit as GateTemperatureFit
from calmoe_jax.calibration.gate import apply_gate_temperature as apply_gate_temperature
from calmoe_jax.calibration.gate import fit_gate_temperature as fit_gate_temperature
from calmoe_jax.calibration.histogram import HistogramFit as HistogramFit
from calmoe_jax.calibration.histogram import apply_histogram_binning as apply_histogram_binning
from calmoe_jax.calibration.histogram import fit_histogram_binning as fit_histogram_binning
from calmoe_jax.calibration.inputs import check_predictions as check_predictions
from calmoe_jax.calibration.intervals import Interval as Interval
from calmoe_jax.calibration.intervals import ScoreIntervals as ScoreIntervals
from calmoe_jax.calibration.intervals import mean_interval as mean_interval
from calmoe_jax.calibration.intervals import (
    score_difference_intervals as score_difference_intervals,
)
from calmoe_jax.calibration.intervals import score_intervals as score_intervals
from calmoe_jax.calibration.intervals import statistic_interval as statistic_interval
from calmoe_jax.calibration.isotonic import IsotonicFit as IsotonicFit
from calmoe_jax.calibration.isotonic import apply_classwise_isotonic as apply_classwise_isotonic
from calmoe_jax.calibration.isotonic import apply_isotonic as apply_isotonic
from calmoe_jax.calibration.isotonic import fit_classwise_isotonic as fit_classwise_isotonic
from calmoe_jax.calibration.isotonic import fit_isotonic as fit_isotonic
from calmoe_jax.calibration.kernel import KernelCalibrationTest as KernelCalibrationTest
from calmoe_jax.calibration.kernel import kernel_calibration_test as kernel_calibration_test
from calmoe_jax.calibration.kernel import (
    maximum_mean_calibration_error as maximum_mean_calibration_error,
)
from calmoe_jax.calibration.kernel import (
    squared_kernel_calibration_error as squared_kernel_calibration_error,
)
from calmoe_jax.calibration.platt import PlattFit as PlattFit
from calmoe_jax.calibration.platt import apply_platt as apply_platt
from calmoe_jax.calibration.platt import fit_platt as fit_platt
from calmoe_jax.calibration.scores import (
    accuracy as accuracy,
)
from calmoe_jax.calibration.scores import (
    brier_score as brier_score,
)
from calmoe_jax.calibration.scores import (
    confidence_gap as confidence_gap,
)
from calmoe_jax.calibration.scores import (
    negative_log_likelihood as negative_log_likelihood,
)
from calmoe_jax.calibration.scores import (
    top_label as top_label,
)
from calmoe_jax.calibration.smooth import SmoothCalibrationError as SmoothCalibrationError
from calmoe_jax.calibration.smooth import SmoothNullLevel as SmoothNullLevel
from calmoe_jax.calibration.smooth import smooth_calibration_error as smooth_calibration_error
from calmoe_jax.calibration.smooth import smooth_null_level as smooth_null_level
from calmoe_jax.calibration.smooth import (
    soft_binned_calibration_error as soft_binned_calibration_error,
)
from calmoe_jax.calibration.states import CalibrationState as CalibrationState
from calmoe_jax.calibration.states import CalibrationSummary as CalibrationSummary
from calmoe_jax.calibration.states import CalibrationSums as CalibrationSums
from calmoe_jax.calibration.states import compute_calibration as compute_calibration
from calmoe_jax.calibration.states import init_calibration as init_calibration
from calmoe_jax.calibration.states import merge_calibration as merge_calibration
from calmoe_jax.calibration.states import psum_calibration as psum_calibration
from calmoe_jax.calibration.states import update_calibration as update_calibration
from calmoe_jax.calibration.temperature import TemperatureFit as TemperatureFit
from calmoe_jax.calibration.temperature import (
    apply_expert_temperatures as apply_expert_temperatures,
)
from calmoe_jax.calibration.temperature import apply_temperature as apply_temperature
from calmoe_jax.calibration.temperature import fit_expert_temperatures as fit_expert_temperatures
from calmoe_jax.calibration.temperature import fit_temperature as fit_temperature
from calmoe_jax.calibration.temperature import scale_log_probs as scale_log_probs
from calmoe_jax.calibration.vector import VectorFit as VectorFit
from calmoe_jax.calibration.vector import apply_vector_scaling as apply_vector_scaling
from calmoe_jax.calibration.vector import fit_vector_scaling as fit_vector_scaling
from calmoe_jax.calibration.worst import WorstGroup as WorstGroup
from calmoe_jax.calibration.worst import WorstReweighting as WorstReweighting
from calmoe_jax.calibration.worst import (
    worst_group_calibration_error as worst_group_calibration_error,
)
from calmoe_jax.calibration.worst import (
    worst_reweighting_calibration_error as worst_reweighting_calibration_error,
)
