"""Drops of water or mud on the lens."""

import numpy as np
from scipy import ndimage

from calmoe_jax.data.cifar_corruptions._parts import SIZE, Randoms, boxed, normal, smoothed

_WATER, _MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
_WEAK, _STRONG = 50, 150  # thresholds of edges, of gradients of bytes
_FARTHEST = 20
# Steps of a pixel's distance and their lengths: the chamfer metric of 5x5 pixels.
_STEPS = [
    *((y, x, 1.0) for y, x in ((0, 1), (1, 0), (0, -1), (-1, 0))),
    *((y, x, 1.4) for y in (-1, 1) for x in (-1, 1)),
    *((y, x, 2.1969) for a in (-1, 1) for b in (-2, 2) for y, x in ((a, b), (b, a))),
]
_TAN_22, _TAN_67 = np.tan(np.deg2rad(22.5)), np.tan(np.deg2rad(67.5))


def spatter(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """Water, lit from one side, at severities 1 to 3; mud at 4 and 5."""
    mean, scale, sigma, least, amount, muddy = (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1.0, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    )[severity - 1]
    liquid = smoothed(mean + scale * normal(randoms, (SIZE, SIZE)), sigma)
    liquid = np.where(liquid < least, 0, liquid)
    if muddy:
        cover = smoothed((liquid > least).astype(float), amount)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return images * (1 - cover) + _MUD * cover
    drops = np.clip(255 * liquid, 0, 255).astype(np.uint8)
    light = drops * _relief(drops)
    brightest = light.max(axis=(1, 2), keepdims=True)
    light = light / np.where(brightest > 0, brightest, 1)
    return images + amount * light[..., None] * _WATER


def _relief(drops: np.ndarray) -> np.ndarray:
    """How light falls on drops: their distance from an edge, equalised and embossed."""
    distance = np.minimum(_distances(_edges(drops)), _FARTHEST)
    distance = _equalised(np.floor(boxed(distance) + 1e-6).astype(np.uint8))
    lit = ndimage.correlate(distance.astype(int), _EMBOSS[None], mode="mirror")
    return np.rint(boxed(np.clip(lit, 0, 255).astype(float)))


def _edges(images: np.ndarray) -> np.ndarray:
    """Canny's edges: ridges of the gradient above a threshold that touch one above a higher one.

    The gradient is Sobel's, its size `|dx| + |dy|`; a ridge is larger than its two neighbours
    across, in the nearest of four directions.
    """
    values = images.astype(int)
    # not `ndimage.sobel`, which would smooth along the images as well
    smooth, differ = np.array([1, 2, 1]), np.array([-1, 0, 1])
    dx, dy = (
        ndimage.correlate1d(
            ndimage.correlate1d(values, differ, axis, mode="nearest"),
            smooth, 3 - axis, mode="nearest",
        )
        for axis in (2, 1)
    )  # fmt: skip
    size = np.abs(dx) + np.abs(dy)
    padded = np.pad(size, ((0, 0), (1, 1), (1, 1)))

    def at(y: int, x: int) -> np.ndarray:
        return padded[:, 1 + y : 1 + y + size.shape[1], 1 + x : 1 + x + size.shape[2]]

    steepness = np.abs(dy) / np.where(dx == 0, 1e-9, np.abs(dx))
    flat, steep = steepness < _TAN_22, steepness > _TAN_67
    falling = (dx < 0) != (dy < 0)
    along = np.where(
        flat,
        (size > at(0, -1)) & (size >= at(0, 1)),
        np.where(
            steep,
            (size > at(-1, 0)) & (size >= at(1, 0)),
            np.where(
                falling,
                (size > at(-1, 1)) & (size > at(1, -1)),
                (size > at(-1, -1)) & (size > at(1, 1)),
            ),
        ),
    )
    ridge = along & (size > _WEAK)
    touching = np.zeros((3, 3, 3), bool)
    touching[1] = True  # within an image
    groups, count = ndimage.label(ridge, touching)
    strong = np.zeros(count + 1, bool)
    strong[groups[ridge & (size > _STRONG)]] = True
    return strong[groups] & ridge


def _distances(edges: np.ndarray) -> np.ndarray:
    """Chamfer distance of each pixel from the nearest edge, exact up to `_FARTHEST`."""
    distance = np.where(edges, 0.0, _FARTHEST + 1.0)
    height, width = edges.shape[1:]
    while True:
        padded = np.pad(distance, ((0, 0), (2, 2), (2, 2)), constant_values=_FARTHEST + 1.0)
        nearer = distance
        for y, x, length in _STEPS:
            there = padded[:, 2 + y : 2 + y + height, 2 + x : 2 + x + width]
            nearer = np.minimum(nearer, there + length)
        if (nearer == distance).all():
            return distance
        distance = nearer


def _equalised(images: np.ndarray) -> np.ndarray:
    """Histogram equalisation of small whole numbers: ranks among an image's pixels, up to 255."""
    levels = np.arange(int(images.max()) + 1)
    counts = (images[..., None] == levels).sum(axis=(1, 2))
    pixels = images.shape[1] * images.shape[2]
    first = counts[np.arange(len(images)), (counts > 0).argmax(axis=1)][:, None]
    below = np.clip(np.cumsum(counts, axis=1) - first, 0, None)
    ranks = np.rint(below * (255.0 / np.where(first == pixels, 1, pixels - first)))
    table = np.where(first == pixels, levels, ranks).astype(np.uint8)
    return table[np.arange(len(images))[:, None, None], images]
