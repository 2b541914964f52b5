"""Decompositions of proper scores into miscalibration, discrimination and uncertainty."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_at_least, check_choice
from calmoe_jax._numerics import example_weights, safe_divide, weighted_sum
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration.metrics.binning import ReliabilityBins, equal_width_index, sums_by_bin


class MurphyDecomposition(NamedTuple):
    """Murphy's three parts of the Brier score of a binned forecast.

    Attributes:
        reliability: mean squared gap of the bins; 0 is best.
        resolution: variance of the bins' event frequencies; more is better.
        uncertainty: variance of the outcome, independent of the forecast.
    """

    reliability: Float[Array, "*batch"]
    resolution: Float[Array, "*batch"]
    uncertainty: Float[Array, "*batch"]


class BrierDecomposition(NamedTuple):
    """The five parts of a Brier score.

    `score = reliability - resolution + uncertainty + within_variance - within_covariance`.

    Attributes:
        score: the Brier score of the event, in [0, 1].
        reliability: mean squared gap of the bins; 0 is best.
        resolution: variance of the bins' event frequencies; more is better.
        uncertainty: variance of the outcome, independent of the forecast.
        within_variance: mean variance of the forecasts inside their bins.
        within_covariance: twice the mean covariance of forecast and outcome inside the bins.
    """

    score: Float[Array, "*batch"]
    reliability: Float[Array, "*batch"]
    resolution: Float[Array, "*batch"]
    uncertainty: Float[Array, "*batch"]
    within_variance: Float[Array, "*batch"]
    within_covariance: Float[Array, "*batch"]


class CorpDecomposition(NamedTuple):
    """The three parts of a proper score, without bins.

    `score = miscalibration - discrimination + uncertainty`.

    Attributes:
        score: mean score of the forecast; for the logarithmic score in nats.
        miscalibration: gain of the best monotone recalibration; 0 is best.
        discrimination: gain of the recalibrated forecast over the mean outcome.
        uncertainty: score of the mean outcome.
    """

    score: float
    miscalibration: float
    discrimination: float
    uncertainty: float


@checked
def murphy_decomposition(bins: ReliabilityBins) -> MurphyDecomposition:
    """Reliability, resolution and uncertainty of binned sums (Murphy).

    With the share `s_b`, the mean confidence `f_b` and the event frequency `o_b` of each bin, and
    the event frequency `o` of all: `sum_b s_b (f_b - o_b)^2`, `sum_b s_b (o_b - o)^2` and
    `o (1 - o)`. `reliability - resolution + uncertainty` is exactly the Brier score of the forecast
    with `f_b` for all examples of bin b. It is not that of the forecast itself if a bin holds
    different confidences: see `brier_decomposition`. Condition: that of the pairs that were binned.

    Args:
        bins: sums of each bin; leading axes are a batch.

    Returns:
        A `MurphyDecomposition`; NaN where the bins hold no weight.

    Example:
        >>> bins = reliability_bins(jnp.array([0.25, 0.75]), jnp.array([0.0, 1.0]), num_bins=2)
        >>> murphy_decomposition(bins).resolution
        Array(0.25, dtype=float32)

    References:
        Murphy, A New Vector Partition of the Probability Score, 1973.
    """
    total = jnp.sum(bins.weight, axis=-1)
    happened = bins.confidence - bins.residual
    base_rate = jnp.sum(happened, axis=-1) / total
    gap = safe_divide(bins.residual, bins.weight)
    skill = safe_divide(happened, bins.weight) - base_rate[..., None]
    return MurphyDecomposition(
        reliability=jnp.sum(bins.weight * jnp.square(gap), axis=-1) / total,
        resolution=jnp.sum(bins.weight * jnp.square(skill), axis=-1) / total,
        uncertainty=base_rate * (1 - base_rate),
    )


@checked
def brier_decomposition(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int = 15,
) -> BrierDecomposition:
    """The Brier score of an event in five parts that add up exactly (Murphy, Stephenson).

    Besides Murphy's three: the variance of the forecasts inside their bins, and twice their
    covariance with the outcome there. Without these two the identity holds only if all confidences
    of a bin are equal. Condition: that of the event (top-label for the
    confidence in the predicted class and its being right).

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability; the score is then that expected.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.

    Returns:
        A `BrierDecomposition`; NaN where nothing counts, or a confidence or outcome that counts is
        outside [0, 1].

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> parts = brier_decomposition(jnp.array([0.5, 0.75]), jnp.array([0.0, 1.0]), num_bins=1)
        >>> parts.score, parts.within_variance, parts.within_covariance
        (Array(0.15625, dtype=float32), Array(0.015625, dtype=float32), Array(0.125, dtype=float32))

    References:
        Murphy, A New Vector Partition of the Probability Score, 1973; Stephenson, Coelho and
        Jolliffe, Two Extra Components in the Brier Score Decomposition, 2008.
    """
    check_at_least("num_bins", num_bins, 1)
    confidence, outcome = event(confidence, outcome)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    confidence = jnp.where(weight == 0, 0, confidence)
    outcome = jnp.where(weight == 0, 0, outcome)
    total = jnp.sum(weight)

    def mean(values: Float[Array, " examples"]) -> Float[Array, ""]:
        return weighted_sum(values, weight) / total

    unknown = jnp.isnan(confidence)
    own = equal_width_index(jnp.where(unknown, 0, confidence), num_bins)
    bins = sums_by_bin(own, confidence, outcome, weights=weight, num_bins=num_bins)
    from_forecast = confidence - safe_divide(bins.confidence, bins.weight)[own]
    from_outcome = outcome - safe_divide(bins.confidence - bins.residual, bins.weight)[own]
    parts = murphy_decomposition(bins)
    return BrierDecomposition(
        score=mean(jnp.square(confidence - outcome) + outcome * (1 - outcome)),
        reliability=parts.reliability,
        resolution=parts.resolution,
        uncertainty=parts.uncertainty,
        within_variance=mean(jnp.square(from_forecast)),
        within_covariance=2 * mean(from_forecast * from_outcome),
    )


@checked
def corp_decomposition(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    score: Literal["brier", "log"] = "brier",
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> CorpDecomposition:
    """A proper score's miscalibration, discrimination and uncertainty, without bins (CORP).

    With the isotonic regression of outcome on confidence as the recalibrated forecast:
    miscalibration is the score of the forecast minus that of the recalibrated one, discrimination
    the score of the mean outcome minus that of the recalibrated one, uncertainty the score of the
    mean outcome. The first two are never negative. Not debiased: the regression is fitted on the
    examples it is scored on. Condition: that of the event. Runs on the host, in float64 (by
    scikit-learn), so not under `jax.jit`.

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability; the score is then that expected.
        score: `brier`, `(p - y)^2`, or `log`, `-log` of the probability of what happened.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        A `CorpDecomposition`. Equal confidences are recalibrated equally. With `log`, score and
        miscalibration are infinite where what happened had probability 0. NaN where nothing
        counts, or a confidence or outcome that counts is outside [0, 1].

    Raises:
        ValueError: if `score` is neither of the two.

    Example:
        >>> corp_decomposition(jnp.array([0.25, 0.25, 0.75, 0.75]), jnp.array([0.0, 0, 0, 1]))
        CorpDecomposition(score=0.1875, miscalibration=0.0625, discrimination=0.0625, uncertainty=0.1875)

    References:
        Dimitriadis, Gneiting and Jordan, Stable Reliability Diagrams for Probabilistic
        Classifiers, 2021.
    """  # noqa: E501
    from sklearn.isotonic import IsotonicRegression

    check_choice("score", score, ("brier", "log"))
    confidence, outcome = event(confidence, outcome)
    weight = np.asarray(example_weights(confidence.shape, weights, where, confidence.dtype))
    counted = weight != 0
    share = weight[counted].astype(np.float64)
    forecast = np.asarray(confidence, np.float64)[counted]
    truth = np.asarray(outcome, np.float64)[counted]
    if not counted.any() or np.isnan(forecast).any() or np.isnan(share).any():
        return CorpDecomposition(np.nan, np.nan, np.nan, np.nan)
    share = share / share.sum()

    def mean_score(probs: np.ndarray) -> float:
        return float(np.dot(share, _SCORES[score](probs, truth)))

    fitted = IsotonicRegression().fit(forecast, truth, sample_weight=share)
    recalibrated = mean_score(np.clip(fitted.predict(forecast), 0, 1))
    uncertainty = mean_score(np.full_like(truth, np.dot(share, truth)))
    total = mean_score(forecast)
    return CorpDecomposition(
        score=total,
        miscalibration=total - recalibrated,
        discrimination=uncertainty - recalibrated,
        uncertainty=uncertainty,
    )


def _brier(probs: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.square(probs - truth) + truth * (1 - truth)


def _log(probs: np.ndarray, truth: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return -_times_log(truth, probs) - _times_log(1 - truth, 1 - probs)


def _times_log(share: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """`share * log(probs)`, and 0 where `share` is 0."""
    return share * np.log(np.where(share > 0, probs, 1))


_SCORES = {"brier": _brier, "log": _log}
