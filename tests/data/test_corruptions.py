"""Corruptions: the same ones always, worse with severity."""

import numpy as np
import pytest

from calmoe_jax.data.corruptions import CORRUPTIONS, corrupt


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", [8, 28])
def test_corruptions_grow_with_severity_and_repeat(name, size):
    y, x = np.mgrid[:size, :size] / size
    image = 255 * np.exp(-((x - 0.5) ** 2 + (y - 0.4) ** 2) / 0.05)
    images = np.tile(image.astype(np.uint8), (30, 1, 1))
    kept = images.copy()
    changes = []
    for severity in range(1, 6):
        result = corrupt(images, name, severity)
        assert result.dtype == np.uint8
        assert result.shape == images.shape
        assert (result == corrupt(images, name, severity)).all()
        changes.append(np.abs(result.astype(float) - images).mean())
    assert (np.diff([0, *changes]) > 0).all()
    assert (images == kept).all()


def test_corruption_arguments():
    images = np.zeros((1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match=r"name must be one of .* got name='fog'"):
        corrupt(images, "fog", 1)
    with pytest.raises(ValueError, match="severity"):
        corrupt(images, "blur", 6)
