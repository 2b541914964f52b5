"""A sparse layer whose experts are spread over devices, inside `shard_map` or `pmap`.

Device `i` of the `P` devices along an axis holds its own tokens and the experts
`[i E / P, (i + 1) E / P)`. `exchange=` says how the two meet:

* `"all_to_all"`: tokens go to their experts, in as many rows for each expert from each device.
  Two all-to-alls. With a capacity it costs the least, and slots beyond it are dropped.
* `"ring"`: all tokens go to all devices, each of which sums what its own experts give. Two
  all-gathers (tokens; weights and experts of slots) and a reduce-scatter. Never drops without a
  capacity, and suits large `k`.
* `"ragged"`: tokens go to their experts, as many as there are, into a buffer. Where
  `ragged_is_supported`.

Gradients: of a loss outside `shard_map`, or inside of one that is summed by `psum`, which
`shard_map` with `check_vma=True` follows. With `check_vma=False`, and under `pmap`, JAX sums the
cotangent of `psum` once more: there differentiate each device's own loss, and the exchange itself
adds up what all devices' losses give to a device's experts. What the devices share (the router,
`selection_bias`, `shared`) gets a gradient as in any data-parallel layer.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_choice, check_positive
from calmoe_jax._signatures import checked
from calmoe_jax.moe.activations import Activation
from calmoe_jax.moe.exchange_all_to_all import all_to_all_experts
from calmoe_jax.moe.exchange_ragged import check_ragged_is_supported, ragged_experts
from calmoe_jax.moe.exchange_ring import ring_experts
from calmoe_jax.moe.experts import ExpertParams
from calmoe_jax.moe.layer import scaled, shared_output
from calmoe_jax.moe.route import Routed, route

EXCHANGES = ("all_to_all", "ring", "ragged")


class ExpertParallelOutput(NamedTuple):
    """What a sparse layer over devices returns, on each device.

    Attributes:
        output: outputs of the device's own tokens.
        routed: routing, plan and statistics of the device's own tokens, over all experts. Its load
            can be summed over devices. Its plan has no rows for slots that `"all_to_all"` and
            `"ragged"` dropped; `"ring"` drops later.
        num_dropped: the device's part of the number of dropped slots, whose sum over the axis is
            that of all: its own tokens' slots, or with `"ring"` those sent to its experts.
    """

    output: Float[Array, "tokens d_out"]
    routed: Routed
    num_dropped: Int[Array, ""]


@checked
def expert_parallel_layer(
    x: Float[Array, "tokens d"],
    gate_logits: Float[Array, "tokens all_experts"],
    params: ExpertParams,
    selection_bias: Float[Array, " all_experts"] | None = None,
    shared: ExpertParams | None = None,
    *,
    axis_name: str | Sequence[str],
    where: Bool[Array, " tokens"] | None = None,
    k: int,
    exchange: str = "all_to_all",
    activation: Activation = "gelu",
    scores: str = "softmax",
    renormalize: bool = True,
    num_groups: int = 1,
    groups_per_token: int = 1,
    scaling_factor: float = 1.0,
    capacity: int | None = None,
    prioritized: bool = False,
    buffer_factor: float | None = None,
    implementation: str | None = None,
) -> ExpertParallelOutput:
    """Computes `sparse_layer` of the tokens of all devices, with each expert on one device.

    `y_t = c sum_j w_tj expert_{e_tj}(x_t) + sum_s shared_s(x_t)`, where the device of token `t` and
    that of expert `e_tj` may differ. Without drops the outputs and all gradients are those of
    `sparse_layer` on one device.

    Args:
        x: the device's own tokens, as many on every device.
        gate_logits: the router's logits for the same tokens and for all experts, also those of
            other devices; `-inf` masks an expert.
        params: parameters of the device's own experts, of the dtype of `x`: experts
            `[i E / P, (i + 1) E / P)` on device `i`.
        selection_bias: as in `route`, the same on every device.
        shared: parameters of experts that every token goes through, the same on every device.
        axis_name: axis of the `P` devices, or several axes, of an enclosing `shard_map` or `pmap`.
        where: tokens that count, as in `sparse_layer`.
        k: experts per token.
        exchange: `"all_to_all"`, `"ring"` or `"ragged"`; see the module.
        activation: as in `expert_mlp`, for shared experts too. With `"all_to_all"` its slope must
            be a number at `b_in` too (0 without biases), which is what an expert makes of the empty
            rows that it gets.
        scores: as in `route`.
        renormalize: as in `route`.
        num_groups: as in `route`.
        groups_per_token: as in `route`.
        scaling_factor: factor `c` of the weights, above 0.
        capacity: with `"all_to_all"`, rows of an expert for the tokens of one device: slots are
            dropped as by `sparse_layer` with this capacity on each device's tokens. With `"ring"`,
            rows of an expert for all tokens, as by `sparse_layer` on all of them in the order of
            the devices. `None` for dropless: `"all_to_all"` then has as many rows per expert and
            device as the device has tokens, so that it takes `E / k` times the memory and the work
            of `sparse_layer`; `"ring"` has `min(k, E / P)` rows for every token of all devices,
            and leaves out of its products those that are empty.
        prioritized: for `"all_to_all"` only: whether capacity goes to the tokens with the largest
            gate scores first, as in `route`.
        buffer_factor: for `"ragged"` only: the rows that a device has room for, as a multiple of
            its share `tokens * k` of a balanced load. What does not fit is dropped, that of the
            last devices and of the last experts first. By default the worst case,
            `P min(k, E / P) / k`, so that nothing is dropped.
        implementation: as in `sparse_layer`.

    Returns:
        An `ExpertParallelOutput`. Dropped slots count as zeros. Tokens that cannot be routed are
        NaN, and no others are.

    Raises:
        TypeError: as `sparse_layer`.
        ValueError: as `sparse_layer`; if no such axis is bound, the experts do not divide by the
            devices, `params` has not `E / P` experts, the exchange is unknown, or is given a limit
            of another.
        NotImplementedError: for `"ragged"` where it is not supported; if the implementation
            declines.

    Example:
        >>> from functools import partial
        >>> from calmoe_jax.parallel import data_mesh
        >>> layer = partial(expert_parallel_layer, axis_name="expert", k=1, activation="relu")
        >>> mesh, rows = data_mesh(jax.devices()[:1], axis_name="expert"), jax.P("expert")
        >>> params = ExpertParams(jnp.ones((2, 1, 3)), jnp.ones((2, 3, 1)))
        >>> mapped = jax.shard_map(
        ...     lambda *args: layer(*args).output, mesh=mesh, in_specs=rows, out_specs=rows
        ... )
        >>> jax.jit(mapped)(jnp.ones((4, 1)), jnp.zeros((4, 2)), params)[:, 0].tolist()
        [3.0, 3.0, 3.0, 3.0]

    References:
        Lepikhin et al., GShard, 2020.
    """
    check_positive("scaling_factor", scaling_factor)
    _check(gate_logits, params, axis_name, exchange, capacity, buffer_factor)
    if prioritized and exchange != "all_to_all":
        raise ValueError(
            f"prioritized must be False with exchange={exchange!r}, got prioritized=True."
        )
    if x.shape[0] == 0:
        exchange, capacity = "all_to_all", 1  # JAX gathers no empty arrays
    routing: dict[str, Any] = {
        "k": k,
        "scores": scores,
        "renormalize": renormalize,
        "num_groups": num_groups,
        "groups_per_token": groups_per_token,
        "implementation": implementation,
    }
    route_own = partial(route, gate_logits, selection_bias, where=where, **routing)
    statics: dict[str, Any] = {
        "axis_name": axis_name,
        "activation": activation,
        "implementation": implementation,
    }
    if exchange == "all_to_all":
        rows = x.shape[0] if capacity is None else capacity
        routed = scaled(route_own(capacity=rows, prioritized=prioritized), scaling_factor)
        output = all_to_all_experts(x, routed, params, capacity=rows, **statics)
        num_dropped = routed.plan.num_over_capacity
    elif exchange == "ring":
        routed = scaled(route_own(), scaling_factor)
        output, num_dropped = ring_experts(x, routed, params, capacity=capacity, **statics)
    else:
        routed = scaled(route_own(), scaling_factor)
        output, routed = ragged_experts(x, routed, params, buffer_factor=buffer_factor, **statics)
        num_dropped = routed.plan.num_over_capacity
    if shared is not None:
        output = output + shared_output(x, shared, where, activation)
    return ExpertParallelOutput(output, routed, num_dropped)


def _check(
    gate_logits: jax.Array,
    params: ExpertParams,
    axis_name: str | Sequence[str],
    exchange: str,
    capacity: int | None,
    buffer_factor: float | None,
) -> None:
    check_choice("exchange", exchange, EXCHANGES)
    try:
        devices = jax.lax.axis_size(axis_name)
    except NameError as error:
        raise ValueError(
            "axis_name must be an axis of an enclosing shard_map or pmap, got "
            f"axis_name={axis_name!r}, which is not bound."
        ) from error
    experts = gate_logits.shape[1]
    if experts % devices:
        raise ValueError(
            f"num_experts must be divisible by the {devices} devices of axis {axis_name!r}, got "
            f"num_experts={experts}."
        )
    own = params.w_in.shape[0]
    if own != experts // devices:
        raise ValueError(
            f"params must have the {experts // devices} experts of one device (num_experts="
            f"{experts} over the {devices} devices of axis {axis_name!r}), got "
            f"params.w_in.shape={params.w_in.shape}."
        )
    if capacity is not None and exchange == "ragged":
        raise ValueError(
            "capacity must be None with exchange='ragged', which has buffer_factor, got "
            f"capacity={capacity}."
        )
    if buffer_factor is not None:
        if exchange != "ragged":
            raise ValueError(
                f"buffer_factor must be None with exchange={exchange!r}, got "
                f"buffer_factor={buffer_factor}."
            )
        if not (buffer_factor > 0 and math.isfinite(buffer_factor)):
            raise ValueError(
                f"buffer_factor must be positive and finite, got buffer_factor={buffer_factor}."
            )
    if exchange == "ragged":
        check_ragged_is_supported()
