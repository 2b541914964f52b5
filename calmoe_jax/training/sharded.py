"""Training on a mesh: batches spread over all devices, experts over some."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from calmoe_jax.nn.network import Network
from calmoe_jax.parallel.sharded import batch_sharding, sharded_step, shardings
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.objective import Objective
from calmoe_jax.training.state import StepLog, TrainState, init_state
from calmoe_jax.training.step import apply_gradients, step_gradients


class ShardedTraining(NamedTuple):
    """Training of a network on a mesh of devices.

    Attributes:
        init: `key -> state`: the first state, made where it lies.
        step: `(state, batch, key) -> (state, log)`: what `train_step` does with the whole batch.
            The old state is donated.
        state_specs: partition specs of the state.
        mesh: the devices.
    """

    init: Callable[[jax.Array], TrainState]
    step: Callable[[TrainState, Batch, jax.Array], tuple[TrainState, StepLog]]
    state_specs: TrainState
    mesh: Mesh

    def place(self, batch: Batch) -> Batch:
        """Places a batch that this process holds whole: its rows are spread over all devices."""
        placed: Batch = jax.device_put(batch, batch_sharding(self.mesh))
        return placed

    def state_like(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, as a checkpoint is restored into."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        like: TrainState = jax.tree.map(
            lambda x, spec: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(self.mesh, spec)
            ),
            shapes,
            self.state_specs,
        )
        return like


def sharded_training(
    network: Network,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    parts: int = 1,
) -> ShardedTraining:
    """Compiles training for a mesh.

    Every device has a part of each batch; losses, the adversary's weights, gradients and
    statistics are those of the whole batch, so that the result is what one device would get.
    Parameters and the optimiser's moments of experts that the network shards (see
    `Network.param_specs`) lie on the devices that need them; all else is on every device.

    Args:
        network: the classifier.
        objective: objective to minimise.
        optimizer: gradients to updates.
        mesh: the devices, as from `calmoe_jax.parallel.device_mesh`.
        parts: parts that each device computes its examples in, as in `train_step`.

    Returns:
        A `ShardedTraining`.

    Raises:
        ValueError: if the network shards parameters over an axis that the mesh lacks or that does
            not divide them.

    Example:
        >>> import optax
        >>> from calmoe_jax import nn
        >>> from calmoe_jax.parallel import device_mesh
        >>> from calmoe_jax.training import Batch, objectives, sharded_training
        >>> network = nn.from_nnx(
        ...     lambda rngs: nn.MoEClassifier(nn.MLP(2, (4,), rngs=rngs), 2, rngs=rngs))
        >>> training = sharded_training(
        ...     network, objectives.robust(eta=2.0), optax.sgd(0.5), device_mesh())
        >>> state, rows = training.init(jax.random.key(0)), training.mesh.size
        >>> batch = Batch(jnp.ones((rows, 2)), jnp.zeros(rows, int))
        >>> state, log = training.step(state, training.place(batch), jax.random.key(1))
    """
    init = partial(init_state, network, objective, optimizer)
    specs = state_specs(network, optimizer, jax.eval_shape(init, jax.random.key(0)))
    _check_divides(jax.eval_shape(init, jax.random.key(0)).params, specs.params, mesh)
    both = 1 if objective.rectification is None else 2
    step = sharded_step(
        partial(step_gradients, network=network, objective=objective, parts=parts),
        partial(apply_gradients, optimizer=optimizer),
        mesh,
        state_specs=specs,
        gradient_specs=(specs.params,) * both,
    )
    return ShardedTraining(jax.jit(init, out_shardings=shardings(mesh, specs)), step, specs, mesh)


def state_specs(
    network: Network, optimizer: optax.GradientTransformation, state: TrainState
) -> TrainState:
    """Partition specs of a state: moments lie as their parameters do, all else everywhere.

    Args:
        network: the classifier.
        optimizer: the optimiser.
        state: the state, or its shapes.
    """
    if network.param_specs is None:
        params = everywhere(state.params)
    else:
        params = network.param_specs(state.params)
    moments: Any = optax.tree.map_params(
        optimizer,
        lambda _, spec: spec,
        state.opt_state,
        params,
        transform_non_params=lambda _: P(),
    )
    return TrainState(
        params, everywhere(state.network_state), moments, everywhere(state.objective_state)
    )


def everywhere(tree: PyTree) -> PyTree:
    """The partition spec of what every device holds whole, for each leaf."""
    return jax.tree.map(lambda _: P(), tree)


def _check_divides(params: PyTree, specs: PyTree, mesh: Mesh) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    for (path, leaf), spec in zip(leaves, jax.tree.leaves(specs), strict=True):
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis is None:
                continue
            if axis not in mesh.shape:
                raise ValueError(
                    f"mesh must have the axis {axis!r}, over which the network shards its experts, "
                    f"got the axes {', '.join(mesh.axis_names)}."
                )
            if size % mesh.shape[axis]:
                raise ValueError(
                    f"mesh must have a divisor of the {size} experts of "
                    f"{jax.tree_util.keystr(path, simple=True, separator='.')} along {axis!r}, got "
                    f"{mesh.shape[axis]} devices."
                )
