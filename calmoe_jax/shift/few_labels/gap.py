"""The gap between confidence and accuracy on targets of which a few are labelled."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least
from calmoe_jax._numerics import at_least_float32, example_weights, weighted_sum
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.intervals._interval import check_level
from calmoe_jax.shift.few_labels.betting import lower_confidence_sequence

# Standard deviation of a residual that the standard error starts from, as if of so many draws.
_PRIOR_DEVIATION, _PRIOR_DRAWS = 0.45, 4.0
# Smallest share of the weight that counts as left, where nothing is.
_LEAST_LEFT = 1e-6


class GapSequence(NamedTuple):
    """What the labels show of the gap, after each draw.

    Attributes:
        estimate: unbiased estimate of mean confidence minus accuracy.
        standard_error: its standard error.
        lower: lower bound of the gap; all of them together hold at the level.
        upper: upper bound; so do these.
    """

    estimate: Float[Array, " draws"]
    standard_error: Float[Array, " draws"]
    lower: Float[Array, " draws"]
    upper: Float[Array, " draws"]


@checked
def confidence_gap_sequence(
    confidence: Float[Array, " targets"],
    correct: Float[Array, " targets"],
    drawn: Int[Array, " draws"],
    *,
    correctness: Float[Array, " targets"] | None = None,
    weights: Float[Array, " targets"] | None = None,
    where: Bool[Array, " targets"] | None = None,
    units: Int[Array, " targets"] | None = None,
    num_units: int | None = None,
    chances: Float[Array, " units"] | None = None,
    level: float = 0.9,
    planned: int = 50,
) -> GapSequence:
    """Estimates and bounds of the gap between confidence and accuracy, as labels arrive.

    Units (targets, or clusters of them) are drawn one after the other without replacement, each
    with a probability in proportion to its chance among those that are left. With `m_i` a guess at
    the correctness of target `i`, the gap is `mean(c_i - m_i) + mean(m_i - y_i)`: the first mean
    is known, and of the second each draw gives an unbiased estimate,
    `known_t + p_u r_u / q_t(u)`, with `r_u` the unit's mean residual `m - y`, `p_u` its share of
    all weight, `q_t` its probability, and `known_t` the sum of `p_u r_u` of the units before it.
    The estimate is a mean of these; the bounds are `lower_confidence_sequence` of them. They
    hold for these very targets, whatever the guess is: a good one makes them narrower.

    Args:
        confidence: confidence in the predicted class, in [0, 1].
        correct: 1 where the prediction is right and 0 where it is wrong; a number between them is
            the share of annotators who agree. It is read for drawn units only, and may be NaN
            elsewhere.
        drawn: the drawn units, in the order in which they were drawn, each once; -1 for padding.
        correctness: guess at `correct`, in [0, 1], made before any of these labels was seen; the
            confidence by default.
        weights: non-negative weight of each target; 1 by default.
        where: targets that count; all by default.
        units: unit of each target, in `[0, num_units)`; by default each target is one.
        num_units: number of units; static, and given with `units`.
        chances: chance of each unit, above 0 if it counts; equal ones by default. Units of weight
            0 cannot be drawn.
        level: probability that all lower bounds hold, and that all upper bounds hold, in (0, 1).
        planned: number of draws at which the bounds shall be best, at least 1.

    Returns:
        A `GapSequence`; the last of its entries counts all labels. Padding repeats the entry before
        it; before any draw the estimate is 0, its standard error .45, and the bounds are those of
        no label. NaN from the first drawn unit on of which a target that counts has no label, that
        is not in `[0, num_units)` or has been drawn before; all NaN where nothing counts or a
        confidence that counts is NaN.

    Raises:
        ValueError: if a number is out of range, or only one of `units` and `num_units` is given.

    Example:
        >>> confidence = jnp.full(200, 0.9)
        >>> correct = (jnp.arange(200) % 2).astype(jnp.float32)
        >>> found = confidence_gap_sequence(confidence, correct, jnp.arange(60))
        >>> found.estimate[-1].round(2), bool(0.2 < found.lower[-1] < 0.4 < found.upper[-1] < 0.6)
        (Array(0.4, dtype=float32), True)

    References:
        Angelopoulos et al., Prediction-powered inference, 2023; Waudby-Smith, Stark and Ramdas,
        RiLACS: Risk limiting audits via confidence sequences, 2021, for draws without replacement
        in proportion to a size; Zrnic and Candes, Active statistical inference, 2024.
    """
    check_level(level)
    check_at_least("planned", planned, 1)
    if (units is None) != (num_units is None):
        raise ValueError(
            "units and num_units must be given together, got "
            f"{'num_units' if units is None else 'units'} alone."
        )
    confidence = at_least_float32(confidence)
    dtype = confidence.dtype
    guess = confidence if correctness is None else correctness.astype(dtype)
    weight = example_weights(confidence.shape, weights, where, dtype)
    weight = weight / jnp.sum(weight)
    if units is None or num_units is None:
        units, num_units = jnp.arange(len(confidence)), len(confidence)
    residuals = _of_units(weight, guess, correct.astype(dtype), units, num_units)
    offset = weighted_sum(confidence - guess, weight)
    values = _values(residuals, drawn, chances)
    mean = jnp.sum(residuals.guessed)
    bounds = partial(lower_confidence_sequence, where=values.counted, level=level, planned=planned)
    lower = bounds(
        values.value, known=values.known, least=-values.most_below, mean_range=(mean - 1, mean)
    )
    upper = -bounds(
        -values.value, known=-values.known, least=-values.most_above, mean_range=(-mean, 1 - mean)
    )
    # what the units that are left can make of the mean at most, whatever their labels
    most = values.known_after + values.guessed_left
    lower, upper = (jnp.clip(x, most - values.left_after, most) for x in (lower, upper))
    estimate, error = _running_mean(values)
    return GapSequence(
        *(
            jnp.where(values.unknown, jnp.nan, x)
            for x in (offset + estimate, error, offset + lower, offset + upper)
        )
    )


class _Units(NamedTuple):
    """Sums over the targets of a unit, of weights that sum to 1.

    Attributes:
        share: its weight.
        guessed: of the guess; between 0 and the share.
        residual: of the guess minus `correct`; NaN if a target of it has no label.
    """

    share: Float[Array, " units"]
    guessed: Float[Array, " units"]
    residual: Float[Array, " units"]


class _Values(NamedTuple):
    """An unbiased estimate of the mean residual from each draw.

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


def _of_units(
    weight: Float[Array, " targets"],
    guess: Float[Array, " targets"],
    correct: Float[Array, " targets"],
    units: Int[Array, " targets"],
    num_units: int,
) -> _Units:
    columns = jnp.stack([jnp.ones_like(guess), guess, guess - correct], axis=1)
    columns = jnp.where((weight == 0)[:, None], 0, columns) * weight[:, None]
    sums = jax.ops.segment_sum(columns, units, num_units)
    return _Units(*sums.T)


def _values(
    of: _Units, drawn: Int[Array, " draws"], chances: Float[Array, " units"] | None
) -> _Values:
    dtype = of.share.dtype
    counts = of.share > 0
    chance = jnp.ones_like(of.share) if chances is None else chances.astype(dtype)
    chance = jnp.where(counts, jnp.where(chance > 0, chance, jnp.nan), 0)
    chance = chance / jnp.sum(chance)
    counted = drawn >= 0
    inside = drawn < len(chance)
    row = jnp.clip(drawn, 0, len(chance) - 1)
    places = jnp.arange(len(drawn))
    kept = jnp.where(counted & inside, row, len(chance))
    first = jax.ops.segment_min(places, kept, len(chance) + 1)[kept]

    def drawn_of(x: Float[Array, " units"]) -> Float[Array, " draws"]:
        return jnp.where(counted & counts[row], x[row], 0)

    def up_to(x: Float[Array, " units"]) -> Float[Array, " draws"]:
        return jnp.cumsum(drawn_of(x))

    def before(x: Float[Array, " units"]) -> Float[Array, " draws"]:
        return up_to(x) - drawn_of(x)

    residual = of.residual[row]
    used = chance[row]
    probability = used / jnp.maximum(1 - before(chance), used)
    bad = counted & (~inside | (first != places) | jnp.isnan(residual) | ~counts[row])
    usable = counted & ~bad
    value = jnp.where(usable, residual / jnp.where(usable, probability, 1), 0)
    per_chance = jnp.where(counts, chance, 1)
    unknown = (jnp.cumsum(bad) > 0) | jnp.isnan(jnp.sum(of.guessed) + jnp.sum(chance))
    labelled = jnp.where(jnp.isnan(of.residual), 0, of.residual)
    return _Values(
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
    )


def _running_mean(of: _Values) -> tuple[Float[Array, " draws"], Float[Array, " draws"]]:
    """Mean of the estimates up to each draw, and its standard error.

    Estimates are weighted by `1 / (left before * left after)`. With equal chances and shares the
    mean is then known, plus what is left times the mean residual of all draws; the sum of these
    weights is the number of draws over the finite-population correction.
    """
    precision = 1 / (of.left * jnp.maximum(of.left_after, _LEAST_LEFT))
    precision = jnp.where(of.counted, precision, 0)
    unbiased = of.known + of.value
    total = jnp.cumsum(precision)
    held = jnp.where(total > 0, total, 1)
    mean = jnp.cumsum(precision * unbiased) / held
    # the deviation of each from the mean before it: nothing cancels
    earlier = jnp.concatenate([jnp.zeros_like(mean[:1]), mean[:-1]])
    past = jnp.concatenate([jnp.zeros_like(total[:1]), total[:-1]])
    off = past / held * jnp.square((unbiased - earlier) / of.left)
    count = jnp.cumsum(of.counted).astype(mean.dtype)
    square = _PRIOR_DRAWS * _PRIOR_DEVIATION**2 + jnp.cumsum(jnp.where(of.counted, off, 0))
    variance = square / (_PRIOR_DRAWS + jnp.maximum(count - 1, 0))
    return mean, jnp.sqrt(variance / held)
