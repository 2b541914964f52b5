"""Downloads: checked, shown, and continued where they ended."""

import errno
import hashlib
import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from calmoe_jax.data.errors import PreparationError

_BLOCK = 1 << 18
_TRIES = 4
_TIMEOUT = 60.0  # seconds without a byte


class Remote(NamedTuple):
    """A file to download.

    Attributes:
        url: where it is.
        name: the name it gets here.
        size: its bytes, where they are published.
        sha256: its checksum, where one is published.
    """

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None


def fetch(remote: Remote, folder: Path, *, quiet: bool = False, pause: float = 1.0) -> Path:
    """Downloads a file, or what is left of it.

    What has come is kept as `NAME.part`, and asked for no second time; a server that cannot send a
    part sends all again. The file has its name only when it is complete and its checksum is right.

    Args:
        remote: the file.
        folder: an existing folder for it.
        quiet: whether to show no progress; without a terminal there is none.
        pause: seconds before the second try, doubled for each of the others.

    Returns:
        The file.

    Raises:
        PreparationError: if it does not come, is not complete, or is another file.
        OSError: for a disk that is full (nothing of the file is left) or cannot be written.
    """
    path, part = folder / remote.name, folder / f"{remote.name}.part"
    if path.is_file():
        return path
    for number in range(_TRIES):
        try:
            _continue(remote, part, quiet)
            break
        except OSError as error:
            if error.errno == errno.ENOSPC:
                part.unlink(missing_ok=True)
                raise
            reason = _reason(error)
            if not _may_pass(error) or number == _TRIES - 1:
                raise _not_downloaded(remote, part, reason) from error
        except http.client.HTTPException as error:
            reason = f"the connection ended ({error!r})"
            if number == _TRIES - 1:
                raise _not_downloaded(remote, part, reason) from error
        time.sleep(pause * 2**number)
    if (wrong := difference(remote, part)) is not None:
        part.unlink()
        raise PreparationError(
            f"{remote.url} {wrong}: it is another file than the one that is known, or not "
            f"complete. It was deleted; try again, or later."
        )
    part.replace(path)
    return path


def difference(remote: Remote, path: Path) -> str | None:
    """What a file has that the download must not have, in words; None if it is the same."""
    got = path.stat().st_size
    if remote.size is not None and got != remote.size:
        return f"must have {remote.size} bytes, got {got}"
    if remote.sha256 is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != remote.sha256:
            return f"must have the SHA-256 {remote.sha256}, got {digest}"
    return None


def _continue(remote: Remote, part: Path, quiet: bool) -> None:
    """Adds what is missing to a part; raises an `OSError` if the connection ends before."""
    start = part.stat().st_size if part.is_file() else 0
    if remote.size is not None and start == remote.size:
        return
    headers = {"User-Agent": "calmoe_jax"} | ({"Range": f"bytes={start}-"} if start else {})
    request = urllib.request.Request(remote.url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # a part that is no beginning: from the start, the next time
            part.unlink(missing_ok=True)
        raise
    with response:
        if response.status != 206:
            start = 0
        length = response.headers.get("Content-Length")
        whole = start + int(length) if length else None
        with part.open("ab" if start else "wb") as file, _bar(remote, whole, start, quiet) as bar:
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
        got = part.stat().st_size
        if whole is not None and got != whole:
            raise ConnectionError(f"the connection ended after {got} of {whole} bytes")


def _bar(remote: Remote, whole: int | None, start: int, quiet: bool) -> Any:
    return tqdm(
        total=whole, initial=start, desc=remote.name, unit="B", unit_scale=True, leave=False,
        disable=True if quiet else None,
    )  # fmt: skip


def _may_pass(error: OSError) -> bool:
    """Whether another try may help."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (416, 429) or error.code >= 500
    return isinstance(error, ConnectionError | TimeoutError | urllib.error.URLError)


def _reason(error: OSError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"there is no connection ({error.reason})"
    return str(error)


def _not_downloaded(remote: Remote, part: Path, reason: str) -> PreparationError:
    kept = part.stat().st_size if part.is_file() else 0
    again = f" What has come, {kept} bytes, is kept: the same command goes on." if kept else ""
    return PreparationError(f"{remote.url} could not be downloaded: {reason}.{again}")
