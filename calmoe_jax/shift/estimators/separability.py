"""The estimator from how well targets can be told from held-out examples."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from calmoe_jax._numerics import AxisName
from calmoe_jax._signatures import checked
from calmoe_jax.shift.confidence import separability_confidence
from calmoe_jax.shift.estimators._observed import as_estimate, mean, observe, required
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence
from calmoe_jax.shift.separability import separability as separability_of


@checked
def separability(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    penalty: float = 100.0,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """The drop of the mean confidence counts the more, the better samples are told apart (PAD2).

    See `separability_confidence`, which takes the held-out confidence for the held-out accuracy;
    of the labels only the range is looked at. The cost is two ridge regressions on the coordinates.

    Args:
        held_out: labelled examples, with coordinates.
        labels: their classes.
        targets: unlabelled examples, with coordinates.
        penalty: penalty of the regressions, above 0.
        axis_name: device axis that both samples are sharded over; each device works on all rows.

    Returns:
        An `AccuracyEstimate` without a standard error, at most the mean target confidence. NaN
        without an example, or for a NaN or a label out of range in one that counts. Another order
        of the examples makes other folds, and moves it a little.

    Raises:
        ValueError: if coordinates are missing, `penalty` is not above 0, or sizes do not match.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]] * 4))
        >>> sample = Evidence(log_probs, coordinates=log_probs)
        >>> round(float(separability(sample, jnp.array([0, 1] * 4), sample).accuracy), 3)
        0.9

    References:
        Ben-David et al., Analysis of Representations for Domain Adaptation, 2007; the rule is ours.
    """
    own, other = observe(held_out, labels, targets, axis_name)
    separable = separability_of(
        *required("coordinates", held_out, targets), where=own.counted,
        target_where=other.counted, penalty=penalty, axis_name=axis_name,
    )  # fmt: skip
    before, after = (mean(seen.confidence, seen) for seen in (own, other))
    error = jnp.sqrt(before.variance + after.variance)
    estimate = separability_confidence(
        before.value, after.value, error, separable, num_classes=own.probs.shape[1]
    )
    return as_estimate(estimate, None, own, other)
