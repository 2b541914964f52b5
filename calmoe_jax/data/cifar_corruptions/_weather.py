"""Snow, frost and fog."""

import functools

import numpy as np

from calmoe_jax.data.cifar_corruptions._parts import (
    SIZE,
    Randoms,
    drawn,
    fractal,
    motion_blurred,
    normal,
    smoothed,
    uniform,
    zoomed,
)

_GREY = np.array([0.299, 0.587, 0.114])  # shares of red, green and blue in the brightness
_TEXTURES, _TEXTURE_SIZE = 5, 160
_ICE, _DARK = np.array([0.92, 0.96, 1.0]), np.array([0.16, 0.22, 0.30])


def snow(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """Flakes that fall, blurred by their motion, and once more turned by 180 degrees; and haze."""
    mean, scale, zoom, least, radius, sigma, kept = (
        (0.1, 0.2, 1.0, 0.6, 8, 3.0, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4.0, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4.0, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6.0, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12.0, 0.8),
    )[severity - 1]
    flakes = zoomed(mean + scale * normal(randoms, (SIZE, SIZE)), zoom)
    flakes = np.where(flakes < least, 0, np.clip(flakes, 0, 1))
    flakes = np.floor(255 * flakes + 1e-6) / 255
    flakes = motion_blurred(flakes, radius, sigma, uniform(randoms, -135.0, -45.0))[..., None]
    bright = np.maximum(images, 1.5 * (images @ _GREY)[..., None] + 0.5)
    return kept * images + (1 - kept) * bright + flakes + flakes[:, ::-1, ::-1]


def frost(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """A piece of a texture, added to the image; the texture is made up (see the package)."""
    kept, added = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    textures = _frost_textures()
    last = _TEXTURE_SIZE - SIZE
    chosen = drawn(randoms, lambda random: random.randint([0, 0, 0], [_TEXTURES, last, last]))
    pieces = [textures[i, y : y + SIZE, x : x + SIZE] for i, y, x in chosen]
    return kept * images + added * np.stack(pieces)


@functools.cache
def _frost_textures() -> np.ndarray:
    """Crystals of ice from nothing but noise: bright ridges at four scales, on dark glass."""
    textures = []
    for number in range(_TEXTURES):
        random = np.random.RandomState(number)
        ice = np.zeros((1, _TEXTURE_SIZE, _TEXTURE_SIZE))
        for scale in (1.0, 2.0, 4.0, 8.0):
            noise = smoothed(random.standard_normal(ice.shape), scale, mode="wrap")
            ice += np.square(np.clip(1 - np.abs(noise) / noise.std(), 0, 1)) * np.sqrt(scale)
        ice = np.clip(ice / np.quantile(ice, 0.98), 0, 1)[0, :, :, None]
        textures.append(_DARK + (_ICE - _DARK) * ice)
    return np.floor(255 * np.stack(textures)) / 255


def fog(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """Clouds of fractal noise; the largest value of an image stays about what it is."""
    amount, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity - 1]
    largest = images.max(axis=(1, 2, 3), keepdims=True)
    hazy = images + amount * fractal(randoms, decay)[..., None]
    return hazy * largest / (largest + amount)
