"""`cifar10h` and `cifar10c`: CIFAR-10 with the votes of people, and with corruptions as shifts.

CIFAR-10 (Krizhevsky 2009) as `calmoe data prepare` brings it has its own pixels. In files of a
user's own (`cifar10/train.npz`, `test.npz`; each is read where it is there) they were re-encoded as
JPEG (quality 75, chroma at half resolution): accuracies are then not those of the literature, and
the task's source says which were. A tenth of the 50,000 training images, the first in an order by a
hash of their numbers, is for calibration.

`cifar10h` tests on all 10,000 test images with the votes of CIFAR-10H (Peterson et al. 2019): 47 to
63 people said what they see. The hard part is the 327 images whose most frequent answer has a share
below 0.7, the easy part the 8,721 where it is above 0.9. Test image 2405, for one, is labelled cat
and seen by all as a frog.

`cifar10c` tests on 1,000 test images, the first in an order by a hash of their numbers, and shifts
to the 19 corruptions of CIFAR-10-C (Hendrycks and Dietterich 2019) of the same images at five
severities, computed here (see `calmoe_jax.data.cifar_corruptions`, which says what is not as
published: random numbers, the pictures of frost). With a folder `CIFAR-10-C` of the published files
(`gaussian_noise.npy` and so on) beside `cifar10`, or after `calmoe data prepare cifar10_corrupted`,
they are read from there instead; those were made from the original pixels. The test split has the
people's votes; its corrupted images have none.
"""

from pathlib import Path

import numpy as np

from calmoe_jax.data import _files as files
from calmoe_jax.data._encoded import decode, place_of, read_encoded, read_images
from calmoe_jax.data._order import hash_order
from calmoe_jax.data.cifar_corruptions import CIFAR_CORRUPTIONS, corrupt_cifar
from calmoe_jax.data.corruptions import SEVERITIES
from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.sets.catalogue import SETS
from calmoe_jax.data.task import Kind, Split, Task
from calmoe_jax.data.tfds.records import order_of_records

SOURCE_H = (
    "CIFAR-10, research use, Krizhevsky 2009, pixels re-encoded as JPEG; votes of CIFAR-10H, "
    "CC BY-NC-SA 4.0, Peterson et al. 2019"
)
SOURCE_C = (
    "CIFAR-10, research use, Krizhevsky 2009, pixels re-encoded as JPEG; corruptions after "
    "CIFAR-10-C, Hendrycks and Dietterich 2019; votes of CIFAR-10H"
)
CORRUPTED = tuple(f"{name}_{severity}" for name in CIFAR_CORRUPTIONS for severity in SEVERITIES)

_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
_SIZE = 32
_HELD_OUT = 10  # one training image in so many is for calibration
_DISPUTED, _AGREED = 0.7, 0.9
_CORRUPTED_IMAGES = 1000
_PUBLISHED = "CIFAR-10-C"
_PREPARED = "cifar10_corrupted"
_NAMES_OF_PREPARED = {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}
_REENCODED = ", pixels re-encoded as JPEG"
_LEAST_AGREEMENT = 0.5
_HOW_TO_GET_C = (
    f"The folder {_PUBLISHED} must hold all files of CIFAR-10-C (or none: without the folder the "
    "corruptions are computed)."
)


def load_cifar10h(data_dir: Path | None) -> Task:
    """CIFAR-10, tested with the votes of CIFAR-10H; hard and easy parts by agreement."""
    train, calibration, test = _read(data_dir)
    assert test.soft_labels is not None
    agreement = test.soft_labels.max(axis=1)
    hard = test.take(
        agreement < _DISPUTED,
        "ambiguous",
        "hard",
        f"test images of which less than {_DISPUTED:.0%} of the people say the same",
    )
    easy = test.take(
        agreement > _AGREED,
        "easy",
        "part",
        f"test images of which more than {_AGREED:.0%} of the people say the same",
    )
    parts = tuple(part for part in (hard, easy) if len(part))
    return Task(
        "cifar10h", tuple(_CLASSES), train, calibration, (test, *parts), _source(data_dir, SOURCE_H)
    )


def load_cifar10c(data_dir: Path | None) -> Task:
    """CIFAR-10, shifted by 19 corruptions at five severities of 1,000 test images."""
    train, calibration, test = _read(data_dir)
    order = np.array(hash_order([str(i) for i in range(len(test))], seed=0))
    rows = np.sort(order[:_CORRUPTED_IMAGES])
    clean = test.take(rows, "test", "id", f"{len(rows):,} uncorrupted test images")
    published = None
    if data_dir is not None and (data_dir / _PUBLISHED).is_dir():
        published = data_dir / _PUBLISHED
    elif data_dir is not None and SETS[_PREPARED].is_here(data_dir):
        published = data_dir / _PREPARED
    shifts = tuple(
        _corrupted(clean, test, name, severity, published)
        for name in CIFAR_CORRUPTIONS
        for severity in SEVERITIES
    )
    return Task(
        "cifar10c",
        tuple(_CLASSES),
        train,
        calibration,
        (clean, *shifts),
        _source(data_dir, SOURCE_C),
    )


def _corrupted(
    clean: Split, test: Split, name: str, severity: int, published: Path | None
) -> Split:
    """One corruption of the images; their clusters are their numbers in the test set."""
    said = f"the same images, {name.replace('_', ' ')} of severity {severity}"
    if published is None:
        images = corrupt_cifar(clean.inputs, name, severity, numbers=clean.clusters)
        if name == "frost":
            said += " (a texture in place of the published pictures of frost)"
    else:
        if published.name == _PREPARED:
            images = _of_prepared(published, name, severity, clean.clusters, test)
        else:
            path = published / f"{name}.npy"
            images = _of_published(path, clean.clusters, len(test), severity)
        said += " (as published, from the original pixels)"
    return Split(
        name=f"{name}_{severity}",
        kind="shift",
        inputs=images,
        labels=clean.labels,
        clusters=clean.clusters,
        description=said,
        series=name,
        position=float(severity),
    )


def _of_published(path: Path, rows: np.ndarray, num_test: int, severity: int) -> np.ndarray:
    """Images of a published file, which holds the test set once for each severity."""
    files.present(path, _HOW_TO_GET_C)
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorruptDataError(f"{path} is not a complete npy file: {error}.") from error
    shape = (len(SEVERITIES) * num_test, _SIZE, _SIZE, 3)
    if images.shape != shape or images.dtype != np.uint8:
        raise CorruptDataError(
            f"{path} must hold bytes of shape {shape}, got {images.dtype} of shape {images.shape}."
        )
    return np.asarray(images[rows + (severity - 1) * num_test])


def _of_prepared(
    folder: Path, name: str, severity: int, rows: np.ndarray, test: Split
) -> np.ndarray:
    """Images of a corruption, by their numbers in the test set; no others are decoded.

    tensorflow-datasets orders examples by a hash of their keys, here their numbers in the test set.
    """
    config = f"{folder.name}/{_NAMES_OF_PREPARED.get(name, name)}_{severity}"
    found = read_encoded(folder.parent, _PREPARED, "test", record=config)
    numbers = order_of_records("test", len(found.labels))
    labels = np.empty_like(found.labels)
    labels[numbers] = found.labels
    if labels.shape != test.labels.shape or (labels != test.labels).any():
        raise CorruptDataError(
            f"{found.where} must hold CIFAR-10's test set in its order, but labels differ."
        )
    return decode(found, _SIZE, np.argsort(numbers)[rows])


def _source(data_dir: Path | None, source: str) -> str:
    """The source of the pixels that are there; either part may be of the user's own files."""
    places = {
        "training": place_of(data_dir, "cifar10", "train"),
        "test": place_of(data_dir, "cifar10_h", "test"),
    }
    own = [name for name, place in places.items() if place is not None and place.is_file()]
    if len(own) == len(places):
        return source
    said = _REENCODED.replace("pixels", f"pixels of the {own[0]} images") if own else ""
    return source.replace(_REENCODED, said)


def _read(data_dir: Path | None) -> tuple[Split, Split, Split]:
    """Training, calibration, and the test images in their order with votes."""
    images, labels, _ = read_images(data_dir, "cifar10", "train", _SIZE)
    order = np.array(hash_order([str(i) for i in range(len(images))], seed=0))
    held_out = len(order) // _HELD_OUT

    def part(name: str, kind: Kind, rows: np.ndarray, description: str) -> Split:
        return Split(name, kind, images[rows], labels[rows], description=description)

    train = part("train", "train", order[held_out:], "nine tenths of the training images")
    calibration = part(
        "calibration", "calibration", order[:held_out], "a tenth of the training images, held out"
    )
    images, labels, (counts,) = read_images(data_dir, "cifar10_h", "test", _SIZE, ("human_counts",))
    test = Split(
        name="test",
        kind="id",
        inputs=images,
        labels=labels,
        description="test images, with the votes of people",
        soft_labels=_shares(place_of(data_dir, "cifar10_h", "test"), counts, labels),
    )
    return train, calibration, test


def _shares(where: Path | None, counts: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Shares of the votes; errors where they cannot be those on these images."""
    if counts.shape != (len(labels), len(_CLASSES)) or counts.dtype.kind not in "iu":
        raise CorruptDataError(
            f"{where}: human_counts must be whole numbers, a count of each of the {len(_CLASSES)} "
            f"classes for each of the {len(labels)} images, got {counts.dtype} of shape "
            f"{counts.shape}."
        )
    counts = counts.astype(np.int64)
    totals = counts.sum(axis=1)
    strange = np.flatnonzero((counts.min(axis=1) < 0) | (totals == 0))
    if strange.size:
        raise CorruptDataError(
            f"{where}: human_counts must be at least 0 and hold votes on each image, got "
            f"{counts[strange[0]].tolist()} for image {strange[0]}."
        )
    agreement = float(np.mean(counts.argmax(axis=1) == labels))
    if agreement < _LEAST_AGREEMENT:
        raise CorruptDataError(
            f"{where}: human_counts must be the votes on these images in their order, but the most "
            f"frequent vote is the label of {agreement:.0%} of them only."
        )
    return (counts / totals[:, None]).astype(np.float32)
