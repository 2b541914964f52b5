"""What each drawn unit says of the mean residual of all, and the mean of what they say."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32, weighted_sum

# Standard deviation of a residual that the standard error starts from, as if of so many draws.
_PRIOR_DEVIATION, _PRIOR_DRAWS = 0.45, 4.0
# Smallest share of the weight that counts as left, where nothing is.
_LEAST_LEFT = 1e-6
# The slopes of the controls are held towards 0 as by so many draws.
_RIDGE_DRAWS, _LEAST_RIDGE = 10.0, 1e-6


class Units(NamedTuple):
    """Sums over the targets of a unit, of weights that sum to 1.

    Attributes:
        share: its weight.
        guessed: of the guess; between 0 and the share.
        residual: of the guess minus `correct`; NaN if a target of it has no label.
        controls: of the guess and of the confidence, less their means over all targets.
    """

    share: Float[Array, " units"]
    guessed: Float[Array, " units"]
    residual: Float[Array, " units"]
    controls: Float[Array, "units controls"]


class Steps(NamedTuple):
    """Draws of units, one after the other, without replacement.

    Attributes:
        chance: of each unit, 0 where it does not count; they sum to 1.
        row: the drawn unit; any for padding.
        counted: which entries are draws.
        bad: which of them cannot be: no unit that counts, or one that has been drawn.
        probability: of each draw, among the units that were left.
    """

    chance: Float[Array, " units"]
    row: Int[Array, " draws"]
    counted: Bool[Array, " draws"]
    bad: Bool[Array, " draws"]
    probability: Float[Array, " draws"]


class Values(NamedTuple):
    """An unbiased estimate of the mean residual from each draw, and of the controls' means of 0.

    Attributes:
        value: the estimate minus what is known.
        known: sum of the residuals drawn before.
        left: weight of the units that are left before the draw.
        known_after: the same with its own.
        left_after: weight of the units that are left after it.
        guessed_left: sum of the guess over them.
        counted: which entries are draws.
        unknown: from which entry on they cannot be used.
        most_below: no value is below minus this.
        most_above: no value is above this.
        controls: the same estimate of the controls, with what is known of them.
        scale: standard deviations of the controls over the units.
    """

    value: Float[Array, " draws"]
    known: Float[Array, " draws"]
    left: Float[Array, " draws"]
    known_after: Float[Array, " draws"]
    left_after: Float[Array, " draws"]
    guessed_left: Float[Array, " draws"]
    counted: Bool[Array, " draws"]
    unknown: Bool[Array, " draws"]
    most_below: Float[Array, ""]
    most_above: Float[Array, ""]
    controls: Float[Array, "draws controls"]
    scale: Float[Array, " controls"]


def sums_of_units(
    weight: Float[Array, " targets"],
    confidence: Float[Array, " targets"],
    guess: Float[Array, " targets"],
    correct: Float[Array, " targets"],
    units: Int[Array, " targets"],
    num_units: int,
) -> Units:
    """Sums of each unit; targets of weight 0 may hold anything."""
    centred = [x - weighted_sum(x, weight) for x in (guess, confidence)]
    columns = jnp.stack([jnp.ones_like(guess), guess, guess - correct, *centred], axis=1)
    columns = jnp.where((weight == 0)[:, None], 0, columns) * weight[:, None]
    sums = jax.ops.segment_sum(columns, units, num_units)
    share, guessed, residual = sums[:, :3].T
    return Units(share, guessed, residual, sums[:, 3:])


def steps_of(
    counts: Bool[Array, " units"],
    chances: Float[Array, " units"] | None,
    drawn: Int[Array, " draws"],
) -> Steps:
    """Draws without replacement, in proportion to chances; equal ones by default."""
    chance = jnp.ones(counts.shape, jnp.float32) if chances is None else at_least_float32(chances)
    chance = jnp.where(counts, jnp.where(chance > 0, chance, jnp.nan), 0)
    chance = chance / jnp.sum(chance)
    counted = drawn >= 0
    inside = drawn < len(chance)
    row = jnp.clip(drawn, 0, len(chance) - 1)
    places = jnp.arange(len(drawn))
    kept = jnp.where(counted & inside, row, len(chance))
    first = jax.ops.segment_min(places, kept, len(chance) + 1)[kept]
    used = chance[row]
    taken = jnp.where(counted & counts[row], used, 0)
    before = jnp.cumsum(taken) - taken
    return Steps(
        chance=chance,
        row=row,
        counted=counted,
        bad=counted & (~inside | (first != places) | ~counts[row]),
        probability=used / jnp.maximum(1 - before, used),
    )


def values_of_draws(
    of: Units, drawn: Int[Array, " draws"], chances: Float[Array, " units"] | None
) -> Values:
    """What each draw says, from the sums of the units and their chances."""
    counts = of.share > 0
    chances = None if chances is None else chances.astype(of.share.dtype)
    chance, row, counted, bad, probability = steps_of(counts, chances, drawn)

    def drawn_of(x: Float[Array, "units ..."]) -> Float[Array, "draws ..."]:
        kept = (counted & counts[row]).reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(kept, x[row], 0)

    def up_to(x: Float[Array, "units ..."]) -> Float[Array, "draws ..."]:
        return jnp.cumsum(drawn_of(x), axis=0)

    def before(x: Float[Array, "units ..."]) -> Float[Array, "draws ..."]:
        return up_to(x) - drawn_of(x)

    residual = of.residual[row]
    bad |= counted & jnp.isnan(residual)
    usable = counted & ~bad
    value = jnp.where(usable, residual / jnp.where(usable, probability, 1), 0)
    controls = drawn_of(of.controls) / jnp.where(usable, probability, 1)[:, None]
    squares = jnp.square(of.controls) / jnp.where(counts, of.share, 1)[:, None]
    per_chance = jnp.where(counts, chance, 1)
    unknown = (jnp.cumsum(bad) > 0) | jnp.isnan(jnp.sum(of.guessed) + jnp.sum(chance))
    labelled = jnp.where(jnp.isnan(of.residual), 0, of.residual)
    return Values(
        value=value,
        known=before(labelled),
        left=jnp.maximum(1 - before(of.share), of.share[row]),
        known_after=up_to(labelled),
        left_after=jnp.maximum(1 - up_to(of.share), 0),
        guessed_left=jnp.sum(of.guessed) - up_to(of.guessed),
        counted=usable,
        unknown=unknown,
        most_below=jnp.max((of.share - of.guessed) / per_chance, initial=0),
        most_above=jnp.max(of.guessed / per_chance, initial=0),
        controls=before(of.controls) + controls,
        scale=jnp.sqrt(jnp.sum(squares, axis=0)),
    )


def controlled_mean(of: Values) -> tuple[Float[Array, " draws"], Float[Array, " draws"]]:
    """Mean of the estimates up to each draw less what the controls explain; its standard error.

    Estimates are weighted by `1 / (left before * left after)`. With equal chances and shares the
    mean is then known, plus what is left times the mean residual of all draws; the sum of these
    weights is the number of draws over the finite-population correction. The regression on the
    controls is that of all draws up to each, with a ridge.
    """
    precision = 1 / (of.left * jnp.maximum(of.left_after, _LEAST_LEFT))
    precision = jnp.where(of.counted, precision, 0)
    unbiased = jnp.concatenate([(of.known + of.value)[:, None], of.controls], axis=1)
    total = jnp.cumsum(precision)
    held = jnp.where(total > 0, total, 1)
    mean = jnp.cumsum(precision[:, None] * unbiased, axis=0) / held[:, None]
    # the deviation of each from the mean before it: nothing cancels
    earlier = jnp.concatenate([jnp.zeros_like(mean[:1]), mean[:-1]])
    past = jnp.concatenate([jnp.zeros_like(total[:1]), total[:-1]])
    off = (unbiased - earlier) / of.left[:, None]
    off = jnp.where(of.counted[:, None], off * jnp.sqrt(past / held)[:, None], 0)
    products = jnp.cumsum(off[:, :, None] * off[:, None, :], axis=0)
    ridge = jnp.diag(_RIDGE_DRAWS * jnp.square(of.scale) + _LEAST_RIDGE)
    inside = products[:, 1:, 1:]
    slopes = jnp.linalg.solve(inside + ridge[None], products[:, 1:, :1])[..., 0]
    explained = jnp.sum(slopes * (2 * products[:, 1:, 0]), axis=1)
    explained -= jnp.einsum("ni,nij,nj->n", slopes, inside, slopes)
    count = jnp.cumsum(of.counted).astype(mean.dtype)
    square = _PRIOR_DRAWS * _PRIOR_DEVIATION**2 + products[:, 0, 0] - explained
    # each slope takes a draw, in so far as it is free of its ridge
    free = of.scale.shape[0] * count / (count + _RIDGE_DRAWS)
    variance = square / (_PRIOR_DRAWS + jnp.maximum(count - 1 - free, 0))
    return mean[:, 0] - jnp.sum(slopes * mean[:, 1:], axis=1), jnp.sqrt(variance / held)
