"""Histogram binning: replaces a confidence by the event frequency of its bin."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration.metrics.binning import equal_width_index, reliability_bins


class HistogramFit(NamedTuple):
    """A fitted histogram binning, in closed form.

    Attributes:
        probability: probability of the event in each bin of equal width, in [0, 1].
        weight: total weight of the examples of each bin; a bin of weight 0 has its centre as
            probability.
    """

    probability: Float[Array, "*batch bins"]
    weight: Float[Array, "*batch bins"]


@checked
def fit_histogram_binning(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int = 15,
) -> HistogramFit:
    """Computes the weighted mean outcome of each bin, which minimises squared and log loss.

    Bins are those of `reliability_bins`. For gradients the fit is a constant.

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability where that is known.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of bins, at least 1; static under `jax.jit`.

    Returns:
        A `HistogramFit`. The probability of an empty bin is its centre, so that without any weight
        the map is the identity up to binning. Confidences and outcomes outside [0, 1] or NaN make
        every probability NaN.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> fit = fit_histogram_binning(jnp.array([0.1, 0.2]), jnp.array([0.0, 1.0]), num_bins=2)
        >>> fit.probability
        Array([0.5 , 0.75], dtype=float32)

    References:
        Zadrozny and Elkan, Obtaining calibrated probability estimates from decision trees and
        naive Bayesian classifiers, 2001.
    """
    confidence, outcome = jax.lax.stop_gradient(event(confidence, outcome))
    if weights is not None:
        weights = jax.lax.stop_gradient(weights)
    bins = reliability_bins(confidence, outcome, weights=weights, where=where, num_bins=num_bins)
    empty = bins.weight == 0
    centre = jnp.asarray((np.arange(num_bins) + 0.5) / num_bins, confidence.dtype)
    happened = (bins.confidence - bins.residual) / jnp.where(empty, 1, bins.weight)
    probability = jnp.where(empty, centre, jnp.clip(happened, 0, 1))
    return HistogramFit(probability, bins.weight)


@checked
def apply_histogram_binning(
    fit: HistogramFit, confidence: Float[Array, " examples"]
) -> Float[Array, " examples"]:
    """Probability of the event: that of the confidence's bin.

    Args:
        fit: a fitted histogram binning.
        confidence: predicted probability of the event, in [0, 1].

    Returns:
        Probabilities, at least float32; NaN for a confidence that is NaN or outside [0, 1].

    Example:
        >>> fit = fit_histogram_binning(jnp.array([0.1, 0.2]), jnp.array([0.0, 1.0]), num_bins=2)
        >>> apply_histogram_binning(fit, jnp.array([0.4, 1.0]))
        Array([0.5 , 0.75], dtype=float32)
    """
    confidence, _ = event(confidence, jnp.zeros_like(confidence))
    num_bins = fit.probability.shape[-1]
    unknown = jnp.isnan(confidence)
    index = equal_width_index(jnp.where(unknown, 0, confidence), num_bins)
    return jnp.where(unknown, jnp.nan, fit.probability[index])
