"""Estimates accuracy from the labels of similar held-out examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_non_negative
from calmoe_jax._numerics import (
    AxisName,
    all_rows,
    all_size,
    at_least_float32,
    pmax,
    psum,
    row_positions,
)
from calmoe_jax._signatures import checked

# Points compared with all references at once.
_BATCH = 256


class NeighbourSupport(NamedTuple):
    """Agreement of predictions with the labels of neighbours.

    Attributes:
        value: mean share of an example's neighbours whose label is the predicted class.
        chance: its expectation if labels were independent of predictions.
        standard_error: standard error of the value; `inf` if all examples are in one cluster.
    """

    value: Float[Array, ""]
    chance: Float[Array, ""]
    standard_error: Float[Array, ""]


@checked
def neighbour_shares(
    points: Float[Array, "examples coordinates"],
    predicted: Int[Array, " examples"],
    references: Float[Array, "references coordinates"],
    labels: Int[Array, " references"],
    *,
    clusters: Int[Array, " examples"] | None = None,
    reference_clusters: Int[Array, " references"] | None = None,
    reference_where: Bool[Array, " references"] | None = None,
    num_neighbours: int = 15,
    axis_name: AxisName = None,
) -> Float[Array, " examples"]:
    """Share of each example's labelled neighbours that have its predicted class.

    An example's neighbours are the references with the largest cosine similarity of their
    coordinates. The cost is `examples * references` cosines, 256 examples at a time.

    Args:
        points: coordinates of each example, as from `configuration_coordinates`.
        predicted: predicted class of each example.
        references: coordinates of labelled examples.
        labels: classes of the references.
        clusters: cluster of each example.
        reference_clusters: cluster of each reference, given with `clusters`; references in the
            example's own cluster are not its neighbours. By default all can be.
        reference_where: references that count; all by default.
        num_neighbours: neighbours of each example, at least 1; static; all if there are fewer.
        axis_name: device axis that the examples and the references are sharded over; each device
            compares its own examples with all references.

    Returns:
        The shares, in [0, 1]. Ties go to the earlier reference; coordinates that are all 0 have
        cosine 0. NaN for an example without neighbours or with a NaN coordinate, and for all if a
        coordinate of a reference that counts is NaN.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if `num_neighbours` is less than 1, sizes differ, or `reference_clusters` is
            given without `clusters`.

    Example:
        >>> points = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> neighbour_shares(
        ...     points, jnp.array([0, 0, 1, 0]), points, jnp.array([0, 0, 1, 1]), num_neighbours=2
        ... )
        Array([1., 1., 1., 0.], dtype=float32)
    """
    check_at_least("num_neighbours", num_neighbours, 1)
    if clusters is None and reference_clusters is not None:
        raise ValueError("reference_clusters must be given with clusters, got clusters=None.")
    references, labels = all_rows(references, axis_name), all_rows(labels, axis_name)
    if reference_clusters is not None:
        reference_clusters = all_rows(reference_clusters, axis_name)
    if reference_where is not None:
        reference_where = all_rows(reference_where, axis_name)
        references = jnp.where(reference_where[:, None], references, 0)
    size = len(points)
    if clusters is None:
        clusters = jnp.zeros(size, jnp.int32)
    towards = _directions(references)
    count = min(num_neighbours, len(references))

    def share(
        direction: Float[Array, " coordinates"], choice: Int[Array, ""], cluster: Int[Array, ""]
    ) -> Float[Array, ""]:
        cosines = jnp.dot(towards, direction, precision="highest")
        unknown = jnp.isnan(cosines).any()
        if reference_clusters is not None:
            cosines = jnp.where(reference_clusters == cluster, -jnp.inf, cosines)
        if reference_where is not None:
            cosines = jnp.where(reference_where, cosines, -jnp.inf)
        nearest, index = jax.lax.top_k(cosines, count)
        near = nearest > -jnp.inf
        agreeing = jnp.sum(near & (labels[index] == choice), dtype=cosines.dtype)
        return jnp.where(unknown, jnp.nan, agreeing / jnp.sum(near, dtype=cosines.dtype))

    return jax.lax.map(
        lambda point: share(*point),
        (_directions(points), predicted.astype(labels.dtype), clusters),
        batch_size=min(_BATCH, max(size, 1)),
    )


@checked
def neighbour_support(
    points: Float[Array, "examples coordinates"],
    predicted: Int[Array, " examples"],
    references: Float[Array, "references coordinates"],
    labels: Int[Array, " references"],
    *,
    num_classes: int,
    clusters: Int[Array, " examples"] | None = None,
    num_clusters: int | None = None,
    reference_clusters: Int[Array, " references"] | None = None,
    reference_where: Bool[Array, " references"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_neighbours: int = 15,
    axis_name: AxisName = None,
) -> NeighbourSupport:
    """Share of labelled neighbours that have the predicted class, averaged over examples.

    An example's neighbours are the references with the largest cosine similarity of their
    coordinates. For the support on the labelled examples themselves, pass them as points and as
    references, with the same clusters (or `jnp.arange` of their number), so that no example is its
    own neighbour. The cost is `examples * references` cosines, 256 examples at a time.

    Args:
        points: coordinates of each example, as from `configuration_coordinates`.
        predicted: predicted class of each example.
        references: coordinates of labelled examples.
        labels: classes of the references, in `[0, num_classes)`.
        num_classes: number of classes, at least 2; static.
        clusters: cluster of each example, in `[0, num_clusters)`, for the standard error; by
            default each example is its own cluster.
        num_clusters: number of clusters; static, and given with `clusters`.
        reference_clusters: cluster of each reference; references in the example's own cluster are
            not its neighbours. By default all can be.
        reference_where: references that count; all by default.
        where: examples that count; all by default.
        num_neighbours: neighbours of each example, at least 1; static; all if there are fewer.
        axis_name: device axis that the examples and the references are sharded over; each device
            compares its own examples with all references. `num_clusters` is of all devices.

    Returns:
        A `NeighbourSupport`. Ties go to the earlier reference; coordinates that are all 0 have
        cosine 0. NaN if no example counts, an example that counts has no neighbour, a coordinate of
        a reference or of an example that counts is NaN, or a label that counts is out of range.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if a number is out of range, sizes differ, or only one of `clusters` and
            `num_clusters` is given.

    Example:
        >>> points = jnp.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
        >>> found = neighbour_support(
        ...     points, jnp.array([0, 0, 1, 0]), points, jnp.array([0, 0, 1, 1]), num_classes=2,
        ...     clusters=jnp.arange(4), num_clusters=4, reference_clusters=jnp.arange(4),
        ...     num_neighbours=1,
        ... )
        >>> found.value, found.chance
        (Array(0.75, dtype=float32), Array(0.5, dtype=float32))
    """
    check_at_least("num_classes", num_classes, 2)
    check_at_least("num_neighbours", num_neighbours, 1)
    if (clusters is None) != (num_clusters is None):
        raise ValueError(
            "clusters and num_clusters must be given together, got "
            f"{'num_clusters' if clusters is None else 'clusters'} alone."
        )
    shares = neighbour_shares(
        points, predicted, references, labels, clusters=clusters,
        reference_clusters=reference_clusters, reference_where=reference_where,
        num_neighbours=num_neighbours, axis_name=axis_name,
    )  # fmt: skip
    size = len(points)
    if clusters is None or num_clusters is None:
        clusters = row_positions(size, axis_name)
        num_clusters = max(all_size(size, axis_name), 1)
    counted = jnp.ones(size, bool) if where is None else where
    labels = all_rows(labels, axis_name)
    counting = jnp.ones(len(labels), bool)
    if reference_where is not None:
        counting = all_rows(reference_where, axis_name)
    return _support_of(
        shares, predicted, labels, counting, num_classes, clusters, num_clusters, counted, axis_name
    )


def _support_of(
    shares: Float[Array, " examples"],
    predicted: Int[Array, " examples"],
    labels: Int[Array, " references"],
    counting: Bool[Array, " references"],
    num_classes: int,
    clusters: Int[Array, " examples"],
    num_clusters: int,
    counted: Bool[Array, " examples"],
    axis_name: AxisName,
) -> NeighbourSupport:
    """Mean of the examples' shares, its expectation by chance, and its standard error."""
    total = psum(jnp.sum(counted), axis_name).astype(shares.dtype)
    value = psum(jnp.sum(jnp.where(counted, shares, 0)), axis_name) / total
    off = jnp.where(counted, shares - value, 0)
    sums = psum(jax.ops.segment_sum(off, clusters, num_clusters), axis_name)
    held = jax.ops.segment_max(counted.astype(jnp.int32), clusters, num_clusters)
    held = pmax(held, axis_name) > 0
    number = jnp.sum(held).astype(shares.dtype)
    variance = jnp.sum(jnp.square(sums)) * number / jnp.where(number > 1, number - 1, 1)
    error = jnp.where(number > 1, jnp.sqrt(variance) / total, jnp.inf)
    classes = jnp.arange(num_classes, dtype=labels.dtype)
    predicted = predicted.astype(labels.dtype)
    chosen = jnp.sum((predicted[:, None] == classes[None]) & counted[:, None], axis=0)
    chosen = psum(chosen, axis_name).astype(shares.dtype) / total
    of_class = (labels[:, None] == classes[None]) & counting[:, None]
    held_out = jnp.sum(of_class, axis=0).astype(value.dtype)
    chance = chosen @ (held_out / jnp.sum(counting).astype(value.dtype))
    outside = jnp.any(counting & ((labels < 0) | (labels >= num_classes)))
    value = jnp.where(outside, jnp.nan, value)
    return NeighbourSupport(value, chance, jnp.where(jnp.isnan(value), jnp.nan, error))


def _directions(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
    rows = at_least_float32(rows)
    # scaled by the largest entry first, so that no square overflows
    largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True, initial=0)
    rows = rows / jnp.where(largest > 0, largest, 1)
    length = jnp.sqrt(jnp.sum(jnp.square(rows), axis=-1, keepdims=True))
    return rows / jnp.where(length > 0, length, 1)


@checked
def neighbour_accuracy(
    held_out: NeighbourSupport,
    targets: NeighbourSupport,
    held_out_accuracy: Float[Array, ""],
    *,
    growth: float = 5.0,
    margin: float = 2.0,
) -> Float[Array, ""]:
    """Estimated accuracy on unlabelled examples: its excess over chance falls with support.

    With `nu = (support_targets - chance_targets + margin e) / (support_held_out -
    chance_held_out)`, clipped to [0, 1], and `e` the standard error of the difference:
    `chance_targets + (accuracy - chance_targets) nu^(1 + growth (1 - nu))`. The exponent grows
    because the coordinates come from the classifier: for examples unlike all labelled ones, their
    neighbours tend to confirm its prediction.

    Args:
        held_out: `neighbour_support` of labelled held-out examples among themselves.
        targets: `neighbour_support` of unlabelled examples, with held-out neighbours.
        held_out_accuracy: accuracy on the held-out examples, or mean confidence there after
            calibration, which varies less.
        growth: growth of the exponent as support is lost, at least 0.
        margin: standard errors in favour of the targets, at least 0.

    Returns:
        The estimate, never above `held_out_accuracy` (where that exceeds chance). NaN where a
        support is, or that of held-out examples is not above chance, which is no evidence. It is
        too low for examples that were chosen because their neighbours differ, and where experts
        lose confidence and stay right (features that fade).

    Raises:
        ValueError: if `growth` or `margin` is negative.

    Example:
        >>> whole = NeighbourSupport(jnp.array(0.9), jnp.array(0.5), jnp.array(0.0))
        >>> half = NeighbourSupport(jnp.array(0.7), jnp.array(0.5), jnp.array(0.0))
        >>> round(float(neighbour_accuracy(whole, half, jnp.array(0.9))), 3)
        0.535

    References:
        The rule is ours; its two constants and the number of neighbours were chosen by calibration
        error on `portal`, `newsgroups`, `sentiment` and `digits16` (`experiments.choose_rule`
        chooses without labels of targets). Jiang et al., To Trust Or Not To Trust A Classifier,
        2018, judge single predictions by their neighbours.
    """
    check_non_negative("growth", growth)
    check_non_negative("margin", margin)
    above = held_out.value - held_out.chance
    informative = above > 0
    error = jnp.hypot(held_out.standard_error, targets.standard_error)
    favour = jnp.where(margin == 0, 0, margin * error)  # the error may be infinite
    ratio = (targets.value - targets.chance + favour) / jnp.where(informative, above, 1)
    nu = jnp.where(informative, jnp.clip(ratio, 0, 1), jnp.nan)
    kept = jnp.power(nu, 1 + growth * (1 - nu))
    return targets.chance + (held_out_accuracy - targets.chance) * kept
