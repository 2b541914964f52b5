"""Checks the inputs of calibration metrics: invalid predictions become NaN.

Values cannot raise errors under `jax.jit`. So a row that is not a distribution, a confidence that
is not a probability, and a label outside the classes become NaN, and NaN in an example that counts
makes the metric NaN. `check_predictions` finds the invalid row, on the host.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import zero_from_primal
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32

# The operands of a reduction: a value, its index in the row, and a sum.
_Cell = tuple[jax.Array, ...]

# Tolerances: distance of the sum of a row from 1, and of a probability above 1 by rounding.
_SUM_TOLERANCE = 1e-3
_ROUNDING = 1e-5


def _sum_tolerance(dtype: jnp.dtype, num_classes: int) -> float:
    """A bound on the change of a row's sum by the rounding of its entries to `dtype`."""
    precision = jnp.finfo(dtype)
    lost = num_classes * float(precision.smallest_subnormal)
    return _SUM_TOLERANCE + 4 * float(precision.eps) + lost


def distributions(probs: Float[Array, "*batch classes"]) -> Bool[Array, "*batch"]:
    """Which rows are probability distributions.

    Args:
        probs: class probabilities, in their original dtype.

    Returns:
        Whether no entry is NaN or below 0 and the sum is 1: within 0.001 and four units of
        rounding of the dtype (0.001 for float32, 0.032 for bfloat16; in float16 each class may
        also lose its smallest number). Then no entry exceeds 1 by more than that.
    """
    tolerance = _sum_tolerance(probs.dtype, probs.shape[-1])
    values = at_least_float32(probs)
    # a product and a minimum: twice as fast on CPUs as sum and all beside a maximum and argmax
    ones = jnp.ones(values.shape[-1], values.dtype)
    total = jnp.dot(values, ones, precision="highest")
    # NaN makes the sum NaN, and comparisons with it are false
    return (jnp.min(values, axis=-1, initial=0) >= 0) & (jnp.abs(total - 1) <= tolerance)


def largest_class(
    probs: Float[Array, "examples classes"],
) -> tuple[Float[Array, " examples"], Int[Array, " examples"], Bool[Array, " examples"]]:
    """Largest probability of each row, its class, and whether the row is a distribution.

    All in one pass over the row: separate reductions take twice as long on CPUs. The gradient of
    the largest is that of the class returned.

    Args:
        probs: class probabilities, in their original dtype.

    Returns:
        `(largest, index, valid)`: ties go to the lower class; `valid` as in `distributions`; the
        other two are undefined where it is false.
    """
    tolerance = _sum_tolerance(probs.dtype, probs.shape[-1])
    largest, index, total = _largest(at_least_float32(probs))
    return largest, index, jnp.abs(total - 1) <= tolerance


@jax.custom_jvp
def _largest(
    values: Float[Array, "examples classes"],
) -> tuple[Float[Array, " examples"], Int[Array, " examples"], Float[Array, " examples"]]:
    """Largest value of each row, its index, and the sum (`inf` if a value is NaN or negative)."""
    places = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
    cells = values, places, jnp.where(values >= 0, values, jnp.inf)
    largest, index, total = jax.lax.platform_dependent(
        cells,
        cpu=functools.partial(_largest_in_lanes, better=_better_if_in_order),
        default=functools.partial(_reduce, _better),
    )
    return largest, index, total


def _better(a: _Cell, b: _Cell) -> _Cell:
    second = (b[0] > a[0]) | ((b[0] == a[0]) & (b[1] < a[1]))
    return jnp.where(second, b[0], a[0]), jnp.where(second, b[1], a[1]), a[2] + b[2]


def _better_if_in_order(a: _Cell, b: _Cell) -> _Cell:
    """Of equal values the first, if cells come in order, as on CPUs: cheaper."""
    second = b[0] > a[0]
    return jnp.where(second, b[0], a[0]), jnp.where(second, b[1], a[1]), a[2] + b[2]


def _reduce(better: Callable[[_Cell, _Cell], _Cell], cells: _Cell) -> _Cell:
    dtype = cells[0].dtype
    start = jnp.array(-jnp.inf, dtype), jnp.int32(0), jnp.zeros((), dtype)
    return tuple(jax.lax.reduce(cells, start, better, (1,)))


def _largest_in_lanes(cells: _Cell, better: Callable[[_Cell, _Cell], _Cell]) -> _Cell:
    """As XLA's CPU compiler vectorises it: ten times as fast for a thousand classes.

    In long rows every fourth class is reduced first (or every eighth, and so on): it splits
    reductions of more than 32, and loses more by that than a second pass over the lanes takes.
    """
    classes = cells[0].shape[1]
    if classes < 64:
        return _reduce(better, cells)
    lanes = 4 * -(-classes // 100)
    whole = classes // lanes * lanes
    found = _reduce(better, tuple(x[:, :whole].reshape(len(x), -1, lanes) for x in cells))
    rest = zip(found, cells, strict=True)
    ends = tuple(jnp.concatenate([x, y[:, whole:]], axis=1) for x, y in rest)
    return _largest_in_lanes(ends, _better)


@_largest.defjvp
def _largest_jvp(primals: Any, tangents: Any) -> Any:
    largest, index, total = _largest(*primals)
    moved = jnp.take_along_axis(tangents[0], index[:, None], axis=1)[:, 0]
    # of the type that a tangent of an index has, also inside `shard_map`
    still = zero_from_primal(index, symbolic_zeros=False)
    return (largest, index, total), (moved, still, jnp.zeros_like(total))


def probabilities(
    probs: Float[Array, "*batch classes"], *, from_logits: bool = False
) -> Float[Array, "*batch classes"]:
    """Class probabilities of at least float32; a row that is not a distribution is all NaN.

    Args:
        probs: class probabilities (or logits, with `from_logits`).
        from_logits: whether `probs` holds logits or log probabilities; never guessed.

    Returns:
        The probabilities. A row with an entry that is NaN or below 0, or with a sum that is not 1
        (see `distributions`), is NaN throughout; so is a row of logits that are all `-inf`, or
        that hold `inf` or NaN. Values above 1 by rounding become 1.
    """
    if from_logits:
        sound, logits = _sound(probs)
        return jnp.where(sound, jax.nn.softmax(logits, axis=-1), jnp.nan)
    valid = distributions(probs)
    return jnp.where(valid[..., None], _at_most_one(at_least_float32(probs)), jnp.nan)


def log_probabilities(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """Log probabilities of at least float32; an invalid row of logits is all NaN.

    Args:
        logits: logits or log probabilities.

    Returns:
        `log_softmax(logits)`; NaN throughout, with zero gradient, for a row that is all `-inf` or
        that holds `inf` or NaN.
    """
    sound, logits = _sound(logits)
    return jnp.where(sound, jax.nn.log_softmax(logits, axis=-1), jnp.nan)


def _sound(
    logits: Float[Array, "*batch classes"],
) -> tuple[Bool[Array, "*batch 1"], Float[Array, "*batch classes"]]:
    """Which rows have a softmax, and the logits with zeros in the other rows.

    Without the zeros the softmax of a row that does not count would still make the gradient NaN:
    0 times NaN.
    """
    logits = at_least_float32(logits)
    strange = jnp.isnan(logits) | jnp.isposinf(logits)
    possible = jnp.any(~jnp.isneginf(logits), axis=-1, keepdims=True)
    sound = possible & ~jnp.any(strange, axis=-1, keepdims=True)
    return sound, jnp.where(sound, logits, 0)


def event(
    confidence: Float[Array, "*batch"], outcome: Float[Array, "*batch"] | Bool[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """Confidence in events and their outcomes, in one float dtype of at least float32.

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability where that is known.

    Returns:
        `(confidence, outcome)`; both NaN where either is NaN or outside [0, 1]. A confidence above
        1 by rounding (by at most 1e-5 and four units of rounding of its dtype) becomes 1.
    """
    rounding = _ROUNDING + 4 * float(jnp.finfo(confidence.dtype).eps)
    confidence = at_least_float32(confidence)
    outcome = outcome.astype(confidence.dtype)
    valid = (confidence >= 0) & (confidence <= 1 + rounding) & (outcome >= 0) & (outcome <= 1)
    return (
        jnp.where(valid, _at_most_one(confidence), jnp.nan),
        jnp.where(valid, outcome, jnp.nan),
    )


def _at_most_one(values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    # not minimum: its gradient at exactly 1 would be one half
    return jnp.where(values > 1, 1, values)


def check_predictions(
    probs: Any, labels: Any = None, *, weights: Any = None, from_logits: bool = False
) -> None:
    """Raises an error that names the first bad row; on the host, for arrays with values.

    Inside the metrics a bad row gives NaN. Call this once on the inputs of a script.

    Args:
        probs: class probabilities (or logits, with `from_logits`), `[examples, classes]`.
        labels: class of each example, integers in `[0, classes)`; not checked if `None`.
        weights: weight of each example, non-negative and finite; not checked if `None`. Rows of
            weight 0 are checked too.
        from_logits: whether `probs` holds logits or log probabilities; a logit may be `-inf`.

    Raises:
        TypeError: if `probs` or `weights` are not real numbers, or `labels` not integers.
        ValueError: if a shape is wrong, a row of probabilities has an entry that is NaN or below
            0 or a sum that is not 1, a row of logits holds NaN or `inf` or only `-inf`, a
            label is outside the classes, or a weight is negative, infinite or NaN.

    Example:
        >>> check_predictions(jnp.array([[0.5, 0.5], [0.25, 0.75]]), jnp.array([0, 1]))
        >>> check_predictions(jnp.array([[0.5, 0.5], [0.5, 0.75]]))
        Traceback (most recent call last):
        ...
        ValueError: probs must sum to 1 in every row, got probs[1] with sum 1.25.
    """
    values = _float_array("probs", probs)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(
            f"probs must have shape (examples, classes) with at least one class, "
            f"got probs.shape={values.shape}."
        )
    examples, classes = values.shape
    # NumPy lacks bfloat16 and the like; logits are compared, probabilities summed
    dtype, values = values.dtype, values.astype(np.float64)
    if from_logits:
        _raise_at("probs", values, np.isnan(values), "hold no NaN where they are logits")
        _raise_at("probs", values, values == np.inf, "hold no inf where they are logits")
        none = (values == -np.inf).all(axis=1, keepdims=True)
        _raise_at("probs", values, none, "hold a finite logit in every row")
    else:
        _raise_at("probs", values, np.isnan(values), "hold no NaN")
        _raise_at("probs", values, values < 0, "be at least 0")
        total = values.sum(1)
        off = np.asarray(~(np.abs(total - 1) <= _sum_tolerance(dtype, classes)))
        if off.any():
            row = int(np.argmax(off))
            raise ValueError(
                f"probs must sum to 1 in every row, got probs[{row}] with sum {total[row]:.6g}."
            )
    if labels is not None:
        labels = np.asarray(labels)
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            raise TypeError(f"labels must be of integers, got labels.dtype={labels.dtype}.")
        _check_one_per_example("labels", labels, examples)
        outside = np.asarray((labels < 0) | (labels >= classes))
        _raise_at("labels", labels, outside, f"be in [0, {classes})")
    if weights is not None:
        weights = _float_array("weights", weights)
        _check_one_per_example("weights", weights, examples)
        weights = weights.astype(np.float64)
        bad = np.asarray(~np.isfinite(weights) | (weights < 0))
        _raise_at("weights", weights, bad, "be non-negative and finite")


def _float_array(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating-point numbers, got {name}.dtype={array.dtype}.")
    return array


def _check_one_per_example(name: str, values: np.ndarray, examples: int) -> None:
    if values.shape != (examples,):
        raise ValueError(
            f"{name} must have shape ({examples},), one for each row of probs, "
            f"got {name}.shape={values.shape}."
        )


def _raise_at(name: str, values: np.ndarray, bad: np.ndarray, rule: str) -> None:
    """Raises for the first row with a bad entry."""
    rows = np.flatnonzero(bad.any(axis=tuple(range(1, bad.ndim))))
    if rows.size:
        row = int(rows[0])
        raise ValueError(f"{name} must {rule}, got {name}[{row}]={values[row]}.")
