"""Temperatures for an unlabelled split, from its routing configurations.

Each calibrator here sees labelled held-out examples and unlabelled ones of the split, gives the
aggregate one temperature, and never one below the temperature fitted in distribution: unlabelled
examples are weak evidence that a model should be more confident. `prepare` computes what depends
on the held-out examples alone, `fit_to_targets` the rest for a split, `describe` the decision.
Two of them are modes to choose from: `safe`, the default, and `bold`. `MODES` says what each rests
on, what it cannot know, and what it did where that could be measured.
"""

from calmoe_jax._export import register_named_tuples as _register_named_tuples
from calmoe_jax.shift.repair.balance_evidence import balance_evidence as balance_evidence
from calmoe_jax.shift.repair.fit import Repair as Repair
from calmoe_jax.shift.repair.fit import fit_to_targets as fit_to_targets
from calmoe_jax.shift.repair.held_out import HeldOut as HeldOut
from calmoe_jax.shift.repair.held_out import prepare as prepare
from calmoe_jax.shift.repair.modes import DEFAULT_MODE as DEFAULT_MODE
from calmoe_jax.shift.repair.modes import MODES as MODES
from calmoe_jax.shift.repair.modes import Mode as Mode
from calmoe_jax.shift.repair.record import RepairRecord as RepairRecord
from calmoe_jax.shift.repair.record import describe as describe
from calmoe_jax.shift.repair.refit import REFITS as REFITS
from calmoe_jax.shift.repair.refit import Refit as Refit
from calmoe_jax.shift.repair.refit import refit_with_labels as refit_with_labels
from calmoe_jax.shift.repair.sample import Sample as Sample
from calmoe_jax.shift.repair.sample import dense_sample as dense_sample
from calmoe_jax.shift.repair.temperatures import CALIBRATORS as CALIBRATORS
from calmoe_jax.shift.repair.temperatures import least_log_prob as least_log_prob
from calmoe_jax.shift.repair.temperatures import usable_temperature as usable_temperature
from calmoe_jax.shift.repair.temperatures import with_possible_labels as with_possible_labels

_register_named_tuples(__name__)
