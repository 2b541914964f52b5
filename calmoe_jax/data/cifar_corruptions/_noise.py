"""Noise of every pixel and channel."""

import numpy as np

from calmoe_jax.data.cifar_corruptions._parts import Randoms, drawn, normal


def gaussian_noise(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """Normal noise, of one size in every pixel: that of electronics in the dark."""
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    return images + scale * normal(randoms, images.shape[1:])


def shot_noise(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """Poisson noise: the number of photons that a pixel counts."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    counts = [
        random.poisson(photons * image) for image, random in zip(images, randoms, strict=True)
    ]
    return np.stack(counts) / photons


def impulse_noise(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """Salt and pepper: a share of all values becomes 0 or 1, as likely."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    shape = (2, *images.shape[1:])
    hit, white = np.moveaxis(drawn(randoms, lambda random: random.random_sample(shape)), 1, 0)
    return np.where(hit < share, np.where(white < 0.5, 1.0, 0.0), images)


def speckle_noise(images: np.ndarray, severity: int, randoms: Randoms) -> np.ndarray:
    """Normal noise in proportion to the brightness."""
    scale = (0.06, 0.10, 0.12, 0.16, 0.20)[severity - 1]
    return images + images * (scale * normal(randoms, images.shape[1:]))
