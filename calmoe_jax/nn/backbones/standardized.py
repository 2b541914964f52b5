"""A backbone on pixels that are shifted and scaled, as pretrained weights expect them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from calmoe_jax._checks import check_positive
from calmoe_jax.nn.features import Features


class PixelScale(NamedTuple):
    """What images in [0, 1] are standardised by: `(x - mean) / deviation`, for each channel.

    Attributes:
        mean: a number for each channel.
        deviation: a positive number for each channel.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


IMAGENET_PIXELS = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SYMMETRIC_PIXELS = PixelScale((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # to [-1, 1]


class Standardized(nnx.Module):
    """A backbone for images, on standardised pixels; it has the backbone's parameters only.

    Example:
        >>> net = Standardized(ResNet18(3, stages=1, rngs=nnx.Rngs(0)), IMAGENET_PIXELS)
        >>> net(jnp.ones((2, 8, 8, 3))).shape
        (2, 64)
    """

    def __init__(self, backbone: Any, scale: PixelScale) -> None:
        """Wraps a backbone.

        Args:
            backbone: a backbone for images (see `calmoe_jax.nn.Backbone`).
            scale: what pixels are standardised by.

        Raises:
            ValueError: if mean and deviation differ in length, or a deviation is not positive.
        """
        if len(scale.mean) != len(scale.deviation):
            raise ValueError(
                "scale must have a mean and a deviation for each channel, got "
                f"{len(scale.mean)} means and {len(scale.deviation)} deviations."
            )
        for deviation in scale.deviation:
            check_positive("deviation", deviation)
        self.backbone, self.scale = backbone, scale
        self.num_features: int = backbone.num_features

    def __call__(
        self, x: Float[Array, "images height width channels"], *, train: bool = False
    ) -> Float[Array, "images features"] | Features:
        """Features of a batch of images.

        Args:
            x: images in [0, 1].
            train: as the backbone takes it.

        Returns:
            What the backbone returns.

        Raises:
            ValueError: if the images have another number of channels.
        """
        if x.shape[-1] != len(self.scale.mean):
            raise ValueError(
                f"x must have {len(self.scale.mean)} channels, as scale has, got x.shape={x.shape}."
            )
        mean, deviation = (jnp.asarray(numbers, x.dtype) for numbers in self.scale)
        standard = (x - mean[None, None, None]) / deviation[None, None, None]
        found: jax.Array | Features = self.backbone(standard, train=train)
        return found
