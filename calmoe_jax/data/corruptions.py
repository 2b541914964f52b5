"""Six corruptions of grey images at five severities, the same on every platform.

Magnitudes are relative to the image, so that 8x8 and 28x28 images are corrupted equally. Random
numbers come from `numpy.random.RandomState`, whose streams are frozen. Every result is rounded to
a byte, which hides rounding differences between platforms.
"""

import zlib
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from calmoe_jax._checks import check_choice

SEVERITIES = (1, 2, 3, 4, 5)

_Images = np.ndarray
_Random = np.random.RandomState


def _gaussian_noise(images: _Images, severity: int, random: _Random) -> _Images:
    sigma = (0.08, 0.14, 0.20, 0.28, 0.38)[severity - 1]
    return images + 255 * sigma * random.standard_normal(images.shape)


def _impulse_noise(images: _Images, severity: int, random: _Random) -> _Images:
    share = (0.03, 0.06, 0.11, 0.18, 0.27)[severity - 1]
    hit, white = random.random_sample((2, *images.shape))
    return np.where(hit < share, np.where(white < 0.5, 0.0, 255.0), images)


def _blur(images: _Images, severity: int, _: _Random) -> _Images:
    sigma = (0.04, 0.055, 0.07, 0.09, 0.12)[severity - 1] * images.shape[1]
    return ndimage.gaussian_filter(images, (0, sigma, sigma), mode="nearest")


def _rotation(images: _Images, severity: int, random: _Random) -> _Images:
    degrees = (10, 20, 30, 40, 50)[severity - 1]
    left = random.random_sample(len(images)) < 0.5
    result = np.empty_like(images)
    for side, sign in ((left, 1), (~left, -1)):
        result[side] = ndimage.rotate(
            images[side], sign * degrees, axes=(1, 2), reshape=False, order=1, mode="constant"
        )
    return result


def _contrast(images: _Images, severity: int, _: _Random) -> _Images:
    factor = (0.6, 0.45, 0.32, 0.21, 0.13)[severity - 1]
    middle = images.mean(axis=(1, 2), keepdims=True)
    return middle + factor * (images - middle)


def _shift(images: _Images, severity: int, random: _Random) -> _Images:
    distance = (0.05, 0.08, 0.12, 0.16, 0.20)[severity - 1] * images.shape[1]
    corner = random.randint(4, size=len(images))
    result = np.empty_like(images)
    for number, (down, right) in enumerate(((1, 1), (1, -1), (-1, 1), (-1, -1))):
        chosen = corner == number
        result[chosen] = ndimage.shift(
            images[chosen], (0, down * distance, right * distance), order=1, mode="constant"
        )
    return result


_CORRUPTIONS: dict[str, Callable[[_Images, int, _Random], _Images]] = {
    "gaussian_noise": _gaussian_noise,
    "impulse_noise": _impulse_noise,
    "blur": _blur,
    "rotation": _rotation,
    "contrast": _contrast,
    "shift": _shift,
}
CORRUPTIONS = tuple(_CORRUPTIONS)


def corrupt(images: np.ndarray, name: str, severity: int) -> np.ndarray:
    """Corrupts grey images.

    Args:
        images: `[n, height, width]`, uint8.
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.

    Returns:
        Images of the same shape, uint8; deterministic.

    Raises:
        ValueError: for an unknown name or severity.

    Example:
        >>> corrupt(np.full((1, 2, 2), 100, np.uint8), "contrast", 5).tolist()
        [[[100, 100], [100, 100]]]
    """
    check_choice("name", name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be in [1, 5], got severity={severity}.")
    random = np.random.RandomState(zlib.crc32(f"{name} {severity}".encode()))
    result = _CORRUPTIONS[name](images.astype(np.float64), severity, random)
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)
