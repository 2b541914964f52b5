"""How good and how honest predicted probabilities are: proper scores and calibration errors.

Every function takes `weights=` (of examples), `where=` (a mask), and `from_logits=`, which says
that the first argument holds logits or log probabilities; it is never guessed. The empty case is
the same for all: **no weight, no value: NaN**.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import (
    at_least_float32,
    example_weights,
    largest_or_nan,
    pick_label,
    weighted_sum,
)
from calmoe_jax.calibration.binning import (
    ReliabilityBins,
    binned_calibration_error,
    reliability_bins,
)

_Probs = Float[Array, "examples classes"]
_Labels = Int[Array, " examples"]
_Weights = Float[Array, " examples"] | None
_Where = Bool[Array, " examples"] | None


def _probabilities(probs: _Probs, from_logits: bool) -> _Probs:
    probs = at_least_float32(probs)
    return jax.nn.softmax(probs, axis=-1) if from_logits else probs


def _mean(values: Float[Array, " examples"], weights: _Weights, where: _Where) -> Float[Array, ""]:
    weight = example_weights(values.shape, weights, where, values.dtype)
    return weighted_sum(values, weight) / jnp.sum(weight)


def top_label(
    probs: _Probs, labels: _Labels, *, from_logits: bool = False
) -> tuple[Float[Array, " examples"], Bool[Array, " examples"]]:
    """Confidence in the predicted class, and whether it is the true one.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        `(confidence, correct)`. Ties go to the lower class.

    Example:
        >>> top_label(jnp.array([[0.3, 0.7]]), jnp.array([1]))
        (Array([0.7], dtype=float32), Array([ True], dtype=bool))
    """
    probs = _probabilities(probs, from_logits)
    return largest_or_nan(probs), jnp.argmax(probs, axis=-1) == labels


def accuracy(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Share of examples whose most probable class is the true one.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The accuracy, in [0, 1]; ties go to the lower class; NaN where nothing counts, or a row
        that counts holds a NaN.

    Example:
        >>> accuracy(jnp.array([[0.3, 0.7], [0.6, 0.4]]), jnp.array([1, 1]))
        Array(0.5, dtype=float32)
    """
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    right = jnp.where(jnp.isnan(confidence), jnp.nan, correct.astype(confidence.dtype))
    return _mean(right, weights, where)


def negative_log_likelihood(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Mean `-log p_y`, in nats.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities; give log probabilities
            where `p_y` may underflow.

    Returns:
        The mean; `inf` where a true class has probability 0, NaN where nothing counts or a label
        is outside the classes.

    Example:
        >>> negative_log_likelihood(jnp.array([[0.0, 1.0]]), jnp.array([1]))
        Array(0., dtype=float32)
    """
    values = at_least_float32(probs)
    log_probs = jax.nn.log_softmax(values, axis=-1) if from_logits else jnp.log(values)
    return _mean(0 - pick_label(log_probs, labels), weights, where)


def brier_score(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Mean squared distance of the probabilities from the one-hot label, over all classes.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The score, in [0, 2] (with two classes twice the one-column score); NaN where nothing
        counts or a label is outside the classes.

    Example:
        >>> brier_score(jnp.array([[0.5, 0.5]]), jnp.array([0]))
        Array(0.5, dtype=float32)

    References:
        Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.
    """
    probs = _probabilities(probs, from_logits)
    true = jnp.arange(probs.shape[-1])[None, :] == labels[:, None]
    distance = jnp.sum(jnp.square(probs - true.astype(probs.dtype)), axis=-1)
    invalid = jnp.isnan(pick_label(probs, labels))
    return _mean(jnp.where(invalid, jnp.nan, distance), weights, where)


def confidence_gap(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Mean confidence minus accuracy: above 0 is over-confident, below 0 under-confident.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The signed gap, in [-1, 1]; its absolute value bounds the top-label calibration error from
        below. NaN where nothing counts.

    Example:
        >>> confidence_gap(jnp.array([[0.25, 0.75]]), jnp.array([0]))
        Array(0.75, dtype=float32)
    """
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    return _mean(confidence - correct.astype(confidence.dtype), weights, where)


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
    return binned_calibration_error(
        top_label_bins(
            probs,
            labels,
            weights=weights,
            where=where,
            num_bins=num_bins,
            from_logits=from_logits,
        )
    )


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
    probs = _probabilities(probs, from_logits)

    def one_class(column: Float[Array, " examples"], label: Int[Array, ""]) -> Float[Array, ""]:
        return binned_calibration_error(
            reliability_bins(
                column, labels == label, weights=weights, where=where, num_bins=num_bins
            )
        )

    return jax.vmap(one_class, in_axes=(1, 0))(probs, jnp.arange(probs.shape[-1]))


def classwise_calibration_error(
    probs: _Probs,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Mean over the classes of `classwise_calibration_errors`.

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
