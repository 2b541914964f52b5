"""Resized images: the backbone gets pixels interpolated between their centres."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calmoe_jax import nn

IMAGES = jnp.asarray(np.random.RandomState(0).rand(2, 6, 9, 3), jnp.float32)


def backbone(size):
    return nn.MLP(size * size * 3, (5,), rngs=nnx.Rngs(0))


def interpolated(images, size):
    """By a weight for each pair of centres: a triangle, as wide as two of the larger pixels."""

    def weights(old):
        ratio = old / size
        at = (np.arange(size) + 0.5)[:, None] * ratio - (np.arange(old) + 0.5)
        heights = np.maximum(0, 1 - np.abs(at) / max(1, ratio))
        return heights / heights.sum(axis=1, keepdims=True)

    rows, columns = (weights(old) for old in images.shape[1:3])
    return np.einsum("ih,jw,nhwc->nijc", rows, columns, np.asarray(images, np.float64))


@pytest.mark.parametrize("size", [4, 6, 8, 13])
def test_the_backbone_gets_resized_images(size):
    plain = backbone(size)
    wrapped = nn.Resized(plain, size)
    want = plain(jnp.asarray(interpolated(IMAGES, size), jnp.float32))
    np.testing.assert_allclose(wrapped(IMAGES), want, rtol=1e-4, atol=1e-5)
    by_jax = plain(jax.image.resize(IMAGES, (2, size, size, 3), "bilinear"))
    np.testing.assert_array_equal(wrapped(IMAGES), by_jax)
    np.testing.assert_allclose(
        jax.jit(wrapped.__call__)(IMAGES), wrapped(IMAGES), rtol=1e-5, atol=1e-6
    )
    assert wrapped.num_features == 5
    assert nn.count_parameters(wrapped) == nn.count_parameters(plain)


def test_images_of_that_size_stay():
    plain, square = backbone(6), IMAGES[:, :, :6]
    np.testing.assert_array_equal(nn.Resized(plain, 6)(square), plain(square))


def test_every_pixel_has_a_gradient():
    for size in (4, 13):
        wrapped = nn.Resized(backbone(size), size)
        gradient = jax.grad(lambda x, net=wrapped: jnp.sum(jnp.sin(net(x))))(IMAGES)
        assert jnp.isfinite(gradient).all()
        assert (gradient != 0).all()


def test_the_call_for_training_reaches_the_backbone():
    net = nn.Resized(nn.ResNet18(3, stages=1, width=4, rngs=nnx.Rngs(0)), 8)
    before = np.asarray(net.backbone.norm.mean[...])
    net(IMAGES)
    np.testing.assert_array_equal(net.backbone.norm.mean[...], before)
    net(IMAGES, train=True)
    assert (np.asarray(net.backbone.norm.mean[...]) != before).any()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="image_size must be at least 1, got image_size=0"):
        nn.Resized(backbone(4), 0)
