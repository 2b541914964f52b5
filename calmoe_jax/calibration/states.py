"""Calibration of a stream: sums that are updated, merged across shards, and summarised.

The memory of the state depends on the bins, not on the examples. Every sum carries its rounding
error along, so that any split of the data, in any order, on any number of devices, gives the same
values as all the data at once.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_same_size
from calmoe_jax._numerics import AxisName, example_weights, psum, two_sum, wide_dtype
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._sums import add_pairs, weighted_total
from calmoe_jax.calibration.metrics.binning import (
    ReliabilityBins,
    classwise_bins,
    square_unit,
    top_label_bins,
)
from calmoe_jax.calibration.metrics.errors import (
    calibration_error,
    debiased_calibration_error,
    debiased_squared_calibration_error,
)
from calmoe_jax.calibration.metrics.scores import log_losses, squared_distances


class CalibrationSums(NamedTuple):
    """The sums that the metrics are computed from.

    Attributes:
        bins: reliability sums of the top label.
        class_residual: weighted sum of `p_c - 1[y = c]` in each bin of `p_c`.
        log_loss: weighted sum of `-log p_y`.
        squared_distance: weighted sum of the squared distance from the one-hot label.
    """

    bins: ReliabilityBins
    class_residual: Float[Array, "*batch classes bins"]
    log_loss: Float[Array, "*batch"]
    squared_distance: Float[Array, "*batch"]


class CalibrationState(NamedTuple):
    """Sums over all examples so far, each as a rounded value and its rounding error.

    Attributes:
        high: the sums, rounded.
        low: their rounding errors.
    """

    high: CalibrationSums
    low: CalibrationSums


class CalibrationSummary(NamedTuple):
    """The metrics of all examples in a state.

    Attributes:
        accuracy: share of examples whose most probable class is the true one.
        negative_log_likelihood: mean `-log p_y`, in nats.
        brier_score: mean squared distance from the one-hot label.
        confidence_gap: mean confidence minus accuracy (top-label).
        expected_calibration_error: L1 error (top-label).
        root_mean_square_calibration_error: L2 error (top-label): `norm="l2"`.
        maximum_calibration_error: largest gap of a bin (top-label): `norm="max"`.
        debiased_calibration_error: L1 error, debiased (top-label).
        debiased_squared_calibration_error: squared L2 error, debiased (top-label).
        classwise_calibration_errors: L1 error of each class (classwise).
        weight: total weight of the examples.
        bins: reliability sums of the top label, as from `top_label_bins`.
    """

    accuracy: Float[Array, "*batch"]
    negative_log_likelihood: Float[Array, "*batch"]
    brier_score: Float[Array, "*batch"]
    confidence_gap: Float[Array, "*batch"]
    expected_calibration_error: Float[Array, "*batch"]
    root_mean_square_calibration_error: Float[Array, "*batch"]
    maximum_calibration_error: Float[Array, "*batch"]
    debiased_calibration_error: Float[Array, "*batch"]
    debiased_squared_calibration_error: Float[Array, "*batch"]
    classwise_calibration_errors: Float[Array, "*batch classes"]
    weight: Float[Array, "*batch"]
    bins: ReliabilityBins


def init_state(
    *, num_classes: int, num_bins: int = 15, dtype: jnp.dtype | type = jnp.float32
) -> CalibrationState:
    """A state without examples.

    Args:
        num_classes: number of classes, at least 1.
        num_bins: number of equal-width bins, at least 1.
        dtype: dtype of the sums, at least float32, which is enough for any number of examples.

    Returns:
        The state: zeros.

    Raises:
        ValueError: if a number is less than 1.

    Example:
        >>> summarise(init_state(num_classes=2)).weight
        Array(0., dtype=float32)
    """
    check_at_least("num_classes", num_classes, 1)
    check_at_least("num_bins", num_bins, 1)
    dtype = wide_dtype(jnp.dtype(dtype))
    zeros = jnp.zeros(num_bins, dtype)
    zero = jnp.zeros((), dtype)
    sums = CalibrationSums(
        ReliabilityBins(*(zeros for _ in ReliabilityBins._fields)),
        jnp.zeros((num_classes, num_bins), dtype),
        zero,
        zero,
    )
    return CalibrationState(sums, sums)


@checked
def update_state(
    state: CalibrationState,
    probs: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    from_logits: bool = False,
) -> CalibrationState:
    """Adds a batch to a state.

    Args:
        state: the state so far.
        probs: class probabilities (or logits, with `from_logits`).
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count (not padding); all by default.
        from_logits: whether `probs` holds logits or log probabilities.

    Returns:
        The new state. A row that counts and is invalid (not a distribution, or a label outside the
        classes) makes it NaN permanently.

    Raises:
        TypeError: if the labels are not integers.
        ValueError: if the number of classes is not that of the state.

    Example:
        >>> state = init_state(num_classes=2)
        >>> state = update_state(state, jnp.array([[0.25, 0.75]]), jnp.array([1]))
        >>> state = update_state(state, jnp.array([[0.25, 0.75]]), jnp.array([0]))
        >>> summarise(state).expected_calibration_error
        Array(0.25, dtype=float32)
    """
    num_classes, num_bins = state.high.class_residual.shape
    check_same_size("probs", probs, 1, num_classes, "num_classes")
    by_class, top = (
        bins_of(
            probs,
            labels,
            weights=weights,
            where=where,
            num_bins=num_bins,
            from_logits=from_logits,
        )
        for bins_of in (classwise_bins, top_label_bins)
    )

    def weighted(values: Float[Array, " examples"]) -> Float[Array, ""]:
        weight = example_weights(values.shape, weights, where, values.dtype)
        return weighted_total(values, weight)

    batch = CalibrationSums(
        top,
        by_class.residual,
        weighted(log_losses(probs, labels, from_logits=from_logits)),
        weighted(squared_distances(probs, labels, from_logits=from_logits)),
    )
    batch = jax.tree.map(lambda x, like: x.astype(like.dtype), batch, state.high)
    return merge_states(state, CalibrationState(batch, jax.tree.map(jnp.zeros_like, batch)))


@checked
def merge_states(a: CalibrationState, b: CalibrationState) -> CalibrationState:
    """The state of the examples of two states together.

    Args:
        a: a state.
        b: a state with as many classes and bins.

    Returns:
        The merged state. Order and grouping affect at most the last digit.

    Example:
        >>> state = init_state(num_classes=2)
        >>> state = update_state(state, jnp.array([[0.25, 0.75]]), jnp.array([1]))
        >>> summarise(merge_states(state, state)).weight
        Array(2., dtype=float32)
    """
    weight = a.high.bins.weight + b.high.bins.weight
    both = (_with_squares_in(square_unit(weight), state) for state in (a, b))
    return _by_sum(lambda *sums: add_pairs(sums[:2], sums[2:]), *both)


def _with_squares_in(unit: Float[Array, "*batch"], state: CalibrationState) -> CalibrationState:
    """The state with the sums of squares in a unit that is not that of its own weight."""
    change = (square_unit(state.high.bins.weight) / unit)[..., None]

    def changed(sums: CalibrationSums) -> CalibrationSums:
        names = ("weight_square", "residual_square", "weight_residual")
        # in two steps: the square of the change may underflow
        squares = {name: getattr(sums.bins, name) * change * change for name in names}
        return sums._replace(bins=sums.bins._replace(**squares))

    return CalibrationState(*map(changed, state))


def _by_sum(
    function: Callable[..., tuple[jax.Array, jax.Array]], *states: CalibrationState
) -> CalibrationState:
    """Applies a function to the two parts of every sum of the given states."""
    parts = [part for state in states for part in state]
    pairs = jax.tree.map(function, *parts)
    inner = jax.tree.structure((0, 0))
    return CalibrationState(*jax.tree.transpose(jax.tree.structure(states[0].high), inner, pairs))


@checked
def psum_state(state: CalibrationState, axis_name: AxisName) -> CalibrationState:
    """The state of all devices along an axis: in `shard_map`, `pmap`, or `vmap` with a name.

    A plain float sum over the devices would round, in an unspecified order. So every device's sum
    is split into a multiple of a common unit, for which float sums are exact, and a remainder.

    Args:
        state: the state of each device.
        axis_name: name of the axis, or several; with `None` the state is returned.

    Returns:
        The merged state, the same on all devices.

    Example:
        >>> state = init_state(num_classes=2)
        >>> update = jax.vmap(
        ...     lambda p, y: psum_state(update_state(state, p, y), "devices"),
        ...     axis_name="devices",
        ... )
        >>> merged = update(jnp.full((4, 8, 2), 0.5), jnp.zeros((4, 8), int))
        >>> summarise(merged).weight
        Array([32., 32., 32., 32.], dtype=float32)

    References:
        Rump, Ogita, Oishi, Accurate Floating-Point Summation, 2008 (extraction to a common unit).
    """
    if axis_name is None:
        return state

    def add(
        high: Float[Array, "..."], low: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        bound = psum(jnp.abs(high), axis_name)
        # a number far above all partial sums: adding it rounds to its unit, and sums stay below
        exponent = jnp.frexp(jnp.where(jnp.isfinite(bound), bound, 0))[1]
        large = jnp.ldexp(jnp.ones_like(bound), exponent + 1)
        units = (high + large) - large
        exact = psum(units, axis_name)
        rest = psum((high - units) + low, axis_name)
        plain = psum(high, axis_name)  # for values that are not finite
        finite = jnp.isfinite(bound)
        summed, error = two_sum(exact, rest)
        return jnp.where(finite, summed, plain), jnp.where(finite, error, 0)

    weight = psum(state.high.bins.weight, axis_name)
    return _by_sum(add, _with_squares_in(square_unit(weight), state))


@checked
def summarise(state: CalibrationState) -> CalibrationSummary:
    """Computes the metrics of all examples in a state.

    Args:
        state: the state; its leaves may have leading axes (after `jax.vmap`).

    Returns:
        The metrics; all but the sums are NaN if no example counted.

    Example:
        >>> state = init_state(num_classes=2)
        >>> state = update_state(state, jnp.array([[0.25, 0.75]]), jnp.array([0]))
        >>> summarise(state).confidence_gap
        Array(0.75, dtype=float32)
    """
    sums = jax.tree.map(jnp.add, state.high, state.low)
    bins = sums.bins
    weight = jnp.sum(bins.weight, axis=-1)
    gap = jnp.sum(bins.residual, axis=-1) / weight
    return CalibrationSummary(
        accuracy=jnp.sum(bins.confidence, axis=-1) / weight - gap,
        negative_log_likelihood=sums.log_loss / weight,
        brier_score=sums.squared_distance / weight,
        confidence_gap=gap,
        expected_calibration_error=calibration_error(bins),
        root_mean_square_calibration_error=calibration_error(bins, norm="l2"),
        maximum_calibration_error=calibration_error(bins, norm="max"),
        debiased_calibration_error=debiased_calibration_error(bins),
        debiased_squared_calibration_error=debiased_squared_calibration_error(bins),
        classwise_calibration_errors=(
            jnp.sum(jnp.abs(sums.class_residual), axis=-1) / weight[..., None]
        ),
        weight=weight,
        bins=bins,
    )
