"""Joins the logs of several files."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from calmoe_jax.audit.predictions import Rescaled


class Part(NamedTuple):
    """Checked logs of one file; see `Logs` for what the arrays are.

    Attributes:
        columns: names of the arrays that the file has.
        slots: whether it holds slots, so that its experts are those up to the largest index.
        rescaled: what was rescaled, by the array's name.
    """

    columns: tuple[str, ...]
    routing_weights: np.ndarray
    expert_probs: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    clusters: np.ndarray | None
    where: np.ndarray
    label_probs: np.ndarray | None
    time: np.ndarray | None
    drawn_probability: np.ndarray | None
    peer_probs: np.ndarray | None
    aggregate_only: bool
    slots: bool
    rescaled: dict[str, Rescaled]


def joined(names: Sequence[str], parts: list[Part]) -> Part:
    """The logs of all files, one after the other.

    Args:
        names: the files, for errors.
        parts: their logs, at least one; the list is emptied, so that nothing is held twice for
            longer than it must.

    Raises:
        ValueError: if the files differ in arrays, classes, experts or kinds.
    """
    first = parts[0]
    if len(parts) == 1:
        return parts.pop()
    for name, part in zip(names[1:], parts[1:], strict=True):
        _check_alike(names[0], first, name, part)
    experts = max(part.expert_probs.shape[1] for part in parts)
    rescaled = {
        name: Rescaled(
            sum(part.rescaled[name].rows for part in parts),
            max(part.rescaled[name].largest for part in parts),
        )
        for name in first.rescaled
    }
    weights = np.concatenate([_with_experts(p.routing_weights, experts, 0.0) for p in parts])
    uniform = 1 / first.expert_probs.shape[2]
    probs = np.concatenate([_with_experts(p.expert_probs, experts, uniform) for p in parts])
    rest = [part._replace(routing_weights=weights[:0], expert_probs=probs[:0]) for part in parts]
    parts.clear()

    def all_of(name: str) -> Any:
        return (
            None
            if getattr(first, name) is None
            else np.concatenate([getattr(part, name) for part in rest])
        )

    arrays = (
        "labels", "targets", "clusters", "where", "label_probs", "time", "drawn_probability",
        "peer_probs",
    )  # fmt: skip
    others: dict[str, Any] = {name: all_of(name) for name in arrays}
    return first._replace(
        routing_weights=weights,
        expert_probs=probs,
        rescaled=rescaled,
        **others,
    )


def _check_alike(first: str, a: Part, second: str, b: Part) -> None:
    for name, one, other, more in ((second, a, b, first), (first, b, a, second)):
        missing = sorted(set(one.columns) - set(other.columns))
        if missing:
            raise ValueError(f"{name} lacks {', '.join(missing)}, which {more} has.")
    sizes = [("classes", a.expert_probs.shape[2], b.expert_probs.shape[2])]
    if not a.slots:
        sizes.append(("experts", a.expert_probs.shape[1], b.expert_probs.shape[1]))
    if a.peer_probs is not None and b.peer_probs is not None:
        sizes.append(("peers", a.peer_probs.shape[1], b.peer_probs.shape[1]))
    for what, one_size, other_size in sizes:
        if one_size != other_size:
            raise ValueError(f"{second} has {other_size} {what}, {first} has {one_size}.")
    for what in ("clusters", "time"):
        x, y = getattr(a, what), getattr(b, what)
        if x is not None and _kind(x) != _kind(y):
            raise ValueError(f"{second} has {what} of {y.dtype}, {first} of {x.dtype}.")


def _kind(values: np.ndarray) -> str:
    return {"u": "i", "f": "i", "S": "U"}.get(values.dtype.kind, values.dtype.kind)


def _with_experts(values: np.ndarray, experts: int, absent: float) -> np.ndarray:
    """The array with as many experts; those that no example of the file chose are absent."""
    short = experts - values.shape[1]
    if not short:
        return values
    widths = [(0, 0), (0, short), *[(0, 0)] * (values.ndim - 2)]
    return np.pad(values, widths, constant_values=absent)
