"""The option --data-dir of commands."""

from pathlib import Path

from calmoe_jax._usage import UsageError


def data_dir_of(given: Path | None) -> Path:
    """The data folder: the given one, or that of `calmoe data where`.

    Raises:
        UsageError: if it is given and not a folder.
    """
    from calmoe_jax.data.sets.folder import data_folder

    if given is not None and not given.is_dir():
        raise UsageError(f"data_dir must be a folder, got data_dir={given}.")
    return data_folder(given).path
