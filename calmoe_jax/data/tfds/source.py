"""A split of a prepared data set, read by random access."""

from pathlib import Path
from typing import Any

import numpy as np

from calmoe_jax.data.errors import CorruptDataError, DataError, MissingDataError
from calmoe_jax.data.task import Kind, Split
from calmoe_jax.data.tfds._builder import builder_of, how_to_prepare
from calmoe_jax.data.tfds._features import feature_of

_CHUNK = 1024  # examples that are decoded at once


def from_tfds(
    builder_or_name: Any,
    *,
    split: str,
    kind: Kind,
    name: str | None = None,
    inputs: str | tuple[str, ...] = "image",
    label: str = "label",
    data_dir: Path | None = None,
    limit: int | None = None,
) -> Split:
    """Reads a split of a data set of tensorflow-datasets, by random access
    (`as_data_source`).

    Nothing is downloaded: the data set must have been prepared, once, in the format array_record.
    `calmoe data prepare` does that for some (see `calmoe_jax.data.sets`); for others that are made
    of images or from archives it takes TensorFlow. Reading does not.

    Args:
        builder_or_name: a `tfds.core.DatasetBuilder`, or the name of a data set (`"cifar10"`,
            `"cifar10_corrupted/fog_3"`).
        split: split of the data set; slices are allowed: `"train[:90%]"`.
        kind: kind of the result: `train`, `calibration`, `id`, `shift` or `hard`.
        name: name of the result; `split` by default.
        inputs: the feature that is the network's input; several give a dict of arrays.
        label: the feature that is the label.
        data_dir: folder of prepared data sets; by default that of tensorflow-datasets.
        limit: largest number of examples to read, from the first; at least 1.

    Returns:
        The split, in the data set's order; each example is its own cluster.

    Raises:
        ValueError: for a `limit` below 1.
        MissingDataError: if tensorflow-datasets is not installed, or the data is not prepared.
        DataError: for an unknown data set, split or feature, or a slice without examples.
        CorruptDataError: if examples differ in shape.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got limit={limit}.")
    builder = builder_of(builder_or_name, data_dir)
    names = (inputs,) if isinstance(inputs, str) else inputs
    for feature in names:
        feature_of(builder, "inputs", feature)
    feature_of(builder, "label", label)
    source = _source(builder, split)
    where = f"data set {builder.name}, split {split}"
    count = len(source) if limit is None else min(limit, len(source))
    arrays = _read(source, count, (*names, label), where)
    return Split(
        name=split if name is None else name,
        kind=kind,
        inputs=arrays[inputs] if isinstance(inputs, str) else {x: arrays[x] for x in names},
        labels=arrays[label],
        description=f"{builder.name}, {split}",
    )


def _source(builder: Any, split: str) -> Any:
    """Random access to a split."""
    if not Path(builder.data_path).is_dir():
        config = getattr(builder.builder_config, "name", None)
        name = f"{builder.name}/{config}" if config else builder.name
        call = f"tensorflow_datasets.builder({name!r}, file_format='array_record')"
        advice = how_to_prepare(name) or (
            f"Call {call}.download_and_prepare() once, or give its data_dir."
        )
        raise MissingDataError(
            f"the data set {name} is not prepared at {builder.data_path}. {advice}"
        )
    try:
        return builder.as_data_source(split)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise DataError(
            f"split must be one of {', '.join(builder.info.splits)} of {builder.name}, or a slice "
            f"of one with examples, in the format array_record, got split={split!r}: {error}"
        ) from error


def _read(source: Any, count: int, names: tuple[str, ...], where: str) -> dict[str, np.ndarray]:
    """The first examples, a chunk at a time, each feature in one array."""
    arrays: dict[str, np.ndarray] = {}
    for start in range(0, count, _CHUNK):
        rows = range(start, min(start + _CHUNK, count))
        for row, example in zip(rows, source.__getitems__(rows), strict=True):
            for name in names:
                value = np.asarray(example[name])
                if name not in arrays:
                    arrays[name] = np.empty((count, *value.shape), value.dtype)
                if value.shape != arrays[name].shape[1:]:
                    raise CorruptDataError(
                        f"{where}: examples of {name} must be of one shape, "
                        f"{list(arrays[name].shape[1:])}, got {list(value.shape)} in row {row}."
                    )
                arrays[name][row] = value
    return arrays
