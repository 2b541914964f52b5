"""A transformer of equal blocks, dense or every second one sparse, as a scan over stacked weights.

A program then holds one block (or pair of blocks), whatever the depth, and compiles in the same
time.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, PyTree

from calmoe_jax._checks import (
    check_at_least,
    check_choice,
    check_non_negative,
    check_positive,
    check_range,
)
from calmoe_jax.moe import LayerStatistics, layer_statistics
from calmoe_jax.moe.activations import function_of
from calmoe_jax.nn.backbones._attention import Attention
from calmoe_jax.nn.backbones._dropout import DropoutRates, dropped
from calmoe_jax.nn.moe_layer import MoELayer
from calmoe_kernels.varying import varying_axes

Remat = Literal["none", "block"]
NormOrder = Literal["before", "after"]
_DType = Any
EPSILON = 1e-6


class MoEBlocks(NamedTuple):
    """The sparse layers of a transformer: the MLPs of its 2nd, 4th, ... block.

    The defaults are those of V-MoE.

    Attributes:
        num_experts: experts of each layer, each as wide as the MLP it replaces.
        k: experts per token, in `[1, num_experts]`.
        capacity_factor: capacity of an expert as a multiple of its fair share of slots; slots
            beyond it are dropped. `None` drops nothing; V-MoE trains with 1.05.
        prioritized: whether the tokens with the lowest gate probability are dropped, instead of the
            last ones.
        noise: in training, normal noise of standard deviation `noise / num_experts` is added to the
            gate logits; 0 for none.
        renormalize: whether the weights of a token's `k` experts sum to one; `False` keeps the gate
            probabilities.
        implementation: as in `calmoe_jax.sparse_layer`.
        expert_axis: device axis over which experts are spread, as in `MoELayer`; `None` for none.
        exchange: how tokens and experts meet then.
    """

    num_experts: int
    k: int = 2
    capacity_factor: float | None = None
    prioritized: bool = False
    noise: float = 1.0
    renormalize: bool = False
    implementation: str | None = None
    expert_axis: str | None = None
    exchange: str = "all_to_all"


class _Keys(NamedTuple):
    """Keys of what a block draws in training; `None` where it draws nothing."""

    noise: jax.Array | None
    dropout: jax.Array | None


def _two(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    """Two keys of one."""
    if key is None:
        return None, None
    first, second = jax.random.split(key)
    return first, second


class _MLP(nnx.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, dtypes: dict[str, _DType], rngs: nnx.Rngs) -> None:
        self.inner = nnx.Linear(width, hidden, **dtypes, rngs=rngs)
        self.outer = nnx.Linear(hidden, width, **dtypes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "examples tokens width"]
    ) -> Float[Array, "examples tokens width"]:
        result: jax.Array = self.outer(function_of("gelu")(self.inner(x)))
        return result


class _Block(nnx.Module):
    """Attention, then an MLP or a sparse layer, each beside a shortcut.

    Each is after a normalisation (`before`), or each sum with its shortcut is normalised (`after`).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        moe: MoEBlocks | None,
        norms: NormOrder,
        epsilon: float,
        dropout: DropoutRates,
        dtypes: dict[str, _DType],
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = layer_norm(width, epsilon, dtypes["param_dtype"], rngs)
        self.norm2 = layer_norm(width, epsilon, dtypes["param_dtype"], rngs)
        self.norms, self.dropout = norms, dropout.outputs
        self.attention = Attention(width, heads, dropout.attention, dtypes, rngs)
        self.moe = moe
        if moe is None:
            self.mlp = _MLP(width, mlp_width, dtypes, rngs)
        else:
            self.sparse = MoELayer(
                width, moe.num_experts, mlp_width, k=moe.k, activation="gelu", use_bias=True,
                renormalize=moe.renormalize, capacity_factor=moe.capacity_factor,
                prioritized=moe.prioritized, implementation=moe.implementation,
                expert_axis=moe.expert_axis, exchange=moe.exchange, **dtypes, rngs=rngs,
            )  # fmt: skip

    def __call__(
        self,
        x: Float[Array, "examples tokens width"],
        mask: Bool[Array, "examples tokens"] | None,
        keys: _Keys,
    ) -> tuple[Float[Array, "examples tokens width"], LayerStatistics | None]:
        """The block's output, and the statistics of its sparse layer."""
        to_attention, to_output = _two(keys.dropout)
        if self.norms == "before":
            x = x + self.attention(self.norm1(x), mask, to_attention)
            output, layer = self._after_attention(self.norm2(x), mask, keys.noise)
            return x + dropped(output.astype(x.dtype), self.dropout, to_output), layer
        x = self.norm1(x + self.attention(x, mask, to_attention)).astype(x.dtype)
        output, layer = self._after_attention(x, mask, keys.noise)
        output = dropped(output.astype(x.dtype), self.dropout, to_output)
        return self.norm2(x + output).astype(x.dtype), layer

    def _after_attention(
        self,
        x: Float[Array, "examples tokens width"],
        mask: Bool[Array, "examples tokens"] | None,
        key: jax.Array | None,
    ) -> tuple[Float[Array, "examples tokens width"], LayerStatistics | None]:
        """The output of the MLP, or of the sparse layer with its statistics."""
        if self.moe is None:
            return self.mlp(x), None
        return _routed(self.sparse, self.moe, x, mask, key)


def _routed(
    sparse: MoELayer,
    moe: MoEBlocks,
    x: Float[Array, "examples tokens width"],
    mask: Bool[Array, "examples tokens"] | None,
    key: jax.Array | None,
) -> tuple[Float[Array, "examples tokens width"], LayerStatistics]:
    """The output of a sparse layer, with noise if there is a key, and its statistics."""
    clean = sparse.gate_logits(x, where=mask)
    scale = moe.noise / moe.num_experts
    noise = None if key is None else scale * jax.random.normal(key, clean.shape, clean.dtype)
    noisy = clean if noise is None else clean + noise
    result = sparse.with_gate_logits(x, noisy, where=mask)
    layer = layer_statistics(
        clean.reshape(-1, moe.num_experts),
        result.routed,
        None if noise is None else noise.reshape(-1, moe.num_experts),
        where=None if mask is None else mask.reshape(-1),
        noise_scale=scale or 1.0,
    )
    return result.output, layer


class _Pair(nnx.Module):
    """A dense block and a sparse one."""

    def __init__(self, dense: _Block, sparse: _Block) -> None:
        self.dense, self.sparse = dense, sparse

    def __call__(
        self,
        x: Float[Array, "examples tokens width"],
        mask: Bool[Array, "examples tokens"] | None,
        keys: _Keys,
    ) -> tuple[Float[Array, "examples tokens width"], LayerStatistics | None]:
        to_dense, to_sparse = _two(keys.dropout)
        x, _ = self.dense(x, mask, _Keys(None, to_dense))
        return self.sparse(x, mask, _Keys(keys.noise, to_sparse))


class Transformer(nnx.Module):
    """Blocks with normalisation first and one at the end, or after each sum (the order of BERT).

    Every second block may be sparse.

    A dense block has `4 w (w + 1) + 2 w h + h + w + 4 w` parameters for width `w` and MLP width
    `h`; in a sparse one the MLP's `2 w h + h + w` are there for each of `E` experts, besides `w E`
    of the router. Parameters are stacked along their first axis, over blocks or pairs of blocks.
    Initialisation: LeCun normal weights, zero biases, normalisation with scale 1 and bias 0.
    """

    def __init__(
        self,
        width: int,
        *,
        depth: int,
        heads: int,
        mlp_width: int,
        moe: MoEBlocks | None,
        remat: Remat,
        norms: NormOrder = "before",
        epsilon: float = EPSILON,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dtype: jnp.dtype | type,
        param_dtype: jnp.dtype | type,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the stacked blocks; `ViT` and `TextEncoder` document the arguments.

        Raises:
            ValueError: if a size is less than 1, the heads do not divide the width, the depth is
                odd with sparse layers, or a share is not in [0, 1).
        """
        sizes = ("width", width), ("depth", depth), ("heads", heads), ("mlp_width", mlp_width)
        for name, size in sizes:
            check_at_least(name, size, 1)
        if width % heads:
            raise ValueError(f"heads must divide width={width}, got heads={heads}.")
        check_choice("remat", remat, get_args(Remat))
        check_choice("norms", norms, get_args(NormOrder))
        check_positive("epsilon", epsilon)
        for name, rate in (("dropout", dropout), ("attention_dropout", attention_dropout)):
            check_range(name, rate, 0, 1 - 1e-6)
        rates = DropoutRates(dropout, attention_dropout)
        dtypes = {"dtype": dtype, "param_dtype": param_dtype}

        def block(rngs: nnx.Rngs, moe: MoEBlocks | None = None) -> _Block:
            return _Block(width, heads, mlp_width, moe, norms, epsilon, rates, dtypes, rngs)

        def pair(rngs: nnx.Rngs) -> _Pair:
            return _Pair(block(rngs), block(rngs, moe))

        if moe is not None:
            _check_sparse(moe, depth)
        self.number = depth if moe is None else depth // 2
        self.blocks = _stacked(block if moe is None else pair, self.number, rngs)
        ends = norms == "before"
        self.norm = layer_norm(width, epsilon, param_dtype, rngs) if ends else None
        noisy = moe is not None and moe.noise > 0
        self.noise_keys = nnx.data(rngs["noise"].fork() if noisy else None)
        self.dropout_keys = nnx.data(rngs["dropout"].fork() if any(rates) else None)
        self.remat, self.dtype, self.dropout = remat, dtype, dropout

    def __call__(
        self,
        x: Float[Array, "examples tokens width"],
        *,
        mask: Bool[Array, "examples tokens"] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "examples tokens width"], LayerStatistics | None]:
        """The last block's or normalisation's output in float32, and the sparse layers' statistics.

        Args:
            x: tokens of each example.
            mask: tokens that count; all by default. The others (padding) must be finite; no token
                attends to them, and they are not routed.
            train: whether the router's noise and dropout are drawn.
        """
        x, noise, dropout = x.astype(self.dtype), None, None
        if train and self.noise_keys is not None:
            noise = jax.random.split(_own_key(self.noise_keys(), x), self.number)
        if train and self.dropout_keys is not None:
            drawn = jax.random.split(_own_key(self.dropout_keys(), x), 1 + self.number)
            x, dropout = dropped(x, self.dropout, drawn[0]), drawn[1:]
        graph, stacked = nnx.split(self.blocks)

        def one(
            x: Float[Array, "examples tokens width"], layer: tuple[PyTree, _Keys]
        ) -> tuple[Float[Array, "examples tokens width"], LayerStatistics | None]:
            state, keys = layer
            block: Any = nnx.merge(graph, state)
            result: tuple[jax.Array, LayerStatistics | None] = block(x, mask, keys)
            return result

        if self.remat == "block":
            # a loop's iterations are not merged with those of its derivative
            one = jax.checkpoint(one, prevent_cse=False)
        x, layers = jax.lax.scan(one, x, (stacked, _Keys(noise, dropout)))
        return x.astype(jnp.float32) if self.norm is None else self.norm(x), layers


def _own_key(key: jax.Array, x: Float[Array, "examples tokens width"]) -> jax.Array:
    """The key, and on each device another one where `shard_map` gives each its own examples."""
    for axis in sorted(varying_axes(x)):
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return key


def _check_sparse(moe: MoEBlocks, depth: int) -> None:
    check_at_least("num_experts", moe.num_experts, 1)
    check_range("k", moe.k, 1, moe.num_experts)
    check_non_negative("noise", moe.noise)
    if moe.capacity_factor is not None:
        check_positive("capacity_factor", moe.capacity_factor)
    if depth % 2:
        raise ValueError(
            f"depth must be even with sparse layers, in every second block, got depth={depth}."
        )


def layer_norm(width: int, epsilon: float, param_dtype: _DType, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A normalisation of tokens, in float32 whatever the dtype of the parameters."""
    return nnx.LayerNorm(
        width, epsilon=epsilon, dtype=jnp.float32, param_dtype=param_dtype, rngs=rngs
    )


def _stacked(make: Callable[[nnx.Rngs], Any], number: int, rngs: nnx.Rngs) -> Any:
    """A module whose parameters are those of several, stacked along a new first axis."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def params(key: jax.Array) -> PyTree:
        return nnx.state(make(nnx.Rngs(key)))

    return nnx.merge(graph, jax.vmap(params)(jax.random.split(rngs.params(), number)))
