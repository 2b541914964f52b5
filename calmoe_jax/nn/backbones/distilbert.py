"""DistilBERT: the text encoder in BERT's order, with the sizes of the published model."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from calmoe_jax._checks import check_choice
from calmoe_jax.nn.backbones._transformer import Remat
from calmoe_jax.nn.backbones.text import TextEncoder

_EPSILON = 1e-12


class DistilBERTSize(NamedTuple):
    """Sizes of a DistilBERT, as `DistilBERT` takes them."""

    vocab_size: int
    max_length: int
    width: int
    depth: int
    heads: int
    mlp_width: int


DISTILBERT_SIZES: Mapping[str, DistilBERTSize] = MappingProxyType(
    {
        "tiny": DistilBERTSize(30_522, 128, 16, 2, 2, 32),  # for tests
        "base": DistilBERTSize(30_522, 512, 768, 6, 12, 3072),
    }
)


class DistilBERT(TextEncoder):
    """A `TextEncoder` in BERT's order: its features are the last state of the first token, [CLS].

    Embeddings of tokens and positions are added and normalised; each block normalises after
    attention and after the MLP (exact GELU), on the sum with the shortcut. The published training
    has `dropout` and `attention_dropout` of .1; here they are 0 unless given. Parameters of `base`:
    66,362,880. Initialisation: as `TextEncoder`; `calmoe_jax.nn.load_pretrained` reads the
    published weights.

    Example:
        >>> bert = DistilBERT.of_size("tiny", vocab_size=100, rngs=nnx.Rngs(0))
        >>> ids = jnp.array([[2, 5, 3, 0], [2, 3, 0, 0]])
        >>> bert({"ids": ids, "mask": ids > 0}).values.shape
        (2, 16)

    References:
        Sanh et al., DistilBERT, a distilled version of BERT, 2019.
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
        dtype: jnp.dtype | type = jnp.float32,
        param_dtype: jnp.dtype | type = jnp.float32,
        remat: Remat = "none",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds embeddings and blocks; the arguments are those of `TextEncoder`.

        Raises:
            ValueError: if a size or share is out of range, or a size does not divide what it has
                to.
        """
        super().__init__(
            vocab_size, max_length, width=width, depth=depth, heads=heads, mlp_width=mlp_width,
            dtype=dtype, param_dtype=param_dtype, remat=remat, norms="after", epsilon=_EPSILON,
            dropout=dropout, attention_dropout=attention_dropout, rngs=rngs,
        )  # fmt: skip

    @classmethod
    def of_size(cls, name: str, **options: Any) -> "DistilBERT":
        """Builds a model by the name of its size.

        Args:
            name: a name of `DISTILBERT_SIZES`: `"base"`, or `"tiny"` (for tests).
            **options: other arguments of `DistilBERT`; a size among them replaces the name's.

        Raises:
            ValueError: if the name is unknown, or as `DistilBERT`.
        """
        check_choice("size", name, tuple(DISTILBERT_SIZES))
        return cls(**DISTILBERT_SIZES[name]._asdict() | options)
