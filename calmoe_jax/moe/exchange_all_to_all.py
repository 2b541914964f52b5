"""Tokens to the devices of their experts, in as many rows for each expert from each device."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from calmoe_jax.moe.activations import Activation
from calmoe_jax.moe.dispatch import combine, dispatch
from calmoe_jax.moe.experts import ExpertParams, expert_mlp
from calmoe_jax.moe.layer import ROWS_NAME
from calmoe_jax.moe.plan import DispatchPlan
from calmoe_jax.moe.route import Routed


def all_to_all_experts(
    x: Float[Array, "tokens d"],
    routed: Routed,
    params: ExpertParams,
    *,
    axis_name: str | Sequence[str],
    activation: Activation,
    capacity: int,
    implementation: str | None,
) -> Float[Array, "tokens d_out"]:
    """Outputs of a device's tokens, from experts on all devices, through two all-to-alls.

    Empty rows travel and are multiplied like the others: without the numbers of rows, which would
    be one more exchange, an expert cannot tell them apart. They are 0, nobody reads what comes of
    them, and their cotangents are 0. Only parameters that are not finite, or an activation without
    a slope at 0, can make themselves felt there: as NaN in that expert's own gradient.

    Args:
        x: the device's own tokens.
        routed: their routing, planned with the capacity.
        params: parameters of the device's own experts.
        axis_name: axis of the devices.
        activation: as in `expert_mlp`.
        capacity: rows of each expert for one device's tokens.
        implementation: as in `sparse_layer`.

    Returns:
        The outputs.
    """
    devices = jax.lax.axis_size(axis_name)
    own = params.w_in.shape[0]
    rows = dispatch(x, routed.plan, implementation=implementation)
    rows = rows.reshape(own * devices, capacity, -1)
    # an expert's rows from all devices, in their order
    rows = jax.lax.all_to_all(rows, axis_name, split_axis=0, concat_axis=1, tiled=True)
    rows = checkpoint_name(rows.reshape(own * devices * capacity, -1), ROWS_NAME)
    outputs = expert_mlp(
        rows,
        _full_plan(own, devices * capacity),
        params,
        activation=activation,
        capacity=devices * capacity,
        implementation=implementation,
    )
    outputs = outputs.reshape(own, devices * capacity, -1)
    outputs = jax.lax.all_to_all(outputs, axis_name, split_axis=1, concat_axis=0, tiled=True)
    outputs = outputs.reshape(own * devices * capacity, -1)
    weights = routed.routing.combine_weights
    return combine(outputs, routed.plan, weights, implementation=implementation)


def _full_plan(experts: int, capacity: int) -> DispatchPlan:
    """The plan of experts that use all of their rows."""
    rows = jnp.arange(experts * capacity, dtype=jnp.int32)
    sizes = jnp.full(experts, capacity, jnp.int32)
    return DispatchPlan(rows[:, None], rows, sizes, rows[::capacity], sizes)
