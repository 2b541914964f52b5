"""Isotonic regression: recalibrates by a non-decreasing map. Fitted on the host."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import example_weights
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event


class IsotonicFit(NamedTuple):
    """A fitted map of confidences, linear between its knots and constant beyond them.

    Attributes:
        knots: confidences, ascending; the last one is repeated if another map of the batch has
            more knots.
        values: probabilities there, ascending.
    """

    knots: Float[Array, "*batch knots"]
    values: Float[Array, "*batch knots"]


@checked
def fit_isotonic(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> IsotonicFit:
    """Finds the non-decreasing map that minimises the weighted squared loss.

    Runs on the host, by scikit-learn (pool adjacent violators, in float64): the number of knots
    depends on the data, so it cannot run under `jax.jit`, `jax.vmap` or `jax.grad`. The map is
    linear between knots, as scikit-learn's `predict` is.

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability where that is known.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        An `IsotonicFit`; the identity if no example has weight. Confidences and outcomes that
        count and are outside [0, 1] or NaN make every value NaN.

    Raises:
        TypeError: if an argument is traced.

    Example:
        >>> p, happened = jnp.array([0.2, 0.4, 0.6]), jnp.array([0.0, 1.0, 0.0])
        >>> fit_isotonic(p, happened).values
        Array([0. , 0.5, 0.5], dtype=float32)

    References:
        Zadrozny and Elkan, Transforming classifier scores into accurate multiclass probability
        estimates, 2002.
    """
    _check_concrete(confidence=confidence, outcome=outcome, weights=weights, where=where)
    from sklearn.isotonic import IsotonicRegression

    confidence, outcome = event(confidence, outcome)
    dtype = confidence.dtype
    level, happened = np.asarray(confidence, np.float64), np.asarray(outcome, np.float64)
    weight = np.asarray(example_weights(confidence.shape, weights, where, dtype), np.float64)
    counted = weight != 0
    if not counted.any():
        return IsotonicFit(jnp.array([0, 1], dtype), jnp.array([0, 1], dtype))
    level, happened, weight = level[counted], happened[counted], weight[counted]
    if np.isnan(level).any() or not (weight > 0).all():
        return IsotonicFit(jnp.zeros(1, dtype), jnp.full(1, jnp.nan, dtype))
    found = IsotonicRegression(y_min=0, y_max=1).fit(level, happened, sample_weight=weight)
    return IsotonicFit(
        jnp.asarray(found.X_thresholds_, dtype), jnp.asarray(found.y_thresholds_, dtype)
    )


@checked
def apply_isotonic(
    fit: IsotonicFit, confidence: Float[Array, " examples"]
) -> Float[Array, " examples"]:
    """Probability of the event: the map's value at each confidence. Works under `jax.jit`.

    Args:
        fit: a fitted map.
        confidence: predicted probability of the event, in [0, 1].

    Returns:
        Probabilities, at least float32; NaN for a confidence that is NaN or outside [0, 1].

    Example:
        >>> fit = fit_isotonic(jnp.array([0.2, 0.4, 0.6]), jnp.array([0.0, 1.0, 0.0]))
        >>> apply_isotonic(fit, jnp.array([0.0, 0.3, 0.9])).round(2)
        Array([0.  , 0.25, 0.5 ], dtype=float32)
    """
    confidence, _ = event(confidence, jnp.zeros_like(confidence))
    inside = jnp.interp(confidence, fit.knots, fit.values)
    return jnp.where(jnp.isnan(confidence), jnp.nan, inside)


@checked
def fit_classwise_isotonic(
    probs: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> IsotonicFit:
    """Fits one map for every class, one against the rest.

    Args:
        probs: class probabilities.
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        An `IsotonicFit` with a leading axis of classes. A class whose inputs make `fit_isotonic`
        NaN is all NaN; labels outside the classes make all classes NaN.

    Raises:
        TypeError: if an argument is traced, or the labels are not integers.

    Example:
        >>> probs = jnp.array([[0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])
        >>> fit_classwise_isotonic(probs, jnp.array([0, 1, 1])).values
        Array([[0., 0., 1.],
               [0., 1., 1.]], dtype=float32)

    References:
        Zadrozny and Elkan, Transforming classifier scores into accurate multiclass probability
        estimates, 2002.
    """
    _check_concrete(probs=probs, labels=labels, weights=weights, where=where)
    classes = probs.shape[1]
    known = (labels >= 0) & (labels < classes)
    fits = []
    for c in range(classes):
        outcome = jnp.where(known, (labels == c).astype(jnp.float32), jnp.nan)
        fits.append(fit_isotonic(probs[:, c], outcome, weights=weights, where=where))
    most = max(len(fit.knots) for fit in fits)
    padded = [
        IsotonicFit(*(jnp.pad(x, (0, most - len(x)), mode="edge") for x in fit)) for fit in fits
    ]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)


@checked
def apply_classwise_isotonic(
    fit: IsotonicFit, probs: Float[Array, "examples classes"]
) -> Float[Array, "examples classes"]:
    """Probabilities after the map of each class, divided by their sum. Works under `jax.jit`.

    Args:
        fit: maps with a leading axis of classes.
        probs: class probabilities.

    Returns:
        Probabilities, at least float32; uniform where every class's map gives 0. A row is NaN where
        an entry is NaN or outside [0, 1].

    Example:
        >>> probs = jnp.array([[0.8, 0.2], [0.6, 0.4], [0.4, 0.6]])
        >>> fit = fit_classwise_isotonic(probs, jnp.array([0, 1, 1]))
        >>> apply_classwise_isotonic(fit, jnp.array([[0.7, 0.3]])).round(3)
        Array([[0.5, 0.5]], dtype=float32)
    """
    mapped = jax.vmap(apply_isotonic, in_axes=(0, 1), out_axes=1)(fit, probs)
    total = jnp.sum(mapped, axis=-1, keepdims=True)
    shared = mapped / jnp.where(total == 0, 1, total)
    return jnp.where(total == 0, 1 / probs.shape[1], shared)


def _check_concrete(**arrays: Array | None) -> None:
    for name, array in arrays.items():
        if isinstance(array, jax.core.Tracer):
            raise TypeError(
                f"{name} must be an array with values: isotonic regression is fitted on the host, "
                f"outside jax.jit, jax.vmap and jax.grad; got {name}={array}."
            )
