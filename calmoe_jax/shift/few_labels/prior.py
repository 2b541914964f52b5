"""What is known of the gap before labels, and what is known with them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._numerics import at_least_float32, normal_cdf
from calmoe_jax._signatures import checked

# Weights of the label-free estimates, of no gap, and of any gap; and their standard deviations. Set
# on the tasks of `experiments.repair_protocol`, which also fits them to simulated shifts alone.
_WEIGHTS = (0.3, 0.3, 0.1, 0.3)
_DEVIATIONS = (0.05, 0.05, 0.03, 0.2)
# Mean of a gap of which nothing is known.
_ANY_GAP = 0.2
_HALVINGS = 30


class GapPrior(NamedTuple):
    """A mixture of normal distributions of the gap.

    Attributes:
        weights: weight of each; they sum to 1.
        means: their means.
        deviations: their standard deviations.
    """

    weights: Float[Array, " components"]
    means: Float[Array, " components"]
    deviations: Float[Array, " components"]


class GapPosterior(NamedTuple):
    """The gap, given labels.

    Attributes:
        mean: its mean.
        median: its median: the calibration error after a repair is about the distance of what was
            assumed from the gap, of which the median has the least expectation.
        standard_deviation: its standard deviation.
    """

    mean: Float[Array, ""]
    median: Float[Array, ""]
    standard_deviation: Float[Array, ""]


@checked
def label_free_prior(safe: Float[Array, ""], bold: Float[Array, ""]) -> GapPrior:
    """Prior distribution of the gap from two label-free estimates of it.

    Either estimate may be right, there may be no gap, or any. Which holds cannot be known without
    labels (a shift and a hard subset look alike); with a few it soon is.

    Args:
        safe: gap by the rule that does no harm, at least 0.
        bold: gap by the rule that closes most, at least 0.

    Returns:
        A `GapPrior` of four components. An estimate that is NaN counts as no gap.

    Example:
        >>> label_free_prior(jnp.array(0.0), jnp.array(0.2)).means
        Array([0. , 0.2, 0. , 0.2], dtype=float32)
    """
    means = jnp.stack([at_least_float32(x) for x in (safe, bold)])
    means = jnp.where(jnp.isnan(means), 0, jnp.maximum(means, 0))
    dtype = means.dtype
    return GapPrior(
        jnp.asarray(_WEIGHTS, dtype),
        jnp.concatenate([means, jnp.asarray([0, _ANY_GAP], dtype)]),
        jnp.asarray(_DEVIATIONS, dtype),
    )


@checked
def posterior_gap(
    estimate: Float[Array, ""], standard_error: Float[Array, ""], prior: GapPrior
) -> GapPosterior:
    """Posterior distribution of the gap, given an estimate of it with a normal error.

    With prior weights `w_j`, means `m_j` and deviations `s_j`, and the estimate `e` with standard
    error `r`: weights in proportion to `w_j N(e; m_j, s_j^2 + r^2)`, and means
    `(e s_j^2 + m_j r^2) / (s_j^2 + r^2)`.

    Args:
        estimate: unbiased estimate of the gap.
        standard_error: its standard error, at least 0.
        prior: what was known before.

    Returns:
        A `GapPosterior`; NaN where the estimate or its error is.

    Example:
        >>> prior = GapPrior(jnp.ones(1), jnp.zeros(1), jnp.full(1, 0.1))
        >>> round(float(posterior_gap(jnp.array(0.2), jnp.array(0.1), prior).mean), 3)
        0.1
    """
    estimate = at_least_float32(estimate)
    error = jnp.square(standard_error.astype(estimate.dtype))
    variance = jnp.square(prior.deviations)
    total = variance + error
    log_weights = jnp.log(prior.weights) - 0.5 * jnp.log(total)
    log_weights -= 0.5 * jnp.square(estimate - prior.means) / total
    weights = jax.nn.softmax(log_weights)
    means = (estimate * variance + prior.means * error) / total
    mean = weights @ means
    within = variance * error / total
    spread = jnp.sqrt(weights @ (within + jnp.square(means - mean)))
    return GapPosterior(mean, _median(weights, means, jnp.sqrt(within)), spread)


def _median(
    weights: Float[Array, " components"],
    means: Float[Array, " components"],
    deviations: Float[Array, " components"],
) -> Float[Array, ""]:
    """Median of a mixture of normal distributions: between those of its components."""

    def halve(
        _: int | Int[Array, ""], bracket: tuple[Float[Array, ""], Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        low, high = bracket
        middle = (low + high) / 2
        scale = jnp.where(deviations > 0, deviations, jnp.finfo(means.dtype).tiny)
        below = weights @ normal_cdf((middle - means) / scale)
        return jnp.where(below < 0.5, middle, low), jnp.where(below < 0.5, high, middle)

    bracket = (jnp.min(means), jnp.max(means))
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, bracket)
    return jnp.where(jnp.isnan(jnp.sum(means)), jnp.nan, (low + high) / 2)
