"""Intervals, and corrected quantiles of bootstrap replicates (BCa)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Interval(NamedTuple):
    """An estimate and its confidence interval.

    Attributes:
        value: the estimate.
        low: lower end; NaN if the data do not determine it.
        high: upper end; NaN if the lower end is.
    """

    value: Float[Array, "*batch"]
    low: Float[Array, "*batch"]
    high: Float[Array, "*batch"]


def check_level(level: float) -> None:
    """Raises `ValueError` unless the level of an interval is inside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got level={level}.")


def corrected(
    value: Float[Array, ""],
    replicates: Float[Array, " replicates"],
    skewness: Float[Array, ""],
    num_clusters: Int[Array, ""],
    level: float,
) -> Interval:
    """Quantiles of the replicates at levels corrected for bias, skewness and few clusters."""
    dtype = replicates.dtype
    below = jnp.mean(replicates < value, dtype=dtype)
    below += jnp.mean(replicates == value, dtype=dtype) / 2
    bias = jax.scipy.special.ndtri(below)
    acceleration = skewness / 6
    ends = jax.scipy.special.ndtri(jnp.array([(1 - level) / 2, (1 + level) / 2], value.dtype))
    shifted = bias + _student(ends, num_clusters)
    slack = 1 - acceleration * shifted
    moved = shifted / jnp.where(slack > 0, slack, 1)
    # beyond its pole the correction is undefined: the end is the extreme quantile
    moved = jnp.where(slack > 0, moved, jnp.sign(shifted) * jnp.inf)
    low, high = jnp.quantile(replicates, jax.scipy.special.ndtr(bias + moved))
    valid = (num_clusters > 1) & (below > 0) & (below < 1) & jnp.isfinite(value)
    valid &= jnp.isfinite(replicates).all()
    return Interval(value, jnp.where(valid, low, jnp.nan), jnp.where(valid, high, jnp.nan))


def _student(normal: Float[Array, " ends"], num_clusters: Int[Array, ""]) -> Float[Array, " ends"]:
    """Quantiles of Student's t, and of means whose variance is divided by n, not by n - 1.

    The expansion of the quantile in one over the degrees of freedom, to its third term.
    """
    freedom = jnp.maximum(num_clusters - 1, 1).astype(normal.dtype)
    square = jnp.square(normal)
    first = (square + 1) / 4
    second = ((5 * square + 16) * square + 3) / 96
    third = (((3 * square + 19) * square + 17) * square - 15) / 384
    wider = 1 + (first + (second + third / freedom) / freedom) / freedom
    return normal * wider * jnp.sqrt((freedom + 1) / freedom)
