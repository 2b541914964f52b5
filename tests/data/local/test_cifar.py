"""`cifar10h` and `cifar10c`: votes beside labels, images of one split in no other, and errors."""

import sys

import numpy as np
import pictures
import pytest

from calmoe_jax import data
from calmoe_jax.data.cifar_corruptions import CIFAR_CORRUPTIONS, corrupt_cifar
from calmoe_jax.data.local import cifar

MADE = pictures.cifar()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pictures.write_cifar(tmp_path_factory.mktemp("cifar"), MADE)


@pytest.fixture(scope="module")
def voted(folder):
    return data.load_task("cifar10h", folder)


def keys(split):
    return [image.tobytes() for image in split.inputs]


def test_the_parts_of_cifar10h(voted):
    assert voted.input_spec.shape == (32, 32, 3)
    assert [(s.name, s.kind) for s in voted.splits] == [
        ("train", "train"), ("calibration", "calibration"), ("test", "id"),
        ("ambiguous", "hard"), ("easy", "part"),
    ]  # fmt: skip
    train, calibration, test = voted.splits[:3]
    assert [len(train), len(calibration), len(test)] == [108, 12, 40]
    assert len({*keys(train), *keys(calibration), *keys(test)}) == 160
    assert train.soft_labels is None
    assert "JPEG" in voted.source


def test_votes_and_images_keep_the_order_of_the_file(voted):
    test, hard, easy = voted.evaluation
    counts = MADE["test"]["human_counts"].astype(float)
    shares = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(test.soft_labels, shares, rtol=1e-6)
    files = np.split(MADE["test"]["jpeg"], MADE["test"]["ends"][:-1])
    for image, file in zip(test.inputs, files, strict=True):
        np.testing.assert_array_equal(image, pictures.decoded(file.tobytes()))
    assert test.labels.tolist() == MADE["test"]["labels"].tolist()
    for part, rows in ((hard, shares.max(1) < 0.7), (easy, shares.max(1) > 0.9)):
        assert 0 < len(part) == rows.sum() < len(test)
        np.testing.assert_array_equal(part.inputs, test.inputs[rows])
        np.testing.assert_array_equal(part.soft_labels, test.soft_labels[rows])
        np.testing.assert_array_equal(part.clusters, np.flatnonzero(rows))


def test_what_is_held_out_does_not_depend_on_what_is_read(voted, tmp_path):
    again = data.load_task("cifar10h", pictures.write_cifar(tmp_path, MADE))
    for ours, others in zip(voted.splits, again.splits, strict=True):
        assert keys(ours) == keys(others)
        assert (ours.labels == others.labels).all()


def test_a_part_without_images_is_left_out(tmp_path):
    counts = 20 * np.eye(10, dtype=int)[MADE["test"]["labels"]]
    made = MADE | {"test": MADE["test"] | {"human_counts": counts}}
    task = data.load_task("cifar10h", pictures.write_cifar(tmp_path, made))
    assert [s.name for s in task.evaluation] == ["test", "easy"]


def test_cifar10c_corrupts_the_same_images(folder, monkeypatch):
    monkeypatch.setattr(cifar, "_CORRUPTED_IMAGES", 10)
    monkeypatch.setattr(cifar, "SEVERITIES", (1, 5))
    task = data.load_task("cifar10c", folder)
    clean, *shifts = task.evaluation
    assert len(clean) == 10
    assert clean.soft_labels.shape == (10, 10)
    of_test = MADE["test"]["labels"][clean.clusters]
    assert [s.name for s in shifts] == [f"{c}_{n}" for c in CIFAR_CORRUPTIONS for n in (1, 5)]
    for split in shifts:
        assert (split.kind, split.soft_labels) == ("shift", None)
        assert split.name == f"{split.series}_{split.position:.0f}"
        assert split.labels.tolist() == clean.labels.tolist() == of_test.tolist()
        assert split.clusters.tobytes() == clean.clusters.tobytes()  # drawn together
        found = corrupt_cifar(
            clean.inputs, split.series, int(split.position), numbers=clean.clusters
        )
        np.testing.assert_array_equal(split.inputs, found)
        assert ("texture" in split.description) == (split.series == "frost")
    monkeypatch.setattr(cifar, "SEVERITIES", (1,))
    monkeypatch.setattr(cifar, "_CORRUPTED_IMAGES", 5)
    fewer = data.load_task("cifar10c", folder)
    rows = np.isin(clean.clusters, fewer.evaluation[0].clusters)
    for split in fewer.evaluation[1:]:  # an image is corrupted in the same way in any company
        (same,) = (s for s in shifts if s.name == split.name)
        np.testing.assert_array_equal(split.inputs, same.inputs[rows])


def test_the_registered_shifts_of_cifar10c():
    shifts = data.TASKS["cifar10c"].shifts
    assert len(shifts) == len(set(shifts)) == 95
    assert shifts[0] == "gaussian_noise_1"


def published(folder, **changed):
    """Published files of five severities, where each value tells corruption and severity."""
    place = folder / "CIFAR-10-C"
    place.mkdir()
    for number, name in enumerate(CIFAR_CORRUPTIONS):
        levels = 10 * number + np.repeat(np.arange(5), 40)[:, None, None, None]
        array = np.broadcast_to(levels, (200, 32, 32, 3)).astype(np.uint8)
        np.save(place / f"{name}.npy", changed.get(name, array))
    return folder


def test_published_files_are_read_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "_CORRUPTED_IMAGES", 10)
    task = data.load_task("cifar10c", published(pictures.write_cifar(tmp_path, MADE)))
    for number, split in enumerate(task.evaluation[1:]):
        assert (split.inputs == 10 * (number // 5) + number % 5).all()
        assert "as published" in split.description
    (tmp_path / "CIFAR-10-C" / "fog.npy").unlink()
    with pytest.raises(data.MissingDataError, match=r"fog\.npy.*all files of CIFAR-10-C"):
        data.load_task("cifar10c", tmp_path)


@pytest.mark.parametrize("content", [np.zeros((200, 32, 32), np.uint8), np.zeros((200, 32, 32, 3))])
def test_published_files_of_another_form(tmp_path, content):
    folder = published(pictures.write_cifar(tmp_path, MADE), gaussian_noise=content)
    with pytest.raises(
        data.CorruptDataError, match=r"gaussian_noise\.npy must hold bytes of shape"
    ):
        data.load_task("cifar10c", folder)
    (folder / "CIFAR-10-C" / "gaussian_noise.npy").write_bytes(b"no npy")
    with pytest.raises(data.CorruptDataError, match=r"gaussian_noise\.npy is not a complete npy"):
        data.load_task("cifar10c", folder)


def test_missing_files_say_how_to_get_them(tmp_path, folder, monkeypatch):
    with pytest.raises(data.MissingDataError, match=r"cifar10/train\.npz, .*--data-dir"):
        data.load_task("cifar10h")
    with pytest.raises(
        data.MissingDataError, match=r"train\.npz, .*`calmoe data prepare cifar10c`"
    ):
        data.load_task("cifar10c", tmp_path)
    assert data.TASKS["cifar10h"].missing(folder) == ()
    assert data.TASKS["cifar10c"].missing(tmp_path) == data.sets.SETS["cifar10"].files
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(data.MissingDataError, match=r"pip install 'calmoe_jax\[data\]'"):
        data.load_task("cifar10h", folder)


COUNTS = MADE["test"]["human_counts"].astype(int)


def with_row(row, values):
    counts = COUNTS.copy()
    counts[row] = values
    return counts


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (COUNTS[:-1], r"for each of the 40 images, got int64 of shape \(39, 10\)"),
        (COUNTS[:, :9], r"of shape \(40, 9\)"),
        (COUNTS / 20, "must be whole numbers, .*got float64"),
        (with_row(7, 0), r"got \[0, 0, 0, 0, 0, 0, 0, 0, 0, 0\] for image 7"),
        (with_row(3, [-1, *[2] * 9]), "must be at least 0 .* for image 3"),
        (COUNTS[::-1], "votes on these images in their order, but .* of 0% of them only"),
    ],
    ids=range(6),
)
def test_votes_that_do_not_match(tmp_path, counts, message):
    made = MADE | {"test": MADE["test"] | {"human_counts": counts}}
    with pytest.raises(data.CorruptDataError, match=message) as error:
        data.load_task("cifar10h", pictures.write_cifar(tmp_path, made))
    assert str(tmp_path / "cifar10" / "test.npz") in str(error.value)


def test_labels_outside_the_classes(tmp_path):
    labels = MADE["train"]["labels"] + (MADE["train"]["labels"] == 9)
    made = MADE | {"train": MADE["train"] | {"labels": labels}}
    with pytest.raises(data.CorruptDataError, match=r"labels must be in \[0, 9\], got 0 to 10"):
        data.load_task("cifar10h", pictures.write_cifar(tmp_path, made))


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_real_cifar10h(shared_data):
    task = data.load_task("cifar10h", shared_data)
    train, calibration, test, hard, easy = task.splits
    assert [len(s) for s in task.splits] == [45000, 5000, 10000, 327, 8721]
    shares = test.soft_labels
    assert round(float(np.mean(shares.argmax(1) == test.labels)), 3) == 0.992
    named = {name: task.classes.index(name) for name in task.classes}
    # labelled cat, and all 51 people see a frog
    assert test.labels[2405] == named["cat"]
    assert shares[2405, named["frog"]] == 1
    for number, label, seen in ((2804, "cat", "dog"), (5690, "horse", "dog")):
        assert test.labels[number] == named[label]
        assert shares[number].argmax() == named[seen]
        assert shares[number].max() > 0.6
    assert 2405 in easy.clusters  # they agree, if not with the label
    assert hard.soft_labels.max() < 0.7 < 0.9 < easy.soft_labels.max(axis=1).min()
    assert np.bincount(train.labels).min() > 4400
    assert np.bincount(calibration.labels).min() > 400
    # frogs have other colours than ships, in training and test alike
    for split in (train, test):
        blue = [split.inputs[split.labels == named[x]][..., 2].mean() for x in ("frog", "ship")]
        assert blue[1] > blue[0] + 30


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_real_cifar10c(shared_data, monkeypatch):
    monkeypatch.setattr(cifar, "SEVERITIES", (5,))
    task = data.load_task("cifar10c", shared_data)
    clean, *shifts = task.evaluation
    assert len(shifts) == 19
    assert {len(s) for s in task.evaluation} == {1000}
    assert (clean.soft_labels.argmax(axis=1) == clean.labels).mean() > 0.98
    for split in shifts:
        assert np.abs(split.inputs.astype(float) - clean.inputs).mean() > 4
