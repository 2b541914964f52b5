"""Readers of data files; their errors name the file."""

import gzip
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.lib.npyio import NpzFile

from calmoe_jax.data.errors import CorruptDataError, DataError, MissingDataError

_T = TypeVar("_T")
_IDX_TYPES = {8: np.uint8}


def find(data_dir: Path | None, relative: str, how_to_get: str) -> Path:
    """The path of a file below the data folder, or a `MissingDataError` that says how to get it."""
    if data_dir is None:
        raise MissingDataError(
            f"{relative} is needed: give the folder that holds it with --data-dir or "
            f"CALMOE_DATA_DIR. {how_to_get}"
        )
    return present(data_dir / relative, how_to_get)


def present(path: Path, how_to_get: str) -> Path:
    """The path itself, or a `MissingDataError` if there is no such file."""
    if not path.is_file():
        raise MissingDataError(f"there is no file {path}. {how_to_get}")
    return path


def read_gzip(path: Path) -> bytes:
    """The unpacked content of a gzip file."""
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptDataError(f"{path} is not a complete gzip file: {error}.") from error


def read_idx(path: Path) -> np.ndarray:
    """An array in the idx format of MNIST: magic number, big-endian sizes, bytes."""
    raw = read_gzip(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX_TYPES:
        raise CorruptDataError(
            f"{path} is not an idx file of bytes: it begins with {raw[:4].hex()}."
        )
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise CorruptDataError(f"{path} must hold a header of {header} bytes, got {len(raw)}.")
    shape = tuple(np.frombuffer(raw[4:header], ">u4").tolist())
    if len(raw) - header != int(np.prod(shape)):
        raise CorruptDataError(
            f"{path} must hold {' x '.join(map(str, shape))} bytes, got {len(raw) - header}."
        )
    return np.frombuffer(raw, _IDX_TYPES[raw[2]], offset=header).reshape(shape)


def npz_names(path: Path) -> tuple[str, ...]:
    """The names of an npz file's arrays, in the file's order."""
    return _from_npz(path, lambda arrays: tuple(arrays.files))


def read_npz(path: Path, names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """The named arrays of an npz file, without unpickling anything."""

    def read(arrays: NpzFile) -> tuple[np.ndarray, ...]:
        missing = sorted(set(names) - set(arrays.files))
        if missing:
            raise CorruptDataError(f"{path} lacks the array {missing[0]!r}.")
        return tuple(_read_array(path, arrays, name) for name in names)

    return _from_npz(path, read)


def _read_array(path: Path, arrays: NpzFile, name: str) -> np.ndarray:
    try:
        array = arrays[name]
    except Exception as error:  # NumPy and zipfile raise many types for corrupt bytes
        raise CorruptDataError(
            f"{path} is not a complete npz file: the array {name!r} cannot be read: {error}."
        ) from error
    if not isinstance(array, np.ndarray):
        raise CorruptDataError(f"{path} is not a complete npz file: {name!r} is not an array.")
    return array


def _from_npz(path: Path, read: Callable[[NpzFile], _T]) -> _T:
    """Applies `read` to an open npz file."""
    try:
        if not zipfile.is_zipfile(path):
            raise CorruptDataError(f"{path} is not a complete npz file: it is not a zip archive.")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return read(arrays)
    except DataError:
        raise
    except Exception as error:  # as above
        raise CorruptDataError(f"{path} is not a complete npz file: {error}.") from error
