"""Triton kernel from gate logits to experts, weights and the counts that a plan starts from.

The first of three launches; `calmoe_kernels.gpu.plan` has the other two. Each program takes
consecutive tokens, chooses their experts, and numbers its slots within each expert.

The choice is `k` rounds of a maximum and a least index over 32-bit integers ordered as the logits
are: GPUs reduce integers across a warp in one instruction, and the least integer, which no number
maps to, marks what was chosen, so that even `-inf` is chosen at most once.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jax.ad_checkpoint import checkpoint_name

from calmoe_kernels.gpu.configs import RouteConfig, route_config
from calmoe_kernels.gpu.launch import Launch, launch
from calmoe_kernels.gpu.plan import check_experts, int32, scan_and_place
from calmoe_kernels.layout import ROUTING_NAME

_TAKEN = tl.constexpr(-2147483648)


@triton.jit
def _key(x):
    """Integers in the order of floats; the least integer is the key of no number."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _first_largest(key, index, END: tl.constexpr):
    """In each row, the least index of the largest key."""
    largest = tl.max(key, 1)
    return tl.min(tl.where(key == largest[:, None], index[None, :], END), 1)


@triton.jit
def _clean(raw, real):
    """Logits with unroutable rows and -0 set to 0, which rows are routable, and the largest."""
    largest = tl.max(tl.where(raw == raw, raw, float("inf")), 1)
    routable = (largest > float("-inf")) & (largest < float("inf"))
    logits = tl.where(routable[:, None], raw, 0.0)
    logits = tl.where(logits == 0.0, 0.0, logits)
    logits = tl.where(real[None, :], logits, float("-inf"))
    return logits, routable, tl.where(routable, largest, 0.0)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _in_best_groups(
    values,
    e,
    E: tl.constexpr,
    EP: tl.constexpr,
    BT: tl.constexpr,
    GROUPS: tl.constexpr,
    GP: tl.constexpr,
    CHOSEN_GROUPS: tl.constexpr,
):
    """The values of the experts of the best groups, and -inf for those of the others."""
    SIZE: tl.constexpr = E // GROUPS
    g = tl.arange(0, GP)
    worth = tl.full((BT, GP), float("-inf"), tl.float32)
    group_of = e // SIZE
    for group in range(GROUPS):
        own = tl.where(group_of[None, :] == group, values, float("-inf"))
        best = tl.max(own, 1)
        first = tl.min(tl.where(own == best[:, None], e[None, :], EP), 1)
        second = tl.max(tl.where(e[None, :] == first[:, None], float("-inf"), own), 1)
        total = tl.where(second == float("-inf"), best, best + second)
        worth = tl.where(g[None, :] == group, total[:, None], worth)
    key = tl.where(g[None, :] < GROUPS, _key(worth), _TAKEN)
    kept = tl.zeros((BT, EP), tl.int1)
    for _ in range(CHOSEN_GROUPS):
        chosen = _first_largest(key, g, GP)
        key = tl.where(g[None, :] == chosen[:, None], _TAKEN, key)
        kept = kept | (group_of[None, :] == chosen[:, None])
    return tl.where(kept, values, float("-inf"))


@triton.jit
def _choose_kernel(
    gate_logits,
    selection_bias,
    num_tokens,
    expert_indices,
    combine_weights,
    numbers,
    counts,
    log_sums,
    prob_sums,
    unroutable,
    E: tl.constexpr,
    EP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
    TILES: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BIASED: tl.constexpr,
    GROUPS: tl.constexpr,
    GP: tl.constexpr,
    CHOSEN_GROUPS: tl.constexpr,
):
    program = tl.program_id(0)
    e = tl.arange(0, EP)
    kk = tl.arange(0, KP)
    real = e < E
    count = tl.zeros((EP,), tl.int32)
    prob_sum = tl.zeros((EP,), tl.float32)
    bad = 0
    if BIASED:
        bias = tl.load(selection_bias + e, mask=real, other=0)
        finite = (bias == bias) & (tl.abs(bias) < float("inf"))
        bias_is_finite = tl.sum(tl.where(finite, 0, 1), 0) == 0
    for tile in range(TILES):
        t = (program * TILES + tile) * BT + tl.arange(0, BT)
        live = t < num_tokens
        raw = tl.load(
            gate_logits + t.to(tl.int64)[:, None] * E + e[None, :],
            mask=live[:, None] & real[None, :],
            other=float("-inf"),
        ).to(tl.float32)
        logits, routable, largest = _clean(raw, real)
        sum_of_exps = tl.sum(tl.exp(logits - largest[:, None]), 1)
        log_sum = tl.log(sum_of_exps) + largest
        if SIGMOID:
            log_scores = _log_sigmoid(logits)
            peak = tl.max(log_scores, 1)
            probs = tl.exp(log_scores - peak[:, None])
            probs = probs / tl.sum(probs, 1)[:, None]
        else:
            log_scores = logits
            probs = tl.exp(logits - largest[:, None]) / sum_of_exps[:, None]
        probs = tl.where(routable[:, None], probs, float("nan"))
        prob_sum += tl.sum(tl.where(live[:, None], probs, 0.0), 0)
        bad += tl.sum(tl.where(live & ~routable, 1, 0), 0)
        tl.store(log_sums + t, tl.where(routable, log_sum, float("nan")), mask=live)

        weighable = routable
        values = logits
        if BIASED or GROUPS > 1:
            if SIGMOID:
                values = tl.exp(log_scores)
            else:
                values = tl.exp(logits - log_sum[:, None])
            if BIASED:
                values = values + bias[None, :]
                weighable = routable & bias_is_finite
            values = tl.where(logits == float("-inf"), float("-inf"), values)
            values = tl.where(weighable[:, None] | (e >= E)[None, :], values, 0.0)
            values = tl.where(values == 0.0, 0.0, values)
            if GROUPS > 1:
                values = _in_best_groups(values, e, E, EP, BT, GROUPS, GP, CHOSEN_GROUPS)
        key = tl.where(real[None, :], _key(values), _TAKEN)
        index = tl.zeros((BT, KP), tl.int32)
        for j in range(K):
            chosen = _first_largest(key, e, EP)
            key = tl.where(e[None, :] == chosen[:, None], _TAKEN, key)
            index = tl.where(kk[None, :] == j, chosen[:, None], index)

        used = kk[None, :] < K
        picked = tl.gather(log_scores, index, 1)
        if GROUPS > 1:
            picked = tl.where(tl.gather(values, index, 1) == float("-inf"), float("-inf"), picked)
        picked = tl.where(used, picked, float("-inf"))
        if RENORMALIZE:
            weight = tl.exp(picked - tl.max(picked, 1)[:, None])
            weight = weight / tl.sum(weight, 1)[:, None]
        else:
            if SIGMOID:
                weight = tl.exp(picked)
            else:
                weight = tl.exp(picked - log_sum[:, None])
        weight = tl.where(weighable[:, None], weight, float("nan"))

        taken = ((key == _TAKEN) & real[None, :] & live[:, None]).to(tl.int32)
        number = tl.gather(tl.cumsum(taken, 0) - taken + count[None, :], index, 1)
        count += tl.sum(taken, 0)
        slot = t.to(tl.int64)[:, None] * K + kk[None, :]
        mask = live[:, None] & used
        tl.store(expert_indices + slot, index, mask=mask)
        tl.store(combine_weights + slot, weight, mask=mask)
        tl.store(numbers + slot, number, mask=mask)
    row = program.to(tl.int64) * E + e
    tl.store(counts + row, count, mask=real)
    tl.store(prob_sums + row, prob_sum, mask=real)
    tl.store(unroutable + program, bad)


@triton.jit
def _choose_backward_kernel(
    gate_logits,
    expert_indices,
    to_weights,
    to_log_sums,
    to_prob_sums,
    weighable,
    num_tokens,
    to_logits,
    E: tl.constexpr,
    EP: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
):
    e = tl.arange(0, EP)
    kk = tl.arange(0, KP)
    real = e < E
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    live = t < num_tokens
    used = (kk < K)[None, :]
    cell = t.to(tl.int64)[:, None] * E + e[None, :]
    raw = tl.load(gate_logits + cell, mask=live[:, None] & real[None, :], other=float("-inf")).to(
        tl.float32
    )
    logits, routable, largest = _clean(raw, real)
    gate = tl.exp(logits - largest[:, None])
    sum_of_exps = tl.sum(gate, 1)
    gate = gate / sum_of_exps[:, None]
    probs = gate
    log_scores = logits
    if SIGMOID:
        log_scores = _log_sigmoid(logits)
        probs = tl.exp(log_scores - tl.max(log_scores, 1)[:, None])
        probs = probs / tl.sum(probs, 1)[:, None]
    to_mean = tl.load(to_prob_sums + e, mask=real, other=0).to(tl.float32)[None, :]
    gradient = probs * (to_mean - tl.sum(probs * to_mean, 1)[:, None])

    slot = t.to(tl.int64)[:, None] * K + kk[None, :]
    index = tl.load(expert_indices + slot, mask=live[:, None] & used, other=0)
    weight_cotangent = tl.load(to_weights + slot, mask=live[:, None] & used, other=0)
    # exactly 0 where a surplus slot holds an expert that could not be chosen
    chosen = tl.load(weighable + slot, mask=live[:, None] & used, other=0) > 0
    picked = tl.where(chosen, tl.gather(log_scores, index, 1), float("-inf"))
    if RENORMALIZE:
        peak = tl.max(picked, 1)
        weight = tl.exp(picked - tl.where(peak == float("-inf"), 0.0, peak)[:, None])
        total = tl.sum(weight, 1)
        weight = weight / tl.where(total == 0.0, 1.0, total)[:, None]
    else:
        if SIGMOID:
            weight = tl.exp(picked)
        else:
            weight = tl.exp(picked - (tl.log(sum_of_exps) + largest)[:, None])
    pulled = tl.where(chosen, weight * weight_cotangent, 0.0)
    if RENORMALIZE:
        pulled = pulled - weight * tl.sum(pulled, 1)[:, None]
    else:
        if not SIGMOID:
            gradient = gradient - probs * tl.sum(pulled, 1)[:, None]
    for j in range(K):
        column = kk[None, :] == j
        expert = tl.sum(tl.where(column, index, 0), 1)
        value = tl.sum(tl.where(column, pulled, 0.0), 1)
        gradient += tl.where(e[None, :] == expert[:, None], value[:, None], 0.0)
    if SIGMOID:
        gradient = gradient * tl.where(logits == float("-inf"), 0.0, tl.exp(_log_sigmoid(-logits)))
    log_sum_cotangent = tl.load(to_log_sums + t, mask=live, other=0)
    gradient += gate * log_sum_cotangent[:, None]
    gradient = tl.where(routable[:, None], gradient, 0.0)
    tl.store(
        to_logits + cell,
        gradient.to(to_logits.dtype.element_ty),
        mask=live[:, None] & real[None, :],
    )


def _check(num_experts: int, dtype: Any) -> None:
    check_experts(num_experts)
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"triton has no kernel for logits of dtype {dtype}.")


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def route(
    gate_logits: jax.Array,
    selection_bias: jax.Array | None,
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
    )
    plan_arrays = scan_and_place(
        indices,
        numbers,
        counts,
        config.tokens * config.tiles * k,
        capacity=capacity,
        block_size=block_size,
        full=capacity is None and block_size is None,
    )
    return indices, weights, *plan_arrays, mean_probs, log_sums, unroutable


_Constants = tuple[tuple[str, Any], ...]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _choose(
    constants: _Constants, config: RouteConfig, gate_logits: jax.Array, bias: jax.Array
) -> tuple[jax.Array, ...]:
    (tokens, num_experts), k = gate_logits.shape, dict(constants)["K"]
    programs = triton.cdiv(tokens, config.tokens * config.tiles)
    indices, weights, numbers, counts, log_sums, prob_sums, unroutable = launch(
        Launch(
            kernel=_choose_kernel,
            inputs=(gate_logits, bias, tokens),
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
    mean_probs = jnp.sum(prob_sums, axis=0) / tokens
    return indices, weights, numbers, counts, log_sums, mean_probs, jnp.sum(unroutable)


def _choose_forward(
    constants: _Constants, config: RouteConfig, gate_logits: jax.Array, bias: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    outputs = _choose(constants, config, gate_logits, bias)
    outputs = tuple(checkpoint_name(x, ROUTING_NAME) for x in outputs)
    return outputs, (gate_logits, outputs[0], outputs[1], bias)


def _choose_backward(
    constants: _Constants,
    config: RouteConfig,
    saved: tuple[jax.Array, ...],
    cotangents: tuple[Any, ...],
) -> tuple[jax.Array, jax.Array]:
    gate_logits, indices, weights, bias = saved
    to_weights, to_log_sums, to_mean_probs = cotangents[1], cotangents[4], cotangents[5]
    tokens, num_experts = gate_logits.shape
    kept = ("E", "EP", "K", "KP", "SIGMOID", "RENORMALIZE")
    to_logits = launch(
        Launch(
            kernel=_choose_backward_kernel,
            inputs=(
                gate_logits,
                indices,
                to_weights,
                to_log_sums,
                to_mean_probs / tokens,
                weights,
                tokens,
            ),
            outputs=(jax.ShapeDtypeStruct((tokens, num_experts), gate_logits.dtype),),
            grid=(triton.cdiv(tokens, config.tokens),),
            constants={name: value for name, value in constants if name in kept}
            | {"BT": config.tokens},
            num_warps=config.num_warps,
        )
    )[0]
    return to_logits, jnp.zeros_like(bias)


_choose.defvjp(_choose_forward, _choose_backward)
