"""The builder of a data set, and tensorflow-datasets itself."""

import importlib
from pathlib import Path
from typing import Any

from calmoe_jax.data.errors import DataError, MissingDataError
from calmoe_jax.data.sets.catalogue import SETS, how_to_get


def builder_of(builder_or_name: Any, data_dir: Path | None) -> Any:
    """The builder itself, or the builder of a data set's name.

    Files are read in any order, which the format array_record is for.

    Raises:
        MissingDataError: if tensorflow-datasets is not installed, or only ours has such a data set
            and it is not prepared there.
        DataError: if there is no such data set.
    """
    if not isinstance(builder_or_name, str):
        return builder_or_name
    tfds = tensorflow_datasets()
    try:
        return tfds.builder(builder_or_name, data_dir=data_dir, file_format="array_record")
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        if (advice := how_to_prepare(builder_or_name.partition(":")[0])) is not None:
            place = f"in {data_dir}" if data_dir is not None else "in tensorflow-datasets' folder"
            raise MissingDataError(
                f"the data set {builder_or_name} is not prepared {place}. {advice}"
            ) from error
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"builder_or_name must name a data set of tensorflow-datasets, got "
            f"{builder_or_name!r}: {first}"
        ) from error


def how_to_prepare(name: str) -> str | None:
    """The command that prepares a data set or a configuration of one, if there is one; and what to
    do then.
    """
    for each, found in SETS.items():
        if any(record == name or record.startswith(f"{name}/") for record in found.records):
            return (
                f"{how_to_get(each)} Give the folder that it brings it to, which `calmoe data "
                f"where` names, as data_dir."
            )
    return None


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
