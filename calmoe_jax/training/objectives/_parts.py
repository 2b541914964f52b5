"""What several objectives are made of."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from calmoe_jax import mixture, reweighting, routing
from calmoe_jax._numerics import AxisName, psum
from calmoe_jax.mixture import MixtureLosses, Prediction
from calmoe_jax.training.batch import Batch

Result = tuple[Float[Array, ""], Float[Array, " examples"], PyTree]


def dense_weights(prediction: Prediction) -> Float[Array, "examples experts"]:
    """The routing weights of all experts.

    Args:
        prediction: of a batch.
    """
    count = prediction.gate_logits.shape[-1]
    return routing.routing_weights(prediction.routing, num_experts=count)


def no_state() -> tuple[()]:
    """The state of an objective that remembers nothing."""
    return ()


def configuration_of(prediction: Prediction) -> mixture.Configuration:
    """Statistics of the routing configurations, without mixing the experts again."""
    return mixture.configuration(
        prediction.expert_log_probs, prediction.routing.combine_weights, prediction.log_probs
    )


def weighted(
    log_weights: Float[Array, " examples"], losses: MixtureLosses, axis_name: AxisName
) -> Float[Array, ""]:
    """The mean of the aggregate's losses under an adversary's weights."""
    return reweighting.weighted_loss(log_weights, losses.loss, axis_name=axis_name)


def even_log_weights(batch: Batch, axis_name: AxisName) -> Float[Array, " examples"]:
    """Log weights that are the same for every example that counts."""
    if batch.where is None and axis_name is None:
        return jnp.full(batch.labels.shape, -math.log(len(batch.labels)), jnp.result_type(float))
    counted = jnp.ones(batch.labels.shape, bool) if batch.where is None else batch.where
    number = psum(jnp.sum(counted, dtype=jnp.result_type(float)), axis_name)
    return jnp.where(counted, -jnp.log(jnp.maximum(number, 1)), -jnp.inf)
