"""A permutation test for shift of the routing configuration, and of groups of its statistics."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_same_size, check_where
from calmoe_jax._numerics import AxisName, all_rows, at_least_float32
from calmoe_jax._signatures import checked
from calmoe_jax.mixture import Configuration

# Directions whose variance is below this fraction of the largest are rounding errors.
_LEAST_VARIANCE = 1e-6


class ShiftTest(NamedTuple):
    """P-values of a two-sample test of the routing configuration.

    Attributes:
        p_value: p-value of a shift in any of the three groups below.
        load: p-value of a shift of the experts' loads (routing weights and their entropy).
        confidence: p-value of a shift of the confidences of the aggregate and of the experts.
        disagreement: p-value of a shift of the experts' disagreement.
    """

    p_value: Float[Array, ""]
    load: Float[Array, ""]
    confidence: Float[Array, ""]
    disagreement: Float[Array, ""]


@checked
def configuration_shift_test(
    key: jax.Array,
    held_out: Configuration,
    targets: Configuration,
    *,
    target_where: Bool[Array, " targets"] | None = None,
    clusters: Int[Array, " all"] | None = None,
    num_clusters: int | None = None,
    num_permutations: int = 999,
    axis_name: AxisName = None,
) -> ShiftTest:
    """Tests whether held-out and target examples have the same distribution of configurations.

    For each of the three groups of statistics (load, confidence, disagreement) the difference of
    the means, squared in units of the pooled covariance, is compared with that of random
    relabellings. The three p-values are adjusted for multiple testing (Westfall and Young's minimum
    of p-values over the same relabellings). The overall p-value is that of the smallest of them,
    with ties broken by their mean.

    Args:
        key: random key.
        held_out: configurations of held-out examples.
        targets: configurations of the targets.
        target_where: targets that count; all by default.
        clusters: cluster of every example, held-out ones first, in `[0, num_clusters)`; examples
            of a cluster are relabelled together, and a cluster is on one side. By default each
            example is its own cluster.
        num_clusters: number of clusters; static.
        num_permutations: relabellings, at least 19. No p-value is below
            `1 / (num_permutations + 1)`, nor below `smallest_p_value`.
        axis_name: device axis that both sides are sharded over (`clusters` then has this device's
            held-out examples and targets); each device works on all examples.

    Returns:
        A `ShiftTest`. Without shift `p_value <= a` has probability at most `a`, for any
        distribution. A statistic that never varies (disagreement under hard routing) has p-value 1.
        The test detects shifts of the means of the statistics (for confidence also of its square).
        It cannot detect a shift of labels given the configuration, which no test without labels
        can. A cluster with examples on both sides counts as targets. NaN in a statistic gives NaN;
        so do an empty side, and a cluster outside `[0, num_clusters)` of an example that counts.

    Raises:
        ValueError: if `num_permutations` is less than 19, or `clusters` is given without
            `num_clusters`.

    Example:
        >>> experts = jnp.log(jax.random.dirichlet(jax.random.key(0), jnp.ones(3), (80, 2)))
        >>> from calmoe_jax import configuration
        >>> config = configuration(experts, jnp.full((80, 2), 0.5))
        >>> halves = [jax.tree.map(lambda x: x[i::2], config) for i in range(2)]
        >>> bool(configuration_shift_test(jax.random.key(1), *halves).p_value > 0.05)
        True

    References:
        Westfall and Young, Resampling-Based Multiple Testing, 1993; Rabanser, Günnemann and
        Lipton, Failing Loudly, 2019, for two-sample tests of a classifier's outputs.
    """
    check_at_least("num_permutations", num_permutations, 19)
    if clusters is not None and num_clusters is None:
        raise ValueError("num_clusters must be given with clusters, got num_clusters=None.")
    check_where("target_where", target_where, targets.confidence.shape)
    if axis_name is not None:
        held_out, targets, target_where, clusters = _of_all_devices(
            held_out, targets, target_where, clusters, axis_name
        )
    count = len(held_out.confidence), len(targets.confidence)
    counted = jnp.ones(sum(count), bool)
    if target_where is not None:
        counted = counted.at[count[0] :].set(target_where)
    sizes = counted.astype(jnp.float32)
    side = (jnp.arange(sum(count)) >= count[0]) & counted
    groups = [
        jnp.concatenate([of_held_out, of_targets])
        for of_held_out, of_targets in zip(_groups(held_out), _groups(targets), strict=True)
    ]
    whitened = [_whiten(group, counted) for group in groups]
    astray = jnp.zeros((), bool)
    edges = np.cumsum([group.shape[1] for group in whitened])[:-1]
    sums = jnp.concatenate(whitened, axis=1)
    if clusters is not None:
        check_same_size("clusters", clusters, 0, sum(count), "held-out and target examples")
        assert num_clusters is not None
        outside = (clusters < 0) | (clusters >= num_clusters)
        astray = jnp.any(outside & counted)
        clusters = jnp.clip(clusters, 0, num_clusters - 1)
        sums = jax.ops.segment_sum(sums, clusters, num_clusters)
        sizes = jax.ops.segment_sum(sizes, clusters, num_clusters)
        side = jax.ops.segment_max(side.astype(jnp.int32), clusters, num_clusters) > 0
    sides = _relabelled(key, side, sizes > 0, num_permutations)
    statistics = _statistics(sides, sums, sizes)
    by_group = jnp.stack([jnp.sum(x, axis=1) for x in jnp.split(statistics, edges, axis=1)])
    ranks = jax.vmap(_p_values)(by_group)  # [groups, 1 + permutations]
    least = jnp.min(ranks, axis=0)
    adjusted = jnp.mean(least[None, :] <= ranks[:, :1] * (1 + 1e-6), axis=1)
    # the smallest p-values often tie; the mean of the three, scaled to be negligible, breaks ties
    ordered = least + jnp.mean(ranks, axis=0) / (2 * ranks.shape[1])
    overall = jnp.mean(ordered <= ordered[0] * (1 + 1e-6))
    found = jnp.concatenate([overall[None], adjusted])
    unknown = jnp.isnan(statistics).any() | (min(count) == 0) | astray
    return ShiftTest(*jnp.where(unknown, jnp.nan, found))


def _of_all_devices(
    held_out: Configuration,
    targets: Configuration,
    target_where: Bool[Array, " targets"] | None,
    clusters: Int[Array, " all"] | None,
    axis_name: AxisName,
) -> tuple[
    Configuration, Configuration, Bool[Array, " _targets"] | None, Int[Array, " _all"] | None
]:
    """Gathers the arguments of all devices, held-out examples first."""

    def gather(x: jax.Array) -> jax.Array:
        return all_rows(x, axis_name)

    if clusters is not None:
        own = len(held_out.confidence)
        check_same_size(
            "clusters", clusters, 0, own + len(targets.confidence), "held-out and target examples"
        )
        clusters = jnp.concatenate([gather(clusters[:own]), gather(clusters[own:])])
    where = None if target_where is None else gather(target_where)
    return jax.tree.map(gather, held_out), jax.tree.map(gather, targets), where, clusters


def smallest_p_value(num_held_out: int, num_targets: int) -> float:
    """The smallest p-value of a permutation test: one over the number of distinct relabellings.

    Args:
        num_held_out: number of clusters of held-out examples (of examples, if independent).
        num_targets: number of clusters of targets.

    Returns:
        `1 / C(a + b, a)`, twice that for `a = b` (sides may be exchanged); 1 if one is 0.

    Example:
        >>> round(smallest_p_value(3, 3), 6)
        0.1
    """
    # in logarithms: the binomial coefficient may have as many digits as there are clusters
    log_ways = math.lgamma(num_held_out + num_targets + 1)
    log_ways -= math.lgamma(num_held_out + 1) + math.lgamma(num_targets + 1)
    return min(1.0, (1 + (num_held_out == num_targets)) * math.exp(-log_ways))


def _groups(config: Configuration) -> tuple[Float[Array, "examples _"], ...]:
    """The statistics of load, confidence and disagreement."""
    load = [config.routing_weights, config.routing_entropy[:, None]]
    single = (config.confidence, config.confidence**2, config.entropy)
    confidence = [jnp.stack(single, axis=-1), config.expert_confidences]
    # the square root spreads the small ones
    spread = jnp.maximum(config.disagreement, 0)
    return (
        at_least_float32(jnp.concatenate(load, axis=-1)),
        at_least_float32(jnp.concatenate(confidence, axis=-1)),
        at_least_float32(jnp.stack([spread, jnp.sqrt(spread)], axis=-1)),
    )


def _product(a: Float[Array, "rows inner"], b: Float[Array, "inner ..."]) -> Float[Array, "..."]:
    # no TF32: differences within rounding are ties
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _whiten(rows: Float[Array, "n d"], counted: Bool[Array, " n"]) -> Float[Array, "n d"]:
    """Rows with mean 0 and covariance 1 along every direction in which they vary."""
    rows = jnp.where(counted[:, None], rows, 0)
    total = jnp.maximum(jnp.sum(counted), 1).astype(rows.dtype)
    off = jnp.where(counted[:, None], rows - (jnp.sum(rows, axis=0) / total)[None, :], 0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(off), axis=0) / total)
    # by more than rounding
    least = 4 * jnp.finfo(rows.dtype).eps * jnp.max(jnp.abs(rows), axis=0, initial=0)
    varies = deviation > jnp.maximum(least, 1e-30)
    off = jnp.where(varies[None, :], off / jnp.where(varies, deviation, 1)[None, :], 0)
    unknown = jnp.isnan(rows).any()
    correlation = jnp.where(unknown, 0, _product(off.T, off) / total)
    values, vectors = jnp.linalg.eigh(correlation)
    kept = values > _LEAST_VARIANCE * jnp.maximum(values[-1], 1e-30)
    scaled = vectors * jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1)), 0)[None, :]
    return _product(jnp.where(unknown, jnp.nan, off), scaled)


def _relabelled(
    key: jax.Array, side: Bool[Array, " units"], counts: Bool[Array, " units"], times: int
) -> Float[Array, "_ units"]:
    """The original labelling, then random ones with as many units on each side."""
    number = jnp.sum(side & counts)

    def relabel(key: jax.Array) -> Bool[Array, " units"]:
        drawn = jnp.where(counts, jax.random.uniform(key, side.shape), jnp.inf)
        order = jnp.argsort(drawn)
        return jnp.zeros_like(side).at[order].set(jnp.arange(len(side)) < number)

    drawn = jax.lax.map(relabel, jax.random.split(key, times), batch_size=32)
    return jnp.concatenate([side[None], drawn]).astype(jnp.float32)


def _statistics(
    sides: Float[Array, "labellings units"],
    sums: Float[Array, "units d"],
    sizes: Float[Array, " units"],
) -> Float[Array, "labellings d"]:
    """Squared differences of the sides' means, for every labelling."""
    on_target = _product(sides.astype(sums.dtype), sums)
    sizes = sizes.astype(sums.dtype)
    weight = _product(sides.astype(sums.dtype), sizes)
    rest = jnp.sum(sums, axis=0)[None, :] - on_target
    means = on_target / weight[:, None] - rest / (jnp.sum(sizes) - weight)[:, None]
    return jnp.square(means)


def _p_values(statistics: Float[Array, " labellings"]) -> Float[Array, " labellings"]:
    """Share of the labellings that are at least as extreme, for each of them.

    Differences within rounding are ties: a statistic that never varies is 0 up to rounding.
    """
    tolerance = 1e-5 * jnp.max(statistics) + 1e-12
    ranked = jnp.sort(statistics)
    smaller = jnp.searchsorted(ranked, statistics - tolerance, side="left")
    # computed from integers: near 1, the complement of a share loses the digits that separate ties
    return (len(statistics) - smaller) / len(statistics)
