"""Brightness, contrast, saturation, elastic deformation, pixels and JPEG."""

import io

import numpy as np
from scipy import ndimage

from calmoe_jax.data._jpeg import pillow
from calmoe_jax.data.cifar_corruptions._parts import (
    SIZE,
    Randoms,
    drawn,
    interpolated,
    mirror,
    reflect,
    uniform,
)


def brightness(images: np.ndarray, severity: int, _: Randoms) -> np.ndarray:
    """The value of HSV is raised: with hue and saturation kept, the channels keep their ratios."""
    added = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    value = images.max(axis=-1, keepdims=True)
    raised = np.minimum(value + added, 1)
    return np.where(value > 0, images * (raised / np.where(value > 0, value, 1)), raised)


def saturate(images: np.ndarray, severity: int, _: Randoms) -> np.ndarray:
    """The saturation of HSV is scaled and shifted; grey has the hue of red."""
    scale, added = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[severity - 1]
    value, least = images.max(axis=-1, keepdims=True), images.min(axis=-1, keepdims=True)
    spread = value - least
    grey = spread == 0
    saturation = spread / np.where(value > 0, value, 1)
    depth = np.where(grey, [0.0, 1.0, 1.0], (value - images) / np.where(grey, 1, spread))
    return value * (1 - np.clip(saturation * scale + added, 0, 1) * depth)


def contrast(images: np.ndarray, severity: int, _: Randoms) -> np.ndarray:
    """Values come closer to the mean of their channel."""
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = images.mean(axis=(1, 2), keepdims=True)
    return (images - mean) * factor + mean


def elastic_transform(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """A random affine map, and on top a smooth random displacement.

    The affine map is given by three corners of a square of 20 pixels in the middle, each moved at
    random; both interpolate linearly.
    """
    amount, sigma, most = (
        SIZE
        * np.array(
            (
                (0, 0, 0.08),
                (0.05, 0.2, 0.07),
                (0.08, 0.06, 0.06),
                (0.1, 0.04, 0.05),
                (0.1, 0.03, 0.03),
            )
        )[severity - 1]
    )
    middle, reach = SIZE // 2, SIZE // 3
    corners = np.array([[reach, reach], [reach, -reach], [-reach, -reach]]) + float(middle)
    moved = corners + uniform(randoms, -most, most, (3, 2))
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(float)
    # where each pixel of the result is from: the map of the moved corners to the corners
    target = np.concatenate([moved, np.ones((len(images), 3, 1))], axis=2)
    back = np.linalg.solve(target, np.broadcast_to(corners, moved.shape))
    x, y = np.einsum("hwi,nij->jnhw", np.stack([columns, rows, np.ones_like(rows)], -1), back)
    images = interpolated(images, y, x, mirror)
    fields = drawn(randoms, lambda random: random.uniform(-1, 1, (2, SIZE, SIZE)))
    sigmas = (0, 0, sigma, sigma)
    right, down = np.moveaxis(
        amount * ndimage.gaussian_filter(fields, sigmas, mode="reflect", truncate=3.0), 1, 0
    )
    return interpolated(images, rows + down, columns + right, reflect)


def pixelate(images: np.ndarray, severity: int, _: Randoms) -> np.ndarray:
    """Fewer pixels and back, each the mean of the area that it covers."""
    size = int(SIZE * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    reader = pillow("the corruption pixelate")
    box = reader.Resampling.BOX
    results = [
        np.asarray(reader.fromarray(image).resize((size, size), box).resize((SIZE, SIZE), box))
        for image in _bytes(images)
    ]
    return np.stack(results) / 255


def jpeg_compression(images: np.ndarray, severity: int, _: Randoms) -> np.ndarray:
    """JPEG of a low quality, with chroma at half resolution."""
    quality = (80, 65, 58, 50, 40)[severity - 1]
    reader = pillow("the corruption jpeg_compression")
    results = []
    for image in _bytes(images):
        written = io.BytesIO()
        reader.fromarray(image).save(written, "JPEG", quality=quality)
        results.append(np.asarray(reader.open(written)))
    return np.stack(results) / 255


def _bytes(images: np.ndarray) -> np.ndarray:
    return np.rint(255 * images).astype(np.uint8)
