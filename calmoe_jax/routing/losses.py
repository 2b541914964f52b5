"""Losses of a gate: balance between experts, and small logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_at_least
from calmoe_jax._numerics import AxisName, psum, safe_divide, wide_dtype
from calmoe_jax._signatures import checked
from calmoe_jax.routing._top_k import routable_logits
from calmoe_jax.routing.kinds import Routing
from calmoe_jax.routing.statistics import expert_importance, expert_load


@checked
def load_balancing_loss(
    gate_probs: Float[Array, "*tokens experts"],
    routing: Routing,
    *,
    where: Bool[Array, "*tokens"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Penalises experts that receive many slots and have high gate probability.

    With `f_e` the fraction of all slots sent to expert `e` and `P_e` its mean gate
    probability, the loss is `E sum_e f_e P_e`: **1 at perfect balance for every k**, and up to
    `E / k` at collapse. Only `P_e` carries a gradient.

    Args:
        gate_probs: gate probabilities over all experts.
        routing: the routing of the same tokens.
        where: tokens to count; all by default.
        axis_name: device axis to sum over, inside `pmap` or `shard_map`: sums and counts are
            summed, so uneven shards give the loss of the full batch.

    Returns:
        The loss, a float32 scalar; 0 where no token counts.

    Raises:
        ValueError: if `routing` and `gate_probs` differ in their tokens.

    Example:
        >>> gate_logits = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> load_balancing_loss(gate_probabilities(gate_logits), hard_routing(gate_logits))
        Array(1., dtype=float32)

    References:
        Fedus et al., Switch Transformers, 2021, eq. 4 (whose constant is also 1, for k = 1).
    """
    num_experts = gate_probs.shape[-1]
    if gate_probs.shape[:-1] != routing.expert_indices.shape[:-1]:
        raise ValueError(
            "routing must have the tokens of gate_probs, got routing.expert_indices.shape="
            f"{routing.expert_indices.shape} and gate_probs.shape={gate_probs.shape}."
        )
    load = expert_load(routing, num_experts=num_experts, where=where, axis_name=axis_name)
    importance = expert_importance(gate_probs, where=where, axis_name=axis_name)
    slots = load.sum().astype(importance.dtype)
    tokens = _count_tokens(gate_probs, where, axis_name)
    return num_experts * safe_divide(
        jnp.sum(load.astype(importance.dtype) * importance), slots * tokens
    )


@checked
def router_z_loss(
    gate_logits: Float[Array, "*tokens experts"],
    *,
    where: Bool[Array, "*tokens"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Mean squared log-partition of the gate: `mean_t (log sum_e exp g_te)^2`.

    Args:
        gate_logits: unnormalised log-probabilities in nats; `-inf` masks an expert.
        where: tokens to count; all by default.
        axis_name: device axis to sum over, inside `pmap` or `shard_map`.

    Returns:
        The loss, a float32 scalar; 0 if no token counts, NaN if a token that counts cannot be
        routed.

    Example:
        >>> router_z_loss(jnp.log(jnp.array([[0.5, 0.5]])))
        Array(0., dtype=float32)

    References:
        Zoph et al., ST-MoE, 2022.
    """
    check_at_least("num_experts", gate_logits.shape[-1], 1)
    logits, routable = routable_logits(gate_logits)
    squares = jnp.where(routable, jnp.square(jax.nn.logsumexp(logits, axis=-1)), jnp.nan)
    if where is not None:
        squares = jnp.where(where, squares, 0)
    tokens = _count_tokens(logits, where, axis_name)
    return safe_divide(psum(jnp.sum(squares), axis_name), tokens)


def _count_tokens(
    per_token: Float[Array, "*tokens experts"],
    where: Bool[Array, "*tokens"] | None,
    axis_name: AxisName,
) -> Float[Array, ""]:
    shape = per_token.shape[:-1]
    dtype = wide_dtype(per_token.dtype)  # bfloat16 would round the number
    counted = jnp.ones(shape, dtype) if where is None else where.astype(dtype)
    return psum(jnp.sum(counted), axis_name)
