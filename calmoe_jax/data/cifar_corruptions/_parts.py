"""What several corruptions share: random fields, blurs, zoom, interpolation, fractal noise.

Images are float64 in [0, 1], `[n, height, width]` or `[n, height, width, channels]`. Every function
treats each image by itself.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

SIZE = 32
# A generator of random numbers for each image.
Randoms = list[np.random.RandomState]


def drawn(
    randoms: Randoms, draw: Callable[[np.random.RandomState], np.ndarray | float]
) -> np.ndarray:
    """What `draw` makes of each image's random numbers, one after the other."""
    return np.stack([np.asarray(draw(random)) for random in randoms])


def normal(randoms: Randoms, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers of a shape for each image."""
    return drawn(randoms, lambda random: random.standard_normal(shape))


def uniform(randoms: Randoms, low: float, high: float, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Uniform numbers of a shape for each image."""
    return drawn(randoms, lambda random: random.uniform(low, high, shape))


def smoothed(images: np.ndarray, sigma: float, mode: str = "nearest") -> np.ndarray:
    """Gaussian blur; the kernel ends at four standard deviations."""
    sigmas = (0, sigma, sigma, 0)[: images.ndim]
    return ndimage.gaussian_filter(images, sigmas, mode=mode, truncate=4.0)


def boxed(images: np.ndarray) -> np.ndarray:
    """Mean over 3x3 pixels, mirrored at the edge pixel."""
    return ndimage.uniform_filter(images, (0, 3, 3), mode="mirror")


def motion_blurred(
    images: np.ndarray, radius: int, sigma: float, degrees: np.ndarray
) -> np.ndarray:
    """ImageMagick's motion blur: a one-sided Gaussian along a direction.

    Pixel `z` becomes `sum_i k_i x(z + o_i)` for `i = 0 ... 2 radius`, with
    `k_i ~ exp(-i^2 / (2 sigma^2))` of sum 1 and `o_i` the offset of length `i` in the direction,
    rounded to whole pixels. Beyond the edge the edge pixel counts. Levels are rounded to bytes.

    Args:
        images: images.
        radius: the kernel has `2 radius + 1` entries.
        sigma: standard deviation, pixels.
        degrees: `[n]` directions: 0 from the right, 90 from below.
    """
    steps = np.arange(2 * radius + 1)
    kernel = np.exp(-np.square(steps) / (2 * sigma**2))
    kernel /= kernel.sum()
    angles = np.deg2rad(degrees)[:, None]
    down = np.ceil(steps * np.sin(angles) - 0.5).astype(int)
    right = np.ceil(steps * np.cos(angles) - 0.5).astype(int)
    height, width = images.shape[1:3]
    rows, columns = np.arange(height)[:, None], np.arange(width)
    pixels = images.reshape(len(images), height * width, -1)
    result = np.zeros_like(pixels)
    for i, weight in enumerate(kernel):
        of_rows = np.clip(rows + down[:, i, None, None], 0, height - 1)
        of_columns = np.clip(columns + right[:, i, None, None], 0, width - 1)
        places = (of_rows * width + of_columns).reshape(len(images), -1, 1)
        result += weight * np.take_along_axis(pixels, places, axis=1)
    return np.rint(255 * result).reshape(images.shape) / 255


def zoom_matrix(factor: float, size: int = SIZE) -> np.ndarray:
    """The linear map along one axis that magnifies the middle of an image.

    The middle `ceil(size / factor)` pixels are interpolated linearly, first and last pixel kept,
    to the nearest whole number of pixels, of which the middle `size` are kept.
    """
    crop = int(np.ceil(size / factor))
    start = (size - crop) // 2
    enlarged = round(crop * factor)
    trimmed = (enlarged - size) // 2
    places = np.arange(trimmed, trimmed + size) * ((crop - 1) / max(enlarged - 1, 1))
    low = np.clip(np.floor(places).astype(int), 0, crop - 1)
    share = places - low
    matrix = np.zeros((size, size))
    rows = np.arange(size)
    np.add.at(matrix, (rows, start + low), 1 - share)
    np.add.at(matrix, (rows, start + np.minimum(low + 1, crop - 1)), share)
    return matrix


def zoomed(images: np.ndarray, factor: float) -> np.ndarray:
    """The middle of each image, magnified (see `zoom_matrix`); height and width are last."""
    matrix = zoom_matrix(factor)
    return np.matmul(matrix, images) @ matrix.T


def interpolated(
    images: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    fold: Callable[[np.ndarray, int], np.ndarray],
) -> np.ndarray:
    """Bilinear interpolation at places `[n, height, width]` of each image.

    Args:
        images: `[n, height, width, channels]`.
        rows: row of each place.
        columns: column of each place.
        fold: maps the indices outside an axis into it (`mirror`, `reflect`).
    """
    height, width = images.shape[1:3]
    number = np.arange(len(images))[:, None, None]
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    result = np.zeros((*rows.shape, images.shape[-1]))
    for below in (0, 1):
        for beside in (0, 1):
            weight = (down if below else 1 - down) * (right if beside else 1 - right)
            place = fold(top + below, height), fold(left + beside, width)
            result += weight * images[number, *place]
    return result


def mirror(index: np.ndarray, size: int) -> np.ndarray:
    """Folds indices at the centres of the edge pixels: -1 becomes 1."""
    index = np.abs(index) % (2 * size - 2)
    return np.minimum(index, 2 * size - 2 - index)


def reflect(index: np.ndarray, size: int) -> np.ndarray:
    """Folds indices at the outer edges of the edge pixels: -1 becomes 0."""
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)


def fractal(randoms: Randoms, decay: float, size: int = SIZE) -> np.ndarray:
    """Cloud-like noise on a torus by the diamond-square algorithm, from 0 to 1.

    From one corner on, the middle of each square becomes the mean of its corners, and the middle of
    each edge the mean of its ends and of the middles of the squares beside it, both plus noise that
    is uniform in `-w^2 ... w^2`; then squares and `w` (100 at first) shrink, by 2 and by `decay`.

    Args:
        randoms: random numbers of each image.
        decay: factor by which `w` shrinks with each halving; larger is smoother.
        size: height and width, a power of two.
    """
    field = np.zeros((len(randoms), size, size))
    step, wobble = size, 100.0
    while step > 1:
        half = step // 2
        shape = (size // step, size // step)
        scale = wobble * wobble
        corners = field[:, ::step, ::step]
        beside = corners + np.roll(corners, -1, axis=1)
        middles = (beside + np.roll(beside, -1, axis=2)) / 4
        middles = middles + uniform(randoms, -scale, scale, shape)
        field[:, half::step, half::step] = middles
        # edges that run along the rows have a middle above and one below, the others left and right
        along_rows = (middles + np.roll(middles, 1, axis=1) + corners) / 4
        along_rows = along_rows + np.roll(corners, -1, axis=2) / 4
        field[:, ::step, half::step] = along_rows + uniform(randoms, -scale, scale, shape)
        along_columns = (middles + np.roll(middles, 1, axis=2) + corners) / 4
        along_columns = along_columns + np.roll(corners, -1, axis=1) / 4
        field[:, half::step, ::step] = along_columns + uniform(randoms, -scale, scale, shape)
        step, wobble = half, wobble / decay
    field -= field.min(axis=(1, 2), keepdims=True)
    return field / field.max(axis=(1, 2), keepdims=True)
