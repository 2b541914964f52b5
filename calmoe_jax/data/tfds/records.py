"""A prepared data set as it lies on disk, read by its folder: images stay encoded."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from calmoe_jax.data.errors import CorruptDataError, DataError
from calmoe_jax.data.tfds._builder import tensorflow_datasets

_CHUNK = 1024


def read_records(version: Path, split: str) -> dict[str, list[Any]]:
    """All features of a split by name, a value for each example, in the order of the files.

    Args:
        version: the folder of a version, which holds `dataset_info.json`.
        split: name of a split.

    Returns:
        Texts as str, images as the bytes that they are encoded in, others as NumPy has them.

    Raises:
        MissingDataError: if tensorflow-datasets is not installed.
        DataError: if there is no such split, or the files are in another format.
        CorruptDataError: if they cannot be read.
    """
    tfds = tensorflow_datasets()
    try:
        builder = tfds.builder_from_directory(version)
        images = [
            name
            for name, feature in builder.info.features.items()
            if isinstance(feature, tfds.features.Image)
        ]
        source = builder.as_data_source(
            split, decoders={name: tfds.decode.SkipDecoding() for name in images}
        )
        count = len(source)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise DataError(
            f"{version} must hold the split {split} in the format array_record: {error}"
        ) from error
    except (OSError, RuntimeError) as error:
        raise CorruptDataError(f"{version} cannot be read: {error}.") from error
    found: dict[str, list[Any]] = {name: [] for name in builder.info.features}
    for start in range(0, count, _CHUNK):
        try:
            rows = source.__getitems__(range(start, min(start + _CHUNK, count)))
        except (OSError, RuntimeError) as error:
            raise CorruptDataError(f"{version}, split {split}: {error}.") from error
        for row in rows:
            for name, value in row.items():
                text = isinstance(value, bytes) and name not in images
                found[name].append(value.decode() if text else value)
    return found


def order_of_records(split: str, count: int) -> np.ndarray:
    """The keys of the examples of a split, in the order that they are written in.

    Args:
        split: name of the split.
        count: number of its examples, whose keys are `0, 1, ..., count - 1`.

    Returns:
        A permutation, `[count]` int64: element `i` is the key of the `i`-th example of the files.
    """
    tensorflow_datasets()
    hasher = importlib.import_module("tensorflow_datasets.core.hashing").Hasher(split)
    return np.array(sorted(range(count), key=hasher.hash_key), np.int64)
