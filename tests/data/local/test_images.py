"""Tasks of images in files: read as they are written, and errors that name the file."""

import gzip
import io

import numpy as np
import pytest
from archives import idx

from calmoe_jax import data
from calmoe_jax.data import _files as files
from calmoe_jax.data import _images


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
    assert loaded.input_spec.shape == (28, 28, 1)
    assert loaded.holds_images
    assert [len(s) for s in loaded.splits[:3]] == [360, 40, 60]
    raw = files.read_idx(tmp_path / "fashion_mnist" / "t10k-images-idx3-ubyte.gz")
    assert (loaded.evaluation[0].inputs[..., 0] == raw).all()
    shifts = tuple(s.name for s in loaded.splits if s.kind == "shift")
    assert shifts == data.TASKS["fashion_c"].shifts


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
        (b"not gzip", "not a complete gzip"),
        (idx(np.zeros((60, 28, 28)))[:-20], "not a complete gzip"),
        (gzip.compress(b"\x01\x02\x03\x04rubbish"), "not an idx file of bytes"),
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
        (b"not an npz", "not a complete npz"),
        (npz(images=np.zeros((3, 16, 16), np.uint8))[:-30], "not a complete npz"),
        (npz(images=np.zeros((3, 16, 16), np.uint8)), "lacks the array 'labels'"),
        (npz(images=np.zeros((3, 16, 16)), labels=np.zeros(2)), "an image for each label"),
        (npz(images=np.array([object()]), labels=np.zeros(1)), "not a complete npz"),
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
    for name in ("usps", "optdigits"):
        (tmp_path / name).mkdir()
    (tmp_path / "optdigits" / "optdigits.npz").write_bytes(npz())
    path = tmp_path / "usps" / "usps.npz"
    path.write_bytes(content)
    with pytest.raises(data.CorruptDataError, match=message) as error:
        data.load_task("digits16", tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["digits16", "fashion_c"])
def test_real_files(name, shared_data, monkeypatch):
    monkeypatch.setattr(_images, "SEVERITIES", (5,))  # the others take long and add nothing
    loaded = data.load_task(name, shared_data)
    assert [len(s) for s in loaded.splits[:3]] == [54000, 6000, 10000]
    names = [s.name for s in loaded.splits if s.kind == "shift"]
    mild = tuple(f"_{severity}" for severity in range(1, 5))
    assert names == [shift for shift in data.TASKS[name].shifts if not shift.endswith(mild)]
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
