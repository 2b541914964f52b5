"""Encoded images of a data set, from either form that it may lie in.

The files of a user's own are npz, with `jpeg` (bytes of all images, one after the other), `ends`
(the end of each) and `labels`; what `calmoe data prepare` brings is array_record.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calmoe_jax.data import _files as files
from calmoe_jax.data.errors import CorruptDataError, MissingDataError
from calmoe_jax.data.sets.catalogue import SETS, how_to_get, newest_version

_VOTES = "human_counts"


@dataclass(frozen=True)
class EncodedImages:
    """Images as JPEG or PNG.

    Attributes:
        where: the file or folder that they are from.
        jpeg: bytes of all images, one after the other.
        ends: end of each image in `jpeg`, int64.
        labels: class of each image, int32.
        keys: a text for each image that no other has, to order by.
        human_counts: votes for each class, [images, classes] int32; None without votes.
    """

    where: Path
    jpeg: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    keys: tuple[str, ...]
    human_counts: np.ndarray | None = None

    def __iter__(self) -> Iterator[bytes]:
        """The images, each as bytes."""
        for start, end in zip([0, *self.ends[:-1].tolist()], self.ends.tolist(), strict=True):
            yield self.jpeg[start:end].tobytes()


def read_encoded(
    data_dir: Path | None, name: str, part: str, *, record: str | None = None
) -> EncodedImages:
    """Reads one part of a data set: a split, or a domain.

    Args:
        data_dir: the data folder.
        name: a data set of `SETS`; its own file for the part is read where it is, else the
            array_record.
        part: name of the npz file, and of the split of the prepared data set.
        record: the folder of the prepared data set below the data folder, if it is not `name`.

    Returns:
        The images, in the order of the npz file, or that of their files or numbers.

    Raises:
        MissingDataError: if neither is there, with the command that brings it.
        CorruptDataError: if it cannot be read.
    """
    wanted = next((file for file in SETS[name].files if file.endswith(f"/{part}.npz")), None)
    if data_dir is not None:
        if wanted is not None and (data_dir / wanted).is_file():
            return _of_npz(data_dir / wanted)
        if (version := newest_version(data_dir / (record or name))) is not None:
            return _of_records(version, part)
    place = f"in {data_dir}" if data_dir is not None else "without a data folder"
    raise MissingDataError(
        f"{wanted or f'{record or name}, prepared,'} is needed, and there is none {place}. "
        f"{how_to_get(name)}"
    )


def decode(
    images: EncodedImages, size: int | None = None, rows: np.ndarray | None = None
) -> np.ndarray:
    """Pixels [images, height, width, 3] as bytes.

    Args:
        images: encoded images.
        size: side to reduce or enlarge them to (Lanczos); without it all must be of one size.
        rows: which images, in which order; all by default.

    Raises:
        CorruptDataError: if an image cannot be read, or is of another size.
    """
    starts = np.concatenate([[0], images.ends[:-1]])
    numbers = range(len(images.ends)) if rows is None else rows.tolist()
    pixels: np.ndarray | None = None
    for place, number in enumerate(numbers):
        raw = images.jpeg[starts[number] : images.ends[number]].tobytes()
        image = _decoded(raw, size, f"{images.where}: image {number}")
        if pixels is None:
            pixels = np.empty((len(numbers), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            raise CorruptDataError(
                f"{images.where}: images must be of one size, {pixels.shape[1:3]}, got "
                f"{image.shape[:2]} for image {number}."
            )
        pixels[place] = image
    return np.empty((0, size or 0, size or 0, 3), np.uint8) if pixels is None else pixels


def _decoded(raw: bytes, size: int | None, where: str) -> np.ndarray:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(raw)).convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise CorruptDataError(f"{where} cannot be read: {error}.") from error
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _of_npz(path: Path) -> EncodedImages:
    names = ("jpeg", "ends", "labels")
    votes = (_VOTES,) if _VOTES in files.npz_names(path) else ()
    jpeg, ends, labels, *counts = files.read_npz(path, (*names, *votes))
    whole = all(np.issubdtype(array.dtype, np.integer) for array in (jpeg, ends, labels))
    lengths = np.diff(ends, prepend=0) if ends.ndim == 1 and whole else np.zeros(1)
    if jpeg.dtype != np.uint8 or not len(ends) or lengths.min() <= 0 or ends[-1] != len(jpeg):
        raise CorruptDataError(
            f"{path}: ends must be growing whole numbers up to the {jpeg.size} bytes of jpeg."
        )
    if labels.shape != ends.shape or any(len(array) != len(ends) for array in counts):
        raise CorruptDataError(
            f"{path} must hold a label for each of {len(ends)} images, got {labels.shape}."
        )
    keys = tuple(f"{number:06d}" for number in range(len(ends)))
    counted = counts[0].astype(np.int32) if counts else None
    return EncodedImages(path, jpeg, ends.astype(np.int64), labels.astype(np.int32), keys, counted)


def _of_records(version: Path, part: str) -> EncodedImages:
    from calmoe_jax.data.tfds.records import read_records

    rows = read_records(version, part)
    name = next((each for each in ("file", "id") if each in rows), None)
    keys = rows[name] if name else [f"{number:06d}" for number in range(len(rows["label"]))]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    encoded = [rows["image"][row] for row in order]
    counts = None
    if "human_labels" in rows and any(len(votes) for votes in rows["human_labels"]):
        votes = [np.bincount(rows["human_labels"][row], minlength=10) for row in order]
        counts = np.stack(votes).astype(np.int32)
    return EncodedImages(
        where=version,
        jpeg=np.frombuffer(b"".join(encoded), np.uint8),
        ends=np.cumsum([len(raw) for raw in encoded], dtype=np.int64),
        labels=np.array([rows["label"][row] for row in order], np.int32),
        keys=tuple(keys[row] for row in order),
        human_counts=counts,
    )
