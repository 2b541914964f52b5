"""A transformer encoder of text, dense or with sparse layers of experts."""

from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_where
from calmoe_jax.nn.backbones._transformer import (
    EPSILON,
    MoEBlocks,
    NormOrder,
    Remat,
    Transformer,
    layer_norm,
)
from calmoe_jax.nn.features import Features

# Standard deviation of the initial embeddings.
_EMBEDDING_SCALE = 0.02


class Text(TypedDict):
    """A batch of texts.

    Attributes:
        ids: number of each token in the vocabulary; anything where the mask is false.
        mask: tokens that count, true for a text's first token; the others are padding.
    """

    ids: Int[Array, "examples length"]
    mask: Bool[Array, "examples length"]


class TextEncoder(nnx.Module):
    """A transformer on tokens of text; its features are the first token's.

    Padding takes part in nothing: no token attends to it, and it is not routed, takes no capacity
    and is in no statistic. The blocks are those of `ViT`, or normalise after each sum as BERT's do.
    Besides them the parameters are `V w` of the vocabulary, `L w` of the positions, and `2 w` of
    the last normalisation, or with BERT's order of the embeddings'.

    Example:
        >>> encoder = TextEncoder(
        ...     100, 6, width=8, depth=2, heads=2, mlp_width=16, moe=MoEBlocks(num_experts=4),
        ...     rngs=nnx.Rngs(0))
        >>> ids = jnp.array([[1, 5, 7, 0, 0, 0], [1, 9, 0, 0, 0, 0]])
        >>> features = encoder({"ids": ids, "mask": ids > 0})
        >>> features.values.shape, features.layers.num_tokens.tolist()
        ((2, 8), [5])
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        *,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        moe: MoEBlocks | None = None,
        dtype: jnp.dtype | type = jnp.float32,
        param_dtype: jnp.dtype | type = jnp.float32,
        remat: Remat = "none",
        norms: NormOrder = "before",
        epsilon: float = EPSILON,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds embeddings and blocks.

        Args:
            vocab_size: number of tokens in the vocabulary.
            max_length: largest length of a text, in tokens.
            width: as in `ViT`; the number of features.
            depth: as in `ViT`.
            heads: as in `ViT`.
            mlp_width: as in `ViT`.
            moe: as in `ViT`. An expert's capacity is a share of all tokens, padding included,
                since shapes are static.
            dtype: as in `ViT`.
            param_dtype: as in `ViT`.
            remat: as in `ViT`.
            norms: `"before"`: blocks normalise what attention and MLP get, and the last output is
                normalised; `"after"`: embeddings, and each sum with a shortcut.
            epsilon: what normalisation adds to the variance, positive.
            dropout: share in [0, 1) of the numbers of the embeddings (after their normalisation)
                and of the outputs of MLPs and sparse layers that is zero in training, another at
                each call and in each layer; the others are divided by what is kept.
            attention_dropout: the same for the weights of attention.
            rngs: as in `ViT`, and of what is dropped (`dropout`).

        Raises:
            ValueError: if a size or share is out of range, or a size does not divide what it has
                to.
        """
        check_at_least("vocab_size", vocab_size, 1)
        check_at_least("max_length", max_length, 1)
        self.transformer = Transformer(
            width, depth=depth, heads=heads, mlp_width=mlp_width, moe=moe, remat=remat,
            norms=norms, epsilon=epsilon, dropout=dropout, attention_dropout=attention_dropout,
            dtype=dtype, param_dtype=param_dtype, rngs=rngs,
        )  # fmt: skip

        def embeddings(number: int) -> nnx.Param:
            values = jax.random.normal(rngs.params(), (number, width), param_dtype)
            return nnx.Param(_EMBEDDING_SCALE * values)

        self.vocabulary, self.positions = embeddings(vocab_size), embeddings(max_length)
        after = norms == "after"
        self.norm = layer_norm(width, epsilon, param_dtype, rngs) if after else None
        self.num_features, self.dtype = width, dtype

    def __call__(self, x: Text | Any, *, train: bool = False) -> Features:
        """Features of a batch of texts, and the statistics of the sparse layers.

        Args:
            x: `{"ids": ..., "mask": ...}`, or the pair of both; see `Text`.
            train: whether the router's noise and dropout are drawn.

        Returns:
            `Features` in float32; NaN for a text with an id outside the vocabulary where its mask
            is true. Without sparse layers their `layers` are `None`.

        Raises:
            ValueError: if the texts are longer than `max_length`, or ids and mask differ in shape.
        """
        ids, mask = (x["ids"], x["mask"]) if isinstance(x, dict) else x
        return self._encode(jnp.asarray(ids), jnp.asarray(mask), train)

    def _encode(
        self, ids: Int[Array, "examples length"], mask: Bool[Array, "examples length"], train: bool
    ) -> Features:
        check_where("mask", mask, ids.shape)
        length = ids.shape[1]
        vocabulary, positions = self.vocabulary[...], self.positions[...]
        if length > positions.shape[0]:
            raise ValueError(
                f"ids must have at most max_length={positions.shape[0]} tokens, got "
                f"ids.shape={ids.shape}."
            )
        ids = jnp.where(mask, ids, 0)
        ids = jnp.where(ids < 0, vocabulary.shape[0], ids)  # outside, not from the end
        tokens: Float[Array, "examples length width"] = jnp.take(
            vocabulary, ids, axis=0, mode="fill", fill_value=jnp.nan
        )
        tokens = tokens.astype(self.dtype) + positions[:length].astype(self.dtype)[None]
        if self.norm is not None:
            tokens = self.norm(tokens)
        tokens, layers = self.transformer(tokens, mask=mask, train=train)
        return Features(tokens[:, 0], layers)
