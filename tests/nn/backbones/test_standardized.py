"""Standardised pixels."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calmoe_jax import nn

IMAGES = jnp.asarray(np.random.RandomState(0).rand(2, 4, 4, 3), jnp.float32)


def test_the_backbone_gets_shifted_and_scaled_channels():
    backbone = nn.MLP(48, (5,), rngs=nnx.Rngs(0))
    wrapped = nn.Standardized(backbone, nn.PixelScale((0.1, 0.2, 0.3), (0.5, 0.25, 2.0)))
    shown = np.stack([(IMAGES[..., c] - 0.1 * (c + 1)) / s for c, s in enumerate((0.5, 0.25, 2))])
    want = backbone(jnp.asarray(shown).transpose(1, 2, 3, 0))
    np.testing.assert_allclose(wrapped(IMAGES), want, rtol=1e-5, atol=1e-5)
    assert wrapped.num_features == 5
    assert nn.count_parameters(wrapped) == nn.count_parameters(backbone)
    ones = nn.Standardized(backbone, nn.SYMMETRIC_PIXELS)
    np.testing.assert_allclose(ones(IMAGES), backbone(2 * IMAGES - 1), rtol=1e-5, atol=1e-5)


def test_batch_statistics_are_the_backbones():
    net = nn.Standardized(nn.ResNet18(3, stages=1, width=4, rngs=nnx.Rngs(0)), nn.IMAGENET_PIXELS)
    before = np.asarray(net.backbone.norm.mean[...])
    net(IMAGES, train=True)
    assert (np.asarray(net.backbone.norm.mean[...]) != before).any()


def test_wrong_arguments():
    backbone = nn.MLP(48, (5,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"x must have 3 channels, .* got x.shape=\(2, 4, 4, 1\)"):
        nn.Standardized(backbone, nn.IMAGENET_PIXELS)(IMAGES[..., :1])
    with pytest.raises(ValueError, match="got 1 means and 2 deviations"):
        nn.Standardized(backbone, nn.PixelScale((0.5,), (0.5, 0.5)))
    with pytest.raises(ValueError, match=r"deviation must be positive and finite, got .*0\.0"):
        nn.Standardized(backbone, nn.PixelScale((0.5,), (0.0,)))
