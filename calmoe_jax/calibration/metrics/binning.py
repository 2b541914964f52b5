"""Examples sorted into equal-width bins by confidence, and the sums of each bin.

Calibration means one of three things, and every function names the one it measures, with `F` the
predicted probabilities and `Y` the class: **top-label**, `P(Y = yhat | max F = p) = p`;
**classwise**, `P(Y = c | F_c = p) = p` for every class `c`; **canonical**,
`P(Y = c | F = f) = f_c`, which implies both. The bins decide between the first two; errors of the
bins are in `errors`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least
from calmoe_jax._numerics import example_weights
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event, probabilities
from calmoe_jax.calibration._labels import Labels, chance_of, labelled, not_ignored
from calmoe_jax.calibration._sums import sum_by_bin
from calmoe_jax.calibration.metrics.scores import top_label

_Probs = Float[Array, "examples classes"]
_Weights = Float[Array, " examples"] | None
_Where = Bool[Array, " examples"] | None


class ReliabilityBins(NamedTuple):
    """Sums over the examples of each bin, for reliability diagrams and calibration errors.

    Attributes:
        weight: total example weight.
        confidence: weighted sum of confidences.
        residual: weighted sum of `confidence - outcome`. Kept instead of the outcomes: summing
            the small differences loses fewer digits than differencing two large sums.
        weight_square: sum of squared weights, `w^2`, in units of `square_unit(weight)`.
        residual_square: sum of squared weighted residuals, `w^2 r^2`, in the same unit.
        weight_residual: sum of their products, `w^2 r`, in the same unit.
    """

    weight: Float[Array, "*batch bins"]
    confidence: Float[Array, "*batch bins"]
    residual: Float[Array, "*batch bins"]
    weight_square: Float[Array, "*batch bins"]
    residual_square: Float[Array, "*batch bins"]
    weight_residual: Float[Array, "*batch bins"]


def square_unit(weight: Float[Array, "*batch bins"]) -> Float[Array, "*batch"]:
    """The unit of weights within the sums of their squares, by the weight of the bins.

    It is 1 if the total weight is between `2^-32` and `2^32`, otherwise `2^-64` or `2^64`: the
    squares of weights of 1e30 or 1e-30 are no float32 numbers.
    """
    total = jnp.sum(weight, axis=-1)
    small = (total > 0) & (total < 2.0**-32)
    return jnp.where(total > 2.0**32, 2.0**64, jnp.where(small, 2.0**-64, 1)).astype(weight.dtype)


@checked
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
        The sums. An empty bin is all zeros. A NaN confidence that counts makes every sum NaN, since
        it belongs to no bin.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> confidence, outcome = jnp.array([0.2, 0.9, 1.0]), jnp.array([0.0, 1.0, 1.0])
        >>> reliability_bins(confidence, outcome, num_bins=2).weight
        Array([1., 2.], dtype=float32)
    """
    check_at_least("num_bins", num_bins, 1)
    confidence, outcome = event(confidence, outcome)
    index = equal_width_index(jnp.where(jnp.isnan(confidence), 0, confidence), num_bins)
    return sums_by_bin(index, confidence, outcome, weights=weights, where=where, num_bins=num_bins)


@checked
def top_label_bins(
    probs: _Probs,
    labels: Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
    ignore_label: int | None = None,
) -> ReliabilityBins:
    """Reliability sums of the predicted class: confidence against being right, by bin.

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
        The sums of each bin (see `reliability_bins`), for `calibration_error` and
        `reliability_curve`. For bins of equal mass see `equal_mass_bins`.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> top_label_bins(jnp.array([[0.25, 0.75]]), jnp.array([0]), num_bins=2).residual
        Array([0.  , 0.75], dtype=float32)
    """
    where = not_ignored(labels, where, ignore_label)
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    return reliability_bins(confidence, correct, weights=weights, where=where, num_bins=num_bins)


@checked
def classwise_bins(
    probs: _Probs,
    labels: Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
    ignore_label: int | None = None,
) -> ReliabilityBins:
    """Reliability sums of each class's probability against being of that class.

    Every function of bins takes them and gives a value for each class: the mean of
    `calibration_error(bins)` over the classes is the classwise calibration error. Condition:
    classwise.

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
    where = not_ignored(labels, where, ignore_label)
    probs = probabilities(probs, from_logits=from_logits)
    probs = jnp.where(labelled(labels, probs.shape[-1])[:, None], probs, jnp.nan)

    def one_class(column: Float[Array, " examples"], label: Int[Array, ""]) -> ReliabilityBins:
        outcome = chance_of(jnp.broadcast_to(label, column.shape), labels)
        return reliability_bins(column, outcome, weights=weights, where=where, num_bins=num_bins)

    return jax.vmap(one_class, in_axes=(1, 0))(probs, jnp.arange(probs.shape[-1]))


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
    return nearest - (level < edges[nearest]).astype(jnp.int32)


def sums_by_bin(
    index: Int[Array, " examples"],
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int,
) -> ReliabilityBins:
    """The sums of given bins, which need not have equal width.

    Args:
        index: bin of each example, in `[0, num_bins)`; anything where it does not count.
        confidence: predicted probability of the event, NaN where invalid (see `event`).
        outcome: whether the event happened, as a float.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of bins.

    Returns:
        The sums: in float32 accurate to 1e-6 of the total weight for up to 1e7 examples and 64
        bins. All NaN if an example that counts is NaN.
    """
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    return sums_by_cell(index, confidence, outcome, weight, (num_bins,))


def sums_by_cell(
    cell: Int[Array, " examples"],
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"],
    weight: Float[Array, " examples"],
    shape: tuple[int, ...],
) -> ReliabilityBins:
    """The sums of cells: of bins, or of the bins of every cluster.

    Args:
        cell: row-major place in the table of each example; anything where it does not count.
        confidence: predicted probability of the event, NaN where invalid (see `event`).
        outcome: whether the event happened, as a float.
        weight: weight of each example.
        shape: shape of the table: bins, or clusters and bins.

    Returns:
        The sums, of that shape; all of a row's are NaN if an example of it is.
    """

    def per_cell(values: Float[Array, " examples"]) -> Float[Array, "*table"]:
        return sum_by_bin(values, cell, math.prod(shape)).reshape(shape)

    counted = weight != 0
    level = jnp.where(counted, confidence, 0)
    miss = jnp.where(counted, confidence - outcome, 0)
    weights, residuals = per_cell(weight), per_cell(miss * weight)
    unit = square_unit(weights)
    part = weight / (unit if unit.ndim == 0 else unit.reshape(-1)[cell // shape[-1]])
    poison = jnp.where(jnp.isnan(residuals).any(axis=-1, keepdims=True), jnp.nan, 0)
    sums = ReliabilityBins(
        weights,
        per_cell(level * weight),
        residuals,
        per_cell(jnp.square(part)),
        per_cell(jnp.square(part * miss)),
        per_cell(jnp.square(part) * miss),
    )
    return ReliabilityBins(*(x + poison.astype(x.dtype) for x in sums))
