"""The names of arrays in files of logs, whole or a column for each number.

An array has its name, or that of one example's in the singular (`label`, `target`, `cluster`). A
column for each number is named after what it holds and its place, from 0: `prob_3`, `logit_3`
(the aggregate), `expert_0_prob_3`, `expert_0_logit_3`, `weight_0`, `routing_logit_0`, `index_0`
(the expert of a slot), `label_prob_3` (a soft label), `peer_0_prob_3`, `peer_0_logit_3` (the
aggregate of a model that was trained alike).
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

# Arrays with axes beside that of the examples: how many, and the name of a column of one number.
WIDE = {
    "expert_probs": (2, "expert_{}_prob_{}"),
    "expert_logits": (2, "expert_{}_logit_{}"),
    "routing_weights": (1, "weight_{}"),
    "routing_logits": (1, "routing_logit_{}"),
    "expert_indices": (1, "index_{}"),
    "probs": (1, "prob_{}"),
    "logits": (1, "logit_{}"),
    "label_probs": (1, "label_prob_{}"),
    "peer_probs": (2, "peer_{}_prob_{}"),
    "peer_logits": (2, "peer_{}_logit_{}"),
}
# Arrays of one number for each example.
SINGLE = ("labels", "targets", "clusters", "where", "weights", "time", "drawn_probability")
_SINGULAR = {"label": "labels", "target": "targets", "cluster": "clusters"}
_MOST_COLUMNS = 10**6


class Place(NamedTuple):
    """Where a column belongs: an array, and a place on its other axes if it is one number."""

    array: str
    at: tuple[int, ...] = ()


def place_of(name: str) -> Place | None:
    """The array that a column of this name belongs to; `None` if it is none of ours.

    Args:
        name: the column's name.
    """
    if name in WIDE or name in SINGLE:
        return Place(name)
    if name in _SINGULAR:
        return Place(_SINGULAR[name])
    for array, (_, form) in WIDE.items():
        numbers = _numbers(form, name)
        if numbers is not None:
            return Place(array, tuple(map(int, numbers)))
    return None


def renamed(names: Iterable[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our name of each column of a file, by the file's.

    Args:
        names: the file's names.
        columns: the file's name for some of ours; `{}` in both stands for a number.

    Raises:
        ValueError: if a name is not one of ours, or the file lacks its own.
    """
    names = list(names)
    found = {name: name for name in names}
    for ours, theirs in columns.items():
        if ours.count("{}") != theirs.count("{}"):
            raise ValueError(f"columns must have {{}} as often on both sides, got {ours}={theirs}.")
        if place_of(ours.replace("{}", "0")) is None:
            known = ", ".join([*WIDE, *(form for _, form in WIDE.values()), *SINGLE])
            raise ValueError(f"columns must rename to one of {known}; got {ours}={theirs}.")
        matched = {name: _numbers(theirs, name) for name in names}
        chosen = {name: ours.format(*n) for name, n in matched.items() if n is not None}
        if not chosen:
            raise ValueError(f"lacks {theirs}; it has {listed(names)}.")
        found.update(chosen)
    return found


def places(ours: Mapping[str, str]) -> dict[str, Place]:
    """The place of every column that is read, by the file's name.

    Args:
        ours: our name of each column, by the file's.

    Raises:
        ValueError: if two columns have one place, or a name is nearly one of ours.
    """
    found = {theirs: place for theirs, name in ours.items() if (place := place_of(name))}
    there: dict[Place, str] = {}
    first: dict[str, tuple[str, Place]] = {}
    for theirs, place in found.items():
        other = there.setdefault(place, theirs)
        one, held = first.setdefault(place.array, (theirs, place))
        if bool(held.at) != bool(place.at):  # an array, and a column of one of its numbers
            other = one
        if other != theirs:
            raise ValueError(f"has {other} and {theirs}, of which one must be left out.")
    known = [*WIDE, *SINGLE, *(form.replace("{}", "0") for _, form in WIDE.values())]
    arrays = {place.array for place in found.values()}
    absent = [name for name in known if (place := place_of(name)) and place.array not in arrays]
    for theirs, name in ours.items():
        near = difflib.get_close_matches(re.sub(r"\d+", "0", name), absent, n=1, cutoff=0.85)
        if theirs not in found and near:
            raise ValueError(
                f"has {theirs}, which is not read. Did you mean {near[0]}? Rename it, say so with "
                f"--columns {near[0]}={theirs}, or leave it out."
            )
    return found


def shape_of(array: str, indices: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The axes beside the examples of an array that is given number by number.

    Args:
        array: its name.
        indices: the places that there are.

    Raises:
        ValueError: if one is missing.
    """
    there = set(indices)
    shape = tuple(max(axis) + 1 for axis in zip(*there, strict=True))
    if int(np.prod([float(size) for size in shape])) > _MOST_COLUMNS:
        raise ValueError(f"{array} must have at most {_MOST_COLUMNS} columns, got shape {shape}.")
    if missing := sorted(set(np.ndindex(*shape)) - there):
        form = WIDE[array][1]
        last = form.format(*sorted(there)[-1])
        raise ValueError(f"lacks {form.format(*missing[0])}, but has {last}.")
    return shape


def listed(names: Iterable[str]) -> str:
    """Names in a sentence, not more than a line of them.

    Args:
        names: in their order.
    """
    names = list(names)
    shown = ", ".join(names[:12]) or "nothing"
    return shown if len(names) <= 12 else f"{shown} and {len(names) - 12} more"


def _numbers(form: str, name: str) -> tuple[str, ...] | None:
    """The numbers in the places of `{}`; `None` if a name is not of the form."""
    pattern = r"(\d{1,7})".join(map(re.escape, form.split("{}")))
    found = re.fullmatch(pattern, name)
    return None if found is None else found.groups()
