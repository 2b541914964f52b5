"""All tokens to all devices, and sums of what each device's own experts make of them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from calmoe_jax.moe.activations import Activation
from calmoe_jax.moe.dispatch import combine, dispatch
from calmoe_jax.moe.experts import ExpertParams, expert_mlp
from calmoe_jax.moe.layer import ROWS_NAME
from calmoe_jax.moe.matmul import preferred_block_size
from calmoe_jax.moe.plan import plan_dispatch
from calmoe_jax.moe.route import Routed
from calmoe_jax.routing.kinds import Routing


def ring_experts(
    x: Float[Array, "tokens d"],
    routed: Routed,
    params: ExpertParams,
    *,
    axis_name: str | Sequence[str],
    activation: Activation,
    capacity: int | None,
    implementation: str | None,
) -> tuple[Float[Array, "tokens d_out"], Int[Array, ""]]:
    """Outputs of a device's tokens, from experts on all devices, each of which sees all tokens.

    A device sums a token's slots in float32, and rounds to the dtype of `x` what it sends; the
    devices' parts are summed in that dtype.

    Args:
        x: the device's own tokens.
        routed: their routing.
        params: parameters of the device's own experts.
        axis_name: axis of the devices.
        activation: as in `expert_mlp`.
        capacity: rows of each expert for all tokens; `None` for dropless.
        implementation: as in `sparse_layer`.

    Returns:
        The outputs, and the number of slots beyond the capacity of the device's own experts.
    """
    tokens = jax.lax.all_gather(x, axis_name, tiled=True)
    routing = _of_own_experts(_gathered(routed.routing, axis_name), params, axis_name)
    limits: dict[str, Any] = {
        "capacity": capacity,
        "block_size": preferred_block_size(capacity=capacity, implementation=implementation),
        "implementation": implementation,
    }
    plan = plan_dispatch(*routing, num_experts=params.w_in.shape[0], **limits)
    rows = checkpoint_name(dispatch(tokens, plan, implementation=implementation), ROWS_NAME)
    outputs = expert_mlp(rows, plan, params, activation=activation, **limits)
    parts = combine(outputs, plan, routing.combine_weights, implementation=implementation)
    output = jax.lax.psum_scatter(parts, axis_name, tiled=True)
    return output, plan.num_over_capacity


def _gathered(routing: Routing, axis_name: str | Sequence[str]) -> Routing:
    """The routing of all devices' tokens: experts travel as floats, in one array with weights."""
    indices, weights = routing
    k = indices.shape[1]
    # below 2**24, the number of experts, every integer is a float
    both = jnp.concatenate([weights, indices.astype(weights.dtype)], axis=1)
    both = jax.lax.all_gather(both, axis_name, tiled=True)
    return Routing(jax.lax.stop_gradient(both[:, k:]).astype(indices.dtype), both[:, :k])


def _of_own_experts(
    routing: Routing, params: ExpertParams, axis_name: str | Sequence[str]
) -> Routing:
    """Slots of the device's own experts, which are counted from 0; other slots weigh 0."""
    indices, weights = routing
    own, k = params.w_in.shape[0], indices.shape[1]
    indices = indices - own * jax.lax.axis_index(axis_name)
    if own < k:  # a slot for each expert is fewer: a token has an expert at most once
        experts = jnp.arange(own, dtype=indices.dtype)
        sent = indices[:, :, None] == experts[None, None]
        weights = jnp.sum(jnp.where(sent, weights[:, :, None], 0), axis=1)
        return Routing(jnp.broadcast_to(experts[None], weights.shape), weights)
    here = (indices >= 0) & (indices < own)
    return Routing(jnp.where(here, indices, own), jnp.where(here, weights, 0))
