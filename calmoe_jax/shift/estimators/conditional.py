"""Estimators from statistics of single examples, compared at equal confidence."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_non_negative
from calmoe_jax._numerics import (
    AxisName,
    all_rows,
    at_least_float32,
    example_weights,
    psum,
)
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.calibrators import apply_isotonic, pool_adjacent_violators
from calmoe_jax.shift.estimators._observed import (
    Observed,
    as_estimate,
    chance_level,
    mean,
    observe,
    required,
)
from calmoe_jax.shift.estimators._statistics import (
    probability_of_peers,
    supports,
    votes_of_peers,
)
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence
from calmoe_jax.shift.estimators.seeds import agreement_estimate
from calmoe_jax.shift.separability import separability

_Values = Float[Array, " examples"]
_Targets = Float[Array, " targets"]


class ConditionalDrop(NamedTuple):
    """How far a statistic on targets falls below its expectation at their confidence.

    Attributes:
        value: `x = -log(ratio)`, in nats: 0 where only confidences changed, `inf` where the mean
            is not above chance.
        ratio: excess of the statistic's mean over chance, over that of its expectation.
        standard_error: standard error of the ratio, for independent examples.
    """

    value: Float[Array, ""]
    ratio: Float[Array, ""]
    standard_error: Float[Array, ""]


@checked
def conditional_drop(
    held_out_statistic: _Values,
    held_out_confidence: _Values,
    target_statistic: _Targets,
    target_confidence: _Targets,
    chance: Float[Array, ""] | float,
    *,
    where: Bool[Array, " examples"] | None = None,
    target_where: Bool[Array, " targets"] | None = None,
    axis_name: AxisName = None,
) -> ConditionalDrop:
    """Drop of a statistic that confidence does not explain.

    `x = -log[(mean_t s - h) / (mean_t a(confidence) - h)]`, with `h` the statistic's level by
    chance and `a` its isotonic regression on the confidence of held-out examples. A sample in which
    each confidence has the statistics that it has on held-out examples gives 0, however its
    confidences are distributed. The cost is a sort of the held-out examples.

    Args:
        held_out_statistic: statistic of each held-out example, in [0, 1], that grows with
            confidence.
        held_out_confidence: their confidences, in [0, 1].
        target_statistic: the statistic of the targets.
        target_confidence: their confidences.
        chance: level of the statistic by chance, in [0, 1).
        where: held-out examples that count; all by default.
        target_where: targets that count; all by default.
        axis_name: device axis that both samples are sharded over; each device ranks the held-out
            examples of all.

    Returns:
        A `ConditionalDrop`. Its standard error has a part of the targets, and one of the isotonic
        regression, as it is at the held-out examples. NaN without an example, if the expectation is
        not above chance, or for a number that counts and is NaN or outside [0, 1].

    Raises:
        ValueError: if sizes do not match.

    Example:
        >>> confidence = jnp.array([0.6, 0.7, 0.8, 0.9])
        >>> drop = conditional_drop(confidence, confidence, 0.9 * confidence, confidence, 0.0)
        >>> round(float(drop.ratio), 3)
        0.9

    References:
        A statistic of this project.
    """
    statistic, confidence = (at_least_float32(x) for x in (held_out_statistic, held_out_confidence))
    theirs, at = (x.astype(statistic.dtype) for x in (target_statistic, target_confidence))
    chance = jnp.asarray(chance, statistic.dtype)
    weight = example_weights(statistic.shape, None, where, statistic.dtype)
    target_weight = example_weights(theirs.shape, None, target_where, statistic.dtype)
    fit = pool_adjacent_violators(
        *(all_rows(x, axis_name) for x in (confidence, statistic)),
        weights=all_rows(weight, axis_name),
    )

    def mean_and_variance(values: Array, weights: Array) -> tuple[Array, Array]:
        number = psum(jnp.sum(weights), axis_name)
        kept = jnp.where(weights > 0, values, 0)
        average = psum(jnp.sum(kept), axis_name) / number
        off = jnp.where(weights > 0, kept - average, 0)
        return average, psum(jnp.sum(jnp.square(off)), axis_name) / jnp.square(number)

    inside = (theirs >= 0) & (theirs <= 1)
    theirs = jnp.where(inside, theirs, jnp.nan)
    expected = apply_isotonic(fit, at)
    found, _ = mean_and_variance(theirs, target_weight)
    level, _ = mean_and_variance(expected, target_weight)
    above = jnp.where(level > chance, level - chance, jnp.nan)
    ratio = (found - chance) / above
    _, of_targets = mean_and_variance(theirs - ratio * expected, target_weight)
    _, of_fit = mean_and_variance(statistic - apply_isotonic(fit, confidence), weight)
    error = jnp.sqrt(of_targets + jnp.square(ratio) * of_fit) / above
    positive = ratio > 0
    value = jnp.where(positive, -jnp.log(jnp.where(positive, ratio, 1)), jnp.inf)
    return ConditionalDrop(jnp.where(jnp.isnan(ratio), jnp.nan, value), ratio, error)


@checked
def confidence_conditional(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    num_neighbours: int = 50,
    strength: float = 4.0,
    margin: float = 0.5,
    tolerance: float = 0.05,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """The lesser of `seed_agreement` and a loss of neighbours' support at equal confidence (R5).

    The other estimate is `h + (c_t - h) exp(-strength [x - tolerance]_+)`, with `c_t` the mean
    target confidence, `h` the chance level, and `x` the `conditional_drop` of the share of
    neighbours that have the predicted label, of its ratio's upper limit at `margin` standard
    errors. (To first order in the error, this is the drop less `margin` of its standard errors.)
    The published rule compares the coordinates of all seeds side by side, and takes the mean of
    `x` over seeds. The cost is `(examples + targets) * examples` cosines.

    Args:
        held_out: labelled examples, with peers and coordinates.
        labels: their classes.
        targets: unlabelled examples, with the same.
        num_neighbours: neighbours of each example, at least 1; static.
        strength: loss of the logarithm of the excess over chance for each nat of the drop, at
            least 0.
        margin: standard errors in favour of the targets, at least 0.
        tolerance: drop that is ignored, in nats, at least 0.
        axis_name: device axis that both samples are sharded over.

    Returns:
        An `AccuracyEstimate` without a standard error. NaN where `seed_agreement` or the drop is,
        or for a NaN or a label out of range in an example that counts.

    Raises:
        ValueError: if peers or coordinates are missing, a constant is out of range, or sizes do not
            match.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]] * 4))
        >>> sample = Evidence(log_probs, peers=log_probs[None], coordinates=log_probs)
        >>> labels = jnp.array([0, 1] * 4)
        >>> estimate = confidence_conditional(sample, labels, sample, num_neighbours=3)
        >>> round(float(estimate.accuracy), 3)
        0.9

    References:
        A rule of this project; its constants were chosen on two sets of seeds of its tasks.
    """
    _check(strength, margin, tolerance)
    own, other = observe(held_out, labels, targets, axis_name)
    peers = required("peers", held_out, targets)
    agreed = agreement_estimate(peers, labels, (own, other), growth=3.0, margin=0.0)
    chance = chance_level(own, labels, other)
    shares = supports(held_out, labels, targets, own, other, num_neighbours)
    lost = _less(_drop(shares, own, other, chance), margin)
    return _lesser(agreed, strength * jnp.maximum(lost - tolerance, 0), chance, own, other)


@checked
def confidence_conditional_by_peers(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    num_neighbours: int = 50,
    strength: float = 14.0,
    margin: float = 1.0,
    tolerance: float = 0.01,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """As `confidence_conditional`, from peers and neighbours, where samples are separable (R4).

    With `x` the `conditional_drop` of a statistic of each example, `p` the peers' mean probability
    of the predicted class, `v` the share of them that predict it, `j` that of the neighbours with
    that label, and `P` the `separability`, the other estimate is
    `h + (c_t - h) exp(-strength min(1, 2 (1 - P)) [min(x_p - max(x_v, 0) / 2, x_j) - tolerance]_+)`
    with `x_p` and `x_j` of their ratios' upper limits at `margin` standard errors. Beside the
    neighbours' cosines the cost is a regression on the coordinates.

    Args:
        held_out: labelled examples, with peers and coordinates.
        labels: their classes.
        targets: unlabelled examples, with the same.
        num_neighbours: neighbours of each example, at least 1; static.
        strength: loss of the logarithm of the excess over chance for each nat of the drop, at
            least 0.
        margin: standard errors in favour of the targets, at least 0.
        tolerance: drop that is ignored, in nats, at least 0.
        axis_name: device axis that both samples are sharded over.

    Returns:
        An `AccuracyEstimate` without a standard error. NaN where `seed_agreement` or a drop is, or
        for a NaN or a label out of range in an example that counts.

    Raises:
        ValueError: if peers or coordinates are missing, a constant is out of range, or sizes do not
            match.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]] * 4))
        >>> sample = Evidence(log_probs, peers=log_probs[None], coordinates=log_probs)
        >>> labels = jnp.array([0, 1] * 4)
        >>> estimate = confidence_conditional_by_peers(sample, labels, sample, num_neighbours=3)
        >>> round(float(estimate.accuracy), 3)
        0.9

    References:
        A rule of this project; its constants were chosen on two sets of seeds of its tasks.
    """
    _check(strength, margin, tolerance)
    own, other = observe(held_out, labels, targets, axis_name)
    peers = required("peers", held_out, targets)
    agreed = agreement_estimate(peers, labels, (own, other), growth=3.0, margin=0.0)
    chance = chance_level(own, labels, other)
    seen = (own, other)
    probability, votes = (
        _drop((of(peers[0], own), of(peers[1], other)), *seen, chance)
        for of in (probability_of_peers, votes_of_peers)
    )
    shares = supports(held_out, labels, targets, *seen, num_neighbours)
    support = _drop(shares, *seen, chance)
    by_peers = _less(probability, margin) - 0.5 * jnp.maximum(_less(votes, 0.0), 0)
    lost = jnp.minimum(by_peers, _less(support, margin))
    coordinates = required("coordinates", held_out, targets)
    separable = separability(
        *coordinates, where=own.counted, target_where=other.counted, axis_name=axis_name
    )
    strength_here = strength * jnp.minimum(1, 2 * (1 - separable))
    return _lesser(agreed, strength_here * jnp.maximum(lost - tolerance, 0), chance, own, other)


def _check(strength: float, margin: float, tolerance: float) -> None:
    check_non_negative("strength", strength)
    check_non_negative("margin", margin)
    check_non_negative("tolerance", tolerance)


def _drop(
    statistics: tuple[_Values, _Targets], own: Observed, other: Observed, chance: Float[Array, ""]
) -> ConditionalDrop:
    return conditional_drop(
        statistics[0], own.confidence, statistics[1], other.confidence, chance,
        where=own.counted, target_where=other.counted, axis_name=own.axis_name,
    )  # fmt: skip


def _less(drop: ConditionalDrop, margin: float) -> Float[Array, ""]:
    """The drop, of a ratio that is so many standard errors larger."""
    ratio = drop.ratio + margin * drop.standard_error
    smallest = jnp.finfo(ratio.dtype).tiny
    return -jnp.log(jnp.where(ratio < smallest, smallest, ratio))


def _lesser(
    agreed: AccuracyEstimate,
    exponent: Float[Array, ""],
    chance: Float[Array, ""],
    own: Observed,
    other: Observed,
) -> AccuracyEstimate:
    """The lesser of an estimate and the mean confidence, moved towards chance."""
    confidence = mean(other.confidence, other).value
    # a confidence below chance is not raised
    above = jnp.maximum(confidence - chance, 0)
    moved = confidence - above * -jnp.expm1(-exponent)
    return as_estimate(jnp.minimum(agreed.accuracy, moved), None, own, other)
