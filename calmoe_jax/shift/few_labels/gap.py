"""The gap between confidence and accuracy on targets of which a few are labelled."""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least
from calmoe_jax._numerics import (
    AxisName,
    all_rows,
    at_least_float32,
    example_weights,
    weighted_sum,
)
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.intervals._interval import check_level
from calmoe_jax.shift.few_labels._draw_values import (
    controlled_mean,
    sums_of_units,
    values_of_draws,
)
from calmoe_jax.shift.few_labels.betting import lower_confidence_sequence


class GapSequence(NamedTuple):
    """What the labels show of the gap, after each draw.

    Attributes:
        estimate: estimate of mean confidence minus accuracy.
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
    axis_name: AxisName = None,
) -> GapSequence:
    """Estimates and bounds of the gap between confidence and accuracy, as labels arrive.

    Units (targets, or clusters of them) are drawn one after the other without replacement, each
    with a probability in proportion to its chance among those that are left. With `m_i` a guess at
    the correctness of target `i`, the gap is `mean(c_i - m_i) + mean(m_i - y_i)`: the first mean
    is known, and of the second each draw gives an unbiased estimate,
    `known_t + p_u r_u / q_t(u)`, with `r_u` the unit's mean residual `m - y`, `p_u` its share of
    all weight, `q_t` its probability, and `known_t` the sum of `p_u r_u` of the units before it.
    The bounds are `lower_confidence_sequence` of these. They hold for these very targets, whatever
    the guess is: a good one makes them narrower. The estimate is their mean, less the regression on
    the same means of guess and confidence, which are known to be 0 once centred: labels tell how
    far to trust the guess here.

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
        axis_name: device axis that the targets are sharded over, and the chances with them where
            each target is a unit. Draws, and chances of other units, are the same on all devices;
            a target's number counts all devices. Five numbers of every target are gathered.

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
        >>> bool(0.2 < found.lower[-1] < 0.4 < found.upper[-1] < 0.6)
        True
        >>> round(float(found.estimate[-1]), 2)
        0.4

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
    columns = jnp.stack([confidence, guess, correct.astype(dtype), weight], axis=1)
    confidence, guess, correct, weight = all_rows(columns, axis_name).T
    weight = weight / jnp.sum(weight)
    if units is None or num_units is None:
        units, num_units = jnp.arange(len(confidence)), len(confidence)
        chances = None if chances is None else all_rows(chances, axis_name)
    else:
        units = all_rows(units, axis_name)
    of_units = sums_of_units(weight, confidence, guess, correct, units, num_units)
    offset = weighted_sum(confidence - guess, weight)
    values = values_of_draws(of_units, drawn, chances)
    mean = jnp.sum(of_units.guessed)
    given = partial(lower_confidence_sequence, where=values.counted, level=level, planned=planned)
    lower = given(
        values.value, known=values.known, least=-values.most_below, mean_range=(mean - 1, mean)
    )
    upper = -given(
        -values.value, known=-values.known, least=-values.most_above, mean_range=(-mean, 1 - mean)
    )
    # what the units that are left can make of the mean at most, whatever their labels
    most = values.known_after + values.guessed_left
    lower, upper = (jnp.clip(x, most - values.left_after, most) for x in (lower, upper))
    estimate, error = controlled_mean(values)
    return GapSequence(
        *(
            jnp.where(values.unknown, jnp.nan, x)
            for x in (offset + estimate, error, offset + lower, offset + upper)
        )
    )
