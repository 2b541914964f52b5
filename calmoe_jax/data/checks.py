"""Checks that a task is valid."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from calmoe_jax.calibration._inputs import distributions
from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.task import KINDS, Split, Task

# Names a field of a split (or of the task, for None) as the caller knows it.
Where = Callable[[Split | None, str], str]

_INT32 = np.iinfo(np.int32)


def check_task(task: Task) -> Task:
    """Returns the task with canonical dtypes, or raises an error that says what to fix.

    Floats become float32; integers, labels and clusters become int32, except bytes (uint8), which
    stay; bools stay. Arrays that need no conversion are not copied.

    Args:
        task: any task.

    Returns:
        The task with arrays of these types.

    Raises:
        CorruptDataError: with the task, the split, the field, the rule and the value, if

            - there are fewer than two classes, or a name is empty or occurs twice;
            - a split is of a kind not allowed in its place, or `evaluation` does not begin with
              an id split;
            - a split is empty, or its arrays differ in length;
            - labels are not integers or out of range, or a class has no training example;
            - inputs are not finite, of an unsupported type, or unlike those of the training split;
            - soft labels are not a distribution over the classes for each example;
            - a series is given without a position, or a position without a series.

    Example:
        >>> x, y = np.eye(2), np.array([0, 1])
        >>> train, held_out = Split("train", "train", x, y), Split("held out", "calibration", x, y)
        >>> task = check_task(
        ...     Task("mine", ("a", "b"), train, held_out, (Split("test", "id", x, y),))
        ... )
        >>> task.train.inputs.dtype, task.train.labels.dtype
        (dtype('float32'), dtype('int32'))
    """

    def where(split: Split | None, field: str) -> str:
        if split is None:
            return f"task {task.name}: {field}"
        return f"task {task.name}, split {split.name!r}: {field}"

    return checked(task, where)


def checked(task: Task, where: Where) -> Task:
    """As `check_task`, with the caller's names of the fields in errors."""
    _check_types(task, where)
    _check_names(task, where)
    _check_kinds(task, where)
    splits = [_checked_split(split, task.classes, where) for split in task.splits]
    for split in splits[1:]:
        _check_alike(split, splits[0], where)
    absent = sorted(set(range(len(task.classes))) - set(splits[0].labels.tolist()))
    if absent:
        raise CorruptDataError(
            f"{where(splits[0], 'labels')} must have every class, got no example of "
            f"{', '.join(task.classes[c] for c in absent)}."
        )
    return dataclasses.replace(
        task, train=splits[0], calibration=splits[1], evaluation=tuple(splits[2:])
    )


def _check_types(task: Task, where: Where) -> None:
    """Checks the types that the annotations declare."""

    def fail(field: str, rule: str, value: Any) -> NoReturn:
        raise CorruptDataError(f"{where(None, field)} must be {rule}, got {value!r:.60}.")

    if not isinstance(task.classes, tuple) or not all(isinstance(c, str) for c in task.classes):
        fail("classes", "a tuple of names", task.classes)
    if not isinstance(task.evaluation, tuple) or not task.evaluation:
        fail("evaluation", "a tuple of splits, the id split first", task.evaluation)
    for field in ("train", "calibration"):
        if not isinstance(getattr(task, field), Split):
            fail(field, "a Split", getattr(task, field))
    for split in task.evaluation:
        if not isinstance(split, Split):
            fail("evaluation", "a tuple of splits", split)


def _check_names(task: Task, where: Where) -> None:
    for field, names in (
        ("name", [task.name]),
        ("classes", list(task.classes)),
        ("splits", [split.name for split in task.splits]),
    ):
        if not all(names):
            raise CorruptDataError(f"{where(None, field)} must have a name, got ''.")
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise CorruptDataError(
                f"{where(None, field)} must have different names, but two {field} are named "
                f"{twice[0]!r}."
            )
    if len(task.classes) < 2:
        raise CorruptDataError(
            f"{where(None, 'classes')} must name at least 2 classes, got {len(task.classes)}."
        )


def _check_kinds(task: Task, where: Where) -> None:
    evaluated: list[tuple[Split, tuple[str, ...]]] = [(s, KINDS[2:]) for s in task.evaluation]
    for split, kinds in [(task.train, KINDS[:1]), (task.calibration, KINDS[1:2]), *evaluated]:
        if split.kind not in kinds:
            raise CorruptDataError(
                f"{where(split, 'kind')} must be {' or '.join(kinds)} here, got {split.kind!r}."
            )
    if task.evaluation[0].kind != "id":
        raise CorruptDataError(
            f"{where(None, 'evaluation')} must begin with a split of kind id, got "
            f"{', '.join(split.kind for split in task.evaluation)}."
        )


def _checked_split(split: Split, classes: tuple[str, ...], where: Where) -> Split:
    labels = _as_int32(split.labels, where(split, "labels"))
    if labels.ndim != 1:
        raise CorruptDataError(
            f"{where(split, 'labels')} must be one number per example, got shape {labels.shape}."
        )
    if len(labels) == 0:
        raise CorruptDataError(f"{where(split, 'labels')} must hold examples, got 0.")
    outside = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if outside.size:
        raise CorruptDataError(
            f"{where(split, 'labels')} must be in [0, {len(classes) - 1}], got {labels.min()} to "
            f"{labels.max()}, first in row {outside[0]}."
        )
    clusters = _as_int32(split.clusters, where(split, "clusters"))
    if clusters.shape != labels.shape:
        raise CorruptDataError(
            f"{where(split, 'clusters')} must be one number for each of the {len(labels)} labels, "
            f"got shape {clusters.shape}."
        )
    if (split.series is None) != (split.position is None):
        given, lacking = ("series", "position")[:: 1 if split.position is None else -1]
        raise CorruptDataError(
            f"{where(split, lacking)} must be given with {given}, got "
            f"{given}={getattr(split, given)!r} alone."
        )
    position = 0 if split.position is None else split.position
    if not isinstance(position, int | float | np.number) or not math.isfinite(position):
        raise CorruptDataError(
            f"{where(split, 'position')} must be a finite number, got {position!r}."
        )
    if not jax.tree.leaves(split.inputs):
        raise CorruptDataError(
            f"{where(split, 'inputs')} must hold an array, got {split.inputs!r}."
        )
    inputs = jax.tree_util.tree_map_with_path(
        lambda path, leaf: _checked_leaf(leaf, len(labels), where(split, _field(path))),
        split.inputs,
    )
    return dataclasses.replace(
        split,
        inputs=inputs,
        labels=labels,
        clusters=clusters,
        soft_labels=_checked_votes(split, classes, where),
    )


def _checked_votes(split: Split, classes: tuple[str, ...], where: Where) -> np.ndarray | None:
    """Soft labels in float32, each row a distribution as the calibration metrics demand it."""
    if split.soft_labels is None:
        return None
    field, votes = where(split, "soft_labels"), split.soft_labels
    if votes.dtype.kind != "f":
        raise CorruptDataError(f"{field} must be shares, of floats, got {votes.dtype}.")
    if votes.shape != (len(split.labels), len(classes)):
        raise CorruptDataError(
            f"{field} must be a share of each of the {len(classes)} classes for each of the "
            f"{len(split.labels)} labels, got shape {votes.shape}."
        )
    votes = votes.astype(np.float32, copy=False)
    strange = np.flatnonzero(~np.asarray(distributions(jnp.asarray(votes))))
    if strange.size:
        first = strange[0]
        raise CorruptDataError(
            f"{field} must be at least 0 and sum to 1 in each row, got {votes[first].tolist()} in "
            f"row {first} ({strange.size} such rows)."
        )
    return votes


def _field(path: Any) -> str:
    """`inputs`, or `inputs.ids` for an array of a tree."""
    keys = (jax.tree_util.GetAttrKey("inputs"), *path)
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def _checked_leaf(leaf: Any, length: int, where: str) -> np.ndarray:
    if not isinstance(leaf, np.ndarray | jax.Array):
        raise CorruptDataError(f"{where} must be an array, got {type(leaf).__name__}.")
    array = np.asarray(leaf)
    if array.ndim == 0 or len(array) != length:
        raise CorruptDataError(
            f"{where} must hold an example for each of the {length} labels, got shape "
            f"{array.shape}."
        )
    if jnp.issubdtype(array.dtype, jnp.floating):
        with np.errstate(over="ignore"):  # too large for float32: reported as not finite
            array = array.astype(np.float32, copy=False)
        strange = np.flatnonzero(~np.isfinite(array).reshape(length, -1).all(axis=1))
        if strange.size:
            raise CorruptDataError(
                f"{where} must be finite in float32, got NaN or infinity in row {strange[0]} "
                f"({strange.size} such rows)."
            )
        return array
    if array.dtype.kind not in "iub":
        raise CorruptDataError(f"{where} must be of floats, integers or bools, got {array.dtype}.")
    return array if array.dtype in (np.uint8, np.bool_) else _as_int32(array, where)


def _as_int32(array: np.ndarray, where: str) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise CorruptDataError(f"{where} must be integers, got {array.dtype}.")
    if array.dtype.itemsize > 2 and array.size:
        low, high = int(array.min()), int(array.max())
        if low < _INT32.min or high > _INT32.max:
            raise CorruptDataError(f"{where} must fit in int32, got {low} to {high}.")
    return array.astype(np.int32, copy=False)


def _check_alike(split: Split, train: Split, where: Where) -> None:
    """Checks that inputs have one structure, shape and dtype in all splits."""
    ours, theirs = _arrays(split.inputs), _arrays(train.inputs)
    if len({jax.tree.structure(inputs) for inputs in (split.inputs, train.inputs)}) > 1:
        raise CorruptDataError(
            f"{where(split, 'inputs')} must hold the arrays of the training split, "
            f"{_listed(train.inputs, theirs)}, got {_listed(split.inputs, ours)}."
        )
    for name, array in ours.items():
        if array.shape[1:] != theirs[name].shape[1:] or array.dtype != theirs[name].dtype:
            raise CorruptDataError(
                f"{where(split, name)} must be {_kind(theirs[name])} per example, as in the "
                f"training split, got {_kind(array)}."
            )


def _arrays(inputs: PyTree) -> dict[str, np.ndarray]:
    return {_field(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(inputs)[0]}


def _listed(inputs: PyTree, arrays: dict[str, np.ndarray]) -> str:
    return f"{', '.join(arrays)} in a {type(inputs).__name__}"


def _kind(array: np.ndarray) -> str:
    return f"{array.dtype} [{', '.join(map(str, array.shape[1:]))}]"
