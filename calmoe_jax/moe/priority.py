"""Batch-prioritised dropping: where capacity is short, the most certain tokens are served first.

Without it the last tokens of a batch are dropped, whatever they hold. Here the tokens are put in
the order of their priority, planned, and the plan is written back for the original order.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._signatures import checked
from calmoe_jax.moe.plan import DispatchPlan, plan_dispatch
from calmoe_jax.routing._top_k import log_scores_of, routable_logits


@checked
def plan_by_priority(
    priority: Float[Array, " tokens"],
    expert_indices: Int[Array, "tokens k"],
    combine_weights: Float[Array, "tokens k"] | None = None,
    *,
    where: Bool[Array, " tokens"] | None = None,
    num_experts: int,
    capacity: int | None = None,
) -> DispatchPlan:
    """Plans the rows of all slots, grouped by expert in the order of the tokens' priority.

    As `plan_dispatch`, but an expert beyond its capacity drops the tokens of the lowest priority,
    not the last ones. All slots of a token are served before those of the next token.

    Args:
        priority: priority of each token, the largest first; ties are served in the order of the
            tokens, NaN last. V-MoE takes the largest gate probability.
        expert_indices: as in `plan_dispatch`.
        combine_weights: as in `plan_dispatch`.
        where: as in `plan_dispatch`: padding comes last, and takes nothing.
        num_experts: number of experts; static under `jax.jit`.
        capacity: rows per expert, at least 1; without one nothing is dropped, and only the order
            of rows is by priority.

    Returns:
        A `DispatchPlan` for the tokens in their original order. The rows of an expert are in the
        order of priority.

    Raises:
        TypeError: as `plan_dispatch`.
        ValueError: as `plan_dispatch`.

    Example:
        >>> plan = plan_by_priority(
        ...     jnp.array([0.2, 0.9, 0.5]), jnp.array([[0], [0], [0]]), num_experts=1, capacity=2)
        >>> plan.dropped[:, 0].tolist(), plan.slot_indices.tolist()
        ([True, False, False], [1, 2])

    References:
        Riquelme et al., Scaling Vision with Sparse Mixture of Experts, 2021 (batch prioritized
        routing; there all first choices are served before any second choice).
    """
    tokens, k = expert_indices.shape
    order = _served(jax.lax.stop_gradient(priority), where)
    plan = plan_dispatch(
        expert_indices[order],
        None if combine_weights is None else combine_weights[order],
        where=None if where is None else where[order],
        num_experts=num_experts,
        capacity=capacity,
        implementation="xla",
    )
    slots = (order[:, None] * k + jnp.arange(k, dtype=jnp.int32)[None]).reshape(-1)
    # one more for empty rows
    slots = jnp.append(slots, jnp.full(1, tokens * k, jnp.int32))
    return plan._replace(
        positions=jnp.zeros_like(plan.positions).at[order].set(plan.positions, unique_indices=True),
        slot_indices=slots[plan.slot_indices],
    )


def gate_priority(
    gate_logits: Float[Array, "tokens experts"], *, scores: str = "softmax"
) -> Float[Array, " tokens"]:
    """The logarithm of each token's largest gate score; NaN where it cannot be routed.

    Args:
        gate_logits: gate logits.
        scores: as in `route`.
    """
    logits, routable = routable_logits(jax.lax.stop_gradient(gate_logits))
    logs = log_scores_of(logits, scores)
    logs = jax.nn.log_softmax(logs, axis=-1) if scores == "softmax" else logs
    return jnp.where(routable, jnp.max(logs, axis=-1), jnp.nan)


def _served(
    priority: Float[Array, " tokens"], where: Bool[Array, " tokens"] | None
) -> Int[Array, " tokens"]:
    """Tokens in the order in which they are served; a stable sort of NaN and padding last."""
    nothing = jnp.isnan(priority)
    padding = jnp.zeros_like(nothing) if where is None else ~where
    last = nothing.astype(jnp.int32) + 2 * padding.astype(jnp.int32)
    key = jnp.where(last > 0, 0, -priority)
    number = jax.lax.iota(jnp.int32, priority.shape[0])
    sorted_: tuple[jax.Array, ...] = jax.lax.sort((last, key, number), num_keys=3)
    return sorted_[2]
