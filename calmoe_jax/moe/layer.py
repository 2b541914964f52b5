"""A sparse layer of experts: route, dispatch, two grouped products with an activation, combine.

`calmoe_jax.nn.MoELayer` is the Flax module.
"""

from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float

from calmoe_jax.moe.dispatch import combine, dispatch
from calmoe_jax.moe.experts import ExpertParams, expert_mlp
from calmoe_jax.moe.matmul import preferred_block_size
from calmoe_jax.moe.route import Routed, route


class SparseOutput(NamedTuple):
    """What a sparse layer returns.

    Attributes:
        output: the tokens' outputs.
        routed: routing, plan and statistics: what `calmoe_jax.moe.load_balancing_loss` and
            `router_z_loss` take.
    """

    output: Float[Array, "tokens d_out"]
    routed: Routed


def sparse_layer(
    x: Float[Array, "tokens d"],
    gate_logits: Float[Array, "tokens experts"],
    params: ExpertParams,
    selection_bias: Float[Array, " experts"] | None = None,
    *,
    where: Bool[Array, " tokens"] | None = None,
    k: int,
    activation: str = "gelu",
    scores: str = "softmax",
    renormalize: bool = True,
    num_groups: int = 1,
    groups_per_token: int = 1,
    capacity: int | None = None,
    implementation: str | None = None,
) -> SparseOutput:
    """Routes each token to `k` experts and sums their outputs by weight.

    `y_t = sum_j w_tj expert_{e_tj}(x_t)`; only the chosen experts are computed.

    Args:
        x: tokens, from one example or several.
        gate_logits: the router's logits for the same tokens; `-inf` masks an expert.
        params: the experts' parameters, of the dtype of `x`.
        selection_bias: as in `route`.
        where: tokens that count; all by default. The others (padding) may hold anything: they take
            no row and no capacity, are in no statistic, get no gradient, and come out as 0.
        k: experts per token.
        activation: as in `expert_mlp`.
        scores: as in `route`.
        renormalize: as in `route`.
        num_groups: as in `route`.
        groups_per_token: as in `route`.
        capacity: rows per expert; `None` for dropless.
        implementation: `None`, `"xla"` or `"triton"`, for every part, products included; see
            `calmoe_jax.moe.dispatch` and `calmoe_jax.moe.matmul`.

    Returns:
        A `SparseOutput`. Slots beyond a capacity count as zeros.

    Raises:
        TypeError: as `route`, `dispatch`, `expert_mlp` and `combine`.
        ValueError: as those functions; if `x` and `gate_logits` differ in tokens, or `params` and
            `gate_logits` in experts.
        NotImplementedError: if the implementation declines.

    Example:
        >>> params = ExpertParams(jnp.ones((2, 1, 3)), jnp.ones((2, 3, 1)))
        >>> out = sparse_layer(jnp.ones((4, 1)), jnp.zeros((4, 2)), params, k=1, activation="relu")
        >>> out.output[:, 0].tolist(), out.routed.plan.group_sizes.tolist()
        ([3.0, 3.0, 3.0, 3.0], [4, 0])
    """
    _check(x, gate_logits, params)
    block_size = preferred_block_size(capacity=capacity, implementation=implementation)
    routed = route(
        gate_logits,
        selection_bias,
        where=where,
        k=k,
        scores=scores,
        renormalize=renormalize,
        num_groups=num_groups,
        groups_per_token=groups_per_token,
        capacity=capacity,
        block_size=block_size,
        implementation=implementation,
    )
    rows = dispatch(x, routed.plan, implementation=implementation)
    outputs = expert_mlp(
        rows,
        routed.plan,
        params,
        activation=activation,
        block_size=block_size,
        capacity=capacity,
        implementation=implementation,
    )
    weights = routed.routing.combine_weights
    output = combine(outputs, routed.plan, weights, implementation=implementation)
    return SparseOutput(output, routed)


def _check(x: jax.Array, gate_logits: jax.Array, params: ExpertParams) -> None:
    if len(x) != len(gate_logits):
        raise ValueError(
            f"gate_logits must have the {len(x)} tokens of x, got "
            f"gate_logits.shape={gate_logits.shape}."
        )
    if params.w_in.shape[0] != gate_logits.shape[1]:
        raise ValueError(
            f"params must have the {gate_logits.shape[1]} experts of gate_logits, got "
            f"w_in.shape={params.w_in.shape}."
        )
