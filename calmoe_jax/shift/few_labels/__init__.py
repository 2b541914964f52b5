"""What a few labels of the targets show of the gap, and which targets to label.

    correctness = correctness_model(held_out, labels, targets)   # a guess for every target
    chances = label_chances(correctness)                         # more where it is less certain
    drawn = draw_units(key, chances, num_draws=50)               # label these, in this order
    confidence_gap_sequence(confidence, correct, drawn, correctness=correctness, chances=chances)

The bounds hold for any model, any shift and any guess, at every number of labels.
`shift.repair.repair_with_labels` makes temperatures of them.
"""

from calmoe_jax._export import register_named_tuples as _register_named_tuples
from calmoe_jax.shift.few_labels.betting import (
    lower_confidence_sequence as lower_confidence_sequence,
)
from calmoe_jax.shift.few_labels.correctness import correctness_model as correctness_model
from calmoe_jax.shift.few_labels.draws import draw_units as draw_units
from calmoe_jax.shift.few_labels.draws import label_chances as label_chances
from calmoe_jax.shift.few_labels.draws import labels_needed as labels_needed
from calmoe_jax.shift.few_labels.gap import GapSequence as GapSequence
from calmoe_jax.shift.few_labels.gap import confidence_gap_sequence as confidence_gap_sequence
from calmoe_jax.shift.few_labels.pooling import PooledGaps as PooledGaps
from calmoe_jax.shift.few_labels.pooling import pooled_gaps as pooled_gaps
from calmoe_jax.shift.few_labels.prior import GapPosterior as GapPosterior
from calmoe_jax.shift.few_labels.prior import GapPrior as GapPrior
from calmoe_jax.shift.few_labels.prior import label_free_prior as label_free_prior
from calmoe_jax.shift.few_labels.prior import posterior_gap as posterior_gap

_register_named_tuples(__name__)
