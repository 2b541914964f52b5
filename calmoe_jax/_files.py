"""Atomic file writes: a file appears completely or not at all."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file atomically: a reader sees the old content or the new, never a part.

    The content goes to a temporary file in the same folder, is flushed to disk, and is renamed in
    one step. On failure (a full disk, say) the old file stays and the temporary one is removed.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # it may already have its new name
            os.unlink(name)
        raise


def _umask() -> int:
    """The umask of this process: the permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def to_json(value: Any, *, indent: int | None = 1) -> str:
    """JSON text with keys in their order; raises on NaN or infinity, which would be a bug."""
    return json.dumps(value, indent=indent, allow_nan=False) + "\n"
