"""Tasks: the same arrays everywhere, splits that do not leak, and errors that name the file."""

import gzip
import hashlib
import io

import numpy as np
import pytest

from calmoe_jax import data
from calmoe_jax.data import _files as files
from calmoe_jax.data import task
from calmoe_jax.data.corruptions import CORRUPTIONS, corrupt


def digest(*arrays):
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


@pytest.fixture(scope="module")
def portal():
    return data.load_task("portal")


@pytest.fixture(scope="module")
def digits():
    return data.load_task("digits")


# Digests of inputs and labels: another platform, NumPy or SciPy must give the same bytes.
@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("portal", "train", "813814a59b768900"),
        ("portal", "calibration", "c1f6d3fd7c8d1e75"),
        ("portal", "1994-1997", "8eb2ee963afba36d"),
        ("portal", "ambiguous", "ddd86317d9c4fdf1"),
        ("digits", "train", "f5962d6bdeaed2ef"),
        ("digits", "gaussian_noise_5", "140f98a1706b3dea"),
        ("digits", "rotation_3", "dad9ed8718164b19"),
        ("digits", "ambiguous", "f5d264ce55c8b07a"),
    ],
)
def test_same_arrays_on_every_platform(name, split, expected, request):
    found = {s.name: s for s in request.getfixturevalue(name).splits}[split]
    assert digest(found.inputs, found.labels, found.clusters) == expected


def test_portal_is_split_by_survey_period(portal):
    early = [set(s.clusters.tolist()) for s in portal.splits[:3]]
    assert not early[0] & early[1]
    assert not early[0] & early[2]
    assert not early[1] & early[2]
    shifts = [s for s in portal.splits if s.kind == "shift"]
    assert [len(s) for s in shifts] == [3731, 5284, 4841]  # rows of the published table by years
    everything = sum(len(s) for s in portal.splits if s.kind != "hard")
    assert everything == 27459
    # a survey lasts at most a few weeks: far more periods than years, far fewer than rows
    assert 25 * 9 < len({c for s in portal.splits for c in s.clusters.tolist()}) < 350
    assert len(portal.classes) == 11
    assert "Chaetodipus baileyi" not in portal.classes


def test_portal_features_are_scaled_and_finite(portal):
    train = portal.train.inputs
    assert train.dtype == np.float32
    assert np.abs(train[:, :2].mean(axis=0)).max() < 0.2
    assert np.abs(train[:, :2].std(axis=0) - 1).max() < 0.2
    assert (train[:, 5:].sum(axis=1) == 1).all()


def test_the_hard_subset_is_a_harder_part_of_the_test_split(portal, digits):
    for loaded in (portal, digits):
        splits = {s.name: s for s in loaded.splits}
        rows = {r.tobytes() for r in splits["test"].inputs}
        hard = splits["ambiguous"]
        assert {r.tobytes() for r in hard.inputs} <= rows
        assert 20 < len(hard) < len(splits["test"]) / 2


def test_digits_splits_do_not_overlap(digits):
    assert [len(s) for s in digits.splits[:3]] == [1079, 269, 449]
    assert digits.train.inputs.dtype == np.uint8
    assert digits.train.inputs.max() == 255
    names = [s.name for s in digits.splits if s.kind == "shift"]
    assert tuple(names) == data.TASKS["digits"].shifts
    assert tuple(s.name for s in data.load_task("portal").splits if s.kind == "shift") == (
        data.TASKS["portal"].shifts
    )


def test_neighbour_agreement_equals_a_loop():
    rng = np.random.RandomState(0)
    train, labels = rng.randint(0, 6, (60, 3)), rng.randint(0, 4, 60)
    others = rng.randint(0, 6, (20, 3))
    found = task.neighbour_agreement(train, labels, others, neighbours=7)
    for row, share in zip(others, found, strict=True):
        distances = [sum((a - b) ** 2 for a, b in zip(row, t, strict=True)) for t in train]
        radius = sorted(distances)[6]
        votes = [labels[i] for i, d in enumerate(distances) if d <= radius]
        assert share == max(votes.count(c) for c in range(4)) / len(votes)
    shuffled = rng.permutation(60)
    again = task.neighbour_agreement(train[shuffled], labels[shuffled], others, neighbours=7)
    assert (again == found).all()


def test_hash_order_is_a_shuffle_that_keeps_its_order():
    keys = [str(i) for i in range(50)]
    order = task.hash_order(keys, seed=0)
    assert sorted(order) == list(range(50))
    assert order != list(range(50))
    assert task.hash_order(keys, seed=1) != order
    fewer = task.hash_order(keys[:-1], seed=0)
    assert fewer == [i for i in order if i != 49]


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [8, 28])
def test_corruptions_grow_with_severity_and_repeat(name, size):
    y, x = np.mgrid[:size, :size] / size
    image = 255 * np.exp(-((x - 0.5) ** 2 + (y - 0.4) ** 2) / 0.05)
    images = np.tile(image.astype(np.uint8), (30, 1, 1))
    kept = images.copy()
    changes = []
    for severity in range(1, 6):
        result = corrupt(images, name, severity)
        assert result.dtype == np.uint8
        assert result.shape == images.shape
        assert (result == corrupt(images, name, severity)).all()
        changes.append(np.abs(result.astype(float) - images).mean())
    assert (np.diff([0, *changes]) > 0).all()
    assert (images == kept).all()


def test_corruption_arguments():
    images = np.zeros((1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"name must be one of .* got name='fog'"):
        corrupt(images, "fog", 1)
    with pytest.raises(ValueError, match="severity"):
        corrupt(images, "blur", 6)


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"got task='portla'\. Did you mean portal"):
        data.load_task("portla")


def test_missing_data_says_which_file_and_how_to_get_it(tmp_path):
    with pytest.raises(data.MissingDataError, match=r"--data-dir.*idx files of MNIST"):
        data.load_task("digits16")
    with pytest.raises(data.MissingDataError, match=r"train-images-idx3-ubyte.gz.*idx files"):
        data.load_task("fashion_c", tmp_path)
    assert data.TASKS["digits16"].missing(tmp_path) == data.TASKS["digits16"].files


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def small_mnist(folder, images=None, labels=None):
    folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for part, count in (("train", 400), ("t10k", 60)):
        x = rng.randint(0, 256, (count, 28, 28)) if images is None else images[:count]
        y = np.arange(count) % 10 if labels is None else labels[:count]
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(x))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(y))


def test_idx_files_are_read_as_they_are_written(tmp_path):
    small_mnist(tmp_path / "fashion_mnist")
    loaded = data.load_task("fashion_c", tmp_path)
    assert loaded.input_shape == (28, 28, 1)
    assert [len(s) for s in loaded.splits[:3]] == [360, 40, 60]
    raw = files.read_idx(tmp_path / "fashion_mnist" / "t10k-images-idx3-ubyte.gz")
    assert (loaded.evaluation[0].inputs[..., 0] == raw).all()


def test_labels_outside_the_classes(tmp_path):
    small_mnist(tmp_path / "fashion_mnist", labels=np.arange(400) % 12)
    with pytest.raises(data.CorruptDataError, match=r"labels must be in \[0, 9\], got 0 to 11"):
        data.load_task("fashion_c", tmp_path)


def test_a_class_without_examples(tmp_path):
    small_mnist(tmp_path / "fashion_mnist", labels=np.arange(400) % 9)
    with pytest.raises(data.CorruptDataError, match="no example of boot"):
        data.load_task("fashion_c", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip", "not a whole gzip"),
        (idx(np.zeros((60, 28, 28)))[:-20], "not a whole gzip"),
        (gzip.compress(b"\x01\x02\x03\x04rubbish"), "no idx file of bytes"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc"), "must hold 5 bytes, got 3"),
        (gzip.compress(b"\0\0\x08\x03\0\0"), "must hold"),
        (idx(np.zeros((60, 20, 20))), "28x28 image for each"),
        (idx(np.zeros((59, 28, 28))), "28x28 image for each"),
        (idx(np.zeros((0, 28, 28))), "28x28 image for each"),
    ],
    ids=range(8),
)
def test_corrupt_idx_files_name_the_file(tmp_path, content, message):
    small_mnist(tmp_path / "fashion_mnist")
    path = tmp_path / "fashion_mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(data.CorruptDataError, match=message) as error:
        data.load_task("fashion_c", tmp_path)
    assert str(path) in str(error.value)


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not an npz", "not a whole npz"),
        (npz(images=np.zeros((3, 16, 16), np.uint8))[:-30], "not a whole npz"),
        (npz(images=np.zeros((3, 16, 16), np.uint8)), "lacks the array 'labels'"),
        (npz(images=np.zeros((3, 16, 16)), labels=np.zeros(2)), "an image for each label"),
        (npz(images=np.array([object()]), labels=np.zeros(1)), "not a whole npz"),
        (npz(images=np.zeros((0, 16, 16), np.uint8), labels=np.zeros(0, int)), "for each label"),
        (
            npz(images=np.eye(16)[None] - 0.5, labels=np.zeros(1, int)),
            "whole numbers from 0 to 255",
        ),
        (npz(images=300 * np.eye(16, dtype=int)[None], labels=np.zeros(1, int)), "0 to 300"),
        (npz(images=np.eye(16)[None] * 255, labels=np.zeros(1)), "labels must be whole numbers"),
    ],
    ids=range(9),
)
def test_corrupt_npz_files_name_the_file(tmp_path, content, message):
    small_mnist(tmp_path / "mnist")
    (tmp_path / "usps").mkdir()
    path = tmp_path / "usps" / "usps.npz"
    path.write_bytes(content)
    with pytest.raises(data.CorruptDataError, match=message) as error:
        data.load_task("digits16", tmp_path)
    assert str(path) in str(error.value)


def test_check_task_refuses_what_cannot_be_scored(digits):
    import dataclasses

    test = digits.evaluation[0]

    def with_test(**changes):
        changed = dataclasses.replace(test, **changes)
        return dataclasses.replace(digits, evaluation=(changed,))

    empty = {"inputs": test.inputs[:0], "labels": test.labels[:0], "clusters": test.clusters[:0]}
    for broken, message in [
        (with_test(**empty), "must hold examples, got 0"),
        (with_test(labels=test.labels[:-1]), "of one length"),
        (with_test(labels=test.labels - 1), r"labels must be in \[0, 9\], got -1"),
        (with_test(inputs=test.inputs.astype(np.float32)), "uint8 images"),
        (with_test(name="train"), "two splits are named 'train'"),
    ]:
        with pytest.raises(data.CorruptDataError, match=message):
            data.check_task(broken)
    features = np.zeros((449, 3), np.float32)
    features[7, 1] = np.nan
    splits = [
        dataclasses.replace(test, name=name, inputs=features) for name in ("train", "cal", "test")
    ]
    with pytest.raises(data.CorruptDataError, match="finite"):
        data.check_task(
            dataclasses.replace(
                digits, train=splits[0], calibration=splits[1], evaluation=(splits[2],)
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits16", "fashion_c"])
def test_real_files(name, shared_data):
    loaded = data.load_task(name, shared_data)
    assert [len(s) for s in loaded.splits[:3]] == [54000, 6000, 10000]
    assert tuple(s.name for s in loaded.splits if s.kind == "shift") == data.TASKS[name].shifts
    if name == "digits16":
        sizes = {s.name: len(s) for s in loaded.splits}
        assert (sizes["usps"], sizes["optdigits"]) == (11000, 5620)
        # digits are upright in all three: 3s resemble 3s, not turned ones
        means = {s.name: s.inputs[s.labels == 3].mean(axis=0)[..., 0] for s in loaded.splits[:5]}

        def likeness(a, b):
            return np.corrcoef(a.ravel(), b.ravel())[0, 1]

        for other in ("usps", "optdigits"):
            upright = likeness(means["train"], means[other])
            turned = [likeness(means["train"], np.rot90(means[other], k)) for k in (1, 2, 3)]
            turned += [likeness(means["train"], means[other][:, ::-1])]
            assert upright > max(turned) + 0.1


def test_the_embedded_table_equals_the_published_one(shared_data):
    import csv

    with gzip.open(shared_data / "portal" / "surveys.csv.gz", "rt") as file:
        rows = [
            r for r in csv.DictReader(file)
            if r["taxa"] == "Rodent" and r["sex"] and r["hindfoot_length"] and r["weight"]
        ]  # fmt: skip
    from importlib import resources

    packaged = (resources.files("calmoe_jax.data.embedded") / "portal.csv.gz").read_bytes()
    ours = list(csv.DictReader(io.StringIO(gzip.decompress(packaged).decode())))
    assert len(ours) == len(rows) == 30676
    for a, b in zip(ours, rows, strict=True):
        date = f"{int(b['year']):04d}-{int(b['month']):02d}-{int(b['day']):02d}"
        assert (a["date"], a["species"], a["sex"], a["plot_type"]) == (
            date, b["species_id"], b["sex"], b["plot_type"],
        )  # fmt: skip
        assert float(a["weight_g"]) == float(b["weight"])
        assert float(a["hindfoot_mm"]) == float(b["hindfoot_length"])
