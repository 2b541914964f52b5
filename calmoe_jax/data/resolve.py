"""Finds a task by a registered name, a file, or a function of a module."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calmoe_jax.data import registry
from calmoe_jax.data.checks import check_task
from calmoe_jax.data.errors import DataError
from calmoe_jax.data.npz import load_npz
from calmoe_jax.data.task import Task


def resolve_task(spec: str | Task, data_dir: Path | None = None) -> Task:
    """Loads the task that a string names, and checks it.

    Args:
        spec: a task; or a path that ends with `.npz` (see `load_npz`); or `module:function`, found
            on the import path or in the current folder, whose `function()` returns a task; or one
            of `TASKS`.
        data_dir: folder with the files of registered tasks that do not come with the package.

    Returns:
        The task.

    Raises:
        ValueError: for a name that is none of these, with the nearest known one.
        MissingDataError: if a file is missing.
        CorruptDataError: if data cannot be read, or the task is invalid.
        DataError: if the module or function does not exist, raises, or does not return a task.

    Example:
        >>> resolve_task("portal").input_spec
        ShapeDtypeStruct(shape=(10,), dtype=float32)
    """
    if isinstance(spec, Task):
        return check_task(spec)
    if spec.lower().endswith(".npz"):
        return load_npz(Path(spec))
    if ":" in spec:
        with _current_folder_on_the_path():
            return _call(spec)
    if spec not in registry.TASKS:
        others = ", a path that ends with .npz, or module:function"
        raise registry.unknown_task(spec, others=others)
    return registry.load_task(spec, data_dir)


@contextmanager
def _current_folder_on_the_path() -> Iterator[None]:
    """Puts the current folder on the import path, as `python -m` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _call(spec: str) -> Task:
    """The task that a function returns; errors name the function."""
    module_name, _, name = spec.partition(":")
    if not name.isidentifier() or not all(p.isidentifier() for p in module_name.split(".")):
        raise DataError(f"task must be module:function, two Python names, got task={spec!r}.")
    function = getattr(_module(spec, module_name), name, None)
    if not callable(function):
        what = "is not there" if function is None else f"is a {type(function).__name__}"
        raise DataError(f"task {spec}: {name} must be a function of {module_name}, but {what}.")
    task = _guarded(function, f"task {spec}: {name}()")
    if not isinstance(task, Task):
        raise DataError(
            f"task {spec}: {name}() must return a calmoe_jax.data.Task, got a "
            f"{type(task).__name__}."
        )
    return check_task(task)


def _module(spec: str, name: str) -> Any:
    importlib.invalidate_caches()  # a file written a moment ago
    try:
        return _guarded(lambda: importlib.import_module(name), f"task {spec}: importing {name}")
    except DataError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}."):
            raise DataError(
                f"task {spec}: there is no module {cause.name} on the import path or in "
                f"{Path.cwd()}."
            ) from cause
        raise


def _guarded(call: Callable[[], Any], what: str) -> Any:
    """Calls the user's code, and reports its exceptions as `DataError`."""
    try:
        return call()
    except DataError:
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard exits
        raise DataError(f"{what} raised {type(error).__name__}: {error}") from error
