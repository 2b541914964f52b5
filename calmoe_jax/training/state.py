"""The state of training, and the log of a step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from calmoe_jax.nn.network import Network
from calmoe_jax.training.objective import Objective
from calmoe_kernels.varying import vary_along, varying_axes


class TrainState(NamedTuple):
    """Everything needed to continue training.

    Attributes:
        params: parameters of the network.
        network_state: other state of the network: batch statistics, keys of dropout.
        opt_state: state of the optimiser.
        objective_state: state of the objective; `()` if stateless.
    """

    params: PyTree
    network_state: PyTree
    opt_state: PyTree
    objective_state: PyTree = ()


class StepLog(NamedTuple):
    """Statistics of a batch, with the parameters before the step.

    Attributes:
        loss: the objective that was minimised.
        nll: mean log loss of the aggregate, in nats.
        accuracy: fraction of examples whose most probable class is the label.
        effective_sample_size: `(sum w)^2 / sum w^2` of the objective's weights on the examples;
            their number if all weights are equal.
        importance: share of the routing weights of each expert.
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
        objective: the objective of training.
        optimizer: gradients to updates.
        key: random key of the initial weights.
    """
    params, network_state = network.init(key)
    return TrainState(params, network_state, optimizer.init(params), objective.init())


def zeros_beside(tree: PyTree) -> PyTree:
    """Zeros of the shapes of a tree that differ between devices where the tree does.

    Args:
        tree: pytree of arrays.
    """
    return jax.tree.map(lambda x: vary_along(jnp.zeros_like(x), varying_axes(x)), tree)


def all_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every number in a tree is finite (integers and keys always are).

    Args:
        tree: pytree of arrays.
    """

    def finite(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return jnp.array(True)
        return jnp.isfinite(x).all()

    return jax.tree.reduce(jnp.logical_and, jax.tree.map(finite, tree), jnp.array(True))
