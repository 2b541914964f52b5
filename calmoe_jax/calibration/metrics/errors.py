"""Calibration errors of bins: by how much probabilities and frequencies differ.

The bins determine the condition that is measured (see `binning`), these functions the norm, plain
or debiased. `expected_calibration_error` is the common choice, directly from probabilities.
"""

from typing import Literal

import jax.numpy as jnp
from jax.scipy.stats import norm as normal
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_choice
from calmoe_jax._numerics import example_weights, safe_divide
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._labels import Labels, not_ignored
from calmoe_jax.calibration.metrics.binning import ReliabilityBins, reliability_bins, square_unit
from calmoe_jax.calibration.metrics.scores import top_label, total_weight

# With an effective number of examples this close to 1 their variance is unknown.
_LEAST_SPREAD = 1e-3


@checked
def expected_calibration_error(
    probs: Float[Array, "examples classes"],
    labels: Labels,
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int = 15,
    from_logits: bool = False,
    ignore_label: int | None = None,
) -> Float[Array, ""]:
    """Top-label expected calibration error over equal-width bins.

    `sum_b |sum_{i in b} w_i (conf_i - correct_i)| / sum_i w_i`. Condition: top-label (confidence
    calibration): `P(Y = yhat | max F = p) = p`. The same as
    `calibration_error(top_label_bins(probs, labels))`, without the unused sums.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`; or a distribution over the classes, such
            as votes: the result is then the expectation over labels drawn from it.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.
        ignore_label: label of examples that do not count (-100, say); none by default.

    Returns:
        The error, in [0, 1]; biased upward on few examples; NaN where nothing counts.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> expected_calibration_error(jnp.array([[0.25, 0.75]]), jnp.array([1]))
        Array(0.25, dtype=float32)

    References:
        Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015; Guo
        et al., On Calibration of Modern Neural Networks, 2017.
    """
    where = not_ignored(labels, where, ignore_label)
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    bins = reliability_bins(confidence, correct, weights=weights, where=where, num_bins=num_bins)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    # not the sum of bins.weight: under jit these sums, half of the work, are then eliminated
    return jnp.sum(jnp.abs(bins.residual)) / total_weight(weight, weights, where)


@checked
def calibration_error(
    bins: ReliabilityBins, *, norm: Literal["l1", "l2", "max"] = "l1"
) -> Float[Array, "*batch"]:
    """Calibration error of binned sums, in a norm over the bins (ECE, RMSCE, MCE).

    With the gap `g_b = residual_b / weight_b` and the share `s_b = weight_b / sum_b weight_b` of
    each bin: `sum_b s_b |g_b|` for `l1` (expected), `sqrt(sum_b s_b g_b^2)` for `l2` (root mean
    square), `max_b |g_b|` over the bins that hold weight for `max` (maximum calibration error).
    Condition: that of the pairs that were binned (top-label, or of one class).

    Args:
        bins: sums of each bin (`top_label_bins`, `classwise_bins`, `equal_mass_bins`,
            `expert_bins`, ...); leading axes are a batch.
        norm: which norm; static.

    Returns:
        The error, in [0, 1], with `l1 <= l2 <= max`; biased upward on few examples, and one
        example alone in a bin may decide `max`. NaN where the bins hold no weight. Where all gaps
        are 0 the gradient of `l2` is 0.

    Raises:
        ValueError: if `norm` is none of the three.

    Example:
        >>> bins = reliability_bins(jnp.array([0.25, 0.75]), jnp.array([0.0, 1.0]))
        >>> cm.calibration.calibration_error(bins, norm="max")
        Array(0.25, dtype=float32)

    References:
        Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015 (`l1`
        and `max`); Kumar, Liang, Ma, Verified Uncertainty Calibration, 2019 (`l2`).
    """
    check_choice("norm", norm, ("l1", "l2", "max"))
    total = jnp.sum(bins.weight, axis=-1)
    if norm == "l1":
        return jnp.sum(jnp.abs(bins.residual), axis=-1) / total
    gap = safe_divide(bins.residual, bins.weight)
    if norm == "max":
        # max over bins loses NaN on some backends, and without weight the result must be NaN
        return jnp.where(total > 0, jnp.max(jnp.abs(gap), axis=-1), jnp.nan)
    square = jnp.sum(gap * bins.residual, axis=-1) / total
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


@checked
def debiased_calibration_error(bins: ReliabilityBins) -> Float[Array, "*batch"]:
    """Debiased calibration error (L1) of binned sums.

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
        The error, below the plain one; it may be negative, since clipping would reintroduce bias.
        A bin with effectively one example does not separate error from noise and adds 0. NaN where
        the bins hold no weight.

    Example:
        >>> bins = reliability_bins(jnp.full(4, 0.5), jnp.array([1.0, 1.0, 1.0, 0.0]))
        >>> debiased_calibration_error(bins).round(3)
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


@checked
def debiased_squared_calibration_error(bins: ReliabilityBins) -> Float[Array, "*batch"]:
    """Debiased squared calibration error (L2) of binned sums.

    `sum_b s_b (g_b^2 - v_b)` with the share `s_b`, the gap `g_b` and the estimated variance `v_b`
    of the gap of each bin (see `debiased_calibration_error`). For equal weights it is
    unbiased for the squared gaps of bins with at least two examples; for others nearly.
    Condition: that of the pairs that were binned.

    Kumar, Liang and Ma subtract the variance of the outcomes in place of that of the residuals:
    the same where all confidences of a bin are equal, else slightly more.

    Args:
        bins: sums of each bin; leading axes are a batch.

    Returns:
        The squared error, at most 1; it may be negative, as an unbiased estimate of 0 must. A bin
        with effectively one example adds 0. NaN where the bins hold no weight.

    Example:
        >>> bins = reliability_bins(jnp.full(4, 0.5), jnp.array([1.0, 1.0, 1.0, 0.0]))
        >>> debiased_squared_calibration_error(bins)
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
    square = jnp.square(bins.weight / square_unit(bins.weight)[..., None])
    effective = safe_divide(square, bins.weight_square)
    few = effective <= 1 + _LEAST_SPREAD
    spread = bins.residual_square - gap * (2 * bins.weight_residual - gap * bins.weight_square)
    correction = effective / jnp.where(few, 1, effective - 1)
    variance = safe_divide(jnp.maximum(spread, 0), square) * correction
    return gap, variance, ~few
