"""Brings a data set: all of it or nothing, once."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from calmoe_jax.data.errors import CorruptDataError, PreparationError
from calmoe_jax.data.sets._recipes import RECIPES, Workshop, shared_downloads
from calmoe_jax.data.sets.catalogue import SETS

_MEGABYTE = 10**6
_DOWNLOADS = ".downloads"


def prepare(
    name: str,
    data_dir: Path,
    *,
    manual_dir: Path | None = None,
    quiet: bool = False,
    then: tuple[str, ...] = (),
) -> bool:
    """Brings a data set to the data folder, unless it is there.

    It is made in a folder beside its place and renamed, so that it is never half there; data sets
    of several configurations appear one configuration after the other. Downloads are checked, and
    kept until the data set is there: after an interruption the same command goes on. Those of usps,
    optdigits and newsgroups, of at most 25 MB, start again: scikit-learn brings them.

    Args:
        name: one of `SETS`.
        data_dir: the data folder; it is made if need be.
        manual_dir: folder with what the user downloaded; `data_dir/manual` by default. A file
            there with the name of a download is taken in its place.
        quiet: whether to show no progress.
        then: data sets that are brought next; a download that one of them shares is kept for it.

    Returns:
        Whether it was brought; False if it was there.

    Raises:
        ValueError: for an unknown name.
        MissingDataError: if it must be downloaded by hand and was not, or a package is missing.
        PreparationError: if a download does not come or is another file, the disk is full, or
            another process is at it.
        CorruptDataError: if an archive is not complete, or not what is expected.

    Example:
        >>> prepare("pacs", Path("data"), manual_dir=Path("downloads"))  # doctest: +SKIP
        True
    """
    if name not in SETS:
        raise ValueError(f"name must be one of {', '.join(SETS)}, got name={name!r}.")
    if SETS[name].is_here(data_dir):
        return False
    existed = data_dir.is_dir()
    data_dir.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(data_dir, name), _full_disk_explained(name, data_dir):
            if SETS[name].is_here(data_dir):  # by a process that has ended since
                return False
            _bring_all(name, data_dir, manual_dir or data_dir / "manual", quiet, then)
    finally:
        if not existed:
            _remove_empty(data_dir)
    return True


def _bring_all(name: str, data_dir: Path, manual: Path, quiet: bool, then: tuple[str, ...]) -> None:
    """Brings the data set; of its downloads only those remain that the next try goes on with."""
    downloads = data_dir / _DOWNLOADS / name
    try:
        _check_room(name, data_dir, downloads)
        downloads.mkdir(parents=True, exist_ok=True)
        _bring(name, data_dir, downloads, manual, quiet)
        for other in then:
            if not SETS[other].is_here(data_dir):
                _hand_on(shared_downloads(name, other), downloads, downloads.parent / other)
        shutil.rmtree(downloads, ignore_errors=True)
    except CorruptDataError:  # the next try downloads anew
        shutil.rmtree(downloads, ignore_errors=True)
        raise
    finally:
        _remove_empty(downloads, downloads.parent)


def _hand_on(files: tuple[str, ...], downloads: Path, other: Path) -> None:
    """Moves downloads to the folder of another data set, which then has them; links stay."""
    for file in files:
        ours, theirs = downloads / file, other / file
        if ours.is_file() and not ours.is_symlink() and not theirs.exists():
            other.mkdir(exist_ok=True)
            ours.rename(theirs)


def _bring(name: str, data_dir: Path, downloads: Path, manual: Path, quiet: bool) -> None:
    """Makes the parts and moves each to its place."""
    for left in data_dir.glob(f".{name}.*.making"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(dir=data_dir, prefix=f".{name}.", suffix=".making"))
    try:
        for _ in RECIPES[name](name, Workshop(made, data_dir, downloads, manual, quiet)):
            _move_into(made, data_dir)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _move_into(made: Path, place: Path) -> None:
    """Moves what a folder holds; folders that are there get what they lack, files stay."""
    for item in sorted(made.iterdir()):
        target = place / item.name
        if not target.exists():
            item.rename(target)
        elif item.is_dir():
            _move_into(item, target)


def _check_room(name: str, data_dir: Path, downloads: Path) -> None:
    free = shutil.disk_usage(data_dir).free
    # links may lead nowhere: the user's own archive, moved since
    came = sum(file.stat().st_size for file in downloads.glob("*") if file.is_file())
    needed = SETS[name].room * _MEGABYTE - came
    if free < needed:
        raise PreparationError(
            f"{name} needs about {needed // _MEGABYTE:,} MB in {data_dir}, where "
            f"{free // _MEGABYTE:,} MB are free: name another folder with --data-dir."
        )


@contextmanager
def _full_disk_explained(name: str, data_dir: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if not full and "No space left on device" not in str(error):
            raise
        raise PreparationError(
            f"the disk of {data_dir} is full: {name} needs about {SETS[name].room:,} MB. Only "
            f"finished downloads were kept; make room, or name another folder with --data-dir."
        ) from error


@contextmanager
def _alone(data_dir: Path, name: str) -> Iterator[None]:
    """Keeps other processes from bringing the same data set at the same time.

    What it guards is touched inside only: where it is refused, all of it is the other process's.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield
        return
    path = data_dir / f".{name}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise BlockingIOError("another process has begun since")
        except OSError as error:
            raise PreparationError(
                f"another process is bringing {name} to {data_dir}: wait for it."
            ) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _remove_empty(*folders: Path) -> None:
    """Removes folders that hold nothing."""
    for folder in folders:
        with suppress(OSError):  # it holds something, or is gone
            folder.rmdir()
