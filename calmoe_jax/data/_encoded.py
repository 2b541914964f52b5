"""Images of a data set, from either form that it may lie in.

The files of a user's own are npz (see `calmoe_jax.data._jpeg`); what `calmoe data prepare` brings
is array_record.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calmoe_jax.data._jpeg import pillow, read_jpeg_npz
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


def place_of(data_dir: Path | None, name: str, part: str) -> Path | None:
    """What `read_images` reads: the user's own npz file, or else the folder that was prepared.

    Args:
        data_dir: the data folder.
        name: a data set of `SETS` that may lie in files.
        part: name of the npz file.

    Returns:
        The file or the folder; None if there is neither.
    """
    if data_dir is None:
        return None
    wanted = next(file for file in SETS[name].files if file.endswith(f"/{part}.npz"))
    own = data_dir / wanted
    return own if own.is_file() else newest_version(data_dir / name)


def read_images(
    data_dir: Path | None, name: str, part: str, size: int, more: tuple[str, ...] = ()
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]:
    """Reads and decodes one part of a data set, from its file if that is there.

    Args:
        data_dir: the data folder.
        name: a data set of `SETS` that may lie in files.
        part: name of the npz file, and of the split of the prepared data set.
        size: height and width of the images.
        more: `("human_counts",)` for the votes.

    Returns:
        Images `[n, size, size, 3]` uint8, labels `[n]` int32, and the further arrays: as
        `read_jpeg_npz`.

    Raises:
        MissingDataError: if neither form is there, with the command that brings it.
        CorruptDataError: if it cannot be read, or is not what was asked for.
    """
    place = place_of(data_dir, name, part)
    if place is not None and place.is_file():
        return read_jpeg_npz(place, size, more)
    images = read_encoded(data_dir, name, part)
    others = {_VOTES: images.human_counts}
    for each in more:
        if others.get(each) is None:
            raise CorruptDataError(f"{images.where}, split {part}, lacks {each}.")
    pixels = decode(images)
    if pixels.shape[1:] != (size, size, 3):
        raise CorruptDataError(
            f"{images.where}: images must be {size}x{size}, got {pixels.shape[1:3]}."
        )
    return pixels, images.labels, tuple(images.human_counts for _ in more)  # type: ignore[misc]


def read_encoded(
    data_dir: Path | None, name: str, part: str, *, record: str | None = None
) -> EncodedImages:
    """Reads one part of a prepared data set: a split, or a domain.

    Args:
        data_dir: the data folder.
        name: a data set of `SETS`.
        part: name of the split.
        record: the folder of the prepared data set below the data folder, if it is not `name`.

    Returns:
        The images, in the order of their files or numbers where they have such, else that of
        the records.

    Raises:
        MissingDataError: if it is not there, with the command that brings it.
        CorruptDataError: if it cannot be read.
    """
    if data_dir is not None:
        if (version := newest_version(data_dir / (record or name))) is not None:
            return _of_records(version, part)
    wanted = next((file for file in SETS[name].files if file.endswith(f"/{part}.npz")), None)
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
    reader = pillow("images")
    try:
        image = reader.open(io.BytesIO(raw)).convert("RGB")
    except Exception as error:  # Pillow raises many types for corrupt bytes
        raise CorruptDataError(f"{where} cannot be read: {error}.") from error
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), reader.Resampling.LANCZOS)
    return np.asarray(image)


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
