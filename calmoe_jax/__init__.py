"""Calibrated mixture-of-experts classifiers under distribution shift, in JAX.

The pure core: arrays in, arrays and NamedTuples out, under `jit`, `vmap`, `grad`, `pmap` and
`shard_map`. Models are in `calmoe_jax.nn`, data in `calmoe_jax.data`, training in
`calmoe_jax.training`; importing this package imports none of them.
"""

from calmoe_jax.calibration import ReliabilityBins as ReliabilityBins
from calmoe_jax.calibration import SmoothCalibrationError as SmoothCalibrationError
from calmoe_jax.calibration import TemperatureFit as TemperatureFit
from calmoe_jax.calibration import accuracy as accuracy
from calmoe_jax.calibration import apply_expert_temperatures as apply_expert_temperatures
from calmoe_jax.calibration import apply_temperature as apply_temperature
from calmoe_jax.calibration import binned_calibration_error as binned_calibration_error
from calmoe_jax.calibration import bootstrap_counts as bootstrap_counts
from calmoe_jax.calibration import brier_score as brier_score
from calmoe_jax.calibration import classwise_calibration_error as classwise_calibration_error
from calmoe_jax.calibration import classwise_calibration_errors as classwise_calibration_errors
from calmoe_jax.calibration import confidence_gap as confidence_gap
from calmoe_jax.calibration import expected_calibration_error as expected_calibration_error
from calmoe_jax.calibration import fit_expert_temperatures as fit_expert_temperatures
from calmoe_jax.calibration import fit_temperature as fit_temperature
from calmoe_jax.calibration import negative_log_likelihood as negative_log_likelihood
from calmoe_jax.calibration import reliability_bins as reliability_bins
from calmoe_jax.calibration import scale_log_probs as scale_log_probs
from calmoe_jax.calibration import smooth_calibration_error as smooth_calibration_error
from calmoe_jax.calibration import (
    soft_binned_calibration_error as soft_binned_calibration_error,
)
from calmoe_jax.calibration import top_label as top_label
from calmoe_jax.calibration import top_label_bins as top_label_bins
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
