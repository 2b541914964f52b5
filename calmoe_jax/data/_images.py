"""Shared parts of tasks with grey images: splits, corruptions as shifts, a hard subset."""

import numpy as np
from scipy import ndimage

from calmoe_jax.data.ambiguity import ambiguous_subset
from calmoe_jax.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from calmoe_jax.data.task import Kind, Split, Task

# Training rows used to find ambiguous examples; limited to keep the distances fast.
_LOOK_ALIKES = 5000


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes square images linearly, pixel areas aligned."""
    if images.shape[1] == size:
        return images
    zoom = (1, size / images.shape[1], size / images.shape[2])
    resized = ndimage.zoom(images.astype(np.float64), zoom, order=1, mode="nearest", grid_mode=True)
    return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def image_split(
    name: str,
    kind: Kind,
    images: np.ndarray,
    labels: np.ndarray,
    description: str,
    series: str | None = None,
    position: float | None = None,
) -> Split:
    """A split of grey images; each image is its own cluster."""
    return Split(
        name=name,
        kind=kind,
        inputs=images[..., None],
        labels=labels.astype(np.int32),
        description=description,
        series=series,
        position=position,
    )


def image_task(
    name: str,
    classes: str | list[str],
    rows: dict[str, np.ndarray],
    images: np.ndarray,
    labels: np.ndarray,
    source: str,
    shifts: tuple[Split, ...] = (),
) -> Task:
    """Splits the rows, corrupts the test images and finds the ambiguous ones."""

    def part(name: str, kind: Kind, description: str) -> Split:
        return image_split(name, kind, images[rows[name]], labels[rows[name]], description)

    train = part("train", "train", "training images")
    calibration = part("calibration", "calibration", "images held out from training")
    test = part("test", "id", "uncorrupted test images")
    corrupted = tuple(
        image_split(
            f"{corruption}_{severity}",
            "shift",
            corrupt(test.inputs[..., 0], corruption, severity),
            test.labels,
            f"test images, {corruption.replace('_', ' ')} of severity {severity}",
            series=corruption,
            position=float(severity),
        )
        for corruption in CORRUPTIONS
        for severity in SEVERITIES
    )
    some = train.take(np.arange(min(_LOOK_ALIKES, len(train))), "some", "train", "")
    hard = ambiguous_subset(some, test, (some.inputs, test.inputs))
    return Task(
        name=name,
        classes=tuple(classes),
        train=train,
        calibration=calibration,
        evaluation=(test, *shifts, *corrupted, hard),
        source=source,
    )
