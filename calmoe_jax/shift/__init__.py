"""Unlabelled targets: tests for shift of the configuration, estimated accuracy, repair."""

from calmoe_jax._export import register_named_tuples as _register_named_tuples
from calmoe_jax.shift import estimators as estimators
from calmoe_jax.shift import few_labels as few_labels
from calmoe_jax.shift.agreement import Agreement as Agreement
from calmoe_jax.shift.agreement import agreement_accuracy as agreement_accuracy
from calmoe_jax.shift.agreement import chance_corrected_agreement as chance_corrected_agreement
from calmoe_jax.shift.balance import configuration_balance as configuration_balance
from calmoe_jax.shift.confidence import ConfidenceMatch as ConfidenceMatch
from calmoe_jax.shift.confidence import average_threshold_accuracy as average_threshold_accuracy
from calmoe_jax.shift.confidence import difference_of_confidences as difference_of_confidences
from calmoe_jax.shift.confidence import error_threshold as error_threshold
from calmoe_jax.shift.confidence import match_confidence as match_confidence
from calmoe_jax.shift.confidence import mean_confidence as mean_confidence
from calmoe_jax.shift.confidence import separability_confidence as separability_confidence
from calmoe_jax.shift.confidence import share_above as share_above
from calmoe_jax.shift.neighbours import NeighbourSupport as NeighbourSupport
from calmoe_jax.shift.neighbours import neighbour_accuracy as neighbour_accuracy
from calmoe_jax.shift.neighbours import neighbour_shares as neighbour_shares
from calmoe_jax.shift.neighbours import neighbour_support as neighbour_support
from calmoe_jax.shift.repair.with_labels import LabelFreeGaps as LabelFreeGaps
from calmoe_jax.shift.repair.with_labels import LabelledRepair as LabelledRepair
from calmoe_jax.shift.repair.with_labels import label_free_gaps as label_free_gaps
from calmoe_jax.shift.repair.with_labels import repair_with_labels as repair_with_labels
from calmoe_jax.shift.separability import configuration_coordinates as configuration_coordinates
from calmoe_jax.shift.separability import separability as separability
from calmoe_jax.shift.two_sample import ShiftTest as ShiftTest
from calmoe_jax.shift.two_sample import configuration_shift_test as configuration_shift_test
from calmoe_jax.shift.two_sample import smallest_p_value as smallest_p_value
from calmoe_jax.shift.verdict import RepairVerdict as RepairVerdict
from calmoe_jax.shift.verdict import repair_verdict as repair_verdict

_register_named_tuples(__name__)
