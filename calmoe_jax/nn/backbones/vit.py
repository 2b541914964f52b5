"""Vision transformers, dense or with sparse layers of experts (V-MoE)."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from calmoe_jax._checks import check_at_least, check_choice
from calmoe_jax.nn.backbones._transformer import MoEBlocks, Remat, Transformer
from calmoe_jax.nn.features import Features

# Standard deviation of the initial position embeddings.
_POSITION_SCALE = 0.02


class ViTSize(NamedTuple):
    """Sizes of a vision transformer, as `ViT` takes them."""

    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int


VIT_SIZES: Mapping[str, ViTSize] = MappingProxyType(
    {
        "tiny": ViTSize(4, 16, 2, 2, 32),  # for tests
        "S/32": ViTSize(32, 384, 12, 6, 1536),
        "S/16": ViTSize(16, 384, 12, 6, 1536),
        "B/32": ViTSize(32, 768, 12, 12, 3072),
        "B/16": ViTSize(16, 768, 12, 12, 3072),
    }
)


class ViT(nnx.Module):
    """A vision transformer; its features are the class token after the last normalisation.

    Images are cut into patches, each a token; with `moe` the tokens of the whole batch are routed
    together in every second block, class tokens too. Blocks are one program, scanned over stacked
    parameters; normalisation, attention's softmax, router and statistics are in float32, whatever
    the dtype. Besides the blocks (see `Transformer`), the parameters are `(p^2 c + 1) w` of the
    patches, `w` of the class token, `(1 + n) w` of the positions and `2 w` of the last
    normalisation, for patches of `p x p x c` numbers, `n` of them, and width `w`: with a linear
    head of 1000 classes, `S/16` has 22,050,664 and `B/16` 86,567,656 on images of 224 x 224 x 3.

    Example:
        >>> vit = ViT.of_size("tiny", (8, 8, 3), moe=MoEBlocks(num_experts=4), rngs=nnx.Rngs(0))
        >>> features = vit(jnp.ones((5, 8, 8, 3)))
        >>> features.values.shape, features.layers.load.shape
        ((5, 16), (1, 4))

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words, 2021; Riquelme et al., Scaling Vision
        with Sparse Mixture of Experts, 2021.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        *,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        moe: MoEBlocks | None = None,
        dtype: jnp.dtype | type = jnp.float32,
        param_dtype: jnp.dtype | type = jnp.float32,
        remat: Remat = "none",
        rngs: nnx.Rngs,
    ) -> None:
        """Builds patches, positions and blocks.

        Args:
            image_shape: height, width and channels of an image, in pixels.
            patch_size: height and width of a patch, a divisor of both.
            width: width of tokens, a multiple of `heads`; the number of features.
            depth: number of blocks; even with sparse layers.
            heads: heads of attention.
            mlp_width: hidden units of an MLP, and of an expert.
            moe: the sparse layers in place of every second MLP; `None` for a dense transformer.
            dtype: dtype of the computation, where it is not float32.
            param_dtype: dtype of the parameters; the router's are at least float32.
            remat: `"block"` keeps only the input of each block (or pair of blocks) for the
                gradient, and computes the rest again; `"none"` keeps everything.
            rngs: source of the initial weights, and of the router's noise (`noise`).

        Raises:
            ValueError: if a size is out of range, or does not divide what it has to.
        """
        if len(image_shape) != 3:
            raise ValueError(
                "image_shape must be (height, width, channels), got "
                f"image_shape={tuple(image_shape)}."
            )
        check_at_least("patch_size", patch_size, 1)
        check_at_least("the smallest of image_shape", min(image_shape), 1)
        rows, columns, channels = image_shape
        if rows % patch_size or columns % patch_size:
            raise ValueError(
                f"patch_size must divide height {rows} and width {columns}, got "
                f"patch_size={patch_size}."
            )
        self.transformer = Transformer(
            width, depth=depth, heads=heads, mlp_width=mlp_width, moe=moe, remat=remat,
            dtype=dtype, param_dtype=param_dtype, rngs=rngs,
        )  # fmt: skip
        self.patches = nnx.Linear(
            patch_size**2 * channels, width, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        tokens = 1 + (rows // patch_size) * (columns // patch_size)
        self.class_token = nnx.Param(jnp.zeros(width, param_dtype))
        positions = jax.random.normal(rngs.params(), (tokens, width), param_dtype)
        self.positions = nnx.Param(_POSITION_SCALE * positions)
        self.image_shape, self.patch_size = tuple(image_shape), patch_size
        self.is_sparse = moe is not None
        self.num_features, self.dtype = width, dtype

    @classmethod
    def of_size(cls, name: str, image_shape: Sequence[int], **options: Any) -> "ViT":
        """Builds a transformer by the name of its size.

        Args:
            name: a name of `VIT_SIZES`: `"S/16"`, `"B/16"`, `"S/32"`, `"B/32"`, or `"tiny"` (for
                tests).
            image_shape: height, width and channels of an image.
            **options: the other arguments, as for `ViT`.

        Raises:
            ValueError: if the name is unknown, or as `ViT`.
        """
        check_choice("size", name, tuple(VIT_SIZES))
        return cls(image_shape, **VIT_SIZES[name]._asdict(), **options)

    def __call__(
        self, x: Float[Array, "images height width channels"], *, train: bool = False
    ) -> Features:
        """Features of a batch of images, and the statistics of the sparse layers.

        Args:
            x: images.
            train: whether the router's noise is drawn.

        Returns:
            `Features` in float32; without sparse layers their `layers` are `None`.

        Raises:
            ValueError: if the images have another shape.
        """
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"x must be images of image_shape={self.image_shape}, got x.shape={x.shape}."
            )
        patches = self.patches(_cut(x, self.patch_size)).astype(self.dtype)
        first = jnp.broadcast_to(
            self.class_token[...].astype(self.dtype), (x.shape[0], 1, self.num_features)
        )
        tokens = jnp.concatenate([first, patches], axis=1)
        tokens = tokens + self.positions[...].astype(self.dtype)[None]
        tokens, layers = self.transformer(tokens, train=train)
        return Features(tokens[:, 0], layers)


def _cut(
    x: Float[Array, "images height width channels"], size: int
) -> Float[Array, "images patches numbers"]:
    """Patches of images, row by row, each flattened."""
    images, height, width, channels = x.shape
    x = x.reshape(images, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(images, -1, size * size * channels)
