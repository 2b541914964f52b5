"""Estimators from norms of the matrix of target probabilities."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._checks import check_positive
from calmoe_jax._numerics import AxisName, all_rows
from calmoe_jax._signatures import checked
from calmoe_jax.shift.estimators._observed import Observed, as_estimate, mean, observe
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence


@checked
def nuclear_norm(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """Accuracy in proportion to the nuclear norm of the probabilities.

    `a_h N(targets) / N(held_out)`, with `a_h` the held-out accuracy and `N` the sum of the singular
    values of the matrix of probabilities over its upper bound `sqrt(n min(n, classes))`: 1 for
    certain predictions in equal shares, less where they are unsure or of few classes. The
    proportion is ours: the norm as published ranks samples, and has no unit of accuracy. The cost
    is a QR decomposition of both samples.

    Args:
        held_out: labelled examples.
        labels: their classes.
        targets: unlabelled examples.
        axis_name: device axis that both samples are sharded over.

    Returns:
        An `AccuracyEstimate` without a standard error. NaN without an example, or for a NaN or a
        label out of range in one that counts. Too high for targets whose classes are in more equal
        shares than the held-out examples', and too low the other way round.

    Raises:
        ValueError: if sizes do not match.

    Example:
        >>> sure, half = jnp.log(jnp.eye(2) * 0.8 + 0.1), jnp.log(jnp.full((2, 2), 0.5))
        >>> labels = jnp.array([0, 1])
        >>> round(float(nuclear_norm(Evidence(sure), labels, Evidence(half)).accuracy), 3)
        0.556

    References:
        Deng et al., Confidence and Dispersity Speak: Characterizing Prediction Matrix for
        Unsupervised Accuracy Estimation, 2023.
    """
    own, other = observe(held_out, labels, targets, axis_name)
    ratio = _nuclear(other) / _nuclear(own)
    return as_estimate(mean(own.correct, own).value * ratio, None, own, other)


def _nuclear(seen: Observed) -> Float[Array, ""]:
    """The norm over its bound, from the triangular factors of the devices."""
    rows = jnp.where(seen.counted[:, None] & ~seen.unknown, seen.probs, 0)
    factor = all_rows(jnp.linalg.qr(rows, mode="r"), seen.axis_name)
    norm = jnp.sum(jnp.linalg.svd(factor, compute_uv=False))
    least = jnp.minimum(seen.number, jnp.asarray(rows.shape[1], rows.dtype))
    return norm / jnp.sqrt(seen.number * least)


@checked
def mano(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    p: float = 4.0,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """Accuracy in proportion to the entrywise norm of the probabilities (MaNo).

    `a_h M(targets) / M(held_out)`, with `a_h` the held-out accuracy and
    `M = (mean over examples and classes of p_iy^p)^(1/p)`, the norm of the probabilities over
    `(n classes)^(1/p)`. The proportion is ours: the norm as published ranks samples. As published
    it also replaces the softmax by a polynomial in the logits where the model is unsure on the
    whole; that depends on a constant in each row of logits, which log probabilities do not have,
    and is not done here. One pass over both samples.

    Args:
        held_out: labelled examples.
        labels: their classes.
        targets: unlabelled examples.
        p: exponent, above 0; 4 as published.
        axis_name: device axis that both samples are sharded over.

    Returns:
        An `AccuracyEstimate`, with a standard error to first order, for independent examples. NaN
        without an example, or for a NaN or a label out of range in one that counts.

    Raises:
        ValueError: if `p` is not above 0, or sizes do not match.

    Example:
        >>> sure, half = jnp.log(jnp.eye(2) * 0.8 + 0.1), jnp.log(jnp.full((2, 2), 0.5))
        >>> labels = jnp.array([0, 1])
        >>> round(float(mano(Evidence(sure), labels, Evidence(half)).accuracy), 3)
        0.661

    References:
        Xie et al., MaNo: Exploiting Matrix Norm for Unsupervised Accuracy Estimation Under
        Distribution Shifts, 2024.
    """
    check_positive("p", p)
    own, other = observe(held_out, labels, targets, axis_name)
    powers = [jnp.mean(jnp.power(seen.probs, p), axis=-1) for seen in (own, other)]
    before, after = (mean(x, seen) for x, seen in zip(powers, (own, other), strict=True))
    right = mean(own.correct, own).value
    scale = jnp.power(after.value / before.value, 1 / p)
    held = mean(own.correct * scale - right * scale * powers[0] / (p * before.value), own)
    of_targets = jnp.square(right * scale / (p * after.value)) * after.variance
    return as_estimate(right * scale, held.variance + of_targets, own, other)
