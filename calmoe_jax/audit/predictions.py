"""Brings logged predictions into one form: distributions, of all experts; errors name the place."""

from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from calmoe_jax.calibration._inputs import distributions

# More experts than any model has: a larger number is no index, and would exhaust the memory.
_MOST_EXPERTS = 2**14
# Numbers that are checked at a time.
_AT_A_TIME = 2**22
# Distance of a row's sum from 1 by the rounding of 32-bit floats.
_ROUNDING = 1e-5


class Rescaled(NamedTuple):
    """Rows whose sum was not 1 and was made so.

    Attributes:
        rows: how many.
        largest: largest distance of a sum from 1.
    """

    rows: int = 0
    largest: float = 0.0


class Predictions(NamedTuple):
    """Predictions of all experts for all examples.

    Attributes:
        routing_weights: weight of each expert, 0 for those not chosen; float32.
        expert_probs: each expert's class probabilities, uniform for those not chosen; float32.
        rescaled: what was rescaled, by the array's name.
    """

    routing_weights: np.ndarray
    expert_probs: np.ndarray
    rescaled: dict[str, Rescaled]


def predictions(
    weights: np.ndarray,
    experts: np.ndarray,
    indices: np.ndarray | None,
    where: np.ndarray,
    *,
    name: str,
    routing: str,
) -> Predictions:
    """Checks the predictions of the examples that count, and gives every expert its place.

    What an expert of weight 0 predicts, or any expert for an example that does not count, has no
    effect and may be anything: it is replaced by the uniform distribution.

    Args:
        weights: routing weights of experts or slots; those that count must be distributions.
        experts: predictions of experts or slots, probabilities or logits. The array may be changed.
        indices: the expert in each slot; `None` if the second axis holds experts.
        where: which examples count.
        name: name of `experts` in the file; `expert_logits` and `logits` are logits.
        routing: name of `weights`; `routing_logits` are logits.

    Raises:
        ValueError: if a row is not a distribution, or an index is no expert's.
    """
    unit = "expert" if indices is None else "slot"
    weights, rescaled = as_distributions(
        weights, where, name=routing, from_logits=routing.endswith("logits"),
        rule=f"weights of at least 0 that sum to 1 over the {unit}s", axes=(unit,),
    )  # fmt: skip
    used = where[:, None] & (weights > 0)
    if not where.all():
        weights = np.where(used, weights, 0)
    found = {routing: rescaled}

    def place(row: int, slot: int) -> str:
        if name in ("probs", "logits"):
            return ""
        return f"expert {slot}" if indices is None else f"slot {slot} (expert {indices[row, slot]})"

    probs, found[name] = as_distributions(
        experts, used, name=name, rule="probabilities that sum to 1 over the classes",
        axes=(place, "class"), from_logits=name.endswith("logits"),
    )  # fmt: skip
    if indices is None:
        return Predictions(weights, probs, found)
    # an unsigned type cannot hold the mark of a slot that is not used
    held = _scattered(weights, probs, np.where(used, indices.astype(np.int64), -1))
    return Predictions(*held, found)


def as_distributions(
    values: np.ndarray,
    used: np.ndarray,
    *,
    name: str,
    rule: str,
    axes: tuple,
    from_logits: bool = False,
) -> tuple[np.ndarray, Rescaled]:
    """Rows as distributions of 32-bit floats, in blocks, in place where that is possible.

    Args:
        values: probabilities, or logits, along the last axis. The array may be changed.
        used: which rows count; the others become uniform.
        name: the array's name, for errors.
        rule: what a row of probabilities must be.
        axes: what to call the axes after the first; a function of row and number in place of a
            name.
        from_logits: whether these are logits.

    Returns:
        The distributions, and which rows were rescaled: those whose sum is farther from 1 than
        rounding, but no farther than `calibration` allows.

    Raises:
        ValueError: if a row that counts is no distribution; or, of logits, holds NaN or infinity,
            or no finite number.
    """
    writable = values.dtype == np.float32 and values.flags.writeable
    out = values if writable else np.empty(values.shape, np.float32)
    rescaled = Rescaled()
    for rows in _blocks(values.shape):
        block, counts = values[rows], used[rows]
        sound = (
            _sound_logits(block) if from_logits else np.asarray(distributions(jnp.asarray(block)))
        )
        if not (sound | ~counts).all():
            at = tuple(int(i) for i in np.argwhere(~sound & counts)[0])
            fault = _fault(block[at], (rows.start + at[0], *at[1:]), axes, from_logits)
            words = "numbers or -inf, with a finite one in every row" if from_logits else rule
            raise ValueError(f"{name} must be {words}, got {fault}.")
        target = out[rows]
        if target is not block:
            target[...] = block
        if not counts.all():
            target[~counts] = 0 if from_logits else 1 / values.shape[-1]
        if from_logits:
            _softmax(target)
        else:
            rescaled = _rescale(target, rescaled)
    return out, rescaled


def _blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    step = max(1, _AT_A_TIME // max(1, int(np.prod(shape[1:]))))
    return (slice(start, start + step) for start in range(0, shape[0], step))


def _sound_probs(block: np.ndarray) -> np.ndarray:
    return np.asarray(distributions(jnp.asarray(block)))


def _sound_logits(block: np.ndarray) -> np.ndarray:
    strange = np.isnan(block) | np.isposinf(block)
    sound: np.ndarray = ~strange.any(axis=-1) & np.isfinite(block).any(axis=-1)
    return sound


def _softmax(logits: np.ndarray) -> None:
    logits -= logits.max(axis=-1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=-1, keepdims=True)


def _rescale(probs: np.ndarray, before: Rescaled) -> Rescaled:
    """Makes the sums 1 where they are not up to rounding; adds to what was rescaled before."""
    total = probs.sum(axis=-1)
    distance = np.abs(total - 1)
    off = distance > _ROUNDING
    if not off.any():
        return before
    probs[off] /= total[off][..., None]
    return Rescaled(
        before.rows + int(off.sum()), max(before.largest, float(distance.max(initial=0)))
    )


def _fault(values: np.ndarray, at: tuple[int, ...], axes: tuple, from_logits: bool) -> str:
    """The value that keeps a row from being a distribution, and its place."""
    values = values.astype(np.float64)
    named = [f"example {at[0]}"]
    for axis, number in zip(axes, at[1:], strict=False):
        named.append(axis(at[0], number) if callable(axis) else f"{axis} {number}")
    place = ", ".join(part for part in named if part)
    if from_logits:
        bad = np.isnan(values) | np.isposinf(values)
        if not bad.any():
            return f"none at {place}"
    else:
        bad = ~((values >= 0) & np.isfinite(values))
    if bad.any():
        return f"{values[bad][0]:.6g} at {place}, {axes[-1]} {int(np.argmax(bad))}"
    return f"a sum of {values.sum():.6g} at {place}"


def _scattered(
    weights: np.ndarray, probs: np.ndarray, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Slots as experts; the index of a slot without weight is -1."""
    used = indices >= 0
    negative = (weights > 0) & ~used
    if negative.any():
        row, slot = (int(i) for i in np.argwhere(negative)[0])
        raise ValueError(
            f"expert_indices must be at least 0, got a negative one at example {row}, slot {slot}."
        )
    if indices.max() >= _MOST_EXPERTS:
        row, slot = (int(i) for i in np.argwhere(indices >= _MOST_EXPERTS)[0])
        raise ValueError(
            f"expert_indices must be below {_MOST_EXPERTS}, got {indices[row, slot]} at example "
            f"{row}, slot {slot}."
        )
    ordered = np.sort(indices, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row, slot = (int(i) for i in np.argwhere(twice)[0])
        raise ValueError(
            f"expert_indices must differ within an example, got expert {ordered[row, slot]} twice "
            f"at example {row}."
        )
    size, classes, experts = len(weights), probs.shape[2], int(indices.max()) + 1
    rows, slots = np.nonzero(used)
    of_all = np.zeros((size, experts), weights.dtype)
    of_all[rows, indices[rows, slots]] = weights[rows, slots]
    held = np.full((size, experts, classes), 1 / classes, probs.dtype)
    held[rows, indices[rows, slots]] = probs[rows, slots]
    return of_all, held
