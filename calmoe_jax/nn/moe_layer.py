"""A sparse layer of experts as a Flax module: replaces the MLP of a transformer block."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_at_least, check_choice, check_range, check_where
from calmoe_jax.moe import ExpertParams, SparseOutput, expert_capacity, sparse_layer
from calmoe_jax.moe.experts import ACTIVATIONS

_LECUN_NORMAL = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))


class MoELayer(nnx.Module):
    """A router and experts with one hidden layer; each token is sent to `k` of them.

    All tokens of a batch are routed together, across examples. The router is linear, without bias,
    and in float32. Parameters: `d E + 2 E d h`, with SwiGLU `d E + 3 E d h`.
    Initialisation: LeCun normal.
    """

    def __init__(
        self,
        d: int,
        num_experts: int,
        hidden: int,
        *,
        k: int,
        activation: str = "swiglu",
        scores: str = "softmax",
        renormalize: bool = True,
        capacity_factor: float | None = None,
        implementation: str | None = None,
        dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the router and the experts.

        Args:
            d: width of tokens.
            num_experts: number of experts.
            hidden: hidden units of an expert.
            k: experts per token.
            activation: `"relu"`, `"gelu"` or `"swiglu"`.
            scores: `"softmax"` or `"sigmoid"`.
            renormalize: whether a token's weights sum to one.
            capacity_factor: capacity of an expert as a multiple of its fair share of slots; slots
                beyond it are dropped. `None` drops nothing.
            implementation: as in `calmoe_jax.sparse_layer`.
            dtype: dtype of the experts' computation; parameters are float32.
            rngs: source of the initial weights.
        """
        for name, size in (("d", d), ("num_experts", num_experts), ("hidden", hidden)):
            check_at_least(name, size, 1)
        check_range("k", k, 1, num_experts)
        check_choice("activation", activation, ACTIVATIONS)
        columns = hidden * (2 if activation == "swiglu" else 1)
        self.router = nnx.Linear(d, num_experts, use_bias=False, rngs=rngs)
        self.w_in = nnx.Param(_LECUN_NORMAL(rngs.params(), (num_experts, d, columns)))
        self.w_out = nnx.Param(_LECUN_NORMAL(rngs.params(), (num_experts, hidden, d)))
        self.num_experts, self.k = num_experts, k
        self.activation, self.scores, self.renormalize = activation, scores, renormalize
        self.capacity_factor, self.implementation = capacity_factor, implementation
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "*tokens d"], *, where: Bool[Array, "*tokens"] | None = None
    ) -> SparseOutput:
        """Routes all tokens and applies their experts.

        Args:
            x: tokens, with any number of leading axes.
            where: tokens that count; all by default. The others (padding) may hold anything: they
                take no row and no capacity, are in no statistic, get no gradient, and come out as
                0. The capacity itself is a share of all tokens, since shapes are static.

        Returns:
            A `SparseOutput` whose output has the shape of `x`; its routing has the tokens in
            flattened order.
        """
        check_where("where", where, x.shape[:-1])
        tokens = x.reshape(-1, x.shape[-1])
        if where is not None:
            where = where.reshape(-1)
            tokens = jnp.where(where[:, None], tokens, 0)  # the router's product sees no NaN
        gate_logits: jax.Array = self.router(tokens.astype(jnp.float32))
        capacity = None
        if self.capacity_factor is not None:
            capacity = expert_capacity(
                num_tokens=len(tokens),
                k=self.k,
                num_experts=self.num_experts,
                capacity_factor=self.capacity_factor,
            )
        params = ExpertParams(self.w_in[...].astype(self.dtype), self.w_out[...].astype(self.dtype))
        result = sparse_layer(
            tokens.astype(self.dtype),
            gate_logits,
            params,
            where=where,
            k=self.k,
            activation=self.activation,
            scores=self.scores,
            renormalize=self.renormalize,
            capacity=capacity,
            implementation=self.implementation,
        )
        return result._replace(output=result.output.reshape(x.shape))
