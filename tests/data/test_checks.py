"""`check_task` converts what it can, and reports what to fix."""

import dataclasses
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from calmoe_jax.data import CorruptDataError, Split, Task, check_task

LABELS = np.array([0, 1, 2, 1, 0, 2])


def tree(seed=0, dtype=np.float32):
    rng = np.random.RandomState(seed)
    return {"x": rng.randn(6, 3).astype(dtype), "mask": rng.rand(6, 2) < 0.5}


def good():
    return Task(
        "mine",
        ("a", "b", "c"),
        Split("train", "train", tree(0), LABELS),
        Split("calibration", "calibration", tree(1), LABELS),
        (Split("test", "id", tree(2), LABELS), Split("late", "shift", tree(3), LABELS)),
    )


def with_split(place, **changes):
    """The good task with one split changed."""
    task = good()
    if place in ("train", "calibration"):
        return dataclasses.replace(
            task, **{place: dataclasses.replace(getattr(task, place), **changes)}
        )
    evaluation = tuple(
        dataclasses.replace(s, **changes) if s.name == place else s for s in task.evaluation
    )
    return dataclasses.replace(task, evaluation=evaluation)


def with_x(place, change):
    return with_split(place, inputs={**tree(), "x": change(tree()["x"])})


def put(row, value):
    def change(x):
        x = x.astype(np.float64)
        x[row, 1] = value
        return x

    return change


def test_types_become_those_of_training():
    task = with_split("late", labels=LABELS.astype(np.uint8), clusters=LABELS.astype(np.int64))
    task = dataclasses.replace(
        task, train=dataclasses.replace(task.train, inputs=tree(0, np.float64))
    )
    checked = check_task(task)
    for split, given in zip(checked.splits, task.splits, strict=True):
        assert split.inputs["x"].dtype == np.float32
        assert split.inputs["mask"].dtype == bool
        assert split.labels.dtype == split.clusters.dtype == np.int32
        np.testing.assert_array_equal(split.inputs["x"], given.inputs["x"].astype(np.float32))
        assert (split.labels == given.labels).all()
    assert [s.name for s in checked.splits] == [s.name for s in task.splits]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.uint8, np.uint8),
        (np.bool_, np.bool_),
        (np.int64, np.int32),
        (np.uint16, np.int32),
        (np.int8, np.int32),
        (np.float16, np.float32),
        (">f4", np.float32),
        (ml_dtypes.bfloat16, np.float32),
    ],
)
def test_types_of_inputs(given, kept):
    inputs = np.arange(18).reshape(6, 3).astype(given)
    task = good()
    splits = [dataclasses.replace(split, inputs=inputs) for split in task.splits]
    found = check_task(
        dataclasses.replace(task, train=splits[0], calibration=splits[1], evaluation=(splits[2],))
    )
    assert found.train.inputs.dtype == kept
    np.testing.assert_array_equal(found.train.inputs, inputs.astype(kept))


def test_what_needs_no_conversion_is_not_copied():
    task = check_task(good())
    again = check_task(task)
    for split, same in zip(task.splits, again.splits, strict=True):
        assert split.inputs["x"] is same.inputs["x"]
        assert split.labels is same.labels
        assert split.clusters is same.clusters


def test_jax_arrays_are_accepted():
    task = good()
    inputs = {name: jnp.asarray(array) for name, array in task.train.inputs.items()}
    checked = check_task(with_split("train", inputs=inputs))
    assert isinstance(checked.train.inputs["x"], np.ndarray)
    np.testing.assert_array_equal(checked.train.inputs["x"], task.train.inputs["x"])


def test_the_last_row_of_a_large_split_is_looked_at():
    many = 70_000
    x = np.zeros((many, 2), np.float32)
    x[-1, -1] = np.inf
    task = with_split("late", inputs={"x": x, "mask": x > 0}, labels=np.zeros(many, int))
    task = dataclasses.replace(
        task,
        evaluation=(
            task.evaluation[0],
            dataclasses.replace(task.evaluation[1], clusters=np.zeros(many, int)),
        ),
    )
    with pytest.raises(CorruptDataError, match=f"in row {many - 1} "):
        check_task(task)


def test_votes_become_float32_and_stay_with_their_split():
    votes = np.eye(3)[LABELS[::-1]]  # not what the labels say, which is allowed
    checked = check_task(with_split("test", soft_labels=votes))
    assert checked.evaluation[0].soft_labels.dtype == np.float32
    np.testing.assert_array_equal(checked.evaluation[0].soft_labels, votes)
    assert checked.evaluation[1].soft_labels is None
    assert check_task(checked).evaluation[0].soft_labels is checked.evaluation[0].soft_labels


def with_vote(row, value):
    votes = np.eye(3)[LABELS]
    votes[row, 1] = value
    return with_split("test", soft_labels=votes)


WRONG = {
    "counts as votes": (
        with_split("test", soft_labels=np.eye(3, dtype=int)[LABELS]),
        "task mine, split 'test': soft_labels must be shares, of floats, got int64.",
    ),
    "votes on other classes": (
        with_split("test", soft_labels=np.eye(4)[LABELS]),
        "soft_labels must be a share of each of the 3 classes for each of the 6 labels, got shape "
        "(6, 4).",
    ),
    "votes on fewer rows": (
        with_split("test", soft_labels=np.eye(3)[LABELS[:5]]),
        "got shape (5, 3).",
    ),
    "votes that do not sum to 1": (
        with_vote(4, 0.5),
        "soft_labels must be at least 0 and sum to 1 in each row, got [1.0, 0.5, 0.0] in row 4 (1 ",
    ),
    "a negative vote": (with_vote(2, -0.1), "in row 2 (1 such rows)"),
    "a NaN vote": (with_vote(5, np.nan), "in row 5 (1 such rows)"),
    "no rows": (
        with_split(
            "late",
            inputs={k: v[:0] for k, v in tree().items()},
            labels=LABELS[:0],
            clusters=LABELS[:0],
        ),
        "task mine, split 'late': labels must hold examples, got 0.",
    ),
    "a label too small": (
        with_split("test", labels=LABELS - 1),
        "task mine, split 'test': labels must be in [0, 2], got -1 to 1, first in row 0.",
    ),
    "a label too large": (
        with_split("late", labels=LABELS + np.array([0, 0, 0, 7, 0, 0])),
        "split 'late': labels must be in [0, 2], got 0 to 8, first in row 3.",
    ),
    "labels of floats": (
        with_split("train", labels=LABELS.astype(np.float32)),
        "task mine, split 'train': labels must be integers, got float32.",
    ),
    "labels of bools": (with_split("train", labels=LABELS > 0), "must be integers, got bool."),
    "labels of names": (
        with_split("train", labels=np.array(list("abcabc"))),
        "must be integers, got <U1.",
    ),
    "one-hot labels": (
        with_split("test", labels=np.eye(3, dtype=int)[LABELS]),
        "split 'test': labels must be one number per example, got shape (6, 3).",
    ),
    "too few labels": (
        with_split("test", labels=LABELS[:-1], clusters=LABELS[:-1]),
        "split 'test': inputs.mask must hold an example for each of the 5 labels, got shape (6, 2)",
    ),
    "too few rows of one array": (
        with_x("test", lambda x: x[:-1]),
        "split 'test': inputs.x must hold an example for each of the 6 labels, got shape (5, 3).",
    ),
    "no axis": (with_x("test", lambda x: x[0, 0]), "inputs.x must be an array"),
    "too few clusters": (
        with_split("late", clusters=LABELS[:-1]),
        "split 'late': clusters must be one number for each of the 6 labels, got shape (5,).",
    ),
    "clusters of floats": (
        with_split("late", clusters=LABELS / 2),
        "split 'late': clusters must be integers, got float64.",
    ),
    "clusters too large": (
        with_split("late", clusters=LABELS + 2**40),
        f"split 'late': clusters must fit in int32, got {2**40} to {2**40 + 2}.",
    ),
    "ids too large": (
        with_x("late", lambda x: np.full(x.shape, 2**63, np.uint64)),
        "split 'late': inputs.x must fit in int32",
    ),
    "NaN": (
        with_x("calibration", put(4, np.nan)),
        "split 'calibration': inputs.x must be finite in float32, got NaN or infinity in row 4 "
        "(1 such rows).",
    ),
    "infinity": (with_x("train", put(2, -np.inf)), "split 'train': inputs.x must be finite"),
    "too large for float32": (with_x("train", put(5, 1e39)), "in row 5 "),
    "complex": (
        with_x("train", lambda x: x + 1j),
        "split 'train': inputs.x must be of floats, integers or bools, got complex",
    ),
    "texts": (
        with_x("train", lambda x: np.array(list("abcdef"), object)),
        "inputs.x must be of floats, integers or bools, got object.",
    ),
    "lists": (with_x("train", lambda x: [1.0] * 6), "inputs.x.0 must be an array, got float."),
    "no inputs": (
        with_split("test", inputs={}),
        "split 'test': inputs must hold an array, got {}.",
    ),
    "another shape": (
        with_x("late", lambda x: x[:, :2]),
        "split 'late': inputs.x must be float32 [3] per example, as in the training split, got "
        "float32 [2].",
    ),
    "another type": (
        with_x("late", lambda x: x.astype(np.uint8)),
        "as in the training split, got uint8 [3].",
    ),
    "another tree": (
        with_split("late", inputs={"x": tree()["x"]}),
        "split 'late': inputs must hold the arrays of the training split, inputs.mask, inputs.x in "
        "a dict, got inputs.x in a dict.",
    ),
    "no tree": (with_split("late", inputs=tree()["x"]), "got inputs in a ndarray."),
    "a class without examples": (
        with_split("train", labels=LABELS % 2),
        "task mine, split 'train': labels must have every class, got no example of c.",
    ),
    "two of a name": (
        with_split("late", name="train"),
        "task mine: splits must have different names, but two splits are named 'train'.",
    ),
    "no name": (with_split("late", name=""), "task mine: splits must have a name, got ''."),
    "two classes of a name": (
        dataclasses.replace(good(), classes=("a", "b", "a")),
        "task mine: classes must have different names, but two classes are named 'a'.",
    ),
    "one class": (
        dataclasses.replace(good(), classes=("a",)),
        "task mine: classes must name at least 2 classes, got 1.",
    ),
    "a training split that is none": (
        with_split("train", kind="id"),
        "task mine, split 'train': kind must be train here, got 'id'.",
    ),
    "a calibration split that is none": (
        with_split("calibration", kind="train"),
        "split 'calibration': kind must be calibration here, got 'train'.",
    ),
    "training data to evaluate": (
        with_split("late", kind="train"),
        "split 'late': kind must be id or shift or hard or part here, got 'train'.",
    ),
    "no id split": (
        with_split("test", kind="hard"),
        "task mine: evaluation must begin with a split of kind id, got hard, shift.",
    ),
    "a series without position": (
        with_split("late", series="year"),
        "split 'late': position must be given with series, got series='year' alone.",
    ),
    "a position without series": (
        with_split("late", position=2.0),
        "split 'late': series must be given with position, got position=2.0 alone.",
    ),
    "a position nowhere": (
        with_split("late", series="year", position=float("nan")),
        "split 'late': position must be a finite number, got nan.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(name):
    task, message = WRONG[name]
    with pytest.raises(CorruptDataError, match=re.escape(message)):
        check_task(task)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": "abc"}, "classes must be a tuple of names, got 'abc'."),
        ({"classes": (0, 1, 2)}, "classes must be a tuple of names"),
        ({"train": None}, "train must be a Split, got None."),
        ({"evaluation": good().calibration}, "evaluation must be a tuple of splits"),
        ({"evaluation": ()}, "evaluation must be a tuple of splits, the id split first, got ()."),
        ({"evaluation": (3,)}, "evaluation must be a tuple of splits, got 3."),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_type_annotations_forbid_is_said(changes, message):
    with pytest.raises(CorruptDataError, match=re.escape(f"task mine: {message}"[:-1])):
        check_task(dataclasses.replace(good(), **changes))
