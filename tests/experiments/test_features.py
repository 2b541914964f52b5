"""Features in place of images: halves by hand, rows that the backbone never saw, kept files."""

import dataclasses

import numpy as np
import pytest

from calmoe_jax.data import Split, Task
from experiments import features

pytestmark = pytest.mark.exhaustive


def task(size=32):
    def split(name, kind, count, seed):
        rng = np.random.RandomState(seed)
        images = rng.randint(0, 256, (count, size, size, 3)).astype(np.uint8)
        return Split(name, kind, images, np.arange(count, dtype=np.int32) % 2)

    return Task(
        "cifar10h",
        ("a", "b"),
        split("train", "train", 12, 0),
        split("calibration", "calibration", 5, 1),
        (split("test", "id", 7, 2), split("late", "shift", 4, 3)),
    )


def test_images_of_64_pixels_are_halved_by_means():
    large = task(64)
    found = features.halved(large)
    pixels = large.train.inputs[3].astype(float)
    expected = [[pixels[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(0, 1)) for j in range(32)]
                for i in range(32)]  # fmt: skip
    np.testing.assert_allclose(found.train.inputs[3], expected, atol=0.5)
    assert found.train.inputs.dtype == np.uint8
    assert features.halved(task()).train is not None
    np.testing.assert_array_equal(features.halved(task()).train.inputs, task().train.inputs)


def test_features_are_of_the_examples_that_the_backbone_never_saw(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "WIDTH", 4)
    monkeypatch.setattr(features, "STAGES", 1)
    monkeypatch.setattr(features, "EPOCHS", 1)
    monkeypatch.setattr(features, "IMAGES", 8)
    given = task()
    found = features.of_images(given, tmp_path)
    assert len(found.train) == 6  # half of twelve is less than eight
    np.testing.assert_array_equal(found.train.clusters, given.train.clusters[6:])
    assert found.train.inputs.shape == (6, 4)
    assert [s.inputs.shape for s in found.evaluation] == [(7, 4), (4, 4)]
    # an image has the same features wherever it stands
    twice = dataclasses.replace(
        given, name="again", calibration=dataclasses.replace(
            given.evaluation[1], name="calibration", kind="calibration")
    )  # fmt: skip
    again = features.of_images(twice, tmp_path)
    np.testing.assert_allclose(again.calibration.inputs, found.evaluation[1].inputs, atol=1e-6)
    monkeypatch.setattr(features, "_write_features", None)
    kept = features.of_images(given, tmp_path)
    np.testing.assert_array_equal(kept.train.inputs, found.train.inputs)


def test_tasks_of_the_same_images_share_a_backbone():
    assert features.family("cifar10c") == features.family("cifar10h") != features.family("pacs_art")


def test_colour_images_alone_are_replaced(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(features, "of_images", lambda task, folder: asked.append(folder) or "found")
    assert features.without_colour_images(task(), tmp_path) == "found"
    assert asked == [tmp_path / features.family("cifar10h")]
    grey = dataclasses.replace(
        task(),
        train=dataclasses.replace(task().train, inputs=np.zeros((12, 8, 8, 1), np.uint8)),
    )
    table = dataclasses.replace(
        task(), train=dataclasses.replace(task().train, inputs=np.zeros((12, 3), np.float32))
    )
    for other in (grey, table):
        assert features.without_colour_images(other, tmp_path) is other
    assert len(asked) == 1
