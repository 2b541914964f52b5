"""Gate logits to a routing: dense, top-k or hard, with the losses and statistics of a gate.

Everything is computed in at least float32, whatever the dtype of the logits. A logit of `-inf`
masks an expert: it gets weight exactly 0. A row that cannot be routed (a NaN or `+inf` logit, or
every expert masked) keeps valid expert indices `0, ..., k - 1` and gets NaN weights, so that
nothing indexes out of bounds and nothing wrong passes silently.

What `k = 1` does to the router's gradient:

* softmax, then top-k, weights kept as they are (`renormalize=False`): the chosen weight is the
  gate probability `p_s < 1`. The router learns, but the weights do not sum to one, so the
  aggregate of expert probabilities is no distribution.
* top-k, then softmax over the chosen (the same as `renormalize=True`): for `k = 1` the weight is
  the constant 1, and the gradient to the router is exactly zero: it learns nothing.
* straight-through (`straight_through_weights`): one-hot forward, softmax backward, over *all*
  experts. With cotangents `c_k = dL/dw_k` the router sees `p_j (c_j - sum_k p_k c_k)`: experts
  are compared with one another. A straight-through estimate of the chosen slot alone would not
  do: for the loss `-log F_y` its cotangent is always -1, and it only ever strengthens the choice
  that was already made.
* or the router is trained dense and hardened afterwards: `dense_routing` for training,
  `hard_routing` for prediction.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_choice, check_same_size
from calmoe_jax._choice import choose, largest, log_scores_of, routable_logits
from calmoe_jax._numerics import AxisName, at_least_float32, psum, safe_divide


class Routing(NamedTuple):
    """Where each token goes, and the weight its experts' outputs come back with.

    Attributes:
        expert_indices: expert in each of a token's slots, best first (dense: in expert order).
        combine_weights: weight of each slot's expert; at least float32.
    """

    expert_indices: Int[Array, "*tokens k"]
    combine_weights: Float[Array, "*tokens k"]


def gate_probabilities(
    gate_logits: Float[Array, "*tokens experts"],
) -> Float[Array, "*tokens experts"]:
    """Softmax of the gate logits: `p_k = exp(g_k) / sum_j exp(g_j)`.

    Args:
        gate_logits: unnormalised log-probabilities in nats; `-inf` masks an expert.

    Returns:
        Probabilities, at least float32. Masked experts have exactly 0; rows that cannot be routed
        (NaN, `+inf`, all masked) are NaN.

    Example:
        >>> gate_probabilities(jnp.array([[0.0, -jnp.inf, 0.0]]))
        Array([[0.5, 0. , 0.5]], dtype=float32)
    """
    check_at_least("num_experts", gate_logits.shape[-1], 1)
    logits, routable = routable_logits(gate_logits)
    return jnp.where(routable[..., None], jax.nn.softmax(logits, axis=-1), jnp.nan)


def dense_routing(gate_logits: Float[Array, "*tokens experts"]) -> Routing:
    """Routes each token to every expert, weighted by its gate probability.

    Args:
        gate_logits: unnormalised log-probabilities in nats; `-inf` masks an expert.

    Returns:
        A `Routing` with as many slots as experts, in expert order, and
        `combine_weights = gate_probabilities(gate_logits)`.

    Example:
        >>> dense_routing(jnp.array([[0.0, 0.0]])).combine_weights
        Array([[0.5, 0.5]], dtype=float32)

    References:
        Jacobs et al., Adaptive Mixtures of Local Experts, 1991.
    """
    weights = gate_probabilities(gate_logits)
    indices = jnp.arange(gate_logits.shape[-1], dtype=jnp.int32)
    return Routing(jnp.broadcast_to(indices, gate_logits.shape), weights)


def top_k_routing(
    gate_logits: Float[Array, "*tokens experts"],
    selection_bias: Float[Array, " experts"] | None = None,
    *,
    k: int,
    scores: str = "softmax",
    renormalize: bool = True,
    num_groups: int = 1,
    groups_per_token: int = 1,
) -> Routing:
    """Routes each token to the `k` experts with the largest gate scores.

    The scores `s` are `softmax(g)` or `sigmoid(g)`. With `T` the chosen experts, the weights are
    `s_j / sum_{l in T} s_l` for `j` in `T`, or `s_j` with `renormalize=False`. A bias `b` moves
    the choice (the largest `s + b` are chosen) and never the weights. With groups, the experts of
    the `groups_per_token` best groups only can be chosen; a group is worth the sum of its two
    largest `s + b`.

    Args:
        gate_logits: gate logits; `-inf` masks an expert.
        selection_bias: finite addition to the scores in the choice, as in balancing without an
            auxiliary loss; no gradient reaches it.
        k: experts per token, in `[1, experts]`; static under `jax.jit`.
        scores: `"softmax"` or `"sigmoid"`.
        renormalize: whether each token's weights sum to one. A mixture of probabilities needs it.
        num_groups: number of groups of consecutive experts, a divisor of the number of experts.
        groups_per_token: groups a token's experts may come from, in `[1, num_groups]`.

    Returns:
        A `Routing`, best expert first. Ties go to the lower expert index. Where fewer than `k`
        experts can be chosen, the surplus slots hold the lowest other experts with weight exactly
        0. Rows that cannot be routed get indices `0, ..., k - 1` and NaN weights; so do all rows
        if a bias is not finite. With `k = 1`, `renormalize=True` the gradient to the logits is
        zero: see `straight_through_weights`.

    Raises:
        ValueError: if `k` is outside `[1, experts]`, or larger than the groups of a token; if the
            scores are unknown, the groups do not divide the experts, or the bias is of another
            number of experts.

    Example:
        >>> top_k_routing(jnp.array([[0.0, 2.0, 1.0]]), k=2).expert_indices
        Array([[1, 2]], dtype=int32)

    References:
        Shazeer et al., Outrageously Large Neural Networks, 2017; DeepSeek-AI, DeepSeek-V3
        Technical Report, 2024 (sigmoid scores, bias, groups).
    """
    return Routing(
        *choose(
            largest,
            gate_logits,
            selection_bias,
            k=k,
            scores=scores,
            renormalize=renormalize,
            num_groups=num_groups,
            groups_per_token=groups_per_token,
        )
    )


class GateStatistics(NamedTuple):
    """What the losses of a gate need, and how many tokens it could not route.

    The load-balancing loss is `E sum_e P_e load_e / sum(load)` with `P` the mean gate
    probabilities and `load` a plan's; the router z-loss is `mean(square(logsumexp))`.

    Attributes:
        mean_gate_probs: mean over the tokens of the scores divided by their sum over the experts
            (softmax: the gate probabilities); 0 without tokens, NaN if a token is unroutable.
        logsumexp: `log sum_e exp(g_e)` of each token, in nats; NaN where it cannot be routed.
        num_unroutable: tokens with a NaN or `+inf` logit, or no unmasked expert.
    """

    mean_gate_probs: Float[Array, " experts"]
    logsumexp: Float[Array, " tokens"]
    num_unroutable: Int[Array, ""]


def gate_statistics(
    gate_logits: Float[Array, "tokens experts"], *, scores: str = "softmax"
) -> GateStatistics:
    """Computes what the losses of a gate need, in one pass over the logits.

    Args:
        gate_logits: gate logits; `-inf` masks an expert.
        scores: `"softmax"` or `"sigmoid"`.

    Returns:
        A `GateStatistics`, at least float32.

    Raises:
        ValueError: if the scores are unknown or there is no expert.

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
    return GateStatistics(
        mean_gate_probs=jnp.sum(probs, axis=0) / max(len(logits), 1),
        logsumexp=log_sums,
        num_unroutable=jnp.sum(~routable, dtype=jnp.int32),
    )


def hard_routing(gate_logits: Float[Array, "*tokens experts"]) -> Routing:
    """Routes each token to its one best expert, with weight 1.

    Args:
        gate_logits: unnormalised log-probabilities in nats; `-inf` masks an expert.

    Returns:
        A `Routing` with one slot. Ties go to the lower expert index; rows that cannot be routed
        get index 0 and weight NaN. The weight is a constant: no gradient reaches the router.
        Train with `straight_through_weights`, or dense, and harden with this function.

    Example:
        >>> hard_routing(jnp.array([[0.0, 3.0]]))
        Routing(expert_indices=Array([[1]], dtype=int32), combine_weights=Array([[1.]], dtype=float32))

    References:
        Fedus et al., Switch Transformers, 2021.
    """  # noqa: E501 (the example's output is one line)
    return top_k_routing(gate_logits, k=1)


def straight_through_weights(
    gate_logits: Float[Array, "*tokens experts"],
) -> Float[Array, "*tokens experts"]:
    """Hard routing weights that a router can learn from: one-hot forward, softmax backward.

    The value is `onehot(argmax_k g_k)`; the derivative is that of `softmax(g)`.

    Args:
        gate_logits: unnormalised log-probabilities in nats; `-inf` masks an expert.

    Returns:
        Dense routing weights. Ties go to the lower expert index; rows that cannot be routed are
        NaN. For the gradient to compare experts, all of them must be evaluated on every token.

    Example:
        >>> straight_through_weights(jnp.array([[0.0, 3.0]]))
        Array([[0., 1.]], dtype=float32)

    References:
        Bengio, Léonard, Courville, Estimating or Propagating Gradients, 2013.
    """
    num_experts = gate_logits.shape[-1]
    one_hot = routing_weights(hard_routing(gate_logits), num_experts=num_experts)
    probs = gate_probabilities(gate_logits)
    # p - p is exactly zero, and one-hot + 0 exactly one-hot
    return jax.lax.stop_gradient(one_hot) + (probs - jax.lax.stop_gradient(probs))


def routing_weights(routing: Routing, *, num_experts: int) -> Float[Array, "*tokens experts"]:
    """Writes a routing as dense weights over all experts.

    Args:
        routing: a routing; its indices must lie in `[0, num_experts)`.
        num_experts: number of experts; static under `jax.jit`.

    Returns:
        `w[t, e]`: the combine weight of expert `e` for token `t`, 0 where it was not chosen.

    Raises:
        ValueError: if `num_experts` is less than 1.

    Example:
        >>> routing_weights(top_k_routing(jnp.array([[0.0, 2.0, 2.0]]), k=2), num_experts=3)
        Array([[0. , 0.5, 0.5]], dtype=float32)
    """
    check_at_least("num_experts", num_experts, 1)
    chosen = jax.nn.one_hot(routing.expert_indices, num_experts, dtype=bool)
    # where, not a product: a NaN weight stays in its own slot's expert until the row is summed
    weights = jnp.where(chosen, routing.combine_weights[..., None], 0).sum(axis=-2)
    unroutable = jnp.isnan(routing.combine_weights).any(axis=-1, keepdims=True)
    return jnp.where(unroutable, jnp.nan, weights)


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


def load_balancing_loss(
    gate_probs: Float[Array, "*tokens experts"],
    routing: Routing,
    *,
    where: Bool[Array, "*tokens"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Penalises experts that get both many slots and much gate probability.

    With `f_e` the share of all slots that expert `e` receives and `P_e` its mean gate
    probability, the loss is `E sum_e f_e P_e`: **1 at perfect balance for every k**, and up to
    `E / k` at collapse. Only `P_e` carries a gradient.

    Args:
        gate_probs: gate probabilities over all experts.
        routing: the routing of the same tokens.
        where: tokens to count; all by default.
        axis_name: device axis to sum over, inside `pmap` or `shard_map`: sums and counts are
            summed, so uneven shards give the loss of the whole.

    Returns:
        The loss, a float32 scalar; 0 where no token counts.

    Raises:
        ValueError: if the routing is of another number of tokens.

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
            "routing must be of the same tokens as gate_probs, got routing.expert_indices.shape="
            f"{routing.expert_indices.shape} and gate_probs.shape={gate_probs.shape}."
        )
    load = expert_load(routing, num_experts=num_experts, where=where, axis_name=axis_name)
    importance = expert_importance(gate_probs, where=where, axis_name=axis_name)
    slots = load.sum().astype(importance.dtype)
    tokens = _count_tokens(gate_probs, where, axis_name)
    return num_experts * safe_divide(
        jnp.sum(load.astype(importance.dtype) * importance), slots * tokens
    )


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
        The loss, a float32 scalar; 0 where no token counts, NaN where one that counts cannot be
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
        check_same_size("where", where, 0, gate_logits.shape[0], "tokens")
        squares = jnp.where(where, squares, 0)
    tokens = _count_tokens(logits, where, axis_name)
    return safe_divide(psum(jnp.sum(squares), axis_name), tokens)


def _count_tokens(
    per_token: Float[Array, "*tokens experts"],
    where: Bool[Array, "*tokens"] | None,
    axis_name: AxisName,
) -> Float[Array, ""]:
    shape = per_token.shape[:-1]
    counted = jnp.ones(shape, per_token.dtype) if where is None else where.astype(per_token.dtype)
    return psum(jnp.sum(counted), axis_name)
