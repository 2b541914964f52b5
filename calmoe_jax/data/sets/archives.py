"""Reading archives without unpacking them to disk; errors name the archive."""

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from calmoe_jax.data.errors import CorruptDataError

_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError,
)  # fmt: skip


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turns what Python raises for broken archives into an error that names the archive."""
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
            if "encrypted" not in str(error):
                raise
        raise CorruptDataError(f"{path} is not a complete archive: {error}.") from error
    except OSError as error:
        if error.errno is not None:  # of the disk; gzip's own errors have no number
            raise
        raise CorruptDataError(f"{path} is not a complete archive: {error}.") from error


class Tree:
    """Files below a folder or in a zip archive, by their names with slashes.

    Args:
        path: the folder or the archive.
    """

    def __init__(self, path: Path) -> None:
        """Lists the names."""
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        if path.is_dir():
            files = (file for file in path.rglob("*") if file.is_file())
            self.names = sorted(file.relative_to(path).as_posix() for file in files)
            return
        with named(path):
            self._zip = zipfile.ZipFile(path)
            self.names = sorted(n for n in self._zip.namelist() if not n.endswith("/"))

    def read(self, name: str) -> bytes:
        """The content of a file; an archive's checksum of it is compared."""
        if self._zip is None:
            return (self.path / name).read_bytes()
        with named(self.path):
            return self._zip.read(name)

    def open(self, name: str) -> io.BufferedIOBase:
        """A file to read from, piece by piece."""
        if self._zip is None:
            return (self.path / name).open("rb")
        return cast(io.BufferedIOBase, self._zip.open(name))

    def close(self) -> None:
        """Closes the archive."""
        if self._zip is not None:
            self._zip.close()


def tar_members(path: Path) -> Iterator[tuple[str, io.BufferedIOBase]]:
    """Names and contents of a tar archive's files, in its order; compressed or not."""
    with named(path), tarfile.open(path, "r:*") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, cast(io.BufferedIOBase, file)


def tar_member(path: Path, ending: str) -> bytes:
    """The content of the first file of a tar archive whose name has an ending."""
    for name, file in tar_members(path):
        if name.endswith(ending):
            with named(path):
                return file.read()
    raise CorruptDataError(f"{path} lacks the file {ending}.")


def text_lines(file: io.BufferedIOBase) -> io.TextIOWrapper:
    """A file's text as UTF-8, its lines as they are, for the module csv."""
    return io.TextIOWrapper(cast(IO[bytes], file), encoding="utf-8", newline="")
