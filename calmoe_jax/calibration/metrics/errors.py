"""Calibration errors: by how much probabilities and frequencies differ, over bins.

Calibration means one of three things, and every function names the one it measures, with `F` the
predicted probabilities and `Y` the class: **top-label**, `P(Y = yhat | max F = p) = p`;
**classwise**, `P(Y = c | F_c = p) = p` for every class `c`; **canonical**,
`P(Y = c | F = f) = f_c`, which implies both. Proper scores hold for the whole of `F`.

Arguments and empty cases are those of the scores (see `scores`).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import example_weights
from calmoe_jax.calibration._inputs import class_labels, probabilities
from calmoe_jax.calibration.metrics.binning import (
    ReliabilityBins,
    binned_calibration_error,
    debiased_binned_calibration_error,
    debiased_squared_binned_calibration_error,
    reliability_bins,
)
from calmoe_jax.calibration.metrics.scores import top_label, total_weight

_Probs = Float[Array, "examples classes"]
_Labels = Int[Array, " examples"]
_Weights = Float[Array, " examples"] | None
_Where = Bool[Array, " examples"] | None


def top_label_bins(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> ReliabilityBins:
    """Reliability sums of the predicted class: confidence against being right, by bin.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The sums of each bin (see `reliability_bins`).

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> top_label_bins(jnp.array([[0.25, 0.75]]), jnp.array([0]), num_bins=2).residual
        Array([0.  , 0.75], dtype=float32)
    """
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    return reliability_bins(confidence, correct, weights=weights, where=where, num_bins=num_bins)


def expected_calibration_error(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Top-label expected calibration error over equal-width bins.

    `sum_b |sum_{i in b} w_i (conf_i - correct_i)| / sum_i w_i`. Condition: top-label (confidence
    calibration): `P(Y = yhat | max F = p) = p`.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

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
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    bins = reliability_bins(confidence, correct, weights=weights, where=where, num_bins=num_bins)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    # not the sum of bins.weight: under jit those sums, half of the work, then are not made
    return jnp.sum(jnp.abs(bins.residual)) / total_weight(weight, weights, where)


def root_mean_square_calibration_error(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Top-label root mean square calibration error over equal-width bins.

    `sqrt(sum_b s_b g_b^2)` with the share `s_b` of the weight and the mean gap `g_b` (confidence
    minus correctness) of each bin. Condition: top-label.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The error, in [0, 1], at least the expected one; biased upward on few examples; NaN where
        nothing counts.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> root_mean_square_calibration_error(jnp.array([[0.25, 0.75]]), jnp.array([1]))
        Array(0.25, dtype=float32)

    References:
        Kumar, Liang, Ma, Verified Uncertainty Calibration, 2019.
    """
    bins = top_label_bins(
        probs, labels, weights=weights, where=where, num_bins=num_bins, from_logits=from_logits
    )
    return binned_calibration_error(bins, norm="l2")


def maximum_calibration_error(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Top-label maximum calibration error over equal-width bins.

    `max_b |g_b|` over the bins that hold weight. Condition: top-label. One example alone in a bin
    may decide it.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The error, in [0, 1], at least the root mean square one; biased upward on few examples;
        NaN where nothing counts.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> maximum_calibration_error(jnp.array([[0.25, 0.75]]), jnp.array([1]))
        Array(0.25, dtype=float32)

    References:
        Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning, 2015.
    """
    bins = top_label_bins(
        probs, labels, weights=weights, where=where, num_bins=num_bins, from_logits=from_logits
    )
    return binned_calibration_error(bins, norm="max")


def debiased_calibration_error(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Top-label expected calibration error (L1), less an estimate of what chance adds to it.

    Condition: top-label. Estimator and bias: see `debiased_binned_calibration_error`.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The error, below the plain one; it may be negative; NaN where nothing counts.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> probs = jnp.tile(jnp.array([0.75, 0.25]), (4, 1))
        >>> round(float(debiased_calibration_error(probs, jnp.array([0, 1, 1, 0]))), 3)
        0.188

    References:
        Kumar, Liang, Ma, Verified Uncertainty Calibration, 2019.
    """
    bins = top_label_bins(
        probs, labels, weights=weights, where=where, num_bins=num_bins, from_logits=from_logits
    )
    return debiased_binned_calibration_error(bins)


def debiased_squared_calibration_error(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Top-label squared calibration error (L2), without what chance adds to it.

    Condition: top-label. Estimator: see `debiased_squared_binned_calibration_error`.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The squared error, at most 1, and negative by chance where the truth is near 0; NaN where
        nothing counts.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> probs = jnp.tile(jnp.array([0.75, 0.25]), (4, 1))
        >>> debiased_squared_calibration_error(probs, jnp.array([0, 1, 1, 1]))
        Array(0.1875, dtype=float32)

    References:
        Kumar, Liang, Ma, Verified Uncertainty Calibration, 2019.
    """
    bins = top_label_bins(
        probs, labels, weights=weights, where=where, num_bins=num_bins, from_logits=from_logits
    )
    return debiased_squared_binned_calibration_error(bins)


def classwise_bins(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> ReliabilityBins:
    """Reliability sums of each class's probability against being of that class.

    Every function of bins takes them and gives a value for each class, for example
    `debiased_binned_calibration_error`. Condition: classwise.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        Sums `[classes, bins]` (see `reliability_bins`).

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> classwise_bins(jnp.array([[0.25, 0.75]]), jnp.array([0]), num_bins=2).residual
        Array([[-0.75,  0.  ],
               [ 0.  ,  0.75]], dtype=float32)

    References:
        Kull et al., Beyond Temperature Scaling, 2019.
    """
    labels = class_labels(labels)
    probs = probabilities(probs, from_logits=from_logits)
    outside = (labels < 0) | (labels >= probs.shape[-1])
    probs = jnp.where(outside[:, None], jnp.nan, probs)

    def one_class(column: Float[Array, " examples"], label: Int[Array, ""]) -> ReliabilityBins:
        return reliability_bins(
            column, labels == label, weights=weights, where=where, num_bins=num_bins
        )

    return jax.vmap(one_class, in_axes=(1, 0))(probs, jnp.arange(probs.shape[-1]))


def classwise_calibration_errors(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> Float[Array, " classes"]:
    """Expected calibration error of each class's probability against being of that class.

    Condition: classwise: `P(Y = c | F_c = p) = p`.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The error of each class, in [0, 1]; NaN where nothing counts.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> classwise_calibration_errors(jnp.array([[0.25, 0.75]]), jnp.array([1]))
        Array([0.25, 0.25], dtype=float32)

    References:
        Kull et al., Beyond Temperature Scaling, 2019.
    """
    bins = classwise_bins(
        probs, labels, weights=weights, where=where, num_bins=num_bins, from_logits=from_logits
    )
    return binned_calibration_error(bins)


def classwise_calibration_error(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Mean over the classes of `classwise_calibration_errors`. Condition: classwise.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The mean error, in [0, 1]; NaN where nothing counts.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> classwise_calibration_error(jnp.array([[0.25, 0.75]]), jnp.array([1]))
        Array(0.25, dtype=float32)

    References:
        Kull et al., Beyond Temperature Scaling, 2019.
    """
    errors = classwise_calibration_errors(
        probs, labels, weights=weights, where=where, num_bins=num_bins, from_logits=from_logits
    )
    return jnp.mean(errors)
