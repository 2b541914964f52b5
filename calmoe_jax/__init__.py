"""Calibrated mixture-of-experts classifiers under distribution shift, in JAX.

The pure core: arrays in, arrays and NamedTuples out, under `jit`, `vmap`, `grad`, `pmap` and
`shard_map`. Models are in `calmoe_jax.nn`, data in `calmoe_jax.data`, training in
`calmoe_jax.training`; importing this package imports none of them.
"""

from calmoe_jax.calibration import BetaFit as BetaFit
from calmoe_jax.calibration import BrierDecomposition as BrierDecomposition
from calmoe_jax.calibration import CalibrationState as CalibrationState
from calmoe_jax.calibration import CalibrationSummary as CalibrationSummary
from calmoe_jax.calibration import CalibrationSums as CalibrationSums
from calmoe_jax.calibration import CorpDecomposition as CorpDecomposition
from calmoe_jax.calibration import DisagreementIdentity as DisagreementIdentity
from calmoe_jax.calibration import EnsembleFit as EnsembleFit
from calmoe_jax.calibration import ExpertErrors as ExpertErrors
from calmoe_jax.calibration import GateTemperatureFit as GateTemperatureFit
from calmoe_jax.calibration import HistogramFit as HistogramFit
from calmoe_jax.calibration import Interval as Interval
from calmoe_jax.calibration import IsotonicFit as IsotonicFit
from calmoe_jax.calibration import KernelCalibrationTest as KernelCalibrationTest
from calmoe_jax.calibration import MatrixFit as MatrixFit
from calmoe_jax.calibration import MixtureCalibration as MixtureCalibration
from calmoe_jax.calibration import MixtureErrors as MixtureErrors
from calmoe_jax.calibration import MurphyDecomposition as MurphyDecomposition
from calmoe_jax.calibration import PlattFit as PlattFit
from calmoe_jax.calibration import ReliabilityBins as ReliabilityBins
from calmoe_jax.calibration import ReliabilityCurve as ReliabilityCurve
from calmoe_jax.calibration import ScoreIntervals as ScoreIntervals
from calmoe_jax.calibration import SmoothCalibrationError as SmoothCalibrationError
from calmoe_jax.calibration import SmoothNullLevel as SmoothNullLevel
from calmoe_jax.calibration import StatisticGap as StatisticGap
from calmoe_jax.calibration import TemperatureFit as TemperatureFit
from calmoe_jax.calibration import VectorFit as VectorFit
from calmoe_jax.calibration import WorstGroup as WorstGroup
from calmoe_jax.calibration import WorstReweighting as WorstReweighting
from calmoe_jax.calibration import accuracy as accuracy
from calmoe_jax.calibration import active_region as active_region
from calmoe_jax.calibration import apply_beta as apply_beta
from calmoe_jax.calibration import apply_classwise_isotonic as apply_classwise_isotonic
from calmoe_jax.calibration import apply_dirichlet as apply_dirichlet
from calmoe_jax.calibration import apply_ensemble_temperature as apply_ensemble_temperature
from calmoe_jax.calibration import apply_expert_temperatures as apply_expert_temperatures
from calmoe_jax.calibration import apply_gate_temperature as apply_gate_temperature
from calmoe_jax.calibration import apply_histogram_binning as apply_histogram_binning
from calmoe_jax.calibration import apply_isotonic as apply_isotonic
from calmoe_jax.calibration import apply_matrix_scaling as apply_matrix_scaling
from calmoe_jax.calibration import apply_platt as apply_platt
from calmoe_jax.calibration import apply_temperature as apply_temperature
from calmoe_jax.calibration import apply_vector_scaling as apply_vector_scaling
from calmoe_jax.calibration import binned_calibration_error as binned_calibration_error
from calmoe_jax.calibration import bootstrap_bins as bootstrap_bins
from calmoe_jax.calibration import bootstrap_counts as bootstrap_counts
from calmoe_jax.calibration import bootstrap_sums as bootstrap_sums
from calmoe_jax.calibration import brier_decomposition as brier_decomposition
from calmoe_jax.calibration import brier_score as brier_score
from calmoe_jax.calibration import calibration_error_interval as calibration_error_interval
from calmoe_jax.calibration import check_predictions as check_predictions
from calmoe_jax.calibration import chosen_region as chosen_region
from calmoe_jax.calibration import classwise_bins as classwise_bins
from calmoe_jax.calibration import classwise_brier_decomposition as classwise_brier_decomposition
from calmoe_jax.calibration import classwise_calibration_error as classwise_calibration_error
from calmoe_jax.calibration import classwise_calibration_errors as classwise_calibration_errors
from calmoe_jax.calibration import cluster_bins as cluster_bins
from calmoe_jax.calibration import (
    cluster_calibration_error_interval as cluster_calibration_error_interval,
)
from calmoe_jax.calibration import cluster_sums as cluster_sums
from calmoe_jax.calibration import compute_calibration as compute_calibration
from calmoe_jax.calibration import confidence_gap as confidence_gap
from calmoe_jax.calibration import corp_decomposition as corp_decomposition
from calmoe_jax.calibration import (
    debiased_binned_calibration_error as debiased_binned_calibration_error,
)
from calmoe_jax.calibration import debiased_calibration_error as debiased_calibration_error
from calmoe_jax.calibration import (
    debiased_squared_binned_calibration_error as debiased_squared_binned_calibration_error,
)
from calmoe_jax.calibration import (
    debiased_squared_calibration_error as debiased_squared_calibration_error,
)
from calmoe_jax.calibration import disagreement_identity as disagreement_identity
from calmoe_jax.calibration import equal_mass_bins as equal_mass_bins
from calmoe_jax.calibration import equal_mass_calibration_error as equal_mass_calibration_error
from calmoe_jax.calibration import expected_calibration_error as expected_calibration_error
from calmoe_jax.calibration import expert_bins as expert_bins
from calmoe_jax.calibration import expert_calibration_errors as expert_calibration_errors
from calmoe_jax.calibration import (
    expert_region_calibration_errors as expert_region_calibration_errors,
)
from calmoe_jax.calibration import fit_beta as fit_beta
from calmoe_jax.calibration import fit_classwise_isotonic as fit_classwise_isotonic
from calmoe_jax.calibration import fit_dirichlet as fit_dirichlet
from calmoe_jax.calibration import fit_ensemble_temperature as fit_ensemble_temperature
from calmoe_jax.calibration import fit_expert_temperatures as fit_expert_temperatures
from calmoe_jax.calibration import fit_gate_temperature as fit_gate_temperature
from calmoe_jax.calibration import fit_histogram_binning as fit_histogram_binning
from calmoe_jax.calibration import fit_isotonic as fit_isotonic
from calmoe_jax.calibration import fit_matrix_scaling as fit_matrix_scaling
from calmoe_jax.calibration import fit_platt as fit_platt
from calmoe_jax.calibration import fit_temperature as fit_temperature
from calmoe_jax.calibration import fit_vector_scaling as fit_vector_scaling
from calmoe_jax.calibration import gap_by_statistic as gap_by_statistic
from calmoe_jax.calibration import init_calibration as init_calibration
from calmoe_jax.calibration import kernel_calibration_test as kernel_calibration_test
from calmoe_jax.calibration import maximum_calibration_error as maximum_calibration_error
from calmoe_jax.calibration import maximum_mean_calibration_error as maximum_mean_calibration_error
from calmoe_jax.calibration import mean_interval as mean_interval
from calmoe_jax.calibration import merge_calibration as merge_calibration
from calmoe_jax.calibration import mixture_calibration as mixture_calibration
from calmoe_jax.calibration import murphy_decomposition as murphy_decomposition
from calmoe_jax.calibration import negative_log_likelihood as negative_log_likelihood
from calmoe_jax.calibration import psum_calibration as psum_calibration
from calmoe_jax.calibration import reliability_bins as reliability_bins
from calmoe_jax.calibration import reliability_curve as reliability_curve
from calmoe_jax.calibration import (
    root_mean_square_calibration_error as root_mean_square_calibration_error,
)
from calmoe_jax.calibration import scale_log_probs as scale_log_probs
from calmoe_jax.calibration import score_difference_intervals as score_difference_intervals
from calmoe_jax.calibration import score_intervals as score_intervals
from calmoe_jax.calibration import smooth_calibration_error as smooth_calibration_error
from calmoe_jax.calibration import smooth_null_level as smooth_null_level
from calmoe_jax.calibration import (
    soft_binned_calibration_error as soft_binned_calibration_error,
)
from calmoe_jax.calibration import (
    squared_calibration_error_difference_interval as squared_calibration_error_difference_interval,
)
from calmoe_jax.calibration import (
    squared_kernel_calibration_error as squared_kernel_calibration_error,
)
from calmoe_jax.calibration import statistic_interval as statistic_interval
from calmoe_jax.calibration import top_label as top_label
from calmoe_jax.calibration import top_label_bins as top_label_bins
from calmoe_jax.calibration import update_calibration as update_calibration
from calmoe_jax.calibration import worst_group_calibration_error as worst_group_calibration_error
from calmoe_jax.calibration import (
    worst_reweighting_calibration_error as worst_reweighting_calibration_error,
)
from calmoe_jax.dispatch import DispatchPlan as DispatchPlan
from calmoe_jax.dispatch import Routed as Routed
from calmoe_jax.dispatch import check_plan as check_plan
from calmoe_jax.dispatch import combine as combine
from calmoe_jax.dispatch import dispatch as dispatch
from calmoe_jax.dispatch import expert_capacity as expert_capacity
from calmoe_jax.dispatch import gather_slots as gather_slots
from calmoe_jax.dispatch import plan_dispatch as plan_dispatch
from calmoe_jax.dispatch import route as route
from calmoe_jax.experts import ExpertParams as ExpertParams
from calmoe_jax.experts import SparseOutput as SparseOutput
from calmoe_jax.experts import expert_linear as expert_linear
from calmoe_jax.experts import expert_mlp as expert_mlp
from calmoe_jax.experts import sparse_layer as sparse_layer
from calmoe_jax.matmul import check_groups as check_groups
from calmoe_jax.matmul import grouped_matmul as grouped_matmul
from calmoe_jax.matmul import preferred_block_size as preferred_block_size
from calmoe_jax.mixture import Configuration as Configuration
from calmoe_jax.mixture import MixtureLosses as MixtureLosses
from calmoe_jax.mixture import configuration as configuration
from calmoe_jax.mixture import configuration_features as configuration_features
from calmoe_jax.mixture import mix as mix
from calmoe_jax.mixture import mix_log_probs as mix_log_probs
from calmoe_jax.mixture import mixture_losses as mixture_losses
from calmoe_jax.reweighting import BalanceSolution as BalanceSolution
from calmoe_jax.reweighting import CrossBatchAdversary as CrossBatchAdversary
from calmoe_jax.reweighting import CrossBatchState as CrossBatchState
from calmoe_jax.reweighting import GroupAdversary as GroupAdversary
from calmoe_jax.reweighting import GroupState as GroupState
from calmoe_jax.reweighting import WorstCase as WorstCase
from calmoe_jax.reweighting import balanced_robust_loss as balanced_robust_loss
from calmoe_jax.reweighting import brier_signal as brier_signal
from calmoe_jax.reweighting import calibration_witness as calibration_witness
from calmoe_jax.reweighting import chi_square_ball as chi_square_ball
from calmoe_jax.reweighting import configuration_robust_loss as configuration_robust_loss
from calmoe_jax.reweighting import configuration_signal as configuration_signal
from calmoe_jax.reweighting import cross_batch_tilt as cross_batch_tilt
from calmoe_jax.reweighting import cvar as cvar
from calmoe_jax.reweighting import danskin_loss as danskin_loss
from calmoe_jax.reweighting import dct_filter as dct_filter
from calmoe_jax.reweighting import entropy_balance as entropy_balance
from calmoe_jax.reweighting import erm_loss as erm_loss
from calmoe_jax.reweighting import excess_loss as excess_loss
from calmoe_jax.reweighting import group_dro as group_dro
from calmoe_jax.reweighting import kl_ball as kl_ball
from calmoe_jax.reweighting import kl_penalty as kl_penalty
from calmoe_jax.reweighting import radius_of_fraction as radius_of_fraction
from calmoe_jax.reweighting import radius_robust_loss as radius_robust_loss
from calmoe_jax.reweighting import rectify_gradient as rectify_gradient
from calmoe_jax.reweighting import robust_filtered_loss as robust_filtered_loss
from calmoe_jax.reweighting import robust_loss as robust_loss
from calmoe_jax.reweighting import routing_relevance as routing_relevance
from calmoe_jax.reweighting import tilted_log_weights as tilted_log_weights
from calmoe_jax.reweighting import weighted_loss as weighted_loss
from calmoe_jax.routing import GateStatistics as GateStatistics
from calmoe_jax.routing import Routing as Routing
from calmoe_jax.routing import dense_routing as dense_routing
from calmoe_jax.routing import expert_importance as expert_importance
from calmoe_jax.routing import expert_load as expert_load
from calmoe_jax.routing import gate_probabilities as gate_probabilities
from calmoe_jax.routing import gate_statistics as gate_statistics
from calmoe_jax.routing import hard_routing as hard_routing
from calmoe_jax.routing import load_balancing_loss as load_balancing_loss
from calmoe_jax.routing import router_z_loss as router_z_loss
from calmoe_jax.routing import routing_weights as routing_weights
from calmoe_jax.routing import straight_through_weights as straight_through_weights
from calmoe_jax.routing import top_k_routing as top_k_routing
from calmoe_jax.shift import Agreement as Agreement
from calmoe_jax.shift import ConfidenceMatch as ConfidenceMatch
from calmoe_jax.shift import NeighbourSupport as NeighbourSupport
from calmoe_jax.shift import RepairVerdict as RepairVerdict
from calmoe_jax.shift import ShiftTest as ShiftTest
from calmoe_jax.shift import agreement_accuracy as agreement_accuracy
from calmoe_jax.shift import average_threshold_accuracy as average_threshold_accuracy
from calmoe_jax.shift import chance_corrected_agreement as chance_corrected_agreement
from calmoe_jax.shift import configuration_balance as configuration_balance
from calmoe_jax.shift import configuration_coordinates as configuration_coordinates
from calmoe_jax.shift import configuration_shift_test as configuration_shift_test
from calmoe_jax.shift import difference_of_confidences as difference_of_confidences
from calmoe_jax.shift import match_confidence as match_confidence
from calmoe_jax.shift import mean_confidence as mean_confidence
from calmoe_jax.shift import neighbour_accuracy as neighbour_accuracy
from calmoe_jax.shift import neighbour_support as neighbour_support
from calmoe_jax.shift import repair_verdict as repair_verdict
from calmoe_jax.shift import separability as separability
from calmoe_jax.shift import separability_confidence as separability_confidence
from calmoe_jax.shift import smallest_p_value as smallest_p_value
