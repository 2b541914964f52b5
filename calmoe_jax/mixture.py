"""Aggregates experts' predictions by a routing, and computes statistics of the configuration.

The *routing configuration* of an example is `S = (r, f)`: all routing weights and all experts'
predictive distributions. The aggregate is `F = sum_k r_k f_k`. One function serves dense, top-k
and hard routing: give dense routing weights with zeros, or the slots' weights with the experts
gathered to slots (then `experts` is the slot axis `k`).

An expert of weight exactly 0 is absent: NaN and infinities that it may hold, because it was not
computed or has broken down, do not reach the aggregate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._numerics import (
    at_least_float32,
    entropy,
    largest_or_nan,
    log_or_neginf,
    pick_label,
    top_two_margin,
)
from calmoe_jax._signatures import checked
from calmoe_jax.moe.statistics import LayerStatistics
from calmoe_jax.routing import GateStatistics, Routing, dense_routing, gate_statistics

# An expert of weight 0 may give a class exp(100) times the aggregate's probability. The derivative
# of log F with respect to its weight is that ratio, so it is capped: exp(80) is a finite float32.
_MAX_LOG_RATIO = 80.0


class Configuration(NamedTuple):
    """Statistics of an example's routing configuration that need no label.

    Attributes:
        log_probs: log probabilities of the aggregate, `log F`, in nats.
        confidence: `max_c F_c`, in [0, 1].
        margin: largest minus second largest class probability of F, in [0, 1].
        entropy: Shannon entropy of F, in nats.
        disagreement: `sum_k r_k |f_k - F|^2`, in [0, 2]; 0 for hard routing.
        routing_entropy: Shannon entropy of the routing weights, in nats.
        routing_margin: largest minus second largest routing weight, in [0, 1].
        expert_confidences: `max_c f_kc` of each expert, in [0, 1]; 0 where one of weight 0 is NaN.
        routing_weights: the routing weights `r`.
    """

    log_probs: Float[Array, "*examples classes"]
    confidence: Float[Array, "*examples"]
    margin: Float[Array, "*examples"]
    entropy: Float[Array, "*examples"]
    disagreement: Float[Array, "*examples"]
    routing_entropy: Float[Array, "*examples"]
    routing_margin: Float[Array, "*examples"]
    expert_confidences: Float[Array, "*examples experts"]
    routing_weights: Float[Array, "*examples experts"]


class Prediction(NamedTuple):
    """Predictions of a mixture for a batch; a single classifier is a mixture of one expert.

    Attributes:
        expert_log_probs: log probabilities of each slot's expert, in nats.
        gate_logits: the router's logits, before any choice; 0 for a single classifier.
        routing: expert and weight of each slot; a token's weights sum to one. Where all experts
            were computed a slot is an expert, in their order, and the weight of those that were
            not chosen is 0.
        log_probs: log probabilities of the aggregate, `log F`.
        gate: statistics of the gate logits, for the losses of the gate.
        layers: sums over the tokens of the sparse layers within the backbone, if it has some.
    """

    expert_log_probs: Float[Array, "tokens slots classes"]
    gate_logits: Float[Array, "tokens experts"]
    routing: Routing
    log_probs: Float[Array, "tokens classes"]
    gate: GateStatistics
    layers: LayerStatistics | None = None


class MixtureLosses(NamedTuple):
    """Log losses of the aggregate and of each expert, in nats.

    Attributes:
        loss: `L = -log F_y`.
        expert_losses: `L_k = -log f_ky`; NaN where the expert is, whatever its weight.
        regret: `(L - min_k L_k)_+`: excess loss of the mixture over its best expert.
    """

    loss: Float[Array, "*examples"]
    expert_losses: Float[Array, "*examples experts"]
    regret: Float[Array, "*examples"]


@checked
def mix(
    expert_probs: Float[Array, "*examples experts classes"],
    routing_weights: Float[Array, "*examples experts"],
) -> Float[Array, "*examples classes"]:
    """Aggregates experts' probabilities: `F_c = sum_k r_k f_kc`.

    Args:
        expert_probs: each expert's class probabilities.
        routing_weights: weight of each expert; sums to one for F to be a distribution.

    Returns:
        The aggregate's probabilities, at least float32. Rows with NaN weights are NaN. The gradient
        to a weight is `f_kc`, also where the weight is 0; there it is 0 if `f_kc` is not finite.

    Example:
        >>> mix(jnp.array([[[1.0, 0.0], [0.0, 1.0]]]), jnp.array([[0.25, 0.75]]))
        Array([[0.25, 0.75]], dtype=float32)
    """
    weights = at_least_float32(routing_weights)[..., None]
    return jnp.sum(weights * _present(at_least_float32(expert_probs), weights, 0.0), axis=-2)


@checked
def mix_log_probs(
    expert_log_probs: Float[Array, "*examples experts classes"],
    routing_weights: Float[Array, "*examples experts"],
) -> Float[Array, "*examples classes"]:
    """Aggregates experts' log probabilities: `log F_c = log sum_k r_k exp(l_kc)`.

    Args:
        expert_log_probs: each expert's log probabilities, in nats; `-inf` for probability 0.
        routing_weights: non-negative weight of each expert.

    Returns:
        The aggregate's log probabilities, at least float32, without underflow for unlikely
        classes; `-inf`, with zero gradient, where every expert of positive weight has `-inf`.
        The gradient to a weight is `f_kc / F_c`, also where the weight is 0 (a straight-through
        router needs it), capped at `exp(80)`; it is 0 for an expert of weight 0 that has NaN or
        `+inf`. Rows with NaN weights are NaN.

    Example:
        >>> mix_log_probs(jnp.array([[[-1000.0], [-1000.0]]]), jnp.array([[0.5, 0.5]]))
        Array([[-1000.]], dtype=float32)
    """
    weights = at_least_float32(routing_weights)[..., None]
    log_probs = _present(at_least_float32(expert_log_probs), weights, -jnp.inf)
    peak = jnp.max(jnp.where(weights > 0, log_probs, -jnp.inf), axis=-2, keepdims=True)
    peak = jax.lax.stop_gradient(jnp.where(jnp.isneginf(peak), 0, peak))
    ratios = jnp.exp(jnp.minimum(log_probs - peak, _MAX_LOG_RATIO))
    total = jnp.sum(weights * ratios, axis=-2)
    return log_or_neginf(total) + peak[..., 0, :]


def _present(
    values: Float[Array, "*shape"], weights: Float[Array, "*#shape"], absent: float
) -> Float[Array, "*shape"]:
    """The values, and `absent`, a constant, where one of weight 0 is not finite."""
    return jnp.where((weights == 0) & ~jnp.isfinite(values), absent, values)


@checked
def predict(
    expert_log_probs: Float[Array, "tokens slots classes"],
    gate_logits: Float[Array, "tokens experts"],
    routing: Routing | None = None,
    gate: GateStatistics | None = None,
) -> Prediction:
    """Makes a `Prediction` from the outputs of a network; mixes the experts once.

    `log F_c = log sum_s r_s exp(l_sc)` over a token's slots.

    Args:
        expert_log_probs: log probabilities of each slot's expert, in nats.
        gate_logits: the router's logits; `-inf` masks an expert.
        routing: expert and weight of each slot, for all experts or for the chosen ones;
            `dense_routing(gate_logits)` by default.
        gate: `gate_statistics(gate_logits)`, if already computed.

    Returns:
        A `Prediction`. Tokens that cannot be routed have NaN log probabilities.

    Raises:
        ValueError: if the routing has other tokens or slots than the experts.

    Example:
        >>> prediction = predict(jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]])), jnp.zeros((1, 2)))
        >>> jnp.exp(prediction.log_probs)
        Array([[0.375, 0.625]], dtype=float32)
    """  # noqa: E501
    if routing is None:
        routing = dense_routing(gate_logits)
    if routing.expert_indices.shape != expert_log_probs.shape[:-1]:
        raise ValueError(
            f"routing must have the tokens and slots {expert_log_probs.shape[:-1]} of "
            f"expert_log_probs, got routing.expert_indices.shape={routing.expert_indices.shape}."
        )
    return Prediction(
        expert_log_probs=expert_log_probs,
        gate_logits=gate_logits,
        routing=routing,
        log_probs=mix_log_probs(expert_log_probs, routing.combine_weights),
        gate=gate_statistics(gate_logits) if gate is None else gate,
    )


@checked
def configuration(
    expert_log_probs: Float[Array, "*examples experts classes"],
    routing_weights: Float[Array, "*examples experts"],
    log_probs: Float[Array, "*examples classes"] | None = None,
) -> Configuration:
    """Computes the label-free statistics of the routing configuration.

    Args:
        expert_log_probs: each expert's log probabilities, in nats.
        routing_weights: weight of each expert, summing to one.
        log_probs: the aggregate, as from `mix_log_probs`, if already computed.

    Returns:
        A `Configuration`. With one expert the disagreement and the routing entropy are 0 and the
        routing margin is 1.

    Example:
        >>> experts = jnp.log(jnp.array([[[0.9, 0.1], [0.5, 0.5]]]))
        >>> configuration(experts, jnp.array([[0.75, 0.25]])).disagreement.round(6)
        Array([0.06], dtype=float32)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    weights = at_least_float32(routing_weights)
    if log_probs is None:
        log_probs = mix_log_probs(expert_log_probs, weights)
    probs = jnp.exp(at_least_float32(log_probs))
    expert_logs = _present(at_least_float32(expert_log_probs), weights[..., None], -jnp.inf)
    expert_probs = jnp.exp(expert_logs)
    squares = jnp.sum(jnp.square(expert_probs - probs[..., None, :]), axis=-1)
    return Configuration(
        log_probs=log_probs,
        confidence=largest_or_nan(probs),
        margin=top_two_margin(probs),
        entropy=entropy(probs),
        disagreement=jnp.sum(weights * squares, axis=-1),
        routing_entropy=entropy(weights),
        routing_margin=top_two_margin(weights),
        expert_confidences=largest_or_nan(expert_probs),
        routing_weights=weights,
    )


@checked
def configuration_features(config: Configuration) -> Float[Array, "examples features"]:
    """Statistics of the routing configuration as columns: features that weights may depend on.

    Confidence and its square, entropy, margin, disagreement and its root, routing entropy and
    margin, routing weights, and the experts' confidences.

    Args:
        config: as from `configuration`.

    Returns:
        A row for each example. No column depends on a label.

    Example:
        >>> experts = jnp.log(jnp.full((5, 3, 2), 0.5))
        >>> configuration_features(configuration(experts, jnp.full((5, 3), 1 / 3))).shape
        (5, 14)
    """
    # the root of 0 has no derivative
    root = jnp.sqrt(jnp.maximum(jax.lax.stop_gradient(config.disagreement), 0))
    single = (
        config.confidence,
        config.confidence**2,
        config.entropy,
        config.margin,
        config.disagreement,
        root,
        config.routing_entropy,
        config.routing_margin,
    )
    return jnp.concatenate(
        [jnp.stack(single, axis=-1), config.routing_weights, config.expert_confidences], axis=-1
    )


@checked
def mixture_losses(
    expert_log_probs: Float[Array, "*examples experts classes"],
    routing_weights: Float[Array, "*examples experts"],
    labels: Int[Array, "*examples"],
    log_probs: Float[Array, "*examples classes"] | None = None,
) -> MixtureLosses:
    """Computes the log loss of the aggregate and of every expert, and the regret.

    Args:
        expert_log_probs: each expert's log probabilities, in nats.
        routing_weights: weight of each expert, summing to one.
        labels: class of each example, in `[0, classes)`.
        log_probs: the aggregate, as from `mix_log_probs`, if already computed.

    Returns:
        A `MixtureLosses`. The regret compares with the best of *all* experts given, chosen or
        not: for hard routing it is what a better choice would have gained. An expert of weight 0
        that is NaN is not compared with. Labels outside the classes give NaN.

    Example:
        >>> experts = jnp.log(jnp.array([[[0.8, 0.2], [0.2, 0.8]]]))
        >>> mixture_losses(experts, jnp.array([[0.5, 0.5]]), jnp.array([0])).regret.round(4)
        Array([0.47], dtype=float32)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    if log_probs is None:
        log_probs = mix_log_probs(expert_log_probs, routing_weights)
    loss = -pick_label(at_least_float32(log_probs), labels)
    experts = at_least_float32(expert_log_probs)
    expert_labels = jnp.broadcast_to(labels[..., None], experts.shape[:-1])
    expert_losses = -pick_label(experts, expert_labels)
    weights = at_least_float32(routing_weights)
    best = -largest_or_nan(-_present(expert_losses, weights, jnp.inf))
    return MixtureLosses(loss, expert_losses, jax.nn.relu(loss - best))
