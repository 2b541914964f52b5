"""What training carries from step to step, and what a step says of itself."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from calmoe_jax.nn.network import Network
from calmoe_jax.training.objective import Objective


class TrainState(NamedTuple):
    """All that is needed to go on training.

    Attributes:
        params: of the network.
        network_state: whatever else the network holds: batch statistics, keys of dropout.
        opt_state: of the optimiser.
        objective_state: of an objective that remembers; `()` for the others.
    """

    params: PyTree
    network_state: PyTree
    opt_state: PyTree
    objective_state: PyTree = ()


class StepLog(NamedTuple):
    """What a step says of its batch, before the step.

    Attributes:
        loss: the objective that was minimised.
        nll: mean log loss of the aggregate, in nats.
        accuracy: share of examples whose likeliest class is right.
        effective_sample_size: `(sum w)^2 / sum w^2` of the objective's weights on the examples;
            their number where they weigh the same.
        importance: share of the routing weights that each expert got.
        finite: whether the loss and every number of the new state are finite.
    """

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    accuracy: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    importance: Float[Array, " experts"]
    finite: Bool[Array, ""]


def init_state(
    network: Network, objective: Objective, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """The state before the first step.

    Args:
        network: the classifier.
        objective: what will be minimised.
        optimizer: gradients to updates.
        key: for the initial weights.
    """
    params, network_state = network.init(key)
    return TrainState(params, network_state, optimizer.init(params), objective.init())


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number of a tree is finite (integers and keys are): one pass over each leaf.

    Args:
        tree: pytree of arrays.
    """

    def finite(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return jnp.array(True)
        return jnp.isfinite(x).all()

    return jax.tree.reduce(jnp.logical_and, jax.tree.map(finite, tree), jnp.array(True))
