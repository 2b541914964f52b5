"""The bootstrap over clusters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from calmoe_jax._checks import check_at_least
from calmoe_jax._numerics import example_weights, safe_divide
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration._sums import sum_by_bin
from calmoe_jax.calibration.metrics.binning import (
    ReliabilityBins,
    equal_width_index,
    square_unit,
    sums_by_cell,
)


@checked
def bootstrap_counts(
    key: jax.Array,
    num_clusters: int,
    *,
    where: Bool[Array, " clusters"] | None = None,
    num_replicates: int = 1000,
) -> Float[Array, "replicates clusters"]:
    """Counts how often each cluster is drawn in each replicate of the bootstrap.

    A replicate draws as many clusters as there are, with replacement. Sums over a replicate's
    examples are then `counts @ sums_per_cluster`; use the same counts for two models, and the
    difference of their values is paired.

    Args:
        key: random key.
        num_clusters: number of clusters, at least 1; independent examples are their own clusters.
        where: clusters that exist; all by default. The others are never drawn, and a replicate
            draws as many clusters as exist.
        num_replicates: number of replicates, at least 1.

    Returns:
        Whole numbers as float32; every row sums to the number of clusters that exist.

    Raises:
        ValueError: if a number is less than 1.

    Example:
        >>> bootstrap_counts(jax.random.key(0), 5, num_replicates=2).sum(axis=1)
        Array([5., 5.], dtype=float32)

    References:
        Efron, Bootstrap Methods, 1979; for clusters Field and Welsh, 2007.
    """
    check_at_least("num_clusters", num_clusters, 1)
    check_at_least("num_replicates", num_replicates, 1)
    shape = (num_replicates, num_clusters)
    zeros = jnp.zeros(num_clusters, jnp.float32)
    if where is None:
        drawn = jax.random.randint(key, shape, 0, num_clusters)
        return jax.vmap(lambda row: zeros.at[row].add(1.0))(drawn)
    existing = jnp.sum(where)
    drawn = jnp.argsort(~where, stable=True)[jax.random.randint(key, shape, 0, existing)]
    once = (jnp.arange(num_clusters) < existing).astype(jnp.float32)
    return jax.vmap(lambda row: zeros.at[row].add(once))(drawn)


@checked
def bootstrap_sums(
    counts: Float[Array, "replicates clusters"], sums: PyTree[Float[Array, "clusters ..."]]
) -> PyTree[Float[Array, "replicates ..."]]:
    """Sums over the examples of each replicate, from the sums over each cluster.

    Args:
        counts: how often each cluster is drawn (see `bootstrap_counts`).
        sums: sums over each cluster, in any tree; the clusters are the leading axis.

    Returns:
        The same tree, with replicates in place of clusters.

    Example:
        >>> bootstrap_sums(jnp.array([[2.0, 0.0]]), jnp.array([[0.5], [3.0]]))
        Array([[1.]], dtype=float32)
    """

    def summed(values: Float[Array, "clusters ..."]) -> Float[Array, "replicates ..."]:
        # devices with low-precision products would round the sums to three digits
        highest = jax.lax.Precision.HIGHEST
        return jnp.tensordot(counts.astype(values.dtype), values, axes=1, precision=highest)

    return jax.tree.map(summed, sums)


@checked
def cluster_sums(
    values: PyTree[Float[Array, "examples ..."]],
    clusters: Int[Array, " examples"],
    *,
    num_clusters: int,
) -> PyTree[Float[Array, "clusters ..."]]:
    """Sums over the examples of each cluster.

    Args:
        values: numbers of each example, in any tree, already multiplied by the weights; the
            examples are the leading axis.
        clusters: cluster of each example, in `[0, num_clusters)`. Outside that range the numbers
            of the example must all be 0.
        num_clusters: number of clusters, at least 1; static.

    Returns:
        The same tree, with clusters in place of examples; 0 for a cluster without examples. All
        NaN if an example with a cluster out of range has a number other than 0.

    Raises:
        ValueError: if `num_clusters` is less than 1.

    Example:
        >>> cluster_sums(jnp.array([1.0, 2.0, 4.0]), jnp.array([1, 0, 1]), num_clusters=2)
        Array([2., 5.], dtype=float32)
    """
    check_at_least("num_clusters", num_clusters, 1)
    outside = (clusters < 0) | (clusters >= num_clusters)
    some = jnp.any(outside)

    def summed(numbers: Float[Array, "examples ..."]) -> Float[Array, "clusters ..."]:
        totals = sum_by_bin(numbers, jnp.clip(clusters, 0, num_clusters - 1), num_clusters)

        def strange() -> Bool[Array, ""]:
            kept = jnp.any(numbers != 0, axis=tuple(range(1, numbers.ndim)))
            return jnp.any(outside & kept)

        # a pass over the numbers, which would take a third of the time of the sums
        poisoned = jax.lax.cond(some, strange, lambda: jnp.zeros_like(some))
        return totals + jnp.where(poisoned, jnp.nan, 0).astype(totals.dtype)

    return jax.tree.map(summed, values)


@checked
def cluster_bins(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    clusters: Int[Array, " examples"],
    *,
    num_clusters: int,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int = 15,
) -> ReliabilityBins:
    """Reliability sums of every cluster, for a bootstrap of whole clusters.

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability where that is known.
        clusters: cluster of each example, in `[0, num_clusters)`.
        num_clusters: number of clusters, at least 1; static.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of bins, at least 1; static.

    Returns:
        The sums of `reliability_bins` with a leading axis of clusters; summed over it they are
        those of all examples. A NaN that counts makes every sum of its cluster NaN; a cluster
        outside the range makes all sums NaN.

    Raises:
        ValueError: if a number is less than 1.

    Example:
        >>> event = jnp.array([0.5, 0.75, 0.5]), jnp.array([1.0, 1.0, 0.0])
        >>> cluster_bins(*event, jnp.array([1, 0, 1]), num_clusters=2, num_bins=1).weight
        Array([[1.],
               [2.]], dtype=float32)
    """
    check_at_least("num_bins", num_bins, 1)
    check_at_least("num_clusters", num_clusters, 1)
    confidence, outcome = event(confidence, outcome)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    outside = (weight != 0) & ((clusters < 0) | (clusters >= num_clusters))
    index = equal_width_index(jnp.where(jnp.isnan(confidence), 0, confidence), num_bins)
    cell = jnp.clip(clusters, 0, num_clusters - 1).astype(index.dtype) * num_bins + index
    bins = sums_by_cell(cell, confidence, outcome, weight, (num_clusters, num_bins))
    poison = jnp.where(outside.any(), jnp.nan, 0).astype(confidence.dtype)
    return ReliabilityBins(*(sums + poison for sums in bins))


@checked
def bootstrap_bins(
    key: jax.Array, bins: ReliabilityBins, *, num_replicates: int = 1000
) -> ReliabilityBins:
    """Replicates of binned sums without the examples: the bootstrap's large-sample limit.

    In a bootstrap that draws every example a Poisson(1) number of times, the sums of a bin have
    the variances `sum w^2` and `sum w^2 r^2` and the covariance `sum w^2 r`, which the bins keep,
    and different bins are independent. Here they are drawn from the normal distribution with these
    moments. The cost does not depend on the number of examples.

    Args:
        key: random key.
        bins: sums of each bin over independent examples.
        num_replicates: number of replicates, at least 1.

    Returns:
        The bins with a leading axis of replicates. Negative weights (possible in bins of a few
        examples) become 0. The mean confidence and the mean squares of a bin are not replicated:
        their sums follow the weight.

    Raises:
        ValueError: if `num_replicates` is less than 1.

    Example:
        >>> bins = reliability_bins(jnp.full(400, 0.5), jnp.arange(400) % 2 == 0, num_bins=1)
        >>> replicates = bootstrap_bins(jax.random.key(0), bins)
        >>> errors = cm.calibration.calibration_error(replicates)
        >>> bool(jnp.abs(errors.mean() - 0.5 / 20 * 0.798) < 0.002)  # of a half normal
        True

    References:
        Hanley and MacGibbon, Creating Non-parametric Bootstrap Samples Using Poisson Frequencies,
        2006; Chamandy et al., Estimating Uncertainty for Massive Data Streams, 2012.
    """
    check_at_least("num_replicates", num_replicates, 1)
    shape = (2, num_replicates, bins.weight.shape[-1])
    normal = jax.random.normal(key, shape, bins.weight.dtype)
    slope = safe_divide(bins.weight_residual, bins.weight_square)
    left = bins.residual_square - slope * bins.weight_residual
    rounding = 8 * jnp.finfo(left.dtype).eps * bins.residual_square  # its root would be noise
    unit = square_unit(bins.weight)
    spread = unit * jnp.sqrt(jnp.where(left > rounding, left, 0))
    step = unit * jnp.sqrt(bins.weight_square)[None] * normal[0]
    residual = (bins.residual[None] + slope[None] * step) + spread[None] * normal[1]
    weight = jnp.maximum(bins.weight[None] + step, 0)
    grown = safe_divide(weight, jnp.broadcast_to(bins.weight[None], weight.shape))
    return ReliabilityBins(
        weight=weight,
        confidence=bins.confidence[None] * grown,
        residual=residual,
        weight_square=bins.weight_square[None] * grown,
        residual_square=bins.residual_square[None] * grown,
        weight_residual=bins.weight_residual[None] * grown,
    )
