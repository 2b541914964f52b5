"""Splits and tasks as values."""

import jax
import numpy as np
import pytest

from calmoe_jax.data import Split, Task

IDS = np.arange(12, dtype=np.int32).reshape(4, 3)
TREE = {"ids": IDS, "more": (IDS > 5, np.ones((4, 2, 2), np.float32))}


def task_of(inputs):
    split = Split("train", "train", inputs, np.array([0, 1, 0, 1]))
    return Task("t", ("a", "b"), split, split, (split,))


def test_a_split_needs_inputs_and_labels_only():
    split = Split("test", "id", IDS, np.array([1, 0, 1, 1]))
    assert len(split) == split.num_clusters == 4
    assert split.labels.tolist() == [1, 0, 1, 1]
    assert split.clusters.tolist() == [0, 1, 2, 3]
    assert split.clusters.dtype == np.int32
    assert (split.description, split.series, split.position) == ("", None, None)
    assert split.soft_labels is None


@pytest.mark.parametrize("rows", [np.array([3, 1]), np.array([False, True, False, True])])
def test_rows_are_taken_of_every_array(rows):
    split = Split("test", "id", TREE, np.array([1, 0, 1, 1]), np.array([7, 7, 8, 9]))
    taken = split.take(rows, "some", "hard", "a part")
    expected = jax.tree.map(lambda leaf: leaf[rows], TREE)
    jax.tree.map(np.testing.assert_array_equal, taken.inputs, expected)
    assert taken.labels.tolist() == split.labels[rows].tolist()
    assert taken.clusters.tolist() == split.clusters[rows].tolist()
    assert (taken.name, taken.kind, taken.description) == ("some", "hard", "a part")
    assert taken.soft_labels is None


def test_votes_are_taken_with_their_rows():
    votes = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    split = Split("test", "id", IDS, np.array([1, 0, 1, 1]), soft_labels=votes)
    taken = split.take(np.array([3, 0]), "some", "part", "two of them")
    assert taken.soft_labels.tolist() == [[0.0, 1.0], [0.25, 0.75]]


def test_the_spec_is_of_one_example():
    spec = task_of(TREE).input_spec
    assert spec == jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), TREE)
    assert spec["more"][1].shape == (2, 2)


@pytest.mark.parametrize(
    ("inputs", "images"),
    [(np.zeros((4, 8, 8, 1), np.uint8), True), (IDS, False), (TREE, False)],
)
def test_images_have_three_axes_and_are_alone(inputs, images):
    assert task_of(inputs).holds_images == images
    assert not task_of({"image": np.zeros((4, 8, 8, 1), np.uint8)}).holds_images
