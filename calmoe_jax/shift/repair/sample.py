"""Predictions for a split with a slot for every expert, whichever experts were computed."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax import mixture
from calmoe_jax._numerics import at_least_float32
from calmoe_jax._signatures import checked
from calmoe_jax.mixture import Configuration
from calmoe_jax.shift.separability import configuration_coordinates


class Sample(NamedTuple):
    """Predictions of all seeds for a split; experts that were not chosen are uniform.

    Attributes:
        expert_log_probs: log probabilities of every expert, after its temperature.
        routing_weights: weights of all experts, 0 for those not chosen.
    """

    expert_log_probs: Float[Array, "*seeds examples experts classes"]
    routing_weights: Float[Array, "*seeds examples experts"]


class Observed(NamedTuple):
    """Statistics of a sample that calibrators use, of one seed or with a leading axis of seeds.

    Attributes:
        config: routing configurations of the examples.
        features: their features, for the balance.
        coordinates: their coordinates, for neighbours and separability.
        predicted: the most probable class of each example.
    """

    config: Configuration
    features: Float[Array, "*seeds examples features"]
    coordinates: Float[Array, "*seeds examples coordinates"]
    predicted: Int[Array, "*seeds examples"]


def observe(sample: Sample) -> Observed:
    """Computes the configurations of one seed's sample, their features and coordinates.

    Args:
        sample: sample of one seed, without the leading axis.
    """
    config = mixture.configuration(*sample)
    return Observed(
        config,
        mixture.configuration_features(config),
        configuration_coordinates(*sample),
        jnp.argmax(config.log_probs, axis=-1),
    )


@checked
def dense_sample(
    expert_log_probs: Float[Array, "seeds examples slots classes"],
    routing_weights: Float[Array, "seeds examples slots"],
    expert_indices: Int[Array, "seeds examples slots"],
    *,
    num_experts: int,
) -> Sample:
    """Converts slots to a dense form: experts not chosen get weight 0 and are uniform.

    This makes splits comparable whether all experts or only the chosen ones were computed.

    Args:
        expert_log_probs: log probabilities of the expert in each slot.
        routing_weights: weight of each slot; 0 where it is not used.
        expert_indices: expert in each slot, each at most once in a row.
        num_experts: number of experts.

    Example:
        >>> log_probs = jnp.log(jnp.array([[[[0.9, 0.1]]]]))
        >>> dense_sample(
        ...     log_probs, jnp.ones((1, 1, 1)), jnp.array([[[1]]]), num_experts=3
        ... ).routing_weights
        Array([[[0., 1., 0.]]], dtype=float32)
    """
    seeds, examples, slots, classes = expert_log_probs.shape
    chosen = routing_weights > 0
    expert_log_probs = at_least_float32(expert_log_probs)
    routing_weights = at_least_float32(routing_weights)
    uniform = -jnp.log(jnp.asarray(classes, expert_log_probs.dtype))
    log_probs = jnp.where(chosen[..., None], expert_log_probs, uniform)
    rows = jnp.arange(seeds * examples)[:, None]
    indices = expert_indices.reshape(-1, slots)
    weights = (
        jnp.zeros((len(rows), num_experts), routing_weights.dtype)
        .at[rows, indices]
        .add(routing_weights.reshape(-1, slots))
    )
    held = (
        jnp.full((len(rows), num_experts, classes), uniform)
        .at[rows, indices]
        .set(log_probs.reshape(-1, slots, classes))
    )
    return Sample(
        held.reshape(seeds, examples, num_experts, classes),
        weights.reshape(seeds, examples, num_experts),
    )
