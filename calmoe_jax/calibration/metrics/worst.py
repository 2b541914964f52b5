"""Worst-case calibration: over groups of examples, and over reweightings of bins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, is_concrete_number
from calmoe_jax._numerics import example_weights, safe_divide
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.metrics.binning import ReliabilityBins, reliability_bins
from calmoe_jax.calibration.metrics.errors import calibration_error
from calmoe_jax.calibration.metrics.scores import top_label


class WorstGroup(NamedTuple):
    """Calibration errors of groups, and the largest.

    Attributes:
        value: the largest error of a group that holds weight.
        group: the group with the largest error; -1 if there is none.
        errors: the error of every group; NaN for a group without weight.
    """

    value: Float[Array, ""]
    group: Int[Array, ""]
    errors: Float[Array, " groups"]


class WorstReweighting(NamedTuple):
    """The calibration error under the worst admissible reweighting of the bins.

    Attributes:
        value: the error.
        density: ratio of the weight of each bin under the reweighting to its original weight.
    """

    value: Float[Array, "*batch"]
    density: Float[Array, "*batch bins"]


@checked
def worst_group(
    probs: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    groups: Int[Array, " examples"],
    *,
    num_groups: int,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> WorstGroup:
    """The largest top-label calibration error among groups of examples.

    `max_g ECE(examples of group g)` over the groups that hold weight, with equal-width bins.
    Condition: top-label within each group: `P(Y = yhat | max F = p, G = g) = p`. Small groups have
    large errors by chance, which the maximum picks up: compare groups of similar size.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        groups: group of each example, in `[0, num_groups)`.
        num_groups: number of groups, at least 1; static under `jax.jit`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        A `WorstGroup`. Ties go to the lower group. The value is NaN, and the group -1, where
        nothing counts, the error of a group that holds weight is NaN, or an example that counts
        is in no group.

    Raises:
        ValueError: if `num_groups` or `num_bins` is less than 1.

    Example:
        >>> probs = jnp.array([[0.75, 0.25], [0.75, 0.25]])
        >>> worst = worst_group(
        ...     probs, jnp.array([0, 1]), jnp.array([0, 1]), num_groups=3
        ... )
        >>> worst.value, worst.group
        (Array(0.75, dtype=float32), Array(1, dtype=int32))
        >>> worst.errors
        Array([0.25, 0.75,  nan], dtype=float32)

    References:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, 2020 (the worst
        group as a measure); Hébert-Johnson et al., Multicalibration, 2018.
    """
    check_at_least("num_groups", num_groups, 1)
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)

    def one_group(group: Int[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        bins = reliability_bins(
            confidence, correct, weights=weight, where=groups == group, num_bins=num_bins
        )
        return calibration_error(bins), jnp.sum(jnp.where(groups == group, weight, 0))

    # one by one: all masks at once would take memory of examples times groups
    errors, held = jax.lax.map(one_group, jnp.arange(num_groups, dtype=groups.dtype))
    outside = jnp.any((weight != 0) & ((groups < 0) | (groups >= num_groups)))
    holding = held != 0
    invalid = outside | jnp.any(holding & jnp.isnan(errors)) | ~jnp.any(holding)
    ranked = jnp.where(holding, errors, -1)
    return WorstGroup(
        jnp.where(invalid, jnp.nan, jnp.max(ranked)),
        jnp.where(invalid, -1, jnp.argmax(ranked).astype(jnp.int32)),
        jnp.where(holding, errors, jnp.nan),
    )


@checked
def worst_reweighting(
    bins: ReliabilityBins, *, alpha: float | Float[Array, ""]
) -> WorstReweighting:
    """The largest calibration error under any reweighting of the bins with density at most 1/alpha.

    With the share `s_b` and the gap `g_b` of each bin: `max_q sum_b q_b |g_b|` over
    distributions `q` with `q_b <= s_b / alpha`. That is the conditional value at risk of the
    gaps: their mean over the share `alpha` of the examples whose bins are worst. It lies between
    the expected error (`alpha = 1`) and the maximum one (`alpha` towards 0). Condition: that of
    the pairs that were binned. It covers shifts of the confidences only: the event frequency given
    the bin does not change.

    Args:
        bins: sums of each bin; leading axes are a batch.
        alpha: smallest fraction of the examples that holds all the new weight, in (0, 1].

    Returns:
        The exact `WorstReweighting`; of bins with equal gaps the lower is filled first. A bin
        without weight has density 0. NaN where the bins hold no weight, or are NaN.

    Raises:
        ValueError: if `alpha` is not in (0, 1].

    Example:
        >>> bins = reliability_bins(jnp.array([0.25, 0.75]), jnp.array([0.0, 0.0]), num_bins=2)
        >>> worst_reweighting(bins, alpha=0.5)
        WorstReweighting(value=Array(0.75, dtype=float32), density=Array([0., 2.], dtype=float32))

    References:
        Rockafellar and Uryasev, Optimization of Conditional Value-at-Risk, 2000.
    """
    if is_concrete_number(alpha) and not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got alpha={alpha}.")
    dtype = bins.weight.dtype
    alpha = jnp.asarray(alpha, dtype)
    share = bins.weight / jnp.sum(bins.weight, axis=-1, keepdims=True)
    gap = jnp.abs(safe_divide(bins.residual, bins.weight))
    order = jnp.argsort(-gap, axis=-1)
    sorted_share = jnp.take_along_axis(share, order, axis=-1)
    # subtracting a share from a sum that contains it would lose the digits of a small alpha
    before = jnp.cumulative_sum(sorted_share, axis=-1, include_initial=True)[..., :-1]
    taken = jnp.clip(alpha - before, 0, sorted_share) / alpha
    mass = jnp.take_along_axis(taken, jnp.argsort(order, axis=-1), axis=-1)
    mass = jnp.where(jnp.isnan(share), jnp.nan, mass)
    return WorstReweighting(jnp.sum(mass * gap, axis=-1), safe_divide(mass, share))
