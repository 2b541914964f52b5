"""A backbone on images of another size, as pretrained weights expect them."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from calmoe_jax._checks import check_at_least
from calmoe_jax.nn.features import Features


class Resized(nnx.Module):
    """A backbone for images, on images resized to a square; it has the backbone's parameters only.

    Pixels are interpolated linearly between their centres, by a kernel that is wider where images
    shrink (`jax.image.resize`, bilinear). Only a batch at a time is held at the new size.

    Example:
        >>> net = Resized(ViT.of_size("tiny", (24, 24, 3), rngs=nnx.Rngs(0)), 24)
        >>> net(jnp.ones((2, 8, 8, 3))).values.shape
        (2, 16)
    """

    def __init__(self, backbone: Any, image_size: int) -> None:
        """Wraps a backbone.

        Args:
            backbone: a backbone for images (see `calmoe_jax.nn.Backbone`).
            image_size: height and width of what it gets, in pixels.

        Raises:
            ValueError: if the size is less than 1.
        """
        check_at_least("image_size", image_size, 1)
        self.backbone, self.image_size = backbone, image_size
        self.num_features: int = backbone.num_features

    def __call__(
        self, x: Float[Array, "images height width channels"], *, train: bool = False
    ) -> Float[Array, "images features"] | Features:
        """Features of a batch of images.

        Args:
            x: images of any height and width.
            train: as the backbone takes it.

        Returns:
            What the backbone returns.
        """
        shape = (x.shape[0], self.image_size, self.image_size, x.shape[-1])
        resized = jax.image.resize(x, shape, "bilinear")
        found: jax.Array | Features = self.backbone(resized, train=train)
        return found
