"""The builder of a data set, and tensorflow-datasets itself."""

import importlib
from pathlib import Path
from typing import Any

from calmoe_jax.data.errors import DataError, MissingDataError


def builder_of(builder_or_name: Any, data_dir: Path | None) -> Any:
    """The builder itself, or the builder of a data set's name.

    Files are read in any order, which the format array_record is for.

    Raises:
        MissingDataError: if tensorflow-datasets is not installed.
        DataError: if it has no such data set.
    """
    if not isinstance(builder_or_name, str):
        return builder_or_name
    tfds = tensorflow_datasets()
    try:
        return tfds.builder(builder_or_name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"builder_or_name must name a data set of tensorflow-datasets, got "
            f"{builder_or_name!r}: {first}"
        ) from error


def tensorflow_datasets() -> Any:
    try:
        for needed in ("importlib_resources", "array_record"):
            importlib.import_module(needed)
        return importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        raise MissingDataError(
            f"the package {error.name} is needed for data sets of tensorflow-datasets: "
            f"pip install 'calmoe_jax[data]'."
        ) from error
