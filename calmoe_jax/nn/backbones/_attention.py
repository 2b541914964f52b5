"""Self-attention, whose weights may be dropped in training."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from calmoe_jax.nn.backbones._dropout import dropped


class Attention(nnx.Module):
    """Self-attention with several heads and biases; its softmax is in float32."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        dtypes: dict[str, Any],
        rngs: nnx.Rngs,
    ) -> None:
        self.heads, self.dropout = heads, dropout
        self.inputs = nnx.Linear(width, 3 * width, **dtypes, rngs=rngs)
        self.output = nnx.Linear(width, width, **dtypes, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "examples tokens width"],
        mask: Bool[Array, "examples tokens"] | None,
        key: jax.Array | None,
    ) -> Float[Array, "examples tokens width"]:
        """What each token attends to, mixed; a key draws the weights that are dropped."""
        examples, tokens, width = x.shape
        parts = self.inputs(x).reshape(examples, tokens, 3, self.heads, width // self.heads)
        seen = None if mask is None else mask[:, None, None, :]
        queries, keys, values = (parts[:, :, i] for i in range(3))
        if key is None or self.dropout == 0:
            mixed = jax.nn.dot_product_attention(queries, keys, values, mask=seen)
        else:
            weights = dropped(_attention_weights(queries, keys, seen), self.dropout, key)
            mixed = jnp.einsum("ehqk,ekhd->eqhd", weights.astype(values.dtype), values)
        result: jax.Array = self.output(mixed.reshape(x.shape))
        return result


def _attention_weights(
    queries: Float[Array, "examples tokens heads d"],
    keys: Float[Array, "examples tokens heads d"],
    seen: Bool[Array, "examples 1 1 tokens"] | None,
) -> Float[Array, "examples heads tokens tokens"]:
    """Weights of `jax.nn.dot_product_attention`, in at least float32; even where none is seen."""
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    logits = jnp.einsum("eqhd,ekhd->ehqk", queries, keys, preferred_element_type=wide)
    logits = logits / math.sqrt(queries.shape[-1])
    if seen is not None:
        logits = jnp.where(seen, logits, jnp.finfo(wide).min / 2)
    return jax.nn.softmax(logits, axis=-1)
