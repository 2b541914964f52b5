"""The columns of a file of logs, npz, parquet or CSV, as NumPy arrays; values are not checked."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calmoe_jax._errors import UserError
from calmoe_jax.audit.csv_source import CsvFile
from calmoe_jax.audit.names import SINGLE, listed, places, renamed, shape_of
from calmoe_jax.audit.text import from_text

# Read as 32-bit floats wherever they come from.
_NUMBERS = (
    "expert_probs", "expert_logits", "routing_weights", "routing_logits", "probs", "logits",
    "label_probs", "peer_probs", "peer_logits",
)  # fmt: skip


class LogError(UserError):
    """A file of logs cannot be used; the message says why."""


class _NpzFile:
    """An npz file: an array for each name."""

    def __init__(self, path: Path) -> None:
        if not zipfile.is_zipfile(path):
            path.open("rb").close()  # a missing or unreadable file fails here
            raise ValueError("it is not a complete npz file")
        self._path = path
        with np.load(path, allow_pickle=False) as arrays:
            self.names = list(arrays.files)

    def read(self, numbers: list[str], texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        with np.load(self._path, allow_pickle=False) as arrays:
            for name in (*numbers, *texts):
                yield name, arrays[name]


class _ParquetFile:
    """A parquet file: columns of numbers, of text, or of lists of one length."""

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise LogError(
                f"{path} needs pyarrow (pip install pyarrow), or give an npz or CSV file."
            ) from error
        self._file = parquet.ParquetFile(path)
        self.names = list(self._file.schema_arrow.names)

    def read(self, numbers: list[str], texts: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        for name in (*numbers, *texts):
            yield name, _flat(name, self._file.read(columns=[name]).column(name))


# Files whose columns are read one after the other, the numbers first.
Source = CsvFile | _NpzFile | _ParquetFile


def read_columns(path: Path, columns: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Reads the columns that an audit knows.

    Args:
        path: an npz, parquet or CSV file.
        columns: the file's names for some of ours (see `names.renamed`).

    Returns:
        Arrays by name (see `names`); other columns are not read.

    Raises:
        LogError: if the file cannot be read, lacks what an audit needs, or has a column whose name
            is nearly that of one that it lacks.
    """
    try:
        source = _open(path)
    except LogError:
        raise
    except _UNREADABLE as error:
        raise LogError(f"{path} cannot be read: {error}.") from error
    try:
        found = places(renamed(source.names, columns))
        arrays = [place.array for place in found.values()]
        whole = {place.array for place in found.values() if not place.at}
        shapes = {
            array: shape_of(array, [p.at for p in found.values() if p.array == array])
            for array in dict.fromkeys(arrays)
            if array not in whole
        }
        _check_presence(set(arrays), source.names)
    except ValueError as error:
        raise LogError(f"{path} {error}") from error
    try:
        return _gathered(source, found, shapes)
    except _UNREADABLE as error:
        raise LogError(f"{path} cannot be read: {error}.") from error


# also: encrypted, in a format of its own, larger than the memory
_UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile, zlib.error,
    RuntimeError, NotImplementedError, MemoryError,
)  # fmt: skip


def _open(path: Path) -> Source:
    if path.suffix == ".csv":
        return CsvFile(path)
    return _ParquetFile(path) if path.suffix == ".parquet" else _NpzFile(path)


def _check_presence(arrays: set[str], names: list[str]) -> None:
    """Raises an error unless there are predictions in one form, and labels."""
    has = f"it has {listed(names)}"
    for one in ("expert_probs", "probs", "routing_weights", "peer_probs"):
        other = one.replace("probs", "logits").replace("weights", "logits")
        if {one, other} <= arrays:
            raise ValueError(f"has {one} and {other}, of which one must be left out.")
    experts = {"expert_probs", "expert_logits"} & arrays
    if not experts and not {"probs", "logits"} & arrays:
        raise ValueError(f"lacks expert_probs; {has}.")
    if experts and not {"routing_weights", "routing_logits"} & arrays:
        raise ValueError(f"lacks routing_weights; {has}.")
    if not {"labels", "label_probs"} & arrays:
        raise ValueError(f"lacks labels; {has}.")


def _gathered(
    source: Source, found: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """The arrays; those that come number by number are filled in place."""
    numbers = [name for name, place in found.items() if place.array not in SINGLE]
    texts = [name for name, place in found.items() if place.array in SINGLE]
    arrays: dict[str, np.ndarray] = {}
    for name, values in source.read(numbers, texts):
        array, at = found[name]
        if values.dtype.kind in "US":
            values = from_text(array, values)
        if values.dtype.kind == "f" and array in _NUMBERS and values.dtype.itemsize > 4:
            values = values.astype(np.float32)
        if array == "labels":
            values = _whole(values, isinstance(source, _NpzFile))
        if not at:
            arrays[array] = values
            continue
        if array == "expert_indices" and values.dtype.kind == "f":
            values = _whole(values, False)
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise ValueError(f"{name} must be a column of numbers, got {values.dtype}")
        if array not in arrays:
            kind = np.float32 if array in _NUMBERS else values.dtype
            arrays[array] = np.empty((len(values), *shapes[array]), kind)
        if len(values) != len(arrays[array]):
            raise ValueError(f"{name} has {len(values)} examples, not {len(arrays[array])}")
        arrays[array][(slice(None), *at)] = values
    return arrays


def _flat(name: str, column: Any) -> np.ndarray:
    """An array of a column of numbers, or of lists of one length; null is NaN, or the text nan."""
    values, shape = column.combine_chunks(), [len(column)]
    while str(values.type).startswith(("list", "large_list", "fixed_size_list")):
        if values.null_count:
            raise ValueError(f"{name} must have a list in every place, got null")
        lengths = np.diff(values.offsets.to_numpy()) if hasattr(values, "offsets") else []
        if len(lengths) and (lengths != lengths[0]).any():
            odd = int(np.argmax(lengths != lengths[0]))
            raise ValueError(
                f"{name} must hold lists of one length, got {lengths[0]} and {lengths[odd]}"
            )
        values = values.flatten()
        shape.append(len(values) // max(int(np.prod(shape)), 1))
    array: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(shape)
    if array.dtype == object:  # texts, or true and false with gaps
        array = np.asarray(["nan" if value is None else value for value in array.flat], str)
        return array.reshape(shape)
    return array if array.flags.writeable else array.copy()


def _whole(values: np.ndarray, strict: bool) -> np.ndarray:
    """Whole numbers with -1 for NaN; pandas writes whole numbers with gaps as floats."""
    if values.dtype.kind != "f" or strict:
        return values
    filled = np.where(np.isnan(values), -1, values)
    whole = np.isfinite(filled).all() and (filled == np.floor(filled)).all()
    return filled.astype(np.int64) if whole else values
