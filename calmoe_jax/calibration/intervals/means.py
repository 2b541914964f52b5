"""Bootstrap intervals of means, scores, differences between two models, and any smooth statistic.

Valid for means and smooth functions of means: accuracy, NLL, Brier score, signed gap, and their
differences. Not for calibration errors, which are biased upward, and their replicates twice:
`calibration_error` inverts a test for binned ones, and no valid interval is known for the maximum
and the smooth calibration error (compare the latter with its null level).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least
from calmoe_jax._numerics import at_least_float32, example_weights, in_unit, safe_divide
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._labels import Labels
from calmoe_jax.calibration.intervals._interval import Interval, check_level, corrected
from calmoe_jax.calibration.intervals.bootstrap import (
    bootstrap_counts,
    bootstrap_sums,
    cluster_sums,
)
from calmoe_jax.calibration.metrics.scores import log_losses, squared_distances, top_label

# Independent examples are divided at random into this many groups: just as valid, and faster.
_MOST_CLUSTERS = 1000

_Probs = Float[Array, "examples classes"]
_Weights = Float[Array, " examples"] | None
_Where = Bool[Array, " examples"] | None
_Clusters = Int[Array, " examples"] | None


class ScoreIntervals(NamedTuple):
    """Intervals of the scores of one model, or of the differences between two.

    Attributes:
        accuracy: share of examples whose most probable class is the true one.
        negative_log_likelihood: mean `-log p_y`, in nats.
        brier_score: mean squared distance from the one-hot label.
        confidence_gap: mean confidence minus accuracy.
    """

    accuracy: Interval
    negative_log_likelihood: Interval
    brier_score: Interval
    confidence_gap: Interval


@checked
def mean(
    key: jax.Array,
    values: Float[Array, " examples"],
    *,
    weights: _Weights = None,
    where: _Where = None,
    clusters: _Clusters = None,
    num_clusters: int | None = None,
    level: float = 0.95,
    num_replicates: int = 1000,
) -> Interval:
    """Bootstrap interval of a weighted mean, over examples or whole clusters.

    The replicates' quantiles, corrected for their median bias and for the skewness of the values
    (BCa), and widened for few clusters as Student's t is wider than the normal.

    Args:
        key: random key; with the same key two calls draw the same examples.
        values: a number of each example: a loss, or the difference of two models' losses.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        clusters: cluster of each example, in `[0, num_clusters)`: clusters are drawn whole. By
            default examples are independent; more than 1000 are divided into 1000 random groups.
        num_clusters: number of clusters, at least 1; static, and given with `clusters`.
        level: nominal coverage of the interval, in (0, 1).
        num_replicates: number of replicates, at least 1.

    Returns:
        The mean and its interval. Without weight all three are NaN; if only one cluster (or
        example) has weight, or the mean is not finite, both ends are NaN.

    Raises:
        ValueError: if a number is out of range, or only one of `clusters` and `num_clusters` is
            given.

    Example:
        >>> interval = cm.calibration.intervals.mean(jax.random.key(0), jnp.arange(100.0))
        >>> interval.value
        Array(49.5, dtype=float32)
        >>> bool(40 < interval.low < 45) and bool(54 < interval.high < 59)
        True

    References:
        Efron, Better Bootstrap Confidence Intervals, 1987; Hesterberg, What Teachers Should Know
        About the Bootstrap, 2015, for few clusters.
    """
    table = _intervals_of_means(
        key, values[:, None], weights, where, clusters, num_clusters, level, num_replicates
    )
    return Interval(*(end[0] for end in table))


@checked
def scores(
    key: jax.Array,
    probs: _Probs,
    labels: Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    clusters: _Clusters = None,
    num_clusters: int | None = None,
    from_logits: bool = False,
    level: float = 0.95,
    num_replicates: int = 1000,
) -> ScoreIntervals:
    """Bootstrap intervals of accuracy, NLL, Brier score and signed gap, from the same draws.

    Args:
        key: random key.
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`; or a distribution over the classes, such
            as votes: the result is then that of the expectation over labels drawn from it.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        clusters: cluster of each example (see `mean`).
        num_clusters: number of clusters; static.
        from_logits: whether `probs` holds logits or log probabilities.
        level: nominal coverage of the interval, in (0, 1).
        num_replicates: number of replicates, at least 1.

    Returns:
        An interval for each score; see the scores and `mean` for empty and invalid cases.
        With only a few errors (or few correct predictions) those of accuracy are too short.

    Raises:
        ValueError: as `mean`.

    Example:
        >>> probs = jnp.tile(jnp.array([[0.75, 0.25]]), (64, 1))
        >>> labels = (jnp.arange(64) % 4 == 0).astype(jnp.int32)
        >>> found = cm.calibration.intervals.scores(jax.random.key(0), probs, labels)
        >>> bool(found.confidence_gap.low < 0 < found.confidence_gap.high)
        True
    """
    scores = _scores(probs, labels, from_logits)
    table = _intervals_of_means(
        key, scores, weights, where, clusters, num_clusters, level, num_replicates
    )
    return _named(table)


@checked
def score_differences(
    key: jax.Array,
    first: _Probs,
    second: _Probs,
    labels: Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    clusters: _Clusters = None,
    num_clusters: int | None = None,
    from_logits: bool = False,
    level: float = 0.95,
    num_replicates: int = 1000,
) -> ScoreIntervals:
    """Bootstrap intervals of the scores of one model minus those of another, in pairs.

    Both are evaluated on the same draws, so that the variation in difficulty cancels.

    Args:
        key: random key.
        first: class probabilities (or logits, with `from_logits`) of one model.
        second: those of the other, on the same examples.
        labels: class of each example, in `[0, classes)`; or a distribution over the classes, such
            as votes: the result is then that of the expectation over labels drawn from it.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        clusters: cluster of each example (see `mean`).
        num_clusters: number of clusters; static.
        from_logits: whether the predictions are logits or log probabilities.
        level: nominal coverage of the interval, in (0, 1).
        num_replicates: number of replicates, at least 1.

    Returns:
        An interval for each difference; exactly [0, 0] for equal predictions. That of the NLL is
        NaN if both models have an infinite loss on an example.

    Raises:
        ValueError: as `mean`.

    Example:
        >>> sure, unsure = jnp.array([[0.75, 0.25]] * 9), jnp.array([[0.5, 0.5]] * 9)
        >>> labels = jnp.array([0, 0, 1] * 3)
        >>> better = score_differences(jax.random.key(0), sure, unsure, labels)
        >>> better.accuracy.value, better.confidence_gap.value
        (Array(0., dtype=float32), Array(0.25, dtype=float32))
    """
    scores = _scores(first, labels, from_logits) - _scores(second, labels, from_logits)
    table = _intervals_of_means(
        key, scores, weights, where, clusters, num_clusters, level, num_replicates
    )
    return _named(table)


@checked
def statistic(
    key: jax.Array,
    statistic: Callable[[Float[Array, " examples"]], Float[Array, ""]],
    weights: Float[Array, " examples"],
    *,
    clusters: _Clusters = None,
    num_clusters: int | None = None,
    level: float = 0.95,
    num_replicates: int = 1000,
    chunk_size: int = 32,
) -> Interval:
    """Bootstrap interval of any statistic that can be computed from example weights.

    A replicate multiplies the weights by how often each cluster is drawn. The replicates'
    quantiles are corrected for their median bias and widened for few clusters.

    Args:
        key: random key.
        statistic: from example weights to a value; close over the predictions and labels. It is
            called under `vmap`. It must be a smooth function of weighted means, or nearly so (an
            AUC, a fitted temperature, a quantile far from the extremes). For the maximum, the
            smooth and the plain expected calibration error the interval is not valid: their bias
            grows in every replicate, and no correction of quantiles removes it.
        weights: non-negative weight of each example; 0 if it does not count.
        clusters: cluster of each example, in `[0, num_clusters)`; by default every example is its
            own cluster.
        num_clusters: number of clusters, at least 1; static, and given with `clusters`.
        level: nominal coverage of the interval, in (0, 1).
        num_replicates: number of replicates, at least 1.
        chunk_size: replicates computed at once, at least 1; more take more memory.

    Returns:
        The statistic and its interval. Both ends are NaN if only one cluster (or example) has
        weight, if the value or a replicate is NaN or infinite, and if the value is outside the
        range of all replicates, where the bootstrap is not valid.

    Raises:
        ValueError: if a number is out of range, or only one of `clusters` and `num_clusters` is
            given.

    Example:
        >>> x = jnp.arange(50.0)
        >>> def spread(weights):
        ...     mean = jnp.sum(weights * x) / jnp.sum(weights)
        ...     return jnp.sqrt(jnp.sum(weights * (x - mean) ** 2) / jnp.sum(weights))
        >>> interval = cm.calibration.intervals.statistic(jax.random.key(0), spread, jnp.ones(50))
        >>> bool(12 < interval.low < interval.value < interval.high < 18)
        True

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 14.
    """
    check_level(level)
    check_at_least("num_replicates", num_replicates, 1)
    check_at_least("chunk_size", chunk_size, 1)
    weights = example_weights(weights.shape, weights, None, at_least_float32(weights).dtype)
    if clusters is None and num_clusters is None:
        num_clusters = max(len(weights), 1)
        clusters = jnp.arange(len(weights))
    drawn_clusters, number = _given(clusters, num_clusters)
    existing = cluster_sums(weights, drawn_clusters, num_clusters=number) > 0

    def replicate(drawn: jax.Array) -> Float[Array, ""]:
        counts = bootstrap_counts(drawn, number, where=existing, num_replicates=1)[0]
        return statistic(weights * counts[drawn_clusters].astype(weights.dtype))

    keys = jax.random.split(key, num_replicates)
    replicates = jax.lax.map(replicate, keys, batch_size=min(chunk_size, num_replicates))
    value = statistic(weights)
    skewness = jnp.zeros((), value.dtype)
    return corrected(value, replicates, skewness, jnp.sum(existing), level)


def _given(clusters: _Clusters, num_clusters: int | None) -> tuple[Int[Array, " examples"], int]:
    if clusters is None or num_clusters is None:
        raise ValueError(
            "clusters and num_clusters must be given together, got "
            f"{'num_clusters' if clusters is None else 'clusters'} alone."
        )
    check_at_least("num_clusters", num_clusters, 1)
    return clusters, num_clusters


def _scores(probs: _Probs, labels: Labels, from_logits: bool) -> Float[Array, "examples scores"]:
    """The scores of each example, in the order of `ScoreIntervals`."""
    confidence, correct = top_label(probs, labels, from_logits=from_logits)
    right = jnp.where(jnp.isnan(confidence), jnp.nan, correct.astype(confidence.dtype))
    losses = log_losses(probs, labels, from_logits=from_logits)
    distances = squared_distances(probs, labels, from_logits=from_logits)
    return jnp.stack([right, losses, distances, confidence - right], axis=-1)


def _named(table: Interval) -> ScoreIntervals:
    return ScoreIntervals(*(Interval(*(end[i] for end in table)) for i in range(4)))


def _intervals_of_means(
    key: jax.Array,
    values: Float[Array, "examples columns"],
    weights: _Weights,
    where: _Where,
    clusters: _Clusters,
    num_clusters: int | None,
    level: float,
    num_replicates: int,
) -> Interval:
    check_level(level)
    values = at_least_float32(values)
    examples = values.shape[0]
    weight = in_unit(example_weights((examples,), weights, where, values.dtype))
    if clusters is None and num_clusters is None:
        num_clusters = min(max(examples, 1), _MOST_CLUSTERS)
        clusters = jnp.arange(examples)
        if examples > num_clusters:
            dealing = jax.random.fold_in(key, 1)
            clusters = jax.random.randint(dealing, (examples,), 0, num_clusters)
    clusters, num_clusters = _given(clusters, num_clusters)
    total = jnp.sum(weight)
    kept = jnp.where((weight == 0)[:, None], 0, values)
    mean = jnp.sum(kept * weight[:, None], axis=0) / total
    # relative to the mean nothing cancels: constant values give an interval of width exactly 0
    off = jnp.where((weight == 0)[:, None], 0, values - mean[None]) * weight[:, None]
    off, sizes = cluster_sums((off, weight), clusters, num_clusters=num_clusters)
    existing = sizes > 0
    counts = bootstrap_counts(key, num_clusters, where=existing, num_replicates=num_replicates)
    drawn, drawn_sizes = bootstrap_sums(counts, (off, sizes))
    replicates = mean[None] + drawn / drawn_sizes[:, None]
    variation = jnp.sum(jnp.square(off), axis=0)
    skewness = safe_divide(jnp.sum(off**3, axis=0), variation**1.5)
    number = jnp.sum(existing)

    def column(
        value: Float[Array, ""], replicated: Float[Array, " replicates"], skew: Float[Array, ""]
    ) -> Interval:
        return corrected(value, replicated, skew, number, level)

    return jax.vmap(column, in_axes=(0, 1, 0))(mean, replicates, skewness)
