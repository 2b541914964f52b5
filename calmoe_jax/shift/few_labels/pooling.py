"""Gaps of several splits or days at once: each borrows from the others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32
from calmoe_jax._signatures import checked

_ROUNDS = 60


class PooledGaps(NamedTuple):
    """Gaps of several groups of targets, by a common model of them.

    Attributes:
        mean: posterior mean of each gap.
        standard_deviation: its posterior standard deviation, with the spread taken as known.
        offset: mean of the gaps minus what was expected.
        spread: standard deviation of the gaps about it.
    """

    mean: Float[Array, " groups"]
    standard_deviation: Float[Array, " groups"]
    offset: Float[Array, ""]
    spread: Float[Array, ""]


@checked
def pooled_gaps(
    estimates: Float[Array, " groups"],
    standard_errors: Float[Array, " groups"],
    expected: Float[Array, " groups"] | None = None,
    *,
    where: Bool[Array, " groups"] | None = None,
) -> PooledGaps:
    """Posterior gaps of splits or days under a hierarchical normal model.

    `estimate_k ~ N(gap_k, e_k^2)`, `gap_k ~ N(expected_k + offset, spread^2)`. The spread is that
    at which the weighted squares have their expectation, `sum (r_k - offset)^2 / (e_k^2 + spread^2)
    = K - 1` (Paule and Mandel), the offset the mean of `r = estimate - expected` with the same
    weights.

    Args:
        estimates: estimate of each gap, as from `confidence_gap_sequence`.
        standard_errors: their standard errors, above 0.
        expected: gaps that were expected, by a label-free estimate; 0 by default.
        where: groups with labels; all by default. The others get what is expected, plus the offset.

    Returns:
        A `PooledGaps`. With one group the spread is not known, and the estimate stays as it is;
        without one all is NaN. NaN where an estimate that counts or its error is not a number.

    Raises:
        ValueError: if sizes do not match.

    Example:
        >>> found = pooled_gaps(jnp.array([0.1, 0.2, 0.3]), jnp.full(3, 0.1))
        >>> [round(float(x), 2) for x in found.mean], found.spread
        ([0.2, 0.2, 0.2], Array(0., dtype=float32))

    References:
        Paule and Mandel, Consensus values and weighting factors, 1982; Gelman et al., Bayesian
        Data Analysis, 2013, chapter 5.
    """
    estimates = at_least_float32(estimates)
    dtype = estimates.dtype
    counted = jnp.ones(estimates.shape, bool) if where is None else where
    prior = jnp.zeros_like(estimates) if expected is None else expected.astype(dtype)
    error = jnp.where(counted, jnp.square(standard_errors.astype(dtype)), 1)
    rest = jnp.where(counted, estimates - prior, 0)
    number = jnp.sum(counted).astype(dtype)

    def centre(variance: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        weight = jnp.where(counted, 1 / (error + variance), 0)
        offset = jnp.sum(weight * rest) / jnp.sum(weight)
        return offset, jnp.sum(weight * jnp.square(rest - offset))

    def halve(
        _: int | Int[Array, ""], bracket: tuple[Float[Array, ""], Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        low, high = bracket
        middle = (low + high) / 2
        above = centre(middle)[1] > number - 1
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    # at the sum of all squares no weighted sum of them exceeds one
    most = jnp.sum(jnp.square(rest)) + 1e-12
    bracket = (jnp.zeros((), dtype), most.astype(dtype))
    low, high = jax.lax.fori_loop(0, _ROUNDS, halve, bracket)
    scattered = centre(jnp.zeros((), dtype))[1] > number - 1
    variance = jnp.where(scattered, (low + high) / 2, 0)
    variance = jnp.where(number == 1, jnp.inf, variance)
    finite = jnp.where(number == 1, 0, variance)
    offset = centre(finite)[0]
    kept = jnp.where(number == 1, 1, finite / (finite + error))
    kept = jnp.where(counted, kept, 0)
    mean = prior + offset + kept * (rest - offset)
    of_offset = 1 / jnp.sum(jnp.where(counted, 1 / (error + finite), 0))
    inside = kept * error + jnp.square(1 - kept) * of_offset
    deviation = jnp.sqrt(jnp.where(counted, inside, variance + of_offset))
    unknown = (number == 0) | jnp.isnan(jnp.sum(rest) + jnp.sum(error))
    return PooledGaps(
        *(jnp.where(unknown, jnp.nan, x) for x in (mean, deviation, offset, jnp.sqrt(variance)))
    )
