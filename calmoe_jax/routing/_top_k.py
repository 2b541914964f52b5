"""Chooses experts: gate logits to indices and weights, with any implementation of top-k.

`calmoe_jax.routing` documents the definitions; kernels pass their own top-k.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_choice
from calmoe_jax._numerics import at_least_float32
from calmoe_kernels.derivatives import Arrays
from calmoe_kernels.multilinear import gradients
from calmoe_kernels.varying import vary_along, varying_axes

# With more rounds than this, a sort is faster.
_MOST_ROUNDS = 8


def _routable(gate_logits: Float[Array, "*tokens experts"]) -> Bool[Array, "*tokens"]:
    """Rows in which no logit is NaN or +inf and at least one expert is not masked."""
    wrong = jnp.isnan(gate_logits) | jnp.isposinf(gate_logits)
    return jnp.any(gate_logits > -jnp.inf, axis=-1) & ~jnp.any(wrong, axis=-1)


def routable_logits(
    gate_logits: Float[Array, "*tokens experts"],
) -> tuple[Float[Array, "*tokens experts"], Bool[Array, "*tokens"]]:
    """Float32 logits with unroutable rows set to 0, and which rows are routable."""
    logits = at_least_float32(gate_logits)
    routable = _routable(logits)
    return jnp.where(routable[..., None], logits, 0), routable


def largest(
    values: Float[Array, "tokens experts"], k: int
) -> tuple[Float[Array, "tokens k"], Int[Array, "tokens k"]]:
    """The `k` largest values of each row and their indices, largest first: a fast `top_k`.

    For small `k`, rounds of `argmax` over integers in the order of the floats; the values taken
    are overwritten by the smallest integer. Unlike a sort, XLA fuses and shards the rounds.

    Args:
        values: no NaN and no -0.
        k: number of values, in `[1, experts]`.

    Returns:
        What `jax.lax.top_k` returns: ties go to the lower index, also among `-inf`.

    Example:
        >>> largest(jnp.array([[0.0, 2.0, 2.0]]), 2)[1]
        Array([[1, 2]], dtype=int32)
    """
    if k > _MOST_ROUNDS:
        top, indices = jax.lax.top_k(values, k)
        return top, indices
    integers = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    limits = jnp.iinfo(integers)
    bits = jax.lax.bitcast_convert_type(values, integers)
    keys = jnp.where(bits < 0, bits ^ limits.max, bits)
    experts = jax.lax.broadcasted_iota(jnp.int32, values.shape, 1)
    chosen = []
    for _ in range(k):
        chosen.append(jnp.argmax(keys, axis=1).astype(jnp.int32))
        keys = jnp.where(experts == chosen[-1][:, None], limits.min, keys)
    stacked = jnp.stack(chosen, axis=1)
    return jnp.take_along_axis(values, stacked, axis=1), stacked


def _pick(
    values: Float[Array, "tokens experts"], indices: Int[Array, "tokens k"]
) -> Float[Array, "tokens k"]:
    """`values[t, indices[t, j]]`, with derivatives that `checkify` need not look into.

    It fails on the gradient of `jnp.take_along_axis`, and XLA would gather sharded values for
    other forms of it.
    """
    values, indices = vary_along((values, indices), varying_axes(values, indices))
    return gradients(partial(_picks, values.shape), indices, (values, None), 1)[0]


def _picks(
    shape: tuple[Any, ...], indices: jax.Array, arrays: Arrays, wanted: tuple[int, ...]
) -> Arrays:
    """Gradients of `sum_tj top_tj values[t, indices[t, j]]` to values or to top."""
    values, top = arrays

    def pick(values: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values, indices, axis=1)

    if wanted == (1,):
        return (pick(values),)
    zeros = vary_along(jnp.zeros(shape, top.dtype), varying_axes(top, indices))
    return (jax.vjp(pick, zeros)[1](top)[0],)


def check_top_k(
    gate_logits: Float[Array, "*tokens experts"],
    selection_bias: Float[Array, " experts"] | None,
    *,
    k: int,
    scores: str,
    num_groups: int,
    groups_per_token: int,
) -> None:
    """Raises `ValueError` where the static arguments of `top_k_routing` break a rule."""
    num_experts = gate_logits.shape[-1]
    check_choice("scores", scores, ("softmax", "sigmoid"))
    if not 1 <= k <= num_experts:
        raise ValueError(f"k must be in [1, num_experts={num_experts}], got k={k}.")
    if num_groups < 1 or num_experts % num_groups:
        raise ValueError(
            f"num_groups must divide num_experts={num_experts}, got num_groups={num_groups}."
        )
    if not 1 <= groups_per_token <= num_groups:
        raise ValueError(
            f"groups_per_token must be in [1, num_groups={num_groups}], "
            f"got groups_per_token={groups_per_token}."
        )
    available = groups_per_token * (num_experts // num_groups)
    if k > available:
        raise ValueError(
            f"k must be at most the {available} experts of groups_per_token={groups_per_token} "
            f"groups, got k={k}."
        )
    if selection_bias is not None and selection_bias.shape != (num_experts,):
        raise ValueError(
            f"selection_bias must have shape ({num_experts},), one number per expert, got "
            f"selection_bias.shape={selection_bias.shape}."
        )


def choose(
    top_k: Callable[[Float[Array, "tokens experts"], int], tuple[jax.Array, jax.Array]],
    gate_logits: Float[Array, "*tokens experts"],
    selection_bias: Float[Array, " experts"] | None,
    *,
    k: int,
    scores: str,
    renormalize: bool,
    num_groups: int,
    groups_per_token: int,
) -> tuple[Int[Array, "*tokens k"], Float[Array, "*tokens k"]]:
    """Experts and weights of `top_k_routing`, with any `top_k(values, k)`.

    Args:
        top_k: largest values of each row and their indices, ties to the lower index; never NaN.
        gate_logits: as in `top_k_routing`.
        selection_bias: as in `top_k_routing`.
        k: as in `top_k_routing`.
        scores: as in `top_k_routing`.
        renormalize: as in `top_k_routing`.
        num_groups: as in `top_k_routing`.
        groups_per_token: as in `top_k_routing`.

    Returns:
        Expert indices and combine weights, as `top_k_routing` returns them.
    """
    check_top_k(
        gate_logits, selection_bias, k=k, scores=scores, num_groups=num_groups,
        groups_per_token=groups_per_token,
    )  # fmt: skip
    # XLA has a fast top-k for two axes
    flat, routable = routable_logits(gate_logits.reshape(-1, gate_logits.shape[-1]))
    log_scores = log_scores_of(flat, scores)
    if scores == "softmax" and (selection_bias is not None or num_groups > 1 or not renormalize):
        log_scores = jax.nn.log_softmax(log_scores, axis=-1)
    if selection_bias is not None:
        bias = at_least_float32(jax.lax.stop_gradient(selection_bias))
        routable &= jnp.isfinite(bias).all()
    if selection_bias is None and num_groups == 1:
        # in the order of the logits: scores may underflow
        indices = top_k(_without_negative_zero(flat), k)[1]
        top = _pick(log_scores, indices)
    else:
        values = jnp.exp(log_scores)
        if selection_bias is not None:
            values += bias[None]
        values = _without_negative_zero(values)
        values = jnp.where(jnp.isneginf(flat), -jnp.inf, values)
        values = jnp.where(routable[:, None], values, 0)
        if num_groups > 1:
            values = _in_best_groups(values, num_groups, groups_per_token)
        chosen, indices = top_k(values, k)
        top = _pick(log_scores, indices)
        top = jnp.where(jnp.isneginf(chosen), -jnp.inf, top)
    weights = jax.nn.softmax(top, axis=-1) if renormalize else jnp.exp(top)
    weights = jnp.where(routable[:, None], weights, jnp.nan)
    shape = (*gate_logits.shape[:-1], k)
    return indices.reshape(shape), weights.reshape(shape)


def _without_negative_zero(
    values: Float[Array, "tokens experts"],
) -> Float[Array, "tokens experts"]:
    """Values to compare, with -0 replaced by 0 (XLA would optimise away the addition of 0)."""
    values = jax.lax.stop_gradient(values)
    return jnp.where(values == 0, 0, values)


def log_scores_of(
    logits: Float[Array, "tokens experts"], scores: str
) -> Float[Array, "tokens experts"]:
    """The logarithms of the scores up to a constant: the logits, or their log-sigmoids."""
    if scores == "softmax":
        return logits
    masked = jnp.isneginf(logits)
    return jnp.where(masked, -jnp.inf, jax.nn.log_sigmoid(jnp.where(masked, 0, logits)))


def _in_best_groups(
    values: Float[Array, "tokens experts"], num_groups: int, groups_per_token: int
) -> Float[Array, "tokens experts"]:
    """The values of the experts in the best groups, and -inf for the others."""
    grouped = values.reshape(values.shape[0], num_groups, -1)
    best = jnp.max(grouped, axis=-1)
    # the second largest as the maximum of the others: top-k of many short rows is slow on CPU
    first = jnp.argmax(grouped, axis=-1, keepdims=True)
    others = jnp.arange(grouped.shape[-1])[None, None] != first
    second = jnp.max(grouped, axis=-1, where=others, initial=-jnp.inf)
    worth = best + jnp.where(jnp.isneginf(second), 0, second)
    chosen = largest(worth, groups_per_token)[1]
    kept = jax.nn.one_hot(chosen, num_groups, dtype=bool).any(axis=-2)
    return jnp.where(kept[..., None], grouped, -jnp.inf).reshape(values.shape)
