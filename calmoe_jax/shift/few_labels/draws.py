"""Which targets to label, and how many."""

import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive, check_range
from calmoe_jax._numerics import (
    AxisName,
    all_rows,
    at_least_float32,
    example_weights,
    row_positions,
)
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.intervals._interval import check_level

# What bounds by betting cost over those of the normal approximation, in its quantile.
_COST = 0.2


@checked
def label_chances(
    correctness: Float[Array, " targets"],
    *,
    weights: Float[Array, " targets"] | None = None,
    where: Bool[Array, " targets"] | None = None,
    num_strata: int = 5,
    even: float = 0.5,
    axis_name: AxisName = None,
) -> Float[Array, " targets"]:
    """Chances of targets to be drawn for labels: more where correctness is less certain.

    Targets are divided by their guessed correctness `m` into strata of equal numbers. The optimal
    allocation (Neyman) draws in proportion to a stratum's weight times the standard deviation of
    correctness within it, `sqrt(mean m (1 - m))`; here that is mixed with draws in proportion to
    weight alone, which protect against a guess that is wrong.

    Args:
        correctness: guess at the correctness of each target, in [0, 1], as from
            `correctness_model`: it holds what confidence, the peers' disagreement and the
            neighbours' support say.
        weights: non-negative weight of each target; 1 by default.
        where: targets that count; all by default.
        num_strata: number of strata, at least 1.
        even: share of the draws in proportion to weight alone, in (0, 1].
        axis_name: device axis that the targets are sharded over; their guesses and weights are
            gathered.

    Returns:
        The chances, which sum to 1; 0 where a target does not count. NaN where nothing counts, or
        for a guess that counts and is not in [0, 1].

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> label_chances(jnp.array([0.5, 1.0]), num_strata=2, even=0.5)
        Array([0.75, 0.25], dtype=float32)

    References:
        Neyman, On the two different aspects of the representative method, 1934; Zrnic and Candes,
        Active statistical inference, 2024.
    """
    check_at_least("num_strata", num_strata, 1)
    check_positive("even", even)
    check_range("even", even, 0, 1)
    own = at_least_float32(correctness)
    columns = jnp.stack([own, example_weights(own.shape, weights, where, own.dtype)], axis=1)
    guess, weight = all_rows(columns, axis_name).T
    counts = weight != 0
    guess = jnp.where(counts, jnp.where((guess >= 0) & (guess <= 1), guess, jnp.nan), 0)
    order = jnp.argsort(jnp.where(counts, guess, jnp.inf))
    rank = jnp.zeros(guess.shape, jnp.int32).at[order].set(jnp.arange(len(guess), dtype=jnp.int32))
    number = jnp.maximum(jnp.sum(counts, dtype=jnp.int32), 1)
    stratum = jnp.minimum(_of_rank(rank, number, num_strata), num_strata - 1)
    sums = jax.ops.segment_sum(
        jnp.stack([weight, weight * guess * (1 - guess)], axis=1), stratum, num_strata
    )
    deviation = jnp.sqrt(sums[:, 1] / jnp.where(sums[:, 0] == 0, 1, sums[:, 0]))[stratum]
    total = jnp.sum(weight)
    optimal = weight * deviation
    spread = jnp.sum(optimal)
    # where all is certain there is no better allocation than an even one
    optimal = jnp.where(spread == 0, weight / total, optimal / jnp.where(spread == 0, 1, spread))
    found = even * weight / total + (1 - even) * optimal
    return found[row_positions(len(own), axis_name)]


def _of_rank(
    rank: Int[Array, " targets"], number: Int[Array, ""], num_strata: int
) -> Int[Array, " targets"]:
    """`floor(rank * num_strata / number)`, without a product that could overflow."""
    size, larger = number // num_strata, number % num_strata
    # the first strata hold one more
    bound = larger * (size + 1)
    of_larger = rank // (size + 1)
    of_others = larger + (rank - bound) // jnp.maximum(size, 1)
    return jnp.where(rank < bound, of_larger, of_others)


@checked
def draw_units(
    key: jax.Array, chances: Float[Array, " units"], *, num_draws: int, axis_name: AxisName = None
) -> Int[Array, " draws"]:
    """Draws units one after the other, without replacement.

    Each draw takes a unit with probability in proportion to its chance among those that are left:
    the order of `log(chance) + Gumbel` noise.

    Args:
        key: random key.
        chances: chance of each unit, at least 0.
        num_draws: number of draws, at least 1; static.
        axis_name: device axis that the units are sharded over; their chances are gathered, and the
            key must be the same on all devices. Numbers of units count all devices.

    Returns:
        The units in the order in which they are drawn, as `confidence_gap_sequence` takes them; -1
        where no unit with a chance is left, or one is NaN.

    Raises:
        ValueError: if `num_draws` is less than 1.

    Example:
        >>> drawn = draw_units(jax.random.key(0), jnp.array([0.5, 0.0, 0.5]), num_draws=3)
        >>> sorted(drawn.tolist())
        [-1, 0, 2]

    References:
        Efraimidis and Spirakis, Weighted random sampling with a reservoir, 2006, for the keys.
    """
    check_at_least("num_draws", num_draws, 1)
    chances = all_rows(at_least_float32(chances), axis_name)
    possible = chances > 0
    noise = jax.random.gumbel(key, chances.shape, chances.dtype)
    score = jnp.where(possible, jnp.log(jnp.where(possible, chances, 1)) + noise, -jnp.inf)
    best, units = jax.lax.top_k(score, min(num_draws, len(chances)))
    drawn = jnp.where((best > -jnp.inf) & ~jnp.isnan(chances).any(), units.astype(jnp.int32), -1)
    return jnp.pad(drawn, (0, num_draws - len(drawn)), constant_values=-1)


def labels_needed(
    gap: float,
    *,
    share: float = 0.5,
    deviation: float = 0.45,
    level: float = 0.9,
    power: float = 0.8,
) -> int:
    """How many labels will show a gap between confidence and accuracy.

    The lower bound of `confidence_gap_sequence` falls short of the gap by less than about
    `(q + .2 + z) s / sqrt(n)`, with `s` the residuals' standard deviation and `q` and `z` the
    normal quantiles of level and power; .2 is what bounds by betting cost over normal ones, as
    measured. This is the `n` at which that is `(1 - share) gap`.

    Args:
        gap: the gap that is expected, in (0, 1].
        share: share of it that the lower bound shall reach, in [0, 1).
        deviation: standard deviation of correctness minus the guess at it; .45 where about one in
            four is wrong and nothing says which.
        level: level of the bound, in (0, 1).
        power: probability with which it shall do so, in (0, 1).

    Returns:
        The number of labels, drawn at random and planned for.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> labels_needed(0.2, share=0.5), labels_needed(0.1, share=0.5)
        (110, 438)
    """
    check_positive("gap", gap)
    check_range("gap", gap, 0, 1)
    check_range("share", share, 0, 1 - 1e-6)
    check_positive("deviation", deviation)
    check_level(level)
    check_range("power", power, 1e-6, 1 - 1e-6)
    normal = NormalDist()
    width = (normal.inv_cdf(level) + _COST + normal.inv_cdf(power)) * deviation
    return max(math.ceil((width / ((1 - share) * gap)) ** 2), 1)
