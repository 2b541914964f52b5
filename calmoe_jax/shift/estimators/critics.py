"""A lower bound of the accuracy, from classifiers that agree on one sample and not on the other."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_positive, check_range
from calmoe_jax._numerics import AxisName, all_rows
from calmoe_jax._signatures import checked
from calmoe_jax.shift._discriminator import Pooled, pool
from calmoe_jax.shift.estimators._observed import as_estimate, mean, observe, required
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence

# How much disagreement on targets counts beside agreement on held-out examples, a critic for each.
_EMPHASES = (0.1, 0.3, 1.0, 3.0)
_STEPS = 150
_POWER_STEPS = 20

_Slopes = Float[Array, "columns classes"]


@checked
def disagreeing_critics(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    level: float = 0.01,
    penalty: float = 0.01,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """A lower bound of the accuracy, not an estimate of it (Dis^2).

    `a_h - max over critics (agree_h - agree_t) - eps`, with `a_h` the held-out accuracy, `agree`
    the share of a sample on which a critic predicts what the model does, and
    `eps = sqrt((n_h + 4 n_t) log(1 / level) / (2 n_h n_t))`. It is a bound, at `1 - level`, if some
    critic disagrees by as much as the true labels do. Critics are linear in the coordinates and
    convex in their fit, so that there is nothing to restart: they differ in how much the targets
    count. The most that a linear critic can disagree may be more than is found here: fits are of a
    smooth loss, in 150 steps each. The cost is 1,200 products with the coordinates.

    Args:
        held_out: labelled examples, with coordinates.
        labels: their classes.
        targets: unlabelled examples, with coordinates.
        level: probability that the bound fails for want of examples, in (0, 1).
        penalty: `penalty / 2 |slopes|^2` is added to the mean loss of a critic; above 0.
        axis_name: device axis that both samples are sharded over; each device works on all rows.

    Returns:
        An `AccuracyEstimate` without a standard error, whose accuracy is a lower bound, 0 where it
        says nothing. NaN without an example, or for a NaN or a label out of range in one that
        counts.

    Raises:
        ValueError: if coordinates are missing, a constant is out of range, or sizes do not match.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]] * 200))
        >>> sample = Evidence(log_probs, coordinates=log_probs)
        >>> round(float(disagreeing_critics(sample, jnp.array([0, 1] * 200), sample).accuracy), 2)
        0.83

    References:
        Rosenfeld and Garg, (Almost) Provable Error Bounds Under Distribution Shift via Disagreement
        Discrepancy, 2023.
    """
    check_range("level", level, 0, 1)
    check_positive("level", level)
    check_positive("penalty", penalty)
    own, other = observe(held_out, labels, targets, axis_name)
    pooled = pool(
        *required("coordinates", held_out, targets), where=own.counted,
        target_where=other.counted, axis_name=axis_name,
    )  # fmt: skip
    predicted = jnp.concatenate([all_rows(s.predicted, axis_name) for s in (own, other)])
    discrepancy = _discrepancy(pooled, predicted, own.probs.shape[1], penalty)
    sizes = 2 * own.number * other.number
    eps = jnp.sqrt((own.number + 4 * other.number) * math.log(1 / level) / sizes)
    bound = mean(own.correct, own).value - discrepancy - eps
    return as_estimate(bound, None, own, other)


def _discrepancy(
    pooled: Pooled, predicted: Int[Array, " rows"], num_classes: int, penalty: float
) -> Float[Array, ""]:
    """Largest agreement on held-out rows less that on targets, of all critics."""
    columns = pooled.columns if pooled.basis is None else pooled.columns @ pooled.basis
    columns = jnp.concatenate([columns, jnp.ones_like(columns[:, :1])], axis=1)
    is_predicted = jnp.arange(num_classes, dtype=predicted.dtype)[None] == predicted[:, None]
    samples = [pooled.counts & ~pooled.is_target, pooled.counts & pooled.is_target]
    shares = [
        sample.astype(columns.dtype) / jnp.maximum(jnp.sum(sample), 1).astype(columns.dtype)
        for sample in samples
    ]
    curvatures = [_largest_curvature(columns, share) for share in shares]

    def discrepancy(emphasis: Float[Array, ""]) -> Float[Array, ""]:
        def slope(slopes: _Slopes) -> _Slopes:
            scores = columns @ slopes
            agreeing = jax.nn.softmax(scores, axis=-1) - is_predicted.astype(scores.dtype)
            differing = _slope_of_disagreement(scores, is_predicted)
            by_row = shares[0][:, None] * agreeing + emphasis * shares[1][:, None] * differing
            return columns.T @ by_row + penalty * slopes

        # both losses have curvature of 1/2 at most in the scores of an example
        most = 0.5 * (curvatures[0] + emphasis * curvatures[1]) + penalty
        slopes = _descend(slope, jnp.zeros((columns.shape[1], num_classes), columns.dtype), most)
        scores = columns @ slopes
        # a tie disagrees: a critic of equal scores says nothing of the model
        own = jnp.max(jnp.where(is_predicted, scores, -jnp.inf), axis=-1)
        rest = jnp.max(jnp.where(is_predicted, -jnp.inf, scores), axis=-1)
        agrees = (own > rest).astype(columns.dtype)
        return agrees @ shares[0] - agrees @ shares[1]

    found = jax.vmap(discrepancy)(jnp.asarray(_EMPHASES, columns.dtype))
    # the model itself is a critic, and differs by nothing
    return jnp.max(found, initial=0)


def _slope_of_disagreement(
    scores: Float[Array, "rows classes"], is_predicted: Bool[Array, "rows classes"]
) -> Float[Array, "rows classes"]:
    """Derivative of `log(1 + exp(own score - mean of the others))` to the scores."""
    chosen = is_predicted.astype(scores.dtype)
    towards = chosen - (1 - chosen) / max(scores.shape[1] - 1, 1)
    excess = jnp.sum(towards * scores, axis=-1, keepdims=True)
    return jax.nn.sigmoid(excess) * towards


def _largest_curvature(
    columns: Float[Array, "rows columns"], share: Float[Array, " rows"]
) -> Float[Array, ""]:
    """Largest eigenvalue of the columns' second moments, by power iteration and with a margin."""

    def multiply(
        _: int | Int[Array, ""], pair: tuple[Float[Array, " columns"], Float[Array, ""]]
    ) -> tuple[Float[Array, " columns"], Float[Array, ""]]:
        vector, _length = pair
        product = columns.T @ (share * (columns @ vector))
        length = jnp.linalg.norm(product)
        return product / jnp.where(length > 0, length, 1), length

    start = jnp.arange(1, columns.shape[1] + 1).astype(columns.dtype)
    start = start / jnp.linalg.norm(start)
    return 1.2 * jax.lax.fori_loop(0, _POWER_STEPS, multiply, (start, jnp.zeros_like(start[0])))[1]


def _descend(slope: Callable[[_Slopes], _Slopes], start: _Slopes, most: Array) -> _Slopes:
    """Minimises by Nesterov's accelerated gradient descent, with steps of `1 / most`."""

    def step(i: Int[Array, ""], pair: tuple[_Slopes, _Slopes]) -> tuple[_Slopes, _Slopes]:
        old, ahead = pair
        new = ahead - slope(ahead) / most
        count = jnp.asarray(i).astype(start.dtype)
        return new, new + count / (count + 3) * (new - old)

    return jax.lax.fori_loop(0, _STEPS, step, (start, start))[0]
