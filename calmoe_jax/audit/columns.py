"""The columns of a file of logs, npz or parquet, as NumPy arrays; their values are not checked."""

import difflib
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from calmoe_jax._errors import UserError

NEEDED = ("routing_weights", "expert_probs", "labels")
COLUMNS = (*NEEDED, "expert_indices", "targets", "clusters", "where", "weights")


class LogError(UserError):
    """A file of logs cannot be used; the message says why."""


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """Reads the columns that an audit knows.

    Args:
        path: an npz file, or a parquet file.

    Returns:
        Arrays by name; those of `NEEDED` are there. Others than `COLUMNS` are not read.

    Raises:
        LogError: if the file cannot be read, lacks an array, or has one whose name is nearly that
            of an optional one.
    """
    try:
        read = _read_parquet if path.suffix == ".parquet" else _read_npz
        columns, names = read(path)
    except LogError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LogError(f"{path} cannot be read: {error}.") from error
    except (RuntimeError, NotImplementedError, MemoryError) as error:  # encrypted, say
        raise LogError(f"{path} cannot be read: {error}.") from error
    for name in NEEDED:
        if name not in columns:
            raise LogError(f"{path} lacks {name}; it has {', '.join(names) or 'nothing'}.")
    for name in names:
        absent = [known for known in COLUMNS if known not in names]
        near = difflib.get_close_matches(name, absent, n=1, cutoff=0.85)
        if name not in COLUMNS and near:
            raise LogError(
                f"{path} has {name}, which is not read. Did you mean {near[0]}? Rename it or "
                "leave it out."
            )
    return columns


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    if not zipfile.is_zipfile(path):
        path.open("rb").close()  # a missing or unreadable file fails here
        raise ValueError("it is not a complete npz file")
    with np.load(path, allow_pickle=False) as arrays:
        names = list(arrays.files)
        return {name: arrays[name] for name in COLUMNS if name in names}, names


def _read_parquet(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise LogError(
            f"{path} needs pyarrow (pip install pyarrow), or give an npz file."
        ) from error
    names = parquet.read_schema(path).names
    table = parquet.read_table(path, columns=[name for name in COLUMNS if name in names])
    columns = {name: _flat(name, table.column(name)) for name in table.column_names}
    if "labels" in columns:
        columns["labels"] = _whole(columns["labels"])
    return columns, names


def _flat(name: str, column: Any) -> np.ndarray:
    """An array of a column of numbers, or of lists of one length."""
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
    if values.null_count and name not in NEEDED:
        raise ValueError(f"{name} must be known for every example, got null")
    array: np.ndarray = values.to_numpy(zero_copy_only=False).reshape(shape)
    if array.dtype == object and all(isinstance(value, str) for value in array.flat):
        return array.astype(str)
    return array if array.flags.writeable else array.copy()


def _whole(labels: np.ndarray) -> np.ndarray:
    """Labels with -1 for null; pandas writes whole numbers with gaps as floats."""
    if labels.dtype.kind != "f":
        return labels
    filled = np.where(np.isnan(labels), -1, labels)
    whole = np.isfinite(filled).all() and (filled == np.floor(filled)).all()
    return filled.astype(np.int64) if whole else labels
