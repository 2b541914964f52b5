"""Files of JPEG images: read as they are written, and errors that name the file and the image."""

import sys

import numpy as np
import pictures
import pytest

from calmoe_jax.data import CorruptDataError, MissingDataError
from calmoe_jax.data._jpeg import read_jpeg_npz

PIXELS = [pictures.picture(label, label, 32) for label in range(5)]
FILES = [pictures.jpeg_of(pixels) for pixels in PIXELS]
LABELS = [3, 1, 4, 1, 5]


def test_images_are_decoded_in_their_order(tmp_path):
    path = pictures.write(tmp_path, "x.npz", pictures.arrays_of(FILES, LABELS, more=np.arange(3)))
    images, labels, (more,) = read_jpeg_npz(path, 32, ("more",))
    assert (images.dtype, images.shape) == (np.uint8, (5, 32, 32, 3))
    assert (labels.dtype, labels.tolist(), more.tolist()) == (np.int32, LABELS, [0, 1, 2])
    for image, file, pixels in zip(images, FILES, PIXELS, strict=True):
        np.testing.assert_array_equal(image, pictures.decoded(file))
        assert np.abs(image.astype(int) - pixels).mean() < 8  # what JPEG loses
    np.testing.assert_array_equal(read_jpeg_npz(path, 32)[0], images)


GOOD = pictures.arrays_of(FILES, LABELS)
ENDS = GOOD["ends"]


def having(**arrays):
    return GOOD | arrays


def files_with(raw):
    return pictures.arrays_of([*FILES[:2], raw, *FILES[3:]], LABELS)


WRONG = {
    "no labels": ({k: v for k, v in GOOD.items() if k != "labels"}, "lacks the array 'labels'"),
    "fewer labels": (having(labels=np.arange(4)), "a label for each of its images, got 4 labels"),
    "no images": (
        having(labels=np.arange(0), ends=np.arange(0), jpeg=np.zeros(0, np.uint8)),
        "a label for each of its images, got 0 labels and 0 ends",
    ),
    "labels of floats": (having(labels=np.ones(5)), "labels must be a list of whole numbers, got"),
    "labels in a table": (having(labels=np.ones((5, 1), int)), "got int64 of shape (5, 1)"),
    "jpeg of ints": (having(jpeg=GOOD["jpeg"].astype(np.uint16)), "jpeg must be bytes, got uint16"),
    "an image for each row": (having(jpeg=np.zeros((5, 9), np.uint8)), "jpeg must be a list of"),
    "ends that fall": (having(ends=ENDS[[1, 0, 2, 3, 4]]), "ends must increase from above 0"),
    "an empty image": (having(ends=np.concatenate([[0], ENDS[1:]])), "ends must increase from"),
    "bytes that are left": (having(ends=ENDS - 1), f"to the {ENDS[-1]} bytes of jpeg"),
    "bytes that lack": (having(jpeg=GOOD["jpeg"][:-9]), f"to the {ENDS[-1] - 9} bytes of jpeg"),
    "a truncated image": (files_with(FILES[2][:-200]), "image 2 is not a complete JPEG file"),
    "no JPEG": (files_with(b"\x00" * 90), "image 2 is not a complete JPEG file"),
    "another format": (
        files_with(pictures.jpeg_of(PIXELS[2], kind="PNG")),
        "image 2 is not a complete JPEG file",
    ),
    "another size": (
        files_with(pictures.jpeg_of(PIXELS[2][:16])),
        "image 2 must be 32x32 pixels of mode RGB, got 32x16 pixels of mode RGB",
    ),
    "grey": (files_with(pictures.jpeg_of(PIXELS[2][..., 0])), "got 32x32 pixels of mode L"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.every_case
def test_errors_name_the_file_and_what_is_wrong(tmp_path, name):
    arrays, message = WRONG[name]
    path = pictures.write(tmp_path, "x.npz", arrays)
    with pytest.raises(CorruptDataError) as error:
        read_jpeg_npz(path, 32)
    assert message in str(error.value)
    assert str(error.value).startswith(str(path))


def test_no_npz_file(tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(CorruptDataError, match="not a complete npz file"):
        read_jpeg_npz(path, 32)


def test_without_pillow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    path = pictures.write(tmp_path, "x.npz", GOOD)
    with pytest.raises(MissingDataError, match=r"package pillow is needed .*calmoe_jax\[data\]"):
        read_jpeg_npz(path, 32)
