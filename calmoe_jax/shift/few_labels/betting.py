"""A lower confidence sequence of a mean, by betting against every smaller value of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_at_least, check_positive
from calmoe_jax._numerics import at_least_float32
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.intervals._interval import check_level

# Candidates per unit of the mean's range; a bound is rounded down to one of them.
_CANDIDATES = 512
# The second moment is estimated as if so many draws before the first had the prior one.
_PRIOR_DRAWS = 4.0
# Largest part of the wealth at stake in one draw: a loss of all of it could not be made good.
_MOST_AT_STAKE = 0.99


class _Bets(NamedTuple):
    """Wealth against every candidate, and the sums that the second moment is estimated from."""

    log_wealth: Float[Array, " candidates"]
    rejected: Bool[Array, " candidates"]
    number: Float[Array, ""]
    total: Float[Array, ""]
    squares: Float[Array, ""]


@checked
def lower_confidence_sequence(
    values: Float[Array, " draws"],
    *,
    least: Float[Array, ""] | float,
    mean_range: tuple[Float[Array, ""] | float, Float[Array, ""] | float],
    known: Float[Array, " draws"] | None = None,
    where: Bool[Array, " draws"] | None = None,
    level: float = 0.9,
    planned: int = 50,
    deviation: float = 0.45,
) -> Float[Array, " draws"]:
    """Lower bounds of a mean after each draw, valid at all draws at once.

    Whoever holds that the mean is at most `g` must accept a bet on each draw that wins if the value
    is above `g`: the wealth `prod_t (1 - c_t + c_t X_t / mu_t(g))`, with `X_t = value_t - least`
    and `mu_t(g) = g - known_t - least`, is a martingale if the mean is `g`, whatever the
    distribution, and exceeds `1 / (1 - level)` with probability at most `1 - level` (Ville). The
    bound is the largest `g` up to which all are rejected. The stake `c_t` depends on earlier draws
    only; it is what would reach the threshold at the planned number of draws,
    `sqrt(2 log(threshold / wealth) / (draws left * E (X - mu)^2 / mu^2))`. After them the plan is
    doubled.

    Args:
        values: values whose expectation, given the draws before them, is the mean.
        least: a bound below every possible value; the nearer, the better.
        mean_range: smallest and largest possible mean; the smallest is at least `least`.
        known: part of each value's expectation that the draws before it have settled (draws
            without replacement): `value_t` has expectation `mean - known_t`. 0 by default.
        where: draws that count; all by default.
        level: probability that all bounds are at most the mean, in (0, 1).
        planned: number of draws at which the bound shall be best, at least 1.
        deviation: standard deviation of the values that is expected before the first draw, above 0.

    Returns:
        The bounds, which never fall; the smallest possible mean where nothing is shown. They are
        lower than the exact ones by up to 1/512 of the range, never higher. NaN from a value on
        that counts and is NaN or below `least` (by more than rounding).

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> bounds = lower_confidence_sequence(
        ...     jnp.full(30, 0.5), least=-1.0, mean_range=(-1.0, 1.0), planned=30
        ... )
        >>> bool(bounds[0] < 0 < bounds[-1] < 0.5)
        True

    References:
        Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, 2023;
        Voracek and Orabona, STaR-Bets: Sequential Target-Recalculating Bets for Tighter Confidence
        Intervals, 2025, for the stakes. That one stake serves a cell of candidates, so that the
        bound is valid between them too, is ours.
    """
    check_level(level)
    check_at_least("planned", planned, 1)
    check_positive("deviation", deviation)
    values = at_least_float32(values)
    dtype = values.dtype
    least, low, high = (jnp.asarray(x, dtype) for x in (least, *mean_range))
    settled = jnp.zeros_like(values) if known is None else known.astype(dtype)
    counted = jnp.ones(values.shape, bool) if where is None else where
    candidates = low + (high - low) * jnp.arange(1, _CANDIDATES + 1, dtype=dtype) / _CANDIDATES
    threshold = -jnp.log1p(-jnp.asarray(level, dtype))
    prior = jnp.square(jnp.asarray(deviation, dtype))

    def draw(
        bets: _Bets,
        given: tuple[Float[Array, ""], Float[Array, ""], Bool[Array, ""], Float[Array, ""]],
    ) -> tuple[_Bets, Float[Array, ""]]:
        value, before, counts, left = given
        mean = candidates - before - least
        possible = mean > 0
        mean = jnp.where(possible, mean, 1)
        # about the candidate, so that a mean far above it does not count as certainty
        about = candidates - before
        spread = bets.squares + about * (bets.number * about - 2 * bets.total)
        moment = (_PRIOR_DRAWS * prior + jnp.maximum(spread, 0)) / (_PRIOR_DRAWS + bets.number)
        missing = jnp.maximum(threshold - bets.log_wealth, 0)
        stake = jnp.sqrt(2 * missing / (left * moment)) * mean
        stake = jnp.minimum(stake, _MOST_AT_STAKE)
        won = jnp.log1p(stake * ((value - least) / mean - 1))
        wealth = jnp.where(bets.rejected, bets.log_wealth, bets.log_wealth + won)
        rejected = bets.rejected | ~possible | (wealth >= threshold)
        found = _Bets(
            wealth, rejected, bets.number + 1, bets.total + value, bets.squares + jnp.square(value)
        )
        bets = jax.tree.map(lambda new, old: jnp.where(counts, new, old), found, bets)
        number = jnp.sum(jnp.cumprod(bets.rejected.astype(jnp.int32)))
        return bets, low + (high - low) * number.astype(dtype) / _CANDIDATES

    bad = counted & ~(values >= least - 1e-5 * jnp.maximum(jnp.abs(least), 1))
    usable = jnp.where(counted & ~bad, jnp.maximum(values, least), least)
    zero = jnp.zeros((), dtype)
    start = _Bets(jnp.zeros_like(candidates), jnp.zeros(candidates.shape, bool), zero, zero, zero)
    left = _draws_left(counted, planned, dtype)
    _, bounds = jax.lax.scan(draw, start, (usable, settled, counted, left))
    return jnp.where(jnp.cumsum(bad) > 0, jnp.nan, bounds)


def _draws_left(
    counted: Bool[Array, " draws"], planned: int, dtype: jnp.dtype
) -> Float[Array, " draws"]:
    """Draws left of the plan before each, which is doubled whenever it is exhausted."""
    one = counted.astype(dtype)
    before = jnp.cumsum(one) - one
    doublings = jnp.maximum(jnp.floor(jnp.log2(jnp.maximum(before / planned, 0.5))) + 1, 0)
    return planned * jnp.exp2(doublings) - before
