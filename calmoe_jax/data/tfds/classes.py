"""Classes of a prepared data set, by its folder."""

from pathlib import Path

from calmoe_jax.data.errors import CorruptDataError


def prepared_classes(version: Path, *, label: str = "label") -> tuple[str, ...]:
    """Names of the classes, in the order of their labels.

    Args:
        version: the folder of a version.
        label: the feature that is the label.

    Raises:
        CorruptDataError: if the folder names none.
    """
    path = version / f"{label}.labels.txt"
    try:
        return tuple(path.read_text().split("\n")[:-1] or ())
    except OSError as error:
        raise CorruptDataError(f"{path} cannot be read: {error}.") from error
