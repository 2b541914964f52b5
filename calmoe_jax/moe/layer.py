"""A sparse layer of experts: route, dispatch, two grouped products with an activation, combine.

`calmoe_jax.nn.MoELayer` is the Flax module. Policies of `jax.checkpoint` can save the dispatched
rows by the name `ROWS_NAME`, and the experts' hidden units by `calmoe_jax.moe.HIDDEN_NAME`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_positive
from calmoe_jax._signatures import checked
from calmoe_jax.moe.activations import Activation
from calmoe_jax.moe.dispatch import combine, dispatch
from calmoe_jax.moe.experts import ExpertParams, expert_mlp, shared_mlp
from calmoe_jax.moe.matmul import preferred_block_size
from calmoe_jax.moe.route import Routed, route
from calmoe_kernels import selection

ROWS_NAME = "calmoe_rows"
IMPLEMENTATIONS = selection.NAMES


class SparseOutput(NamedTuple):
    """What a sparse layer returns.

    Attributes:
        output: the tokens' outputs.
        routed: routing, plan and statistics: what `calmoe_jax.moe.load_balancing_loss` and
            `router_z_loss` take.
    """

    output: Float[Array, "tokens d_out"]
    routed: Routed


@checked
def sparse_layer(
    x: Float[Array, "tokens d"],
    gate_logits: Float[Array, "tokens experts"],
    params: ExpertParams,
    selection_bias: Float[Array, " experts"] | None = None,
    shared: ExpertParams | None = None,
    *,
    where: Bool[Array, " tokens"] | None = None,
    k: int,
    activation: Activation = "gelu",
    scores: str = "softmax",
    renormalize: bool = True,
    num_groups: int = 1,
    groups_per_token: int = 1,
    scaling_factor: float = 1.0,
    capacity: int | None = None,
    prioritized: bool = False,
    implementation: str | None = None,
) -> SparseOutput:
    """Routes each token to `k` experts and sums their outputs by weight.

    `y_t = c sum_j w_tj expert_{e_tj}(x_t) + sum_s shared_s(x_t)`; only the chosen experts, and
    those that all tokens share, are computed.

    Args:
        x: tokens, from one example or several.
        gate_logits: the router's logits for the same tokens; `-inf` masks an expert.
        params: the experts' parameters, of the dtype of `x`.
        selection_bias: as in `route`; `update_selection_bias` adjusts it.
        shared: parameters of experts that every token goes through, as in `shared_mlp`.
        where: tokens that count; all by default. The others (padding) may hold anything: they take
            no row and no capacity, are in no statistic, get no gradient, and come out as 0.
        k: experts per token.
        activation: as in `expert_mlp`, for shared experts too.
        scores: as in `route`.
        renormalize: as in `route`. With `k = 1` the weight is then always 1, and the router gets
            no gradient from the output.
        num_groups: as in `route`.
        groups_per_token: as in `route`.
        scaling_factor: factor `c` of the weights, above 0; the result's routing includes it.
        capacity: rows per expert; `None` for dropless.
        prioritized: as in `route`: whether capacity goes to the tokens with the largest gate scores
            first. In XLA only: a kernel that is given by name declines.
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

    References:
        DeepSeek-AI, DeepSeek-V3 Technical Report, 2024 (bias, groups, factor, shared experts).
    """
    check_positive("scaling_factor", scaling_factor)
    limits: dict[str, Any] = {
        "capacity": capacity,
        "block_size": preferred_block_size(capacity=capacity, implementation=implementation),
        "implementation": implementation,
    }
    routed = route(
        gate_logits, selection_bias, where=where, k=k, scores=scores, renormalize=renormalize,
        num_groups=num_groups, groups_per_token=groups_per_token, prioritized=prioritized, **limits,
    )  # fmt: skip
    routed = scaled(routed, scaling_factor)
    rows = dispatch(x, routed.plan, implementation=implementation)
    rows = checkpoint_name(rows, ROWS_NAME)
    outputs = expert_mlp(rows, routed.plan, params, activation=activation, **limits)
    weights = routed.routing.combine_weights
    output = combine(outputs, routed.plan, weights, implementation=implementation)
    if shared is not None:
        output = output + shared_output(x, shared, where, activation)
    return SparseOutput(output, routed)


def scaled(routed: Routed, factor: float) -> Routed:
    """The same with the weights times a factor."""
    if factor == 1:
        return routed
    weights = routed.routing.combine_weights * factor
    return routed._replace(routing=routed.routing._replace(combine_weights=weights))


def shared_output(
    x: jax.Array, shared: ExpertParams, where: jax.Array | None, activation: Activation
) -> jax.Array:
    """The shared experts' output; 0, and no gradient, for tokens that do not count."""
    if where is None:
        return shared_mlp(x, shared, activation=activation)
    counted = where[:, None]
    output = shared_mlp(jnp.where(counted, x, 0), shared, activation=activation)
    return jnp.where(counted, output, 0)
