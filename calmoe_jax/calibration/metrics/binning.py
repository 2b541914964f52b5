"""Confidences sorted into equal-width bins, and the calibration error of the sums."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm as normal
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_choice
from calmoe_jax._numerics import example_weights, safe_divide
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration._sums import sum_by_bin

# An effective number of examples this little above 1 says nothing of their spread.
_LEAST_SPREAD = 1e-3


class ReliabilityBins(NamedTuple):
    """Sums over the examples of each bin: all that a reliability diagram needs.

    Attributes:
        weight: total example weight.
        confidence: weighted sum of confidences.
        residual: weighted sum of `confidence - outcome`. Kept instead of the outcomes: summing
            the small differences loses fewer digits than differencing two large sums.
        weight_square: sum of squared weights, `w^2`.
        residual_square: sum of squared weighted residuals, `w^2 r^2`.
        weight_residual: sum of their products, `w^2 r`.
    """

    weight: Float[Array, "*batch bins"]
    confidence: Float[Array, "*batch bins"]
    residual: Float[Array, "*batch bins"]
    weight_square: Float[Array, "*batch bins"]
    residual_square: Float[Array, "*batch bins"]
    weight_residual: Float[Array, "*batch bins"]


def reliability_bins(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int = 15,
) -> ReliabilityBins:
    """Sorts examples into bins of equal width by confidence, and sums each bin.

    Bin `b` of `B` is `[b / B, (b + 1) / B)`; the last one is closed.

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability where that is known.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of bins, at least 1; static under `jax.jit`.

    Returns:
        The sums. An empty bin is all zeros. A NaN confidence that counts makes every sum NaN:
        it belongs to no bin, and must not vanish.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> reliability_bins(jnp.array([0.2, 0.9, 1.0]), jnp.array([0.0, 1.0, 1.0]), num_bins=2).weight
        Array([1., 2.], dtype=float32)
    """  # noqa: E501
    check_at_least("num_bins", num_bins, 1)
    confidence, outcome = event(confidence, outcome)
    index = equal_width_index(jnp.where(jnp.isnan(confidence), 0, confidence), num_bins)
    return sums_by_bin(index, confidence, outcome, weights=weights, where=where, num_bins=num_bins)


def equal_width_index(level: Float[Array, " examples"], num_bins: int) -> Int[Array, " examples"]:
    """The bin of each level in [0, 1]: `b` with `b / num_bins <= level < (b + 1) / num_bins`.

    Args:
        level: numbers in [0, 1], none of them NaN; 1 is in the last bin.
        num_bins: number of bins; static.

    Returns:
        Indices, exact at the edges (each is a quotient that is rounded once).
    """
    # each quotient rounded once: linspace is an ulp off at some edges
    quotients = np.arange(num_bins + 1) / num_bins
    quotients[-1] = np.inf  # the last bin is closed
    edges = jnp.asarray(quotients, level.dtype)
    # the product is rounded; only the nearest edge can be on the wrong side of it
    nearest = jnp.round(level * num_bins).astype(jnp.int32)
    return nearest - (level < edges[nearest])


def sums_by_bin(
    index: Int[Array, " examples"],
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int,
) -> ReliabilityBins:
    """The sums of bins that were chosen somehow; for rules that are not of equal width.

    Args:
        index: bin of each example, in `[0, num_bins)`; anything where it does not count.
        confidence: predicted probability of the event, NaN where it is none (see `event`).
        outcome: whether the event happened, as a float.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of bins.

    Returns:
        The sums, compensated: float32 is good for 1e-6 of the total weight up to 1e7 examples and
        64 bins. All NaN where an example that counts is NaN.
    """
    dtype = confidence.dtype
    weight = example_weights(confidence.shape, weights, where, dtype)
    counted = weight != 0
    level = jnp.where(counted, confidence, 0)
    residual = jnp.where(counted, confidence - outcome, 0) * weight
    residuals = sum_by_bin(residual, index, num_bins)
    poison = jnp.where(jnp.isnan(residuals).any(), jnp.nan, 0).astype(dtype)

    def per_bin(values: Float[Array, " examples"]) -> Float[Array, " bins"]:
        return sum_by_bin(values, index, num_bins) + poison

    return ReliabilityBins(
        per_bin(weight),
        per_bin(level * weight),
        residuals + poison,
        per_bin(jnp.square(weight)),
        per_bin(jnp.square(residual)),
        per_bin(weight * residual),
    )


def binned_calibration_error(
    bins: ReliabilityBins, *, norm: Literal["l1", "l2", "max"] = "l1"
) -> Float[Array, "*batch"]:
    """Calibration error of binned sums, in a norm over the bins.

    With the gap `g_b = residual_b / weight_b` and the share `s_b = weight_b / sum_b weight_b` of
    each bin: `sum_b s_b |g_b|` for `l1` (expected), `sqrt(sum_b s_b g_b^2)` for `l2` (root mean
    square), `max_b |g_b|` over the bins that hold weight for `max` (maximum calibration error).
    Condition: that of the pairs that were binned (top-label, or of one class).

    Args:
        bins: sums of each bin; leading axes are a batch.
        norm: which norm; static.

    Returns:
        The error, in [0, 1], with `l1 <= l2 <= max`; NaN where the bins hold no weight. Where all
        gaps are 0 the gradient of `l2` is 0.

    Raises:
        ValueError: if `norm` is none of the three.

    Example:
        >>> bins = reliability_bins(jnp.array([0.25, 0.75]), jnp.array([0.0, 1.0]))
        >>> binned_calibration_error(bins)
        Array(0.25, dtype=float32)
    """
    check_choice("norm", norm, ("l1", "l2", "max"))
    total = jnp.sum(bins.weight, axis=-1)
    if norm == "l1":
        return jnp.sum(jnp.abs(bins.residual), axis=-1) / total
    gap = safe_divide(bins.residual, bins.weight)
    if norm == "max":
        # max over bins loses NaN on some backends, and no weight must not give 0
        return jnp.where(total > 0, jnp.max(jnp.abs(gap), axis=-1), jnp.nan)
    square = jnp.sum(gap * bins.residual, axis=-1) / total
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def debiased_binned_calibration_error(bins: ReliabilityBins) -> Float[Array, "*batch"]:
    """Calibration error (L1) of binned sums, less an estimate of what chance adds to it.

    The gap `g` of a bin is its true gap plus noise, and noise raises `|g|`. With the noise taken
    as normal of the estimated standard deviation `s`, redrawing it around `g` would raise `|g|`
    by `E|g + s Z| - |g|`, in closed form
    `2 (s phi(g / s) - |g| Phi(-|g| / s))`; this much is subtracted in every bin. The variance is
    that of the weighted residuals about their mean, with `n / (n - 1)` for the effective number
    of examples `n = (sum w)^2 / sum w^2` of the bin.

    Condition: that of the pairs that were binned. Bias: in units of `s` and per bin .47 where the
    bin is calibrated (.80 before), .09 where the true gap is half of `s`, at most .07 below for
    larger ones: no estimator is unbiased, as `|g|` has a kink.

    Args:
        bins: sums of each bin; leading axes are a batch.

    Returns:
        The error, below the plain one; it may be negative, since clipping would bring bias back.
        A bin with one example (effectively) cannot tell error from noise and adds 0. NaN where
        the bins hold no weight.

    Example:
        >>> bins = reliability_bins(jnp.full(4, 0.5), jnp.array([1.0, 1.0, 1.0, 0.0]))
        >>> debiased_binned_calibration_error(bins).round(3)
        Array(0.208, dtype=float32)

    References:
        Kumar, Liang, Ma, Verified Uncertainty Calibration, 2019 (debiasing by redrawn labels,
        there by simulation); Cai and Low, Testing Composite Hypotheses, Hermite Polynomials and
        Optimal Estimation of a Nonsmooth Functional, 2011 (why a bias must stay).
    """
    gap, variance, known = _gaps(bins)
    size = jnp.abs(gap)
    noisy = variance > 0
    deviation = jnp.sqrt(jnp.where(noisy, variance, 1))
    ratio = jnp.where(noisy, size, 0) / deviation
    excess = 2 * (deviation * normal.pdf(ratio) - size * normal.cdf(-ratio))
    terms = jnp.where(known, size - jnp.where(noisy, excess, 0), 0)
    return jnp.sum(bins.weight * terms, axis=-1) / jnp.sum(bins.weight, axis=-1)


def debiased_squared_binned_calibration_error(bins: ReliabilityBins) -> Float[Array, "*batch"]:
    """Squared calibration error (L2) of binned sums, without what chance adds to it.

    `sum_b s_b (g_b^2 - v_b)` with the share `s_b`, the gap `g_b` and the estimated variance `v_b`
    of the gap of each bin (see `debiased_binned_calibration_error`). For equal weights it is
    unbiased for the squared gaps of bins with at least two examples; for others nearly.
    Condition: that of the pairs that were binned.

    Kumar, Liang and Ma subtract the variance of the outcomes in place of that of the residuals:
    the same where all confidences of a bin are equal, else slightly more.

    Args:
        bins: sums of each bin; leading axes are a batch.

    Returns:
        The squared error, at most 1; it may be negative, as an unbiased estimate of 0 must. A bin
        with one example (effectively) adds 0. NaN where the bins hold no weight.

    Example:
        >>> bins = reliability_bins(jnp.full(4, 0.5), jnp.array([1.0, 1.0, 1.0, 0.0]))
        >>> debiased_squared_binned_calibration_error(bins)
        Array(0., dtype=float32)

    References:
        Kumar, Liang, Ma, Verified Uncertainty Calibration, 2019.
    """
    gap, variance, known = _gaps(bins)
    terms = jnp.where(known, jnp.square(gap) - variance, 0)
    return jnp.sum(bins.weight * terms, axis=-1) / jnp.sum(bins.weight, axis=-1)


def _gaps(
    bins: ReliabilityBins,
) -> tuple[Float[Array, "*batch bins"], Float[Array, "*batch bins"], Bool[Array, "*batch bins"]]:
    """Gap of each bin, its estimated variance, and whether there is one (two examples or more)."""
    gap = safe_divide(bins.residual, bins.weight)
    square = jnp.square(bins.weight)
    effective = safe_divide(square, bins.weight_square)
    few = effective <= 1 + _LEAST_SPREAD
    spread = bins.residual_square - gap * (2 * bins.weight_residual - gap * bins.weight_square)
    correction = effective / jnp.where(few, 1, effective - 1)
    variance = safe_divide(jnp.maximum(spread, 0), square) * correction
    return gap, variance, ~few
