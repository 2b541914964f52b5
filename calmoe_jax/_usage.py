"""What commands check before they do anything."""

import os
from pathlib import Path

from calmoe_jax._errors import UserError


class UsageError(UserError):
    """Arguments that are invalid; the message names them."""


def check_folder(name: str, folder: Path) -> None:
    """Raises a `UsageError` unless a folder exists or can be made; makes nothing."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise UsageError(
            f"{name} must be in a folder that can be written to, got {name}={folder}: {there} is "
            f"{'protected' if there.is_dir() else 'a file'}."
        )
