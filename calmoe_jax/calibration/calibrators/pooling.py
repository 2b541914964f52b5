"""Isotonic regression on the device, with a knot for every example."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import example_weights
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration.calibrators.isotonic import IsotonicFit


class _Blocks(NamedTuple):
    number: Int[Array, " examples"]
    means: Float[Array, " examples"]
    settled: Bool[Array, ""]


@checked
def pool_adjacent_violators(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> IsotonicFit:
    """Finds the map of `fit_isotonic` under `jax.jit` and `jax.vmap` too.

    The number of knots is that of the examples, whatever the data. Every run of neighbouring blocks
    whose means do not ascend is pooled at once, until none is left: a few rounds on noisy data, and
    as many as there are examples at worst, each a pass over them. Sums are of the confidences'
    dtype. The function is not differentiable in the order of the confidences; for gradients the fit
    is a constant.

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability where that is known.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        An `IsotonicFit`, for `apply_isotonic`: a knot at the confidence of each example, ascending;
        the last one is repeated for examples without weight. All values are NaN if no example has
        weight, or a confidence, outcome or weight that counts is invalid.

    Example:
        >>> p, happened = jnp.array([0.2, 0.4, 0.6]), jnp.array([0.0, 1.0, 0.0])
        >>> pool_adjacent_violators(p, happened).values
        Array([0. , 0.5, 0.5], dtype=float32)

    References:
        Barlow et al., Statistical Inference under Order Restrictions, 1972; de Leeuw et al.,
        Isotone Optimization in R: Pool-Adjacent-Violators Algorithm, 2009.
    """
    level, happened = (jax.lax.stop_gradient(x) for x in event(confidence, outcome))
    dtype = level.dtype
    size = len(level)
    if size == 0:
        return IsotonicFit(jnp.zeros(1, dtype), jnp.full(1, jnp.nan, dtype))
    weight = jax.lax.stop_gradient(example_weights(level.shape, weights, where, dtype))
    counted = weight != 0
    unknown = jnp.any(counted & jnp.isnan(level + happened + weight)) | ~jnp.any(counted)
    order = jnp.argsort(jnp.where(counted, level, jnp.inf))
    counted, weight = counted[order], weight[order]
    level = jnp.where(counted, level[order], jnp.inf)
    happened = jnp.where(counted, happened[order], 0)

    def means(number: Int[Array, " examples"]) -> Float[Array, " examples"]:
        total, sums = (
            jax.ops.segment_sum(x, number, size, indices_are_sorted=True)
            for x in (weight, weight * happened)
        )
        # what has no weight comes last, and is in no order with the others
        return jnp.where(total > 0, sums / jnp.where(total > 0, total, 1), 2)[number]

    def pool(old: _Blocks) -> _Blocks:
        first = old.number[1:] != old.number[:-1]
        kept = first & (old.means[:-1] < old.means[1:])
        number = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(kept, dtype=jnp.int32)])
        return _Blocks(number, means(number), jnp.all(kept == first))

    ties = jnp.cumsum(level[1:] != level[:-1], dtype=jnp.int32)
    number = jnp.concatenate([jnp.zeros(1, jnp.int32), ties])
    # a NaN in the means would never settle
    start = _Blocks(number, means(number), unknown)
    values = jax.lax.while_loop(lambda blocks: ~blocks.settled, pool, start).means
    top = jnp.max(jnp.where(counted, level, -jnp.inf))
    highest = jnp.max(jnp.where(counted, values, -jnp.inf))
    values = jnp.where(unknown, jnp.nan, jnp.where(counted, values, highest))
    return IsotonicFit(jnp.where(counted, level, top), values)
