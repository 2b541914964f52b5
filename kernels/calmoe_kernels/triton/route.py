"""Gate logits to experts, weights and a plan: the first of three launches, and its backward.

`calmoe_kernels.triton.plan` has the other two launches.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import triton
from jax.ad_checkpoint import checkpoint_name

from calmoe_kernels.layout import ROUTING_NAME
from calmoe_kernels.triton.configs import RouteConfig, route_config
from calmoe_kernels.triton.launch import Launch, launch
from calmoe_kernels.triton.plan import check_experts, int32, scan_and_place
from calmoe_kernels.triton.route_kernels import choose_backward_kernel, choose_kernel


def _check(num_experts: int, dtype: Any) -> None:
    check_experts(num_experts)
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"triton has no kernel for logits of dtype {dtype}.")


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def route(
    gate_logits: jax.Array,
    selection_bias: jax.Array | None,
    where: jax.Array | None,
    *,
    k: int,
    scores: str,
    renormalize: bool,
    num_groups: int,
    groups_per_token: int,
    capacity: int | None,
    block_size: int | None,
) -> tuple[jax.Array, ...]:
    """Routing, plan and statistics of gate logits, in three launches that read the logits once.

    Args:
        gate_logits: `[tokens, experts]` in float32, bfloat16 or float16; at least one token and
            at most 1024 experts.
        selection_bias: `[experts]`.
        where: `[tokens]` of bools: which tokens count.
        k: experts per token.
        scores: `"softmax"` or `"sigmoid"`.
        renormalize: whether a token's weights sum to one.
        num_groups: number of groups of experts.
        groups_per_token: groups a token's experts may come from.
        capacity: rows of each expert, if limited.
        block_size: block whose multiples groups are padded to.

    Returns:
        Expert indices and combine weights; positions, slot indices, group sizes, group offsets
        and load; mean gate probabilities, logsumexp and the number of unroutable tokens.
        Differentiable to the logits.

    Raises:
        NotImplementedError: for more experts or other dtypes.
    """
    tokens, num_experts = gate_logits.shape
    _check(num_experts, gate_logits.dtype)
    biased = selection_bias is not None
    bias = jnp.zeros(1, jnp.float32) if selection_bias is None else selection_bias
    constants = {
        "E": num_experts,
        "EP": triton.next_power_of_2(num_experts),
        "K": k,
        "KP": triton.next_power_of_2(k),
        "SIGMOID": scores == "sigmoid",
        "RENORMALIZE": renormalize,
        "BIASED": biased,
        "MASKED": where is not None,
        "GROUPS": num_groups,
        "GP": triton.next_power_of_2(num_groups),
        "CHOSEN_GROUPS": groups_per_token,
    }
    config = route_config(tokens, constants["EP"])
    indices, weights, numbers, counts, log_sums, mean_probs, unroutable = _choose(
        tuple(sorted(constants.items())),
        config,
        gate_logits,
        jax.lax.stop_gradient(bias).astype(jnp.float32),
        jnp.zeros(1, jnp.int8) if where is None else where.astype(jnp.int8),
    )
    plan_arrays = scan_and_place(
        indices,
        numbers,
        counts,
        config.tokens * config.tiles * k,
        capacity=capacity,
        block_size=block_size,
    )
    return indices, weights, *plan_arrays, mean_probs, log_sums, unroutable


_Constants = tuple[tuple[str, Any], ...]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _choose(
    constants: _Constants,
    config: RouteConfig,
    gate_logits: jax.Array,
    bias: jax.Array,
    where: jax.Array,
) -> tuple[jax.Array, ...]:
    (tokens, num_experts), k = gate_logits.shape, dict(constants)["K"]
    programs = triton.cdiv(tokens, config.tokens * config.tiles)
    indices, weights, numbers, counts, log_sums, prob_sums, unroutable = launch(
        Launch(
            kernel=choose_kernel,
            inputs=(gate_logits, bias, where, tokens),
            outputs=(
                int32(tokens, k),
                _float32(tokens, k),
                int32(tokens, k),
                int32(programs, num_experts),
                _float32(tokens),
                _float32(programs, num_experts),
                int32(programs),
            ),
            grid=(programs,),
            constants=dict(constants) | {"BT": config.tokens, "TILES": config.tiles},
            num_warps=config.num_warps,
        )
    )
    mean_probs = jnp.sum(prob_sums, axis=0) / _count(constants, tokens, where)
    return indices, weights, numbers, counts, log_sums, mean_probs, jnp.sum(unroutable)


def _count(constants: _Constants, tokens: int, where: jax.Array) -> Any:
    """Number of tokens to average over."""
    if not dict(constants)["MASKED"]:
        return tokens
    return jnp.maximum(jnp.sum(where, dtype=jnp.int32), 1).astype(jnp.float32)


def _choose_forward(
    constants: _Constants,
    config: RouteConfig,
    gate_logits: jax.Array,
    bias: jax.Array,
    where: jax.Array,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    outputs = _choose(constants, config, gate_logits, bias, where)
    outputs = tuple(checkpoint_name(x, ROUTING_NAME) for x in outputs)
    return outputs, (gate_logits, outputs[0], outputs[1], bias, where)


def _choose_backward(
    constants: _Constants,
    config: RouteConfig,
    saved: tuple[jax.Array, ...],
    cotangents: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array, None]:
    gate_logits, indices, weights, bias, where = saved
    to_weights, to_log_sums, to_mean_probs = cotangents[1], cotangents[4], cotangents[5]
    tokens, num_experts = gate_logits.shape
    kept = ("E", "EP", "K", "KP", "SIGMOID", "RENORMALIZE", "MASKED")
    to_logits = launch(
        Launch(
            kernel=choose_backward_kernel,
            inputs=(
                gate_logits,
                indices,
                to_weights,
                to_log_sums,
                to_mean_probs / _count(constants, tokens, where),
                weights,
                where,
                tokens,
            ),
            outputs=(jax.ShapeDtypeStruct((tokens, num_experts), gate_logits.dtype),),
            grid=(triton.cdiv(tokens, config.tokens),),
            constants={name: value for name, value in constants if name in kept}
            | {"BT": config.tokens},
            num_warps=config.num_warps,
        )
    )[0]
    return to_logits, jnp.zeros_like(bias), None


_choose.defvjp(_choose_forward, _choose_backward)
