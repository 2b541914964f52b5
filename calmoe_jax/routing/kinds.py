"""Gate logits to a routing: dense, top-k or hard.

Everything is computed in at least float32, whatever the dtype of the logits. A logit of `-inf`
masks an expert: it gets weight exactly 0. A row that cannot be routed (a NaN or `+inf` logit, or
every expert masked) keeps valid expert indices `0, ..., k - 1` and gets NaN weights, so that no
index is out of bounds and no error passes silently.

The router's gradient for `k = 1`:

* softmax, then top-k, weights kept as they are (`renormalize=False`): the chosen weight is the
  gate probability `p_s < 1`. The router learns, but the weights do not sum to one, so the
  aggregate of expert probabilities is not a distribution.
* top-k, then softmax over the chosen (the same as `renormalize=True`): for `k = 1` the weight is
  the constant 1, and the gradient to the router is exactly zero: it does not learn.
* straight-through (`straight_through_weights`): one-hot forward, softmax backward, over *all*
  experts. With cotangents `c_k = dL/dw_k` the router's gradient is `p_j (c_j - sum_k p_k c_k)`,
  which compares experts with one another. A straight-through estimate of the chosen slot alone is
  not enough: for the loss `-log F_y` its cotangent is always -1, so it only reinforces the choice
  already made.
* train the router dense and harden it afterwards: `dense_routing` for training,
  `hard_routing` for prediction.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._checks import check_at_least
from calmoe_jax._signatures import checked
from calmoe_jax.routing._top_k import choose, largest, routable_logits

RoutingKind = Literal["dense", "top_k", "hard", "hardened"]
ROUTING_KINDS: tuple[str, ...] = get_args(RoutingKind)


class Routing(NamedTuple):
    """The experts of each token, and the weights of their outputs.

    Attributes:
        expert_indices: expert in each of a token's slots, best first (dense: in expert order).
        combine_weights: weight of each slot's expert; at least float32.
    """

    expert_indices: Int[Array, "*tokens k"]
    combine_weights: Float[Array, "*tokens k"]


@checked
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


@checked
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


@checked
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
    `s_j / sum_{l in T} s_l` for `j` in `T`, or `s_j` with `renormalize=False`. A bias `b` changes
    the choice (the largest `s + b` are chosen) but not the weights. With groups, only the experts
    of the `groups_per_token` best groups can be chosen; the score of a group is the sum of its two
    largest `s + b`.

    Args:
        gate_logits: gate logits; `-inf` masks an expert.
        selection_bias: added to the scores in the choice of experts only, as in balancing without
            an auxiliary loss; must be finite. It gets no gradient.
        k: experts per token, in `[1, experts]`; static under `jax.jit`.
        scores: `"softmax"` or `"sigmoid"`.
        renormalize: whether each token's weights sum to one; a mixture of probabilities needs it.
        num_groups: number of groups of consecutive experts, a divisor of the number of experts.
        groups_per_token: groups a token's experts may come from, in `[1, num_groups]`.

    Returns:
        A `Routing`, best expert first. Ties go to the lower expert index. Where fewer than `k`
        experts can be chosen, the surplus slots hold the lowest other experts with weight exactly
        0. Rows that cannot be routed get indices `0, ..., k - 1` and NaN weights; so do all rows
        if a bias is not finite. With `k = 1`, `renormalize=True` the gradient to the logits is
        zero: see `straight_through_weights`.

    Raises:
        ValueError: if `k` is outside `[1, experts]`, or more than the experts of a token's groups;
            if `scores` is unknown, `num_groups` does not divide the experts, or `selection_bias`
            does not have one number per expert.

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


@checked
def hard_routing(gate_logits: Float[Array, "*tokens experts"]) -> Routing:
    """Routes each token to its one best expert, with weight 1.

    Args:
        gate_logits: unnormalised log-probabilities in nats; `-inf` masks an expert.

    Returns:
        A `Routing` with one slot. Ties go to the lower expert index; rows that cannot be routed
        get index 0 and weight NaN. The weight is a constant: no gradient reaches the router.
        Train with `straight_through_weights`, or train dense and use this for prediction.

    Example:
        >>> hard_routing(jnp.array([[0.0, 3.0]]))
        Routing(expert_indices=Array([[1]], dtype=int32), combine_weights=Array([[1.]], dtype=float32))

    References:
        Fedus et al., Switch Transformers, 2021.
    """  # noqa: E501 (the example's output is one line)
    return top_k_routing(gate_logits, k=1)


@checked
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


@checked
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
