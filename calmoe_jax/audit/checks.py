"""Checks the columns of logs, and brings them into one form; errors name example and expert."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from calmoe_jax.calibration._inputs import distributions

# More experts than any model has: a larger number is no index, and would exhaust the memory.
_MOST_EXPERTS = 2**14


class Predictions(NamedTuple):
    """Predictions of all experts for all examples.

    Attributes:
        routing_weights: weight of each expert, 0 for those not chosen.
        expert_probs: each expert's class probabilities, uniform for those not chosen; float32.
    """

    routing_weights: np.ndarray
    expert_probs: np.ndarray


def check_shapes(columns: dict[str, np.ndarray]) -> None:
    """Raises an error for a column of a wrong shape or kind."""
    probs = columns["expert_probs"]
    if probs.ndim != 3 or 0 in probs.shape or probs.shape[2] < 2:
        raise ValueError(
            "expert_probs must be [examples, experts, classes] with at least two classes, got "
            f"shape {probs.shape}."
        )
    for name, values in columns.items():
        axes = 2 if name in ("routing_weights", "expert_indices") else 1
        if name != "expert_probs" and values.shape != probs.shape[:axes]:
            raise ValueError(
                f"{name} must be of shape {probs.shape[:axes]}, as expert_probs is of shape "
                f"{probs.shape}, got {values.shape}."
            )
    kinds = {
        "routing_weights": ("f", "floating-point numbers"),
        "expert_probs": ("f", "floating-point numbers"),
        "labels": ("iu", "whole numbers, -1 where unknown"),
        "expert_indices": ("iu", "whole numbers"),
        "targets": ("b", "true or false"),
        "clusters": ("iuSU", "whole numbers or names"),
        "where": ("b", "true or false"),
        "weights": ("biuf", "0 or 1"),
    }
    for name, (allowed, words) in kinds.items():
        if name in columns and columns[name].dtype.kind not in allowed:
            raise TypeError(f"{name} must be {words}, got {columns[name].dtype}.")


def counted(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Which examples count: not those masked by `where` or `weights`, nor those routed nowhere."""
    where: np.ndarray = (columns["routing_weights"] != 0).any(axis=1)
    if "where" in columns:
        where &= columns["where"]
    if "weights" in columns:
        weights = columns["weights"]
        bad = (weights != 0) & (weights != 1)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"weights must be 0 or 1 (an example counts or not), got {weights[row]} at example "
                f"{row}."
            )
        where &= weights != 0
    if not where.any():
        raise ValueError("routing_weights must have a row that counts, got none.")
    return where


def predictions(columns: dict[str, np.ndarray], where: np.ndarray) -> Predictions:
    """Checks the predictions of the examples that count, and gives every expert its place.

    What an expert of weight 0 predicts, or any expert for an example that does not count, has no
    effect and may be anything: it is replaced by the uniform distribution.

    Args:
        columns: with `expert_indices` if the second axis holds slots instead of experts. The array
            of probabilities may be changed.
        where: which examples count.
    """
    weights, probs = columns["routing_weights"], columns["expert_probs"]
    indices = columns.get("expert_indices")
    _check_weights(weights, where, "expert" if indices is None else "slot")
    used = where[:, None] & (weights > 0)
    if not used.all():
        probs = probs if probs.flags.writeable else probs.copy()
        probs[~used] = 1 / probs.shape[2]
        weights = np.where(used, weights, 0)
    bad = ~np.asarray(distributions(jnp.asarray(probs)))
    if bad.any():
        row, slot = (int(i) for i in np.argwhere(bad)[0])
        place = (
            f"expert {slot}" if indices is None else f"slot {slot} (expert {indices[row, slot]})"
        )
        raise ValueError(
            "expert_probs must be probabilities that sum to 1 over the classes, got "
            f"{_fault(probs[row, slot], f'at example {row}, {place}', 'class')}."
        )
    probs = np.asarray(probs, np.float32)
    if indices is None:
        return Predictions(weights, probs)
    # an unsigned type cannot hold the mark of a slot that is not used
    return _scattered(weights, probs, np.where(used, indices.astype(np.int64), -1))


def _check_weights(weights: np.ndarray, where: np.ndarray, one: str) -> None:
    bad = where & ~np.asarray(distributions(jnp.asarray(weights)))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"routing_weights must be weights of at least 0 that sum to 1 over the {one}s, got "
            f"{_fault(weights[row], f'at example {row}', one)}."
        )


def _fault(values: np.ndarray, place: str, one: str) -> str:
    """The value that keeps a row from being a distribution, and its place."""
    values = values.astype(np.float64)
    bad = ~((values >= 0) & np.isfinite(values))
    if bad.any():
        return f"{values[bad][0]:.6g} {place}, {one} {int(np.argmax(bad))}"
    return f"a sum of {values.sum():.6g} {place}"


def _scattered(weights: np.ndarray, probs: np.ndarray, indices: np.ndarray) -> Predictions:
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
    return Predictions(of_all, held)
