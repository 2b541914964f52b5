"""Compiled programs kept on disk, so that a second run of a command compiles nothing."""

import os
from pathlib import Path

import jax

VARIABLE = "CALMOE_CACHE_DIR"


def user_cache_dir() -> Path:
    """The folder for compiled programs: below `CALMOE_CACHE_DIR`, or the user's cache folder."""
    if os.environ.get(VARIABLE):
        return Path(os.environ[VARIABLE])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "calmoe_jax"


def keep_compiled_programs(folder: Path) -> None:
    """Makes JAX store every program it compiles from now on in a folder, and look there first.

    Args:
        folder: the cache folder; created if it does not exist.

    Raises:
        OSError: if the folder cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
