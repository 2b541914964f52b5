"""Blurs: out of focus, through glass, of motion, while zooming, Gaussian."""

import numpy as np
from scipy import ndimage

from calmoe_jax.data.cifar_corruptions._parts import (
    SIZE,
    Randoms,
    drawn,
    motion_blurred,
    smoothed,
    uniform,
    zoomed,
)


def gaussian_blur(images: np.ndarray, severity: int, _: Randoms) -> np.ndarray:
    """A Gaussian kernel."""
    return smoothed(images, (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1])


def defocus_blur(images: np.ndarray, severity: int, _: Randoms) -> np.ndarray:
    """A disk, itself blurred by a Gaussian of 3x3 pixels."""
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity - 1]
    place = np.arange(-3, 4)
    disk = (place[:, None] ** 2 + place**2 <= radius**2).astype(float)
    weights = np.exp(-np.square(np.arange(-1, 2)) / (2 * sigma**2))
    weights /= weights.sum()
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(weights, weights), mode="constant")
    return ndimage.correlate(images, kernel[None, :, :, None], mode="mirror")


def glass_blur(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """A blur, pixels copied from a random neighbour, and the blur again.

    From the last row and column on, each pixel takes the value of itself or of a neighbour above or
    to the left: it may take none that was changed before it, so all are taken at once.
    """
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity - 1]
    blurred = np.floor(255 * smoothed(images, sigma) + 1e-6) / 255
    inside = np.arange(2, SIZE)
    shape = (rounds, len(inside), len(inside), 2)
    moves = drawn(randoms, lambda random: random.randint(-1, 1, shape))
    number = np.arange(len(images))[:, None, None]
    for i in range(rounds):
        rows = inside[:, None] + moves[:, i, ..., 0]
        columns = inside + moves[:, i, ..., 1]
        blurred[:, 2:, 2:] = blurred[number, rows, columns]
    return smoothed(blurred, sigma)


def motion_blur(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """Motion, at most 45 degrees from the horizontal."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity - 1]
    return motion_blurred(images, radius, sigma, uniform(randoms, -45.0, 45.0))


def zoom_blur(images: np.ndarray, severity: int, _: Randoms) -> np.ndarray:
    """The mean of the image and of its magnifications by 0, 1, ... 6, 11, 15, 20 or 25 %.

    The ends are those of `arange` with steps of 0.01, whose rounding the published set has, too.
    """
    largest = (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1]
    factors = np.arange(1, largest, 0.01)
    channels = np.ascontiguousarray(np.moveaxis(images, -1, 1))
    total = channels + sum(zoomed(channels, float(factor)) for factor in factors)
    return np.moveaxis(total, 1, -1) / (len(factors) + 1)
