"""Tokens to the devices of their experts, as many as there are, into a buffer of fixed size.

`lax.ragged_all_to_all` is not supported by every backend: not on CPU, nor on slices of TPU v5e
beyond 4x4.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.lax import ragged_all_to_all
from jaxtyping import Array, Float

from calmoe_jax.moe.activations import Activation
from calmoe_jax.moe.dispatch import combine, dispatch, gather_slots
from calmoe_jax.moe.experts import ExpertParams, expert_mlp
from calmoe_jax.moe.layer import ROWS_NAME
from calmoe_jax.moe.matmul import preferred_block_size
from calmoe_jax.moe.plan import plan_dispatch
from calmoe_jax.moe.ragged_chunks import Chunks, ragged_chunks, without_cut_rows
from calmoe_jax.moe.route import Routed
from calmoe_kernels.availability import ragged_all_to_all_runs
from calmoe_kernels.varying import vary_along, varying_axes

_AxisNames = str | Sequence[str]


def ragged_is_supported() -> bool:
    """Whether `exchange="ragged"` compiles and runs on this process's devices.

    Found once, by an exchange of a few numbers between them. A mesh of more devices may still
    decline when it is compiled.

    Returns:
        Whether it does; `False` on CPU.

    Example:
        >>> ragged_is_supported() and jax.default_backend() == "cpu"
        False
    """
    return ragged_all_to_all_runs()


def check_ragged_is_supported() -> None:
    """Raises `NotImplementedError` where the ragged exchange does not run."""
    if not ragged_is_supported():
        raise NotImplementedError(
            "exchange='ragged' needs lax.ragged_all_to_all, which does not run on this process's "
            f"{jax.default_backend()} devices; use exchange='ring' or 'all_to_all'."
        )


def ragged_experts(
    x: Float[Array, "tokens d"],
    routed: Routed,
    params: ExpertParams,
    *,
    axis_name: _AxisNames,
    activation: Activation,
    buffer_factor: float | None,
    implementation: str | None,
) -> tuple[Float[Array, "tokens d_out"], Routed]:
    """Outputs of a device's tokens, from experts on all devices.

    Args:
        x: the device's own tokens.
        routed: their routing, with a plan without gaps.
        params: parameters of the device's own experts.
        axis_name: axis of the devices.
        activation: as in `expert_mlp`.
        buffer_factor: room as a multiple of the balanced share; `None` for the worst case.
        implementation: as in `sparse_layer`.

    Returns:
        The outputs, and the routing with a plan without the rows that were cut.
    """
    own, (slots, k) = (
        params.w_in.shape[0],
        (routed.plan.positions.size, routed.plan.positions.shape[1]),
    )
    worst = jax.lax.axis_size(axis_name) * (slots // k) * min(k, own)
    num_rows = worst if buffer_factor is None else min(worst, math.ceil(buffer_factor * slots))
    sizes = jax.lax.all_gather(routed.plan.group_sizes, axis_name)
    chunks = ragged_chunks(sizes, jax.lax.axis_index(axis_name), num_rows=num_rows)
    if num_rows < worst:
        experts = routed.routing.expert_indices
        plan = without_cut_rows(routed.plan, experts, chunks.group_sizes)
        routed = routed._replace(plan=plan)

    rows = dispatch(x, routed.plan, implementation=implementation)
    rows = _send(axis_name, num_rows, rows, chunks.there, chunks.back)
    rows = checkpoint_name(rows, ROWS_NAME)
    limits: dict[str, Any] = {
        "block_size": preferred_block_size(implementation=implementation),
        "implementation": implementation,
    }
    # received in the order of devices, and of experts for each: by expert for the products
    plan = plan_dispatch(chunks.experts[:, None], num_experts=own, **limits)
    outputs = dispatch(rows, plan, implementation=implementation)
    outputs = expert_mlp(outputs, plan, params, activation=activation, **limits)
    outputs = gather_slots(outputs, plan, implementation=implementation)[:, 0]
    outputs = _send(axis_name, slots, outputs, chunks.back, chunks.there)
    weights = routed.routing.combine_weights
    return combine(outputs, routed.plan, weights, implementation=implementation), routed


def _send(
    axis_name: _AxisNames, num_rows: int, rows: jax.Array, there: Chunks, back: Chunks
) -> jax.Array:
    """Sends chunks of rows; `back` is the way of the gradient. Rows that nobody sends are 0."""
    rows, there, back = vary_along((rows, there, back), varying_axes(rows, there, back))
    return _sent(axis_name, num_rows, rows.shape[0], rows, there, back)


# JAX's own gradient exchanges offsets once more, which are known here
@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sent(
    axis_name: _AxisNames,
    num_rows: int,
    num_sent: int,
    rows: jax.Array,
    there: Chunks,
    back: Chunks,
) -> jax.Array:
    empty = jnp.zeros((num_rows, *rows.shape[1:]), rows.dtype)
    empty = vary_along(empty, varying_axes(rows))
    return ragged_all_to_all(rows, empty, *there, axis_name=axis_name)


def _sent_forward(
    axis_name: _AxisNames,
    num_rows: int,
    num_sent: int,
    rows: jax.Array,
    there: Chunks,
    back: Chunks,
) -> tuple[jax.Array, tuple[Chunks, Chunks]]:
    return _sent(axis_name, num_rows, num_sent, rows, there, back), (there, back)


def _sent_backward(
    axis_name: _AxisNames,
    num_rows: int,
    num_sent: int,
    chunks: tuple[Chunks, Chunks],
    cotangent: jax.Array,
) -> tuple[jax.Array, None, None]:
    there, back = chunks
    return _sent(axis_name, num_sent, num_rows, cotangent, back, there), None, None


_sent.defvjp(_sent_forward, _sent_backward)
