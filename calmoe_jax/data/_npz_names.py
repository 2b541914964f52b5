"""The names that the arrays of a task's file may have."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.task import Kind

# Arrays that belong to the task, not to a split.
OF_THE_TASK = ("classes", "source")
_FIELDS = ("labels", "soft_labels", "clusters", "position", "series", "description")
_PARTS: dict[str, Kind] = {"train": "train", "calibration": "calibration", "test": "id"}
_FAMILIES: tuple[Kind, ...] = ("shift", "hard", "part")
_NEEDED = ("train", "test")
_NAME = re.compile(
    rf"(?P<part>{'|'.join(_PARTS)}|({'|'.join(_FAMILIES)})_.+?)_"
    rf"(inputs(?P<path>(\.[^.]+)*)|(?P<field>{'|'.join(_FIELDS)}))"
)
# `shift_a_soft_labels` holds the labels of a split named `a_soft`, where there is one.
_NAME_OF_SOFT = re.compile(r"(?P<part>.+_soft)_(inputs(?P<path>)|(?P<field>labels))")


class Part(NamedTuple):
    """The arrays of one split, by name.

    Attributes:
        prefix: common prefix of its arrays' names, as `shift_later`.
        name: name of the split, as `later`.
        kind: kind of the split.
        inputs: array names by path in the tree of inputs (an empty path for a single array).
        fields: array names by field.
    """

    prefix: str
    name: str
    kind: Kind
    inputs: dict[tuple[str, ...], str]
    fields: dict[str, str]


def parts_of(file: Path, names: Iterable[str]) -> list[Part]:
    """The splits that a file holds: train, calibration if any, test, shifts, hard ones, parts.

    Raises:
        CorruptDataError: for an unknown, repeated or missing name.
    """
    names = list(names)
    found: dict[str, Part] = {}
    for name in names:
        if names.count(name) > 1:
            raise CorruptDataError(f"{file}: the array {name} occurs twice.")
        if name in OF_THE_TASK:
            continue
        match = _NAME.fullmatch(name)
        if match is None:
            raise CorruptDataError(f"{file}: {_unknown(name, names)}")
        if match["field"] == "soft_labels" and _is_split(f"{match['part']}_soft", names):
            match = _NAME_OF_SOFT.fullmatch(name)
            assert match is not None
        part = found.setdefault(match["part"], _empty(match["part"]))
        if match["field"]:
            part.fields[match["field"]] = name
        else:
            part.inputs[tuple(match["path"].split(".")[1:])] = name
    for prefix in [*_NEEDED, *found]:
        part = found.get(prefix, _empty(prefix))
        lacking = "inputs" if not part.inputs else "labels" if "labels" not in part.fields else ""
        if lacking:
            raise CorruptDataError(f"{file} lacks the array {prefix}_{lacking}.")
        _check_tree(file, part)
    places = [*_PARTS, *_FAMILIES]
    parts = sorted(found.values(), key=lambda part: places.index(part.prefix.split("_")[0]))
    by_name: dict[str, str] = {}
    for part in parts:
        other = by_name.setdefault(part.name, part.prefix)
        if other != part.prefix:
            raise CorruptDataError(
                f"{file}: names of splits must differ, but {other}_inputs and {part.prefix}_inputs "
                f"are both named {part.name!r}."
            )
    return parts


def _empty(prefix: str) -> Part:
    if prefix in _PARTS:
        return Part(prefix, prefix, _PARTS[prefix], {}, {})
    family, _, name = prefix.partition("_")
    kind = next(kind for kind in _FAMILIES if kind == family)
    return Part(prefix, name, kind, {}, {})


def _is_split(prefix: str, names: list[str]) -> bool:
    """Whether there are inputs of a split of this prefix."""
    return any(re.match(rf"{re.escape(prefix)}_inputs(\.|$)", name) for name in names)


def _check_tree(file: Path, part: Part) -> None:
    """Checks that no name is both an array and a dict: `x_inputs` excludes `x_inputs.ids`.

    That is, no path in the tree is a prefix of another.
    """
    for place, name in part.inputs.items():
        for longer, other in part.inputs.items():
            if len(longer) > len(place) and longer[: len(place)] == place:
                raise CorruptDataError(
                    f"{file}: {name} must be an array or hold arrays, but {other} is there too."
                )


def _unknown(name: str, names: list[str]) -> str:
    """The error message for an unknown name, with the nearest known one."""
    prefixes = [*_PARTS, *(f"{family}_NAME" for family in _FAMILIES)]
    # the user's names of shifts: everything before the last underscore
    prefixes += [p for p, _, _ in (n.rpartition("_") for n in names) if p.startswith(_FAMILIES)]
    known = [f"{prefix}_{field}" for prefix in prefixes for field in ("inputs", *_FIELDS)]
    near = difflib.get_close_matches(name, [*known, *OF_THE_TASK], n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return (
        f"an array must be named classes, source or PART_FIELD, where PART is one of "
        f"{', '.join(prefixes[: len(_PARTS) + len(_FAMILIES)])} and FIELD one of inputs, "
        f"{', '.join(_FIELDS)}, got {name}.{hint}"
    )
