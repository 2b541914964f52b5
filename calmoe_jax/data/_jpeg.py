"""Labelled images in an npz file whose pixels are JPEG files, one after the other.

The arrays of such a file are `jpeg`, the bytes of all images; `ends`, where each image ends; and
`labels`. Decoding needs Pillow, of the `data` extra. Decoders of JPEG may round differently; one
version of Pillow always gives the same pixels. Threads do not help: small images are mostly Python.
"""

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from calmoe_jax.data import _files as files
from calmoe_jax.data.errors import CorruptDataError, MissingDataError


def read_jpeg_npz(
    path: Path, size: int, more: tuple[str, ...] = ()
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Reads and decodes a file of colour images.

    Args:
        path: the npz file.
        size: height and width that every image must have.
        more: names of further arrays.

    Returns:
        Images `[n, size, size, 3]` uint8, labels `[n]` int32, and the further arrays as they are.

    Raises:
        MissingDataError: if Pillow is not installed.
        CorruptDataError: if the file cannot be read, its arrays do not fit together, or an image
            is not a colour JPEG of this size; the message names the file and the image.
    """
    reader = pillow("JPEG files")
    jpeg, ends, labels, *others = files.read_npz(path, ("jpeg", "ends", "labels", *more))
    for name, array, kinds in (("jpeg", jpeg, "u"), ("ends", ends, "iu"), ("labels", labels, "iu")):
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise CorruptDataError(
                f"{path}: {name} must be a list of whole numbers, got {array.dtype} of shape "
                f"{array.shape}."
            )
    if jpeg.dtype != np.uint8:
        raise CorruptDataError(f"{path}: jpeg must be bytes, got {jpeg.dtype}.")
    if len(labels) != len(ends) or not len(ends):
        raise CorruptDataError(
            f"{path} must hold a label for each of its images, got {len(labels)} labels and "
            f"{len(ends)} ends."
        )
    ends = ends.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    if (ends <= starts).any() or ends[-1] != len(jpeg):
        raise CorruptDataError(
            f"{path}: ends must increase from above 0 to the {len(jpeg)} bytes of jpeg, got "
            f"{ends.min()} to {ends[-1]}."
        )
    images = np.empty((len(ends), size, size, 3), np.uint8)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        images[i] = _decoded(reader, jpeg[start:end], size, f"{path}: image {i}")
    return images, labels.astype(np.int32), tuple(others)


def _decoded(reader: Any, raw: np.ndarray, size: int, where: str) -> np.ndarray:
    """The pixels of one JPEG file; its size is checked before it is decoded."""
    try:
        with reader.open(io.BytesIO(raw.tobytes()), formats=["JPEG"]) as image:
            found = f"{image.width}x{image.height} pixels of mode {image.mode}"
            fits = image.size == (size, size) and image.mode == "RGB"
            pixels = np.asarray(image) if fits else None
    except Exception as error:  # Pillow raises many types for corrupt bytes
        raise CorruptDataError(f"{where} is not a complete JPEG file: {error}.") from error
    if pixels is None:
        raise CorruptDataError(f"{where} must be {size}x{size} pixels of mode RGB, got {found}.")
    return pixels


def pillow(what: str) -> Any:
    """The module `PIL.Image`.

    Args:
        what: what it is needed for, for the error.

    Raises:
        MissingDataError: if Pillow is not installed.
    """
    try:
        return importlib.import_module("PIL.Image")
    except ModuleNotFoundError as error:
        raise MissingDataError(
            f"the package pillow is needed for {what}: pip install 'calmoe_jax[data]'."
        ) from error
