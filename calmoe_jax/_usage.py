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


def data_dir_of(given: Path | None) -> Path:
    """The data folder: the given one, or that of `calmoe data where`.

    Raises:
        UsageError: if it is given and not a folder.
    """
    from calmoe_jax.data.sets.folder import data_folder

    if given is not None and not given.is_dir():
        raise UsageError(f"data_dir must be a folder, got data_dir={given}.")
    return data_folder(given).path
