"""Confidences sorted into equal-width bins, and the calibration error of the sums."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_at_least
from calmoe_jax._numerics import at_least_float32, example_weights


class ReliabilityBins(NamedTuple):
    """Sums over the examples of each bin: all that a reliability diagram needs.

    Attributes:
        weight: total example weight.
        confidence: weighted sum of confidences.
        residual: weighted sum of `confidence - outcome`. Kept instead of the outcomes: summing
            the small differences loses fewer digits than differencing two large sums.
    """

    weight: Float[Array, "*batch bins"]
    confidence: Float[Array, "*batch bins"]
    residual: Float[Array, "*batch bins"]


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
    confidence = at_least_float32(confidence)
    dtype = confidence.dtype
    weight = example_weights(confidence.shape, weights, where, dtype)
    counted = weight != 0
    residual = jnp.where(counted, confidence - outcome.astype(dtype), 0) * weight
    level = jnp.where(counted, confidence, 0)
    # each quotient rounded once: linspace is an ulp off at some edges
    edges = jnp.asarray(np.arange(1, num_bins) / num_bins, dtype)
    bins = jnp.searchsorted(edges, level, side="right")
    poison = jnp.where(jnp.isnan(level).any(), jnp.nan, 0).astype(dtype)

    def per_bin(values: Float[Array, " examples"]) -> Float[Array, " bins"]:
        return jnp.zeros(num_bins, dtype).at[bins].add(values) + poison

    return ReliabilityBins(per_bin(weight), per_bin(level * weight), per_bin(residual))


def binned_calibration_error(bins: ReliabilityBins) -> Float[Array, "*batch"]:
    """Expected calibration error of binned sums: `sum_b |residual_b| / sum_b weight_b`.

    Args:
        bins: sums of each bin; leading axes are a batch.

    Returns:
        The error, in [0, 1]; NaN where the bins hold no weight.

    Example:
        >>> bins = reliability_bins(jnp.array([0.25, 0.75]), jnp.array([0.0, 1.0]))
        >>> binned_calibration_error(bins)
        Array(0.25, dtype=float32)
    """
    return jnp.sum(jnp.abs(bins.residual), axis=-1) / jnp.sum(bins.weight, axis=-1)
