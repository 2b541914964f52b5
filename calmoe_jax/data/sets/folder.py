"""The folder that data sets lie in."""

import os
from pathlib import Path
from typing import NamedTuple

VARIABLE = "CALMOE_DATA_DIR"


class DataFolder(NamedTuple):
    """A folder, and why it is that one.

    Attributes:
        path: the folder; it need not exist.
        reason: what named it.
    """

    path: Path
    reason: str


def data_folder(given: Path | None = None) -> DataFolder:
    """The folder to look for data sets in, and to bring them to.

    The one that is given; else that of `CALMOE_DATA_DIR`; else `calmoe_jax` in the user's folder
    for data (`XDG_DATA_HOME`, or `~/.local/share`).

    Args:
        given: the folder that the user asks for, if any.

    Returns:
        The folder, and why it is that one.

    Example:
        >>> data_folder(Path("mine")).reason
        'given by --data-dir'
    """
    if given is not None:
        return DataFolder(given, "given by --data-dir")
    if os.environ.get(VARIABLE):
        return DataFolder(Path(os.environ[VARIABLE]), f"given by {VARIABLE}")
    base = os.environ.get("XDG_DATA_HOME")
    home = Path(base) if base else Path.home() / ".local" / "share"
    return DataFolder(home / "calmoe_jax", "the user's folder for data")
