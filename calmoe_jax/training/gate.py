"""The losses of a classifier's gate, from the statistics in its prediction."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax import routing
from calmoe_jax._numerics import AxisName, psum, safe_divide
from calmoe_jax.mixture import Prediction


def load_balancing_loss(
    prediction: Prediction,
    *,
    where: Bool[Array, " tokens"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The load-balancing loss of a prediction's gate: 1 at perfect balance for every `k`.

    As `cm.load_balancing_loss`. If all experts are slots, those of weight 0 do not count as load.

    Args:
        prediction: prediction for a batch.
        where: tokens that count; all by default.
        axis_name: device axis that the tokens are sharded over.
    """
    chosen = jax.lax.stop_gradient(prediction.routing)
    if where is not None:  # the means in `prediction.gate` are over all tokens
        probs = routing.gate_probabilities(prediction.gate_logits)
        return routing.load_balancing_loss(probs, chosen, where=where, axis_name=axis_name)
    num_tokens, num_experts = prediction.gate_logits.shape
    load = routing.expert_load(chosen, num_experts=num_experts, axis_name=axis_name)
    mean = prediction.gate.mean_gate_probs
    if axis_name is not None:
        count = psum(jnp.float32(num_tokens), axis_name)
        mean = psum(num_tokens * mean, axis_name) / count
    slots = load.sum().astype(mean.dtype)
    return num_experts * safe_divide(jnp.sum(load.astype(mean.dtype) * mean), slots)


def router_z_loss(
    prediction: Prediction,
    *,
    where: Bool[Array, " tokens"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The router z-loss of a prediction's gate: `mean_t (log sum_e exp g_te)^2`.

    As `cm.router_z_loss`.

    Args:
        prediction: prediction for a batch.
        where: tokens that count; all by default.
        axis_name: device axis that the tokens are sharded over.
    """
    squares = jnp.square(prediction.gate.logsumexp)
    counted = jnp.ones(squares.shape, bool) if where is None else where
    total = psum(jnp.sum(jnp.where(counted, squares, 0)), axis_name)
    return safe_divide(total, psum(jnp.sum(counted.astype(squares.dtype)), axis_name))
