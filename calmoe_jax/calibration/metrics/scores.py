"""Scores of predicted probabilities: accuracy, log loss, Brier score, confidence gap.

Every function takes `weights=` (of examples), `where=` (a mask), and `from_logits=`, whether the
first argument holds logits or log probabilities; it is never guessed. Without weight every value is
NaN. Invalid examples give NaN too: a row that counts and is not a distribution, or whose label is
outside the classes, makes every value NaN.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import at_least_float32, example_weights, log_or_neginf
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import (
    distributions,
    largest_class,
    log_probabilities,
    probabilities,
)
from calmoe_jax.calibration._labels import Labels, at_label, chance_of, labelled, not_ignored
from calmoe_jax.calibration._sums import total, weighted_total

_Probs = Float[Array, "examples classes"]
_Weights = Float[Array, " examples"] | None
_Where = Bool[Array, " examples"] | None


def mean_of(
    values: Float[Array, " examples"], weights: _Weights, where: _Where
) -> Float[Array, ""]:
    """Weighted mean over the examples that count; NaN if there are none."""
    weight = example_weights(values.shape, weights, where, values.dtype)
    return weighted_total(values, weight) / total_weight(weight, weights, where)


def total_weight(
    weight: Float[Array, " examples"], weights: _Weights, where: _Where
) -> Float[Array, ""]:
    """Sum of the weights that `example_weights` gives."""
    if weights is None and where is None:  # XLA would sum the ones at compile time, slowly
        return jnp.asarray(weight.shape[0], weight.dtype)
    return total(weight)


@checked
def top_label(
    probs: _Probs, labels: Labels, *, from_logits: bool = False
) -> tuple[Float[Array, " examples"], Bool[Array, " examples"] | Float[Array, " examples"]]:
    """Confidence in the predicted class, and whether it is the true one.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`; or a distribution over the classes, such
            as votes: the result is then the expectation over labels drawn from it.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        `(confidence, correct)`; with soft labels `correct` is a probability. Ties go to the lower
        class. The confidence is NaN where the row is not a distribution or the label is outside the
        classes.

    Raises:
        TypeError: if the labels are not integers.

    Example:
        >>> top_label(jnp.array([[0.3, 0.7]]), jnp.array([1]))
        (Array([0.7], dtype=float32), Array([ True], dtype=bool))
    """
    if from_logits:
        probs = probabilities(probs, from_logits=True)
    largest, index, valid = largest_class(probs)
    valid &= labelled(labels, probs.shape[-1])
    # one NaN is enough: the rest of an invalid row is not used
    confidence = jnp.where(valid, jnp.where(largest > 1, 1, largest), jnp.nan)
    return confidence, chance_of(index, labels)


@checked
def accuracy(
    probs: _Probs,
    labels: Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    from_logits: bool = False,
    ignore_label: int | None = None,
) -> Float[Array, ""]:
    """Share of examples whose most probable class is the true one.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`; or a distribution over the classes, such
            as votes: the result is then the expectation over labels drawn from it.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities.
        ignore_label: label of examples that do not count (-100, say); none by default.

    Returns:
        The accuracy, in [0, 1]; ties go to the lower class; NaN where nothing counts, or a row
        that counts holds a NaN.

    Example:
        >>> accuracy(jnp.array([[0.3, 0.7], [0.6, 0.4]]), jnp.array([1, 1]))
        Array(0.5, dtype=float32)
    """
    where = not_ignored(labels, where, ignore_label)
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    right = jnp.where(jnp.isnan(confidence), jnp.nan, correct.astype(confidence.dtype))
    return mean_of(right, weights, where)


@checked
def negative_log_likelihood(
    probs: _Probs,
    labels: Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    from_logits: bool = False,
    ignore_label: int | None = None,
) -> Float[Array, ""]:
    """Mean `-log p_y`, in nats.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`; or a distribution over the classes, such
            as votes: the result is then the expectation over labels drawn from it.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities; give log probabilities
            where `p_y` may underflow.
        ignore_label: label of examples that do not count (-100, say); none by default.

    Returns:
        The mean, at least 0; `inf` where a true class has probability 0 (the gradient of that
        example is 0), NaN where nothing counts.

    Example:
        >>> negative_log_likelihood(jnp.array([[0.0, 1.0]]), jnp.array([1]))
        Array(0., dtype=float32)
    """
    where = not_ignored(labels, where, ignore_label)
    return mean_of(log_losses(probs, labels, from_logits=from_logits), weights, where)


@checked
def brier_score(
    probs: _Probs,
    labels: Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    from_logits: bool = False,
    ignore_label: int | None = None,
) -> Float[Array, ""]:
    """Mean squared distance of the probabilities from the one-hot label, over all classes.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`; or a distribution over the classes, such
            as votes: the result is then the expectation over labels drawn from it.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities.
        ignore_label: label of examples that do not count (-100, say); none by default.

    Returns:
        The score, in [0, 2] (with two classes twice the one-column score); NaN where nothing
        counts.

    Example:
        >>> brier_score(jnp.array([[0.5, 0.5]]), jnp.array([0]))
        Array(0.5, dtype=float32)

    References:
        Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.
    """
    where = not_ignored(labels, where, ignore_label)
    return mean_of(squared_distances(probs, labels, from_logits=from_logits), weights, where)


def log_losses(
    probs: _Probs, labels: Labels, *, from_logits: bool = False
) -> Float[Array, " examples"]:
    """`-log p_y` of each example, in nats; NaN where it cannot be scored."""
    if from_logits:
        return 0 - at_label(log_probabilities(probs), labels)
    if labels.ndim == 2:
        return _cross_entropies(probs, labels)
    chance = at_label(at_least_float32(probs), labels)
    # without 0 and NaN inside the logarithm, whose gradient would be NaN even for rows that do not
    # count; values above 1 by rounding become 1
    inside = (chance > 0) & (chance <= 1)
    losses = 0 - jnp.log(jnp.where(inside, chance, 1))
    losses = jnp.where(chance == 0, jnp.inf, losses)
    return jnp.where(distributions(probs) & ~jnp.isnan(chance), losses, jnp.nan)


def _cross_entropies(
    probs: _Probs, labels: Float[Array, "examples classes"]
) -> Float[Array, " examples"]:
    """`-sum_c q_c log p_c` of each example, with soft labels `q`."""
    values = probabilities(probs)
    losses = 0 - at_label(log_or_neginf(values), labels)
    return jnp.where(jnp.isnan(values[:, 0]), jnp.nan, losses)


def squared_distances(
    probs: _Probs, labels: Labels, *, from_logits: bool = False
) -> Float[Array, " examples"]:
    """Squared distance of each row from its one-hot label; NaN where it cannot be scored."""
    probs = probabilities(probs, from_logits=from_logits)
    if labels.ndim == 2:
        return 1 + jnp.sum(jnp.square(probs), axis=-1) - 2 * at_label(probs, labels)
    true = jnp.arange(probs.shape[-1], dtype=labels.dtype)[None, :] == labels[:, None]
    distance = jnp.sum(jnp.square(probs - true.astype(probs.dtype)), axis=-1)
    return jnp.where(jnp.any(true, axis=-1), distance, jnp.nan)


@checked
def confidence_gap(
    probs: _Probs,
    labels: Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    from_logits: bool = False,
    ignore_label: int | None = None,
) -> Float[Array, ""]:
    """Mean confidence minus accuracy: above 0 is over-confident, below 0 under-confident.

    Condition: top-label, on average over all confidences.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`; or a distribution over the classes, such
            as votes: the result is then the expectation over labels drawn from it.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds logits or log probabilities.
        ignore_label: label of examples that do not count (-100, say); none by default.

    Returns:
        The signed gap, in [-1, 1]; its absolute value bounds the top-label calibration error from
        below. NaN where nothing counts.

    Example:
        >>> confidence_gap(jnp.array([[0.25, 0.75]]), jnp.array([0]))
        Array(0.75, dtype=float32)
    """
    where = not_ignored(labels, where, ignore_label)
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    return mean_of(confidence - correct.astype(confidence.dtype), weights, where)
