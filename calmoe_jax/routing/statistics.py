"""Statistics of a gate: mean probabilities, load, importance."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_choice
from calmoe_jax._numerics import AxisName, at_least_float32, psum
from calmoe_jax._signatures import checked
from calmoe_jax.routing._top_k import log_scores_of, routable_logits
from calmoe_jax.routing.kinds import Routing


class GateStatistics(NamedTuple):
    """Statistics for the losses of a gate, and the number of tokens it could not route.

    The load-balancing loss is `E sum_e P_e load_e / sum(load)` with `P` the mean gate
    probabilities and `load` a plan's; the router z-loss is `mean(square(logsumexp))`.

    Attributes:
        mean_gate_probs: mean over the tokens that count of the scores divided by their sum over the
            experts (softmax: the gate probabilities); 0 without tokens, NaN if a token that counts
            is unroutable.
        logsumexp: `log sum_e exp(g_e)` of each token, in nats; NaN where it cannot be routed, 0
            where it does not count.
        num_unroutable: tokens that count with a NaN or `+inf` logit, or no unmasked expert.
        num_tokens: tokens that count among those of `logsumexp`, on each device its own.
    """

    mean_gate_probs: Float[Array, " experts"]
    logsumexp: Float[Array, " tokens"]
    num_unroutable: Int[Array, ""]
    num_tokens: Int[Array, ""]


@checked
def gate_statistics(
    gate_logits: Float[Array, "tokens experts"],
    *,
    where: Bool[Array, " tokens"] | None = None,
    scores: str = "softmax",
    axis_name: AxisName = None,
) -> GateStatistics:
    """Computes the statistics for the losses of a gate, in one pass over the logits.

    Args:
        gate_logits: gate logits; `-inf` masks an expert.
        where: tokens that count; all by default. The others may hold anything and get no gradient.
        scores: `"softmax"` or `"sigmoid"`.
        axis_name: device axis that the tokens are sharded over, inside `pmap` or `shard_map`: the
            mean and the number of unroutable tokens are then those of all devices' tokens.

    Returns:
        A `GateStatistics`, at least float32.

    Raises:
        ValueError: if the scores are unknown, there is no expert, or the mask has another shape.

    Example:
        >>> gate_statistics(jnp.array([[0.0, 0.0], [0.0, -jnp.inf]])).mean_gate_probs
        Array([0.75, 0.25], dtype=float32)
    """
    check_choice("scores", scores, ("softmax", "sigmoid"))
    check_at_least("num_experts", gate_logits.shape[-1], 1)
    logits, routable = routable_logits(gate_logits)
    probs = jax.nn.softmax(log_scores_of(logits, scores), axis=-1)
    probs = jnp.where(routable[:, None], probs, jnp.nan)
    log_sums = jnp.where(routable, jax.nn.logsumexp(logits, axis=-1), jnp.nan)
    unroutable = ~routable
    if where is not None:
        probs = jnp.where(where[:, None], probs, 0)
        log_sums = jnp.where(where, log_sums, 0)
        unroutable &= where
    num_tokens = count_tokens(logits.shape[0], where)
    count = jnp.maximum(psum(num_tokens, axis_name), 1).astype(probs.dtype)
    return GateStatistics(
        mean_gate_probs=psum(jnp.sum(probs, axis=0), axis_name) / count,
        logsumexp=log_sums,
        num_unroutable=psum(jnp.sum(unroutable, dtype=jnp.int32), axis_name),
        num_tokens=num_tokens,
    )


def count_tokens(tokens: Any, where: Bool[Array, " tokens"] | None) -> Int[Array, ""]:
    """Number of tokens that count, of all or of those in a mask."""
    return jnp.asarray(tokens, jnp.int32) if where is None else jnp.sum(where, dtype=jnp.int32)


@checked
def expert_load(
    routing: Routing,
    *,
    num_experts: int,
    where: Bool[Array, "*tokens"] | None = None,
    axis_name: AxisName = None,
) -> Int[Array, " experts"]:
    """Counts the slots that each expert receives.

    Args:
        routing: a routing.
        num_experts: number of experts; static under `jax.jit`.
        where: tokens to count; all by default.
        axis_name: device axis to sum over, inside `pmap` or `shard_map`.

    Returns:
        Slots per expert. Slots of weight 0 (masked experts) and of rows that cannot be routed are
        not counted.

    Example:
        >>> expert_load(hard_routing(jnp.array([[0.0, 1.0], [2.0, 1.0], [0.0, 4.0]])), num_experts=2)
        Array([1, 2], dtype=int32)
    """  # noqa: E501
    check_at_least("num_experts", num_experts, 1)
    counted = routing.combine_weights > 0
    if where is not None:
        counted &= where[..., None]
    load = jnp.zeros(num_experts, jnp.int32)
    load = load.at[routing.expert_indices.reshape(-1)].add(counted.reshape(-1).astype(jnp.int32))
    return psum(load, axis_name)


@checked
def expert_importance(
    weights: Float[Array, "*tokens experts"],
    *,
    where: Bool[Array, "*tokens"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, " experts"]:
    """Sums the routing weights (or gate probabilities) that each expert receives.

    Args:
        weights: dense routing weights or gate probabilities.
        where: tokens to count; all by default.
        axis_name: device axis to sum over, inside `pmap` or `shard_map`.

    Returns:
        Total weight per expert, in tokens. NaN rows make it NaN unless `where` leaves them out.

    Example:
        >>> expert_importance(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
        Array([0.75, 1.25], dtype=float32)

    References:
        Shazeer et al., Outrageously Large Neural Networks, 2017.
    """
    weights = at_least_float32(weights)
    if where is not None:
        weights = jnp.where(where[..., None], weights, 0)
    return psum(weights.sum(axis=tuple(range(weights.ndim - 1))), axis_name)
