"""Estimators from confidences alone: their threshold, and their mean."""

from jaxtyping import Array, Int

from calmoe_jax._numerics import AxisName
from calmoe_jax._signatures import checked
from calmoe_jax.shift.confidence import difference_of_confidences as difference_rule
from calmoe_jax.shift.confidence import error_threshold, share_above
from calmoe_jax.shift.estimators._observed import as_estimate, mean, observe
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence


@checked
def average_threshold(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """Share of target confidences above the threshold that has the held-out errors below (ATC).

    The cost is a sort of the held-out confidences and a pass over the targets.

    Args:
        held_out: labelled examples.
        labels: their classes.
        targets: unlabelled examples.
        axis_name: device axis that both samples are sharded over.

    Returns:
        An `AccuracyEstimate`. The standard error holds for targets that are distributed as the
        held-out examples near the threshold, whose own error it includes. NaN without an example,
        or for a NaN or a label out of range in one that counts.

    Raises:
        ValueError: if sizes do not match.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.6, 0.4], [0.8, 0.2], [0.9, 0.1]]))
        >>> labels = jnp.array([1, 0, 0, 0])
        >>> average_threshold(Evidence(log_probs), labels, Evidence(log_probs)).accuracy
        Array(0.75, dtype=float32)

    References:
        Garg et al., Leveraging Unlabeled Data to Predict Out-of-Distribution Performance, 2022.
    """
    own, other = observe(held_out, labels, targets, axis_name)
    level = error_threshold(
        own.confidence,
        own.correct,
        weights=own.counted.astype(own.confidence.dtype),
        axis_name=axis_name,
    )
    share = share_above(other.confidence, level, where=other.counted, axis_name=axis_name)
    above = mean((other.confidence >= level).astype(own.confidence.dtype), other)
    # the threshold moves as far as the held-out share below it and the held-out errors differ
    moved = mean((own.confidence >= level).astype(own.confidence.dtype) - own.correct, own)
    return as_estimate(share, above.variance + moved.variance, own, other)


@checked
def difference_of_confidences(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    slope: float = 1.0,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """Held-out accuracy less the drop of the mean confidence (DoC): one pass over both samples.

    Args:
        held_out: labelled examples.
        labels: their classes.
        targets: unlabelled examples.
        slope: loss of accuracy per loss of confidence, at least 0.
        axis_name: device axis that both samples are sharded over.

    Returns:
        An `AccuracyEstimate`; NaN without an example, or for a NaN or a label out of range in one
        that counts.

    Raises:
        ValueError: if `slope` is negative or sizes do not match.

    Example:
        >>> sure, half = jnp.log(jnp.array([[0.9, 0.1]] * 4)), jnp.log(jnp.full((4, 2), 0.5))
        >>> labels = jnp.array([0, 0, 0, 1])
        >>> estimate = difference_of_confidences(Evidence(sure), labels, Evidence(half))
        >>> round(float(estimate.accuracy), 3)
        0.35

    References:
        Guillory et al., Predicting with Confidence on Unseen Distributions, 2021.
    """
    own, other = observe(held_out, labels, targets, axis_name)
    estimate = difference_rule(
        mean(own.correct, own).value,
        mean(own.confidence, own).value,
        mean(other.confidence, other).value,
        slope=slope,
    )
    held = mean(own.correct - slope * own.confidence, own)
    drop = mean(slope * other.confidence, other)
    return as_estimate(estimate, held.variance + drop.variance, own, other)
