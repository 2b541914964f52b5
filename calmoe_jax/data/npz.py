"""A task from one npz file."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from calmoe_jax.data import _files as files
from calmoe_jax.data._npz_names import Part, parts_of
from calmoe_jax.data._order import hash_order
from calmoe_jax.data.checks import checked
from calmoe_jax.data.errors import CorruptDataError, MissingDataError
from calmoe_jax.data.task import Split, Task

_HELD_OUT = 10  # one cluster in so many


def load_npz(path: Path | str) -> Task:
    """Reads a task from a file of NumPy arrays, as `numpy.savez` writes it.

    Needed are the arrays `train_inputs`, `train_labels`, `test_inputs` and `test_labels`. There may
    be `calibration_inputs` and `calibration_labels`, and any number of shifts and of difficult
    (`hard`) or other parts of the test split, each with a name: `shift_NAME_inputs`,
    `shift_NAME_labels`, `hard_NAME_inputs`, `part_NAME_inputs` and so on. Besides, where PART is
    `train`, `calibration`, `test`, `shift_NAME`, `hard_NAME` or `part_NAME`:

    - `PART_inputs.ids`, `PART_inputs.mask` and so on, in place of `PART_inputs`: inputs are then a
      dict of arrays (of dicts, where there are several dots);
    - `PART_soft_labels`: `[n, classes]` floats; the shares of people who chose each class;
    - `PART_clusters`: integers; examples of one cluster depend on each other;
    - `PART_series` and `PART_position`: text and number; the ordered family of splits that it is a
      member of, and its place there;
    - `PART_description`: a one-line description.

    And of the task: `classes`, the names of the classes (by default their numbers, up to the
    largest training label), and `source`, where the data is from.

    Without a calibration split, a tenth of the clusters of the training split (of its
    examples, where it has no clusters) becomes one: those that come first in an order by a hash of
    their numbers, which is the same on every platform.

    Args:
        path: the file. Nothing in it is unpickled.

    Returns:
        The task, checked; its name is that of the file without `.npz`.

    Raises:
        MissingDataError: if there is no such file.
        CorruptDataError: if it cannot be read, has an array of an unknown name (the message
            suggests the nearest known one), lacks an array, or an array holds invalid values. The
            message names the file and the array.

    Example:
        >>> x, y = np.eye(20), np.arange(20) % 2
        >>> np.savez("mine.npz", train_inputs=x, train_labels=y, test_inputs=x, test_labels=y)
        >>> task = load_npz("mine.npz")
        >>> [(split.name, len(split)) for split in task.splits]
        [('train', 18), ('calibration', 2), ('test', 20)]
    """
    path = Path(path)
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}.")
    names = files.npz_names(path)
    parts = parts_of(path, names)
    arrays = dict(zip(names, files.read_npz(path, names), strict=True))
    train, *others = (_split(path, part, arrays) for part in parts)
    classes = _classes(path, arrays, train.labels)
    prefixes = {part.name: part.prefix for part in parts}
    note = ""
    if others[0].kind != "calibration":
        train, calibration = _hold_out(path, train)
        others = [calibration, *others]
        prefixes["calibration"] = "train"
        note = f" (with one cluster in {_HELD_OUT} held out for calibration)"

    def where(split: Split | None, field: str) -> str:
        if split is None:
            return f"{path}: {field}"
        prefix = prefixes[split.name]
        return f"{path}: {prefix}_{field}{note if prefix == 'train' else ''}"

    task = Task(
        name=path.stem,
        classes=classes,
        train=train,
        calibration=others[0],
        evaluation=tuple(others[1:]),
        source=_scalar(path, arrays, "source", str, ""),
    )
    return checked(task, where)


def _split(path: Path, part: Part, arrays: dict[str, np.ndarray]) -> Split:
    labels = arrays[part.fields["labels"]]
    if labels.ndim != 1:
        raise CorruptDataError(
            f"{path}: {part.fields['labels']} must be one number per example, got shape "
            f"{labels.shape}."
        )

    def field(name: str, kind: Callable[[Any], Any], default: Any) -> Any:
        return _scalar(path, arrays, part.fields.get(name), kind, default)

    optional = [name for name in ("clusters", "soft_labels") if name in part.fields]
    given = {name: arrays[part.fields[name]] for name in optional}
    return Split(
        name=part.name,
        kind=part.kind,
        inputs=_tree({place: arrays[name] for place, name in part.inputs.items()}),
        labels=labels,
        description=field("description", str, ""),
        series=field("series", str, None),
        position=field("position", float, None),
        **given,
    )


def _tree(leaves: dict[tuple[str, ...], np.ndarray]) -> PyTree:
    """Nested dicts of arrays, or the only array."""
    if () in leaves:
        return leaves[()]
    below: dict[str, dict[tuple[str, ...], np.ndarray]] = {}
    for (first, *rest), leaf in leaves.items():
        below.setdefault(first, {})[tuple(rest)] = leaf
    return {first: _tree(rest) for first, rest in below.items()}


def _scalar(
    path: Path,
    arrays: dict[str, np.ndarray],
    name: str | None,
    kind: Callable[[Any], Any],
    default: Any,
) -> Any:
    """A scalar, or its default."""
    if name is None or name not in arrays:
        return default
    array = arrays[name]
    allowed, what = ("U", "a text") if kind is str else ("iuf", "a number")
    if array.dtype.kind not in allowed or array.shape != ():
        raise CorruptDataError(
            f"{path}: {name} must be {what}, got {array.dtype} of shape {array.shape}."
        )
    return kind(array)


def _classes(path: Path, arrays: dict[str, np.ndarray], labels: np.ndarray) -> tuple[str, ...]:
    """The classes' names; without the array, their numbers up to the largest training label."""
    if "classes" in arrays:
        names = arrays["classes"]
        if names.dtype.kind != "U" or names.ndim != 1:
            raise CorruptDataError(
                f"{path}: classes must be a list of names, got {names.dtype} of shape "
                f"{names.shape}."
            )
        return tuple(names.tolist())
    if labels.dtype.kind not in "iu" or not labels.size:
        return "0", "1"  # invalid labels are reported with the labels
    largest = int(labels.max())
    return tuple(map(str, range(largest + 1 if 1 <= largest < labels.size else 2)))


def _hold_out(path: Path, train: Split) -> tuple[Split, Split]:
    """Splits off a tenth of the training clusters for calibration."""
    clusters = train.clusters
    if clusters.shape != train.labels.shape or clusters.dtype.kind not in "iu":
        raise CorruptDataError(
            f"{path}: train_clusters must be one integer for each of the {len(train)} labels, got "
            f"{clusters.dtype} of shape {clusters.shape}."
        )
    numbers = np.unique(clusters)
    if len(numbers) < 2:
        raise CorruptDataError(
            f"{path}: without calibration arrays a tenth of the training clusters is held out, "
            f"which needs at least 2, got "
            f"{len(numbers)} (train_labels, train_clusters)."
        )
    order = hash_order([str(number) for number in numbers], seed=0)
    chosen = numbers[order[: max(1, round(len(numbers) / _HELD_OUT))]]
    held_out = np.isin(clusters, chosen)
    return (
        dataclasses.replace(
            train.take(~held_out, train.name, train.kind, train.description),
            series=train.series,
            position=train.position,
        ),
        train.take(held_out, "calibration", "calibration", "a tenth of the training clusters"),
    )
