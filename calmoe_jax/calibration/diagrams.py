"""The arrays behind calibration plots: curves with bands, and gaps along a statistic."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least
from calmoe_jax._numerics import at_least_float32, example_weights
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration._sums import total
from calmoe_jax.calibration.metrics.binning import ReliabilityBins, square_unit
from calmoe_jax.calibration.metrics.equal_mass import mass_index, middle_weights

# 97.5 % quantile of the standard normal distribution.
_NORMAL_95 = 1.959963984540054


class ReliabilityCurve(NamedTuple):
    """Frequency of the event at each level of confidence.

    Attributes:
        confidence: mean confidence of each bin, in [0, 1].
        accuracy: share of the bin's weight for which the event happened, in [0, 1].
        low: lower end of the 95 % band of the accuracy, in [0, 1].
        high: upper end of the band.
        share: share of all weight that lies in the bin.
    """

    confidence: Float[Array, "*batch bins"]
    accuracy: Float[Array, "*batch bins"]
    low: Float[Array, "*batch bins"]
    high: Float[Array, "*batch bins"]
    share: Float[Array, "*batch bins"]


class StatisticGap(NamedTuple):
    """Confidence minus accuracy in groups of examples, ordered by a statistic.

    Attributes:
        statistic: mean of the statistic in each group.
        gap: mean of `confidence - correct`; above 0 is over-confident.
        standard_error: standard error of the gap, for independent examples.
        share: share of all weight that lies in the group.
    """

    statistic: Float[Array, " groups"]
    gap: Float[Array, " groups"]
    standard_error: Float[Array, " groups"]
    share: Float[Array, " groups"]


@checked
def reliability_curve(bins: ReliabilityBins) -> ReliabilityCurve:
    """Turns binned sums into a reliability curve with pointwise 95 % bands.

    The band is Wilson's interval for a share, with the effective number of examples
    `n = (sum w)^2 / sum w^2` of the bin: with `z = 1.96` and the accuracy `a` it is

        (a + z^2 / 2n  +-  z sqrt(a (1 - a) / n + z^2 / 4n^2)) / (1 + z^2 / n).

    It stays in [0, 1], and has positive width if all or none of the events happened.

    Args:
        bins: sums of each bin (see `reliability_bins`); leading axes are a batch.

    Returns:
        A `ReliabilityCurve`; `sum_b share_b |confidence_b - accuracy_b|` is the expected
        calibration error of the bins. A bin without weight has share 0 and other fields NaN;
        if no bin has weight, the shares are NaN too. The band is pointwise: of 20 bins of
        a calibrated forecast one is expected to miss. It holds for independent examples whose
        weights do not depend on the outcome at a given confidence.

    Example:
        >>> bins = reliability_bins(jnp.array([0.25, 0.75]), jnp.array([0.0, 1.0]), num_bins=2)
        >>> curve = reliability_curve(bins)
        >>> curve.accuracy, curve.low.round(2)
        (Array([0., 1.], dtype=float32), Array([0.  , 0.21], dtype=float32))

    References:
        Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927;
        Kish, Survey Sampling, 1965, for the effective number.
    """
    empty = bins.weight == 0
    weight = jnp.where(empty, jnp.nan, bins.weight)
    # rounding may put a quotient of sums outside by an ulp
    confidence = jnp.clip(bins.confidence / weight, 0, 1)
    accuracy = jnp.clip((bins.confidence - bins.residual) / weight, 0, 1)
    square = jnp.square(weight / square_unit(bins.weight)[..., None])
    noise = _NORMAL_95**2 * bins.weight_square / square  # z^2 / n
    middle = accuracy + noise / 2
    half = jnp.sqrt(noise * accuracy * (1 - accuracy) + jnp.square(noise) / 4)
    return ReliabilityCurve(
        confidence=confidence,
        accuracy=accuracy,
        low=jnp.clip((middle - half) / (1 + noise), 0, accuracy),
        high=jnp.clip((middle + half) / (1 + noise), accuracy, 1),
        share=bins.weight / jnp.sum(bins.weight, axis=-1, keepdims=True),
    )


@checked
def gap_by_statistic(
    statistic: Float[Array, " examples"],
    confidence: Float[Array, " examples"],
    correct: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_groups: int = 10,
) -> StatisticGap:
    """Confidence minus accuracy along a statistic, in groups of equal weight.

    Examples are ordered by the statistic (routing entropy or disagreement, say) and cut into
    groups of equal weight. Equal values stay together, in the group of the middle of their joint
    weight, so the order of the examples does not matter.

    Args:
        statistic: a statistic of each example.
        confidence: predicted probability of the event, in [0, 1].
        correct: whether the event happened, or its probability where that is known.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_groups: number of groups, at least 1; static under `jax.jit`.

    Returns:
        A `StatisticGap`, ascending in the statistic. An empty group (because of ties, or because
        there are fewer examples) has share 0 and other fields NaN. The standard error of a single
        example is NaN. A NaN statistic that counts makes everything NaN, since it has no rank. A
        NaN event makes its group NaN.

    Raises:
        ValueError: if `num_groups` is less than 1.

    Example:
        >>> gap_by_statistic(
        ...     jnp.array([0.0, 0.1, 0.7, 0.9]), jnp.full(4, 0.75), jnp.ones(4), num_groups=2
        ... ).gap
        Array([-0.25, -0.25], dtype=float32)
    """
    check_at_least("num_groups", num_groups, 1)
    confidence, outcome = event(confidence, correct)
    statistic = at_least_float32(statistic)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    lost = jnp.any(jnp.isnan(statistic) & (weight != 0))
    statistic, weight, residual = jax.lax.sort(
        (statistic, weight, confidence - outcome), num_keys=1, is_stable=False
    )
    middle, held = middle_weights(statistic, weight)
    group = mass_index(middle, held, num_groups)

    def of_group(
        number: Int[Array, ""],
    ) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
        inside = jnp.where(group == number, weight, 0)
        level, _ = mean_and_error(statistic, inside)
        gap, error = mean_and_error(residual, inside)
        return level, gap, error, total(inside) / held

    result = jax.vmap(of_group)(jnp.arange(num_groups, dtype=group.dtype))
    return StatisticGap(*(jnp.where(lost, jnp.nan, values) for values in result))


def mean_and_error(
    values: Float[Array, " examples"], weight: Float[Array, " examples"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted mean of independent examples, and its standard error.

    With shares `s_i = w_i / sum w` and the mean `m` the squared error is
    `sum_i s_i^2 (v_i - m)^2 / (1 - sum_i s_i^2)`: with equal weights the sample variance over n.
    Only the ratios of the weights matter: they are importance weights, not counts.

    Args:
        values: a number of each example.
        weight: non-negative weight of each example; a value of weight 0 may be NaN.

    Returns:
        `(mean, standard error)`; both NaN without weight; the error is NaN if all weight is on one
        example.
    """
    held = total(weight)
    share = weight / jnp.where(held == 0, 1, held)

    def summed(terms: Float[Array, " examples"]) -> Float[Array, ""]:
        return total(jnp.where(weight == 0, 0, terms))

    mean = summed(values * weight) / held
    spread = summed(jnp.square(share * (values - mean)))
    repeated = jnp.where(held == 0, 1, summed(jnp.square(share)))
    return mean, jnp.sqrt(spread / (1 - repeated))
