"""Arguments of the commands that read logs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calmoe_jax._usage import UsageError, check_folder


def check_files(files: Sequence[Path]) -> None:
    """Raises a `UsageError` unless there is a file."""
    if not files:
        raise UsageError("file must name at least one file of logs, got none.")


def check_output(name: str, path: Path) -> None:
    """Raises a `UsageError` unless a file can be written; makes nothing."""
    if path.is_dir():
        raise UsageError(f"{name} must be a file, got {name}={path}, which is a folder.")
    check_folder(name, path.parent)


def check_level(name: str, level: float) -> None:
    """Raises a `UsageError` unless a level is inside (0, 1)."""
    if not 0 < level < 1:
        raise UsageError(f"{name} must be in (0, 1), got {name}={level}.")


def renamed(columns: Sequence[str]) -> dict[str, str]:
    """The files' names by ours, from pairs `ours=theirs`."""
    found = {}
    for pair in ",".join(columns).split(",") if columns else ():
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs):
            raise UsageError(f"columns must be pairs ours=theirs, got columns={pair}.")
        found[ours] = theirs
    return found


def digests(logs: Any) -> list[dict[str, Any]]:
    """The files that logs were read from: names, numbers of examples, and SHA-256 of the bytes."""
    import hashlib

    found = []
    for name, size in logs.files:
        with open(name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append({"file": Path(name).name, "sha256": digest, "examples": size})
    return found
