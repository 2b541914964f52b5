"""`digits16` and `fashion_c`: images from files of the data folder."""

from pathlib import Path

import numpy as np

from calmoe_jax.data import _files as files
from calmoe_jax.data._images import image_split, image_task, resize
from calmoe_jax.data._order import hash_order
from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.sets.catalogue import how_to_get
from calmoe_jax.data.task import Split, Task

DIGITS16_SOURCE = "MNIST (LeCun, Cortes, Burges), USPS (Hull 1994), optdigits (Alpaydin, Kaynak)"
FASHION_SOURCE = "Fashion-MNIST, MIT; Xiao, Rasul, Vollgraf"
_IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


def _files_of(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for pair in _IDX_FILES.values() for name in pair)


DIGITS16_FILES = (*_files_of("mnist"), "usps/usps.npz", "optdigits/optdigits.npz")
FASHION_FILES = _files_of("fashion_mnist")


def load_digits16(data_dir: Path | None) -> Task:
    """MNIST at 16x16 to train on; USPS, optdigits and corruptions as shifts.

    MNIST is cut to its central 20x20 pixels and resized, optdigits is resized, so that digits
    fill the frame equally. A tenth of the training images is for calibration.
    """
    images, labels, rows = _read_mnist_like(data_dir, "mnist")
    images = resize(images[:, 4:24, 4:24], 16)
    usps = _read_npz_split(data_dir, "usps", 255, "USPS: envelopes of the US mail")
    optdigits = _read_npz_split(data_dir, "optdigits", 16, "UCI optical digits: forms")
    return image_task(
        "digits16", "0123456789", rows, images, labels, DIGITS16_SOURCE, shifts=(usps, optdigits)
    )


def load_fashion_c(data_dir: Path | None) -> Task:
    """Fashion-MNIST, and its corruptions as shifts. A tenth of the training is for calibration."""
    names = "top trousers pullover dress coat sandal shirt sneaker bag boot".split()
    images, labels, rows = _read_mnist_like(data_dir, "fashion_mnist")
    return image_task("fashion_c", names, rows, images, labels, FASHION_SOURCE)


def _read_mnist_like(
    data_dir: Path | None, folder: str
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Images and labels, train before test, and the rows of each split."""
    parts = {}
    for part, pair in _IDX_FILES.items():
        paths = [files.find(data_dir, f"{folder}/{name}", how_to_get(folder)) for name in pair]
        images, labels = (files.read_idx(path) for path in paths)
        if images.shape[1:] != (28, 28) or labels.shape != (len(images),) or not len(labels):
            raise CorruptDataError(
                f"{paths[0]} must hold a 28x28 image for each of the {len(labels)} labels in "
                f"{paths[1].name}, got {images.shape}."
            )
        parts[part] = images, labels
    num_train = len(parts["train"][1])
    order = np.array(hash_order([str(i) for i in range(num_train)], seed=0))
    rows = {
        "train": order[num_train // 10 :],
        "calibration": order[: num_train // 10],
        "test": np.arange(num_train, num_train + len(parts["test"][1])),
    }
    images, labels = (np.concatenate([parts["train"][i], parts["test"][i]]) for i in range(2))
    return images, labels, rows


def _read_npz_split(data_dir: Path | None, name: str, white: int, description: str) -> Split:
    path = files.find(data_dir, f"{name}/{name}.npz", how_to_get(name))
    images, labels = files.read_npz(path, ("images", "labels"))
    if images.ndim != 3 or labels.shape != (len(images),) or 0 in images.shape:
        raise CorruptDataError(
            f"{path} must hold an image for each label, got {images.shape} and {labels.shape}."
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise CorruptDataError(f"{path}: labels must be whole numbers, got {labels.dtype}.")
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= white and high > white / 2 and (images == np.rint(images)).all()):
        raise CorruptDataError(
            f"{path}: images must hold whole numbers from 0 to {white}, got {low} to {high} "
            f"({images.dtype})."
        )
    grey = np.rint(images * (255 / white)).astype(np.uint8)
    return image_split(name, "shift", resize(grey, 16), labels, description)
