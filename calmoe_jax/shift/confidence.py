"""Estimates accuracy on unlabelled examples, and the temperature for a mean confidence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_non_negative
from calmoe_jax._numerics import (
    AxisName,
    all_rows,
    at_least_float32,
    example_weights,
    psum,
    weighted_sum,
)
from calmoe_jax._signatures import checked

# The search for the logarithm of a temperature: its bracket, and how often that is halved.
_LOG_RANGE = 40.0
_HALVINGS = 40
# Exponent of PAD2: how strongly separability amplifies the drop of confidence.
_STRENGTH = 1.5

_Weights = Float[Array, " examples"] | None
_Where = Bool[Array, " examples"] | None


class ConfidenceMatch(NamedTuple):
    """A temperature found from its mean confidence.

    Attributes:
        temperature: T > 0.
        confidence: mean confidence at T.
        reached: whether that is the target (to 1e-3); the floor of T, or ties and impossible
            classes in the logits, can prevent it.
    """

    temperature: Float[Array, ""]
    confidence: Float[Array, ""]
    reached: Bool[Array, ""]


@checked
def mean_confidence(
    logits: Float[Array, "examples classes"],
    temperature: float | Float[Array, ""],
    *,
    weights: _Weights = None,
    where: _Where = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Mean probability of the most probable class after temperature scaling.

    Args:
        logits: logits or log probabilities.
        temperature: T > 0.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The mean, in [1 / classes, 1]; NaN where nothing counts.

    Raises:
        ValueError: if `where` has another shape than the examples.

    Example:
        >>> mean_confidence(jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]])), 1.0)
        Array(0.625, dtype=float32)
    """
    logits = at_least_float32(logits)
    # relative to the largest first: the quotient would round logits far from 0 once more
    peak = jnp.max(logits, axis=-1, keepdims=True)
    below = logits - jnp.where(jnp.isfinite(peak), peak, 0)
    log_probs = jax.nn.log_softmax(below / temperature, axis=-1)
    # the largest log probability, by its definition: the exponent of 0 over the sum
    confidence = jnp.exp(jnp.max(log_probs, axis=-1))
    confidence = jnp.where(jnp.isnan(log_probs).any(axis=-1), jnp.nan, confidence)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    total = psum(weighted_sum(confidence, weight), axis_name)
    return total / psum(jnp.sum(weight), axis_name)


@checked
def match_confidence(
    logits: Float[Array, "examples classes"],
    target: float | Float[Array, ""],
    *,
    at_least: float | Float[Array, ""] = 0.0,
    weights: _Weights = None,
    where: _Where = None,
    axis_name: AxisName = None,
) -> ConfidenceMatch:
    """Finds the temperature at which the mean confidence has a given value.

    Mean confidence falls with T, so halving a bracket from exp(-40) to exp(40) finds it, to
    rounding.

    Args:
        logits: logits or log probabilities.
        target: target mean confidence, in [0, 1].
        at_least: floor of T, for example the temperature fitted in distribution: unlabelled
            examples then never make a model more confident.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        A `ConfidenceMatch`. If no T reaches the target, T is a bound of the search or the floor,
        and `reached` is False. T is NaN for NaN logits that count, for a NaN target, or if no
        example counts.

    Raises:
        ValueError: if `at_least` is negative, or `where` has another shape than the examples.

    Example:
        >>> logits = jnp.log(jnp.array([[0.9, 0.1]] * 4))
        >>> match_confidence(logits, 0.75).temperature.round(3)
        Array(2., dtype=float32)

    References:
        Garg et al., Leveraging Unlabeled Data to Predict Out-of-Distribution Performance, 2022,
        for temperatures from estimated accuracy.
    """
    check_non_negative("at_least", at_least)
    logits = at_least_float32(logits)
    dtype = logits.dtype
    weight = example_weights(logits.shape[:1], weights, where, dtype)

    def halve(
        _: int | Int[Array, ""], bracket: tuple[Float[Array, ""], Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        low, high = bracket
        middle = (low + high) / 2
        confidence = mean_confidence(logits, jnp.exp(middle), weights=weight, axis_name=axis_name)
        above = confidence > target
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    bracket = (jnp.asarray(-_LOG_RANGE, dtype), jnp.asarray(_LOG_RANGE, dtype))
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, bracket)
    found = jnp.maximum(jnp.exp((low + high) / 2), jnp.asarray(at_least, dtype))
    confidence = mean_confidence(logits, found, weights=weight, axis_name=axis_name)
    unknown = jnp.isnan(confidence) | jnp.isnan(jnp.asarray(target, dtype))
    return ConfidenceMatch(
        temperature=jnp.where(unknown, jnp.nan, found),
        confidence=jnp.where(unknown, jnp.nan, confidence),
        reached=~unknown & (jnp.abs(confidence - target) <= 1e-3),
    )


@checked
def average_threshold_accuracy(
    held_out_confidence: Float[Array, " examples"],
    correct: Bool[Array, " examples"] | Float[Array, " examples"],
    target_confidence: Float[Array, " targets"],
    *,
    weights: _Weights = None,
    target_where: Bool[Array, " targets"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Estimated accuracy: the share of confidences above a threshold from held-out errors (ATC).

    The level is the held-out confidence with as much weight before it, in ascending order, as is
    wrong; the estimate is the share of the targets at or above it.

    Args:
        held_out_confidence: confidence in the predicted class, in [0, 1].
        correct: whether that class is the true one.
        target_confidence: confidences of unlabelled examples.
        weights: non-negative weight of each held-out example; 1 by default.
        target_where: targets that count; all by default.
        axis_name: device axis that the examples and the targets are sharded over; each device ranks
            the held-out examples of all.

    Returns:
        The estimate, in [0, 1]; NaN where nothing counts on either side or a confidence that
        counts is NaN. Targets with equal confidences are counted together; if many held-out
        confidences tie at the level, the estimate is above the held-out accuracy.

    Raises:
        ValueError: if `target_where` has another shape than the targets.

    Example:
        >>> held_out = jnp.array([0.5, 0.6, 0.8, 0.9])
        >>> correct = jnp.array([False, True, True, True])
        >>> average_threshold_accuracy(held_out, correct, jnp.array([0.55, 0.7, 0.95, 0.99]))
        Array(0.75, dtype=float32)

    References:
        Garg et al., Leveraging Unlabeled Data to Predict Out-of-Distribution Performance, 2022
        (there with the entropy as well).
    """
    threshold = error_threshold(held_out_confidence, correct, weights=weights, axis_name=axis_name)
    return share_above(target_confidence, threshold, where=target_where, axis_name=axis_name)


@checked
def error_threshold(
    confidence: Float[Array, " examples"],
    correct: Bool[Array, " examples"] | Float[Array, " examples"],
    *,
    weights: _Weights = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The threshold of `average_threshold_accuracy`; depends only on the held-out examples.

    Args:
        confidence: confidence in the predicted class, in [0, 1].
        correct: whether that class is the true one.
        weights: non-negative weight of each example; 1 by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The threshold; `inf` if all predictions are wrong, NaN if no example counts, or a
        confidence, a weight or `correct` that counts is NaN or a weight negative.

    Example:
        >>> error_threshold(jnp.array([0.5, 0.6, 0.8]), jnp.array([False, True, True]))
        Array(0.6, dtype=float32)
    """
    confidence = at_least_float32(confidence)
    dtype = confidence.dtype
    weight = example_weights(confidence.shape, weights, None, dtype)
    right = correct.astype(dtype)
    confidence, weight, right = (all_rows(x, axis_name) for x in (confidence, weight, right))
    total = jnp.sum(weight)
    error = jnp.sum(jnp.where(weight == 0, 0, 1 - right) * weight)
    order = jnp.argsort(jnp.where(weight > 0, confidence, jnp.inf))
    level, ranked = confidence[order], weight[order]
    before = jnp.cumsum(ranked) - ranked
    # sums of weights are exact only up to rounding
    reached = (before >= error * (1 - 1e-6)) & (ranked > 0)
    threshold = jnp.min(jnp.where(reached, level, jnp.inf), initial=jnp.inf)
    unknown = jnp.any(jnp.isnan(confidence) & (weight > 0)) | (total == 0) | jnp.isnan(error)
    return jnp.where(unknown, jnp.nan, threshold)


@checked
def share_above(
    confidence: Float[Array, " targets"],
    threshold: Float[Array, ""],
    *,
    where: Bool[Array, " targets"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Share of confidences at or above a threshold.

    Args:
        confidence: confidences, in [0, 1].
        threshold: the threshold, as from `error_threshold`.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The share; NaN where nothing counts, or the level or a confidence that counts is NaN.

    Raises:
        ValueError: if `where` has another shape than the confidences.

    Example:
        >>> share_above(jnp.array([0.5, 0.75, 1.0, 0.9]), jnp.array(0.75))
        Array(0.75, dtype=float32)
    """
    confidence, threshold = at_least_float32(confidence), at_least_float32(threshold)
    dtype = threshold.dtype
    count = example_weights(confidence.shape, None, where, dtype)
    above = jnp.sum(jnp.where(count > 0, confidence >= threshold, False).astype(dtype))
    unknown = jnp.sum((jnp.isnan(confidence) & (count > 0)).astype(dtype))
    above, unknown, total = (psum(x, axis_name) for x in (above, unknown, jnp.sum(count)))
    return jnp.where(jnp.isnan(threshold) | (unknown > 0), jnp.nan, above / total)


@checked
def difference_of_confidences(
    held_out_accuracy: Float[Array, "*batch"],
    held_out_confidence: Float[Array, "*batch"],
    target_confidence: Float[Array, "*batch"],
    *,
    slope: float = 1.0,
) -> Float[Array, "*batch"]:
    """Estimated accuracy: falls in proportion to the mean confidence.

    `accuracy - slope (c_held_out - c_target)`.

    Args:
        held_out_accuracy: accuracy on labelled held-out examples.
        held_out_confidence: mean confidence there.
        target_confidence: mean confidence on the unlabelled examples.
        slope: loss of accuracy per loss of confidence, at least 0. 1 as published; 1.5 was better
            on the tasks of this package.

    Returns:
        The estimate, clipped to [0, 1].

    Raises:
        ValueError: if `slope` is negative.

    Example:
        >>> values = [jnp.array(x) for x in (0.9, 0.875, 0.75)]
        >>> round(float(difference_of_confidences(*values)), 3)
        0.775

    References:
        Guillory et al., Predicting with Confidence on Unseen Distributions, 2021.
    """
    check_non_negative("slope", slope)
    drop = held_out_confidence - target_confidence
    return jnp.clip(held_out_accuracy - slope * drop, 0, 1)


@checked
def separability_confidence(
    held_out_confidence: Float[Array, "*batch"],
    target_confidence: Float[Array, "*batch"],
    standard_error: Float[Array, "*batch"],
    separability: Float[Array, "*batch"],
    *,
    num_classes: int,
) -> Float[Array, "*batch"]:
    """Target confidence if the targets can be distinguished from held-out examples (PAD2).

    `g = 1/C + (c_t - 1/C) rho^(1.5 P^2)`, with
    `rho = min(1, (c_t + e - 1/C) / (c_v - 1/C))`: the better the two samples can be distinguished
    (`P`), the more the drop of confidence counts; a drop within its standard error `e` is ignored.

    Args:
        held_out_confidence: mean confidence `c_v` on held-out examples, after their temperature.
        target_confidence: mean confidence `c_t` on the unlabelled ones at the same temperature.
        standard_error: standard error of `c_v - c_t`.
        separability: `P`, in [0, 1] (see `separability`).
        num_classes: number of classes `C`.

    Returns:
        The target mean confidence, at most `c_t`; NaN if an argument is NaN.

    Raises:
        ValueError: if `num_classes` is less than 2.

    Example:
        >>> values = [jnp.array(x) for x in (0.9, 0.7, 0.0, 1.0)]
        >>> round(float(separability_confidence(*values, num_classes=2)), 3)
        0.571

    References:
        A rule of this project; 1.5 and the square were chosen on its own evaluation tasks.
        `P` is the proxy A-distance of Ben-David et al., Analysis of Representations for Domain
        Adaptation, 2007, in units of the area under the curve.
    """
    check_at_least("num_classes", num_classes, 2)
    chance = 1 / num_classes
    above = held_out_confidence - chance
    ratio = (target_confidence + standard_error - chance) / jnp.where(above <= 0, 1, above)
    rho = jnp.where(above <= 0, 1, jnp.clip(ratio, 0, 1))
    kept = jnp.power(rho, _STRENGTH * jnp.square(separability))
    return chance + (target_confidence - chance) * kept
