"""Names of the classes of a data set."""

from pathlib import Path
from typing import Any

from calmoe_jax.data.errors import DataError
from calmoe_jax.data.tfds._builder import builder_of
from calmoe_jax.data.tfds._features import feature_of


def class_names(
    builder_or_name: Any, *, label: str = "label", data_dir: Path | None = None
) -> tuple[str, ...]:
    """Names of the classes, in the order of their labels: the `classes` of a `Task`.

    Args:
        builder_or_name: a `tfds.core.DatasetBuilder`, or the name of a data set.
        label: the feature that is the label.
        data_dir: folder of prepared data sets; by default that of tensorflow-datasets.

    Returns:
        A name for each class.

    Raises:
        MissingDataError: if tensorflow-datasets is not installed.
        DataError: for an unknown data set or feature, or a feature that is not a `ClassLabel`.
    """
    builder = builder_of(builder_or_name, data_dir)
    names = getattr(feature_of(builder, "label", label), "names", None)
    if not names:
        raise DataError(
            f"label must be a feature of {builder.name} with names of classes, got label={label!r}."
        )
    return tuple(names)
