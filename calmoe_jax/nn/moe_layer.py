"""A sparse layer of experts as a Flax module: replaces the MLP of a transformer block."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax import routing
from calmoe_jax._checks import (
    check_at_least,
    check_choice,
    check_positive,
    check_range,
    check_where,
)
from calmoe_jax._numerics import AxisName, at_least_float32, wide_dtype
from calmoe_jax.moe import (
    ExpertParams,
    Routed,
    SparseOutput,
    expert_capacity,
    expert_parallel_layer,
    sparse_layer,
    update_selection_bias,
)
from calmoe_jax.moe.activations import Activation, columns_of
from calmoe_jax.moe.expert_parallel import EXCHANGES
from calmoe_jax.moe.layer import IMPLEMENTATIONS

_LECUN_NORMAL = nnx.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
_ROLES = ("d", "experts", "hidden")
Sharding = Mapping[str, str | tuple[str, ...] | None]


class SelectionBias(nnx.Variable):
    """A bias of the choice of experts: state that follows the load, not a parameter."""


class ExpertWeights(nnx.Module):
    """The parameters of experts with one hidden layer, stacked along their first axis.

    `number * d * (columns + hidden)` weights, where `columns` is `hidden` or, for activations that
    split, twice that; with biases `number * (columns + d)` more. Initialisation: LeCun normal
    weights, independent for each expert; zero biases.
    """

    def __init__(
        self,
        number: int,
        d: int,
        hidden: int,
        *,
        activation: Activation,
        use_bias: bool,
        param_dtype: Any,
        names: tuple[Any, Any, Any] | None,
        expert_axis: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the experts; `names` are the mesh axes of experts, inputs and hidden units."""
        columns = columns_of(activation, hidden)
        experts_name, d_name, hidden_name = names or (None, None, None)

        def param(value: jax.Array, *axes: Any) -> nnx.Param:
            if expert_axis is not None:  # counted from the end: layers may be stacked in front
                return nnx.Param(value, shard_axis=expert_axis, shard_dim=-value.ndim)
            return nnx.Param(value) if names is None else nnx.Param(value, out_sharding=axes)

        def matrices(*shape: int) -> jax.Array:
            return _LECUN_NORMAL(rngs.params(), shape, param_dtype)

        self.w_in = param(matrices(number, d, columns), experts_name, d_name, hidden_name)
        self.w_out = param(matrices(number, hidden, d), experts_name, hidden_name, d_name)
        zeros = partial(jnp.zeros, dtype=param_dtype)
        self.b_in = param(zeros((number, columns)), experts_name, hidden_name) if use_bias else None
        self.b_out = param(zeros((number, d)), experts_name, d_name) if use_bias else None

    def params(self, dtype: Any) -> ExpertParams:
        """The parameters as arrays of a dtype."""
        return ExpertParams(
            self.w_in[...].astype(dtype),
            self.w_out[...].astype(dtype),
            None if self.b_in is None else self.b_in[...].astype(dtype),
            None if self.b_out is None else self.b_out[...].astype(dtype),
        )


class MoELayer(nnx.Module):
    """A router and experts with one hidden layer; each token is sent to `k` of them.

    All tokens of a batch are routed together, across examples. The router is linear, without bias,
    and in float32. Parameters: `d E` of the router, and those of `ExpertWeights` for `E` experts
    and for the shared ones. Initialisation: LeCun normal.
    """

    def __init__(
        self,
        d: int,
        num_experts: int,
        hidden: int,
        *,
        k: int,
        activation: Activation = "swiglu",
        scores: str = "softmax",
        renormalize: bool | None = None,
        num_groups: int = 1,
        groups_per_token: int = 1,
        scaling_factor: float = 1.0,
        selection_bias: bool = False,
        num_shared: int = 0,
        use_bias: bool = False,
        capacity_factor: float | None = None,
        prioritized: bool = False,
        implementation: str | None = None,
        dtype: jnp.dtype | type = jnp.float32,
        param_dtype: jnp.dtype | type = jnp.float32,
        router_precision: str | jax.lax.Precision | None = jax.lax.Precision.HIGHEST,
        sharding: Sharding | None = None,
        expert_axis: str | None = None,
        exchange: str = "all_to_all",
        rngs: nnx.Rngs,
    ) -> None:
        """Builds the router and the experts.

        Args:
            d: width of tokens.
            num_experts: number of experts.
            hidden: hidden units of an expert.
            k: experts per token.
            activation: `"relu"`, `"gelu"`, `"swiglu"`, or a function as in `expert_mlp`.
            scores: `"softmax"` or `"sigmoid"`.
            renormalize: whether a token's weights sum to one. By default they do for `k > 1`; for
                `k = 1` the weight is the gate's score, since a weight that is always 1 would train
                no router (`True` is refused).
            num_groups: number of groups of consecutive experts, a divisor of the number of experts.
            groups_per_token: groups a token's experts may come from.
            scaling_factor: factor of the weights, above 0.
            selection_bias: whether to keep a bias of the choice, a `SelectionBias` of zeros at
                first, which `update_selection_bias` adjusts.
            num_shared: experts that every token goes through, besides its `k`.
            use_bias: whether experts have biases.
            capacity_factor: capacity of an expert as a multiple of its fair share of slots; slots
                beyond it are dropped. `None` drops nothing.
            prioritized: whether the tokens with the lowest gate scores are dropped, instead of the
                last ones; see `calmoe_jax.moe.plan_by_priority`.
            implementation: as in `calmoe_jax.sparse_layer`.
            dtype: dtype of the experts' computation.
            param_dtype: dtype of the parameters; the router's are at least float32.
            router_precision: precision of the router's product, which is float32; TPUs would by
                default round its operands to bfloat16.
            sharding: mesh axes (or logical names of Flax) of the parameters' axes `"experts"`,
                `"d"` and `"hidden"`, as in `{"experts": "expert"}`; axes left out are not sharded,
                nor are the shared experts apart from each other. Flax then places the parameters,
                and wants a mesh: build the layer under `jax.set_mesh`.
            expert_axis: device axis over which the experts are spread where `apply` runs inside
                `shard_map`, as in `calmoe_jax.training.sharded_training`; `None` for no exchange.
                Where the layer holds all its experts, there is none either.
            exchange: how tokens and experts meet, as in `calmoe_jax.moe.expert_parallel_layer`.
            rngs: source of the initial weights.

        Raises:
            ValueError: if an argument is out of range, or `renormalize=True` with `k = 1`; if both
                `sharding` and `expert_axis` are given.
        """
        sizes = ("d", d), ("num_experts", num_experts), ("hidden", hidden), ("k", k)
        for name, size in sizes:
            check_at_least(name, size, 1)
        check_at_least("num_shared", num_shared, 0)
        check_range("k", k, 1, num_experts)
        check_positive("scaling_factor", scaling_factor)
        self.renormalize = _renormalize(renormalize, k)
        self.num_experts, self.k, self.scores = num_experts, k, scores
        self.num_groups, self.groups_per_token = num_groups, groups_per_token
        self.scaling_factor, self.capacity_factor = scaling_factor, capacity_factor
        self.prioritized = prioritized
        self.activation, self.implementation, self.dtype = activation, implementation, dtype
        self.expert_axis, self.exchange = expert_axis, exchange
        self._check()
        if sharding is not None and expert_axis is not None:
            raise ValueError(
                "sharding must be None where expert_axis is given, got "
                f"sharding={dict(sharding)} and expert_axis={expert_axis!r}."
            )
        names = _names(sharding)
        kernel = nnx.initializers.lecun_normal()
        self.router = nnx.Linear(
            d, num_experts, use_bias=False, precision=router_precision, rngs=rngs,
            param_dtype=wide_dtype(jnp.dtype(param_dtype)),
            kernel_init=kernel if names is None else nnx.with_partitioning(
                kernel, (names["d"], None)),
        )  # fmt: skip
        build = partial(
            ExpertWeights, d=d, hidden=hidden, activation=activation, use_bias=use_bias,
            param_dtype=param_dtype, rngs=rngs,
        )  # fmt: skip
        self.experts = build(
            num_experts, names=_axes(names, "experts"), expert_axis=self.expert_axis
        )
        self.shared = build(num_shared, names=_axes(names, None)) if num_shared else None
        self.selection_bias = SelectionBias(jnp.zeros(num_experts)) if selection_bias else None

    def __call__(
        self,
        x: Float[Array, "*tokens d"],
        *,
        where: Bool[Array, "*tokens"] | None = None,
        noise: Float[Array, "*tokens experts"] | None = None,
    ) -> SparseOutput:
        """Routes all tokens and applies their experts.

        Args:
            x: tokens, with any number of leading axes.
            where: tokens that count; all by default. The others (padding) may hold anything: they
                take no row and no capacity, are in no statistic, get no gradient, and come out as
                0. The capacity itself is a share of all tokens, since shapes are static.
            noise: added to the gate logits, to explore in training; none by default.

        Returns:
            A `SparseOutput` whose output has the shape of `x`; its routing has the tokens in
            flattened order, and its statistics are of the logits with their noise.
        """
        gate_logits = self.gate_logits(x, where=where)
        if noise is not None:
            gate_logits = gate_logits + noise.astype(gate_logits.dtype)
        return self.with_gate_logits(x, gate_logits, where=where)

    def gate_logits(
        self, x: Float[Array, "*tokens d"], *, where: Bool[Array, "*tokens"] | None = None
    ) -> Float[Array, "*tokens experts"]:
        """The router's logits of tokens, at least float32; 0 for tokens that do not count.

        Args:
            x: tokens, with any number of leading axes.
            where: tokens that count; all by default.
        """
        check_where("where", where, x.shape[:-1])
        x = x if where is None else jnp.where(where[..., None], x, 0)  # the product sees no NaN
        logits: jax.Array = self.router(at_least_float32(x))
        return logits

    def with_gate_logits(
        self,
        x: Float[Array, "*tokens d"],
        gate_logits: Float[Array, "*tokens experts"],
        *,
        where: Bool[Array, "*tokens"] | None = None,
    ) -> SparseOutput:
        """Routes all tokens by logits that the caller has, and applies their experts.

        `layer(x)` is `layer.with_gate_logits(x, layer.gate_logits(x))`.

        Args:
            x: tokens, with any number of leading axes.
            gate_logits: gate logits of the same tokens.
            where: as in a call of the layer.

        Returns:
            As a call of the layer.
        """
        check_where("where", where, x.shape[:-1])
        tokens = x.reshape(-1, x.shape[-1])
        if where is not None:
            where = where.reshape(-1)
            tokens = jnp.where(where[:, None], tokens, 0)
        given = (
            tokens.astype(self.dtype),
            gate_logits.reshape(-1, self.num_experts),
            self.experts.params(self.dtype),
            None if self.selection_bias is None else self.selection_bias[...],
            None if self.shared is None else self.shared.params(self.dtype),
        )
        statics: dict[str, Any] = self._choice() | {
            "activation": self.activation,
            "renormalize": self.renormalize,
            "scaling_factor": self.scaling_factor,
            "prioritized": self.prioritized,
            "implementation": self.implementation,
        }
        output, routed = self._apply(given, len(tokens), {"where": where, **statics})
        return SparseOutput(output.reshape(x.shape), routed)

    def _apply(
        self, given: tuple[Any, ...], num_tokens: int, options: dict[str, Any]
    ) -> tuple[jax.Array, Routed]:
        """The output and the routing, with an exchange where other devices hold experts."""
        if self.expert_axis is None or given[2].w_in.shape[0] == self.num_experts:
            return sparse_layer(*given, capacity=self._capacity(num_tokens), **options)
        if self.exchange == "ring":
            num_tokens *= jax.lax.axis_size(self.expert_axis)
        options |= {"axis_name": self.expert_axis, "exchange": self.exchange}
        if self.exchange != "ragged":
            options["capacity"] = self._capacity(num_tokens)
        result = expert_parallel_layer(*given, **options)
        return result.output, result.routed

    def _choice(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "scores": self.scores,
            "num_groups": self.num_groups,
            "groups_per_token": self.groups_per_token,
        }

    def _capacity(self, num_tokens: int) -> int | None:
        if self.capacity_factor is None:
            return None
        return expert_capacity(
            num_tokens=num_tokens, k=self.k, num_experts=self.num_experts,
            capacity_factor=self.capacity_factor,
        )  # fmt: skip

    def _check(self) -> None:
        """Raises what a call of the layer would raise."""
        logits = jax.ShapeDtypeStruct((1, self.num_experts), jnp.float32)
        jax.eval_shape(partial(routing.top_k_routing, **self._choice()), logits)
        self._capacity(1)
        check_choice("exchange", self.exchange, EXCHANGES)
        if self.implementation is not None:
            check_choice("implementation", self.implementation, IMPLEMENTATIONS)

    def update_selection_bias(
        self, load: Int[Array, " experts"], *, rate: float, axis_name: AxisName = None
    ) -> None:
        """Adjusts the bias of the choice to the load, as `calmoe_jax.moe.update_selection_bias`.

        Args:
            load: load of a step: `layer(x).routed.plan.load`.
            rate: size of an update, above 0.
            axis_name: device axis to sum the load over.

        Raises:
            ValueError: if the layer has no bias.
        """
        if self.selection_bias is None:
            raise ValueError("selection_bias must be True for a layer with a bias of the choice.")
        bias = self.selection_bias[...]
        self.selection_bias[...] = update_selection_bias(bias, load, rate=rate, axis_name=axis_name)


def _renormalize(renormalize: bool | None, k: int) -> bool:
    if renormalize and k == 1:
        raise ValueError(
            "renormalize must be False or None with k=1: the only weight would always be 1 and the "
            "router would get no gradient, got renormalize=True."
        )
    return k > 1 if renormalize is None else renormalize


def _names(sharding: Sharding | None) -> dict[str, Any] | None:
    if sharding is None:
        return None
    for role in sharding:
        check_choice("sharding's axes", role, _ROLES)
    return {role: sharding.get(role) for role in _ROLES}


def _axes(names: dict[str, Any] | None, first: str | None) -> tuple[Any, Any, Any] | None:
    """Names of the axes of experts' parameters: the first one, inputs and hidden units."""
    if names is None:
        return None
    return None if first is None else names[first], names["d"], names["hidden"]
