"""A training step whose parameters may be sharded too: gradients by device, one update."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """How a batch lies on a mesh: its rows are spread over all axes, in order.

    Args:
        mesh: the devices.

    Example:
        >>> from calmoe_jax.parallel import batch_sharding, device_mesh
        >>> batch_sharding(device_mesh(jax.devices()[:1])).spec
        P(('data', 'expert'),)
    """
    return NamedSharding(mesh, P(tuple(mesh.axis_names)))


def shardings(mesh: Mesh, specs: PyTree) -> PyTree:
    """Partition specs as shardings on a mesh.

    Args:
        mesh: the devices.
        specs: pytree of `PartitionSpec`.
    """
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def sharded_step(
    gradients: Callable[..., tuple[PyTree, PyTree]],
    update: Callable[[Any, PyTree, PyTree], tuple[Any, PyTree]],
    mesh: Mesh,
    *,
    state_specs: PyTree,
    gradient_specs: PyTree,
    donate: bool = True,
) -> Callable[..., Any]:
    """Compiles a step in two halves: gradients by device, and an update of the whole arrays.

    The first half runs under `shard_map`, on each device with its part of the batch and its shards
    of the parameters. The second is a plain program over whole arrays, which XLA divides as
    they lie: the norm of a gradient (for clipping) is that of all shards.

    Args:
        gradients: `(state, batch, key, *, axis_name) -> (gradients, left)`, such as
            `calmoe_jax.training.step_gradients` with its other arguments given. What is left must
            be the same on all devices.
        update: `(state, gradients, left) -> (state, log)`.
        mesh: the devices; its axes must be of the automatic type.
        state_specs: partition specs of the state.
        gradient_specs: partition specs of the gradients.
        donate: whether the memory of the old state is used for the new one.

    Returns:
        `(state, batch, key) -> (state, log)`, compiled at the first call, or by `.lower`.

    Raises:
        ValueError: if an axis of the mesh is of another type; from `jax.shard_map`, where the
            batch does not divide by the devices.
    """
    if mesh.explicit_axes or mesh.manual_axes:
        raise ValueError(
            f"mesh must have axes of type Auto, as from device_mesh, got {mesh.axis_types}."
        )
    axes = tuple(mesh.axis_names)
    axis_name = axes[0] if len(axes) == 1 else axes

    def of_part(state: Any, batch: Any, key: Any) -> Any:
        return gradients(state, batch, key, axis_name=axis_name)

    mapped = jax.shard_map(
        of_part, mesh=mesh, in_specs=(state_specs, P(axes), P()), out_specs=(gradient_specs, P())
    )

    def step(state: Any, batch: Any, key: Any) -> Any:
        _check_rows(batch, mesh)
        found, left = mapped(state, batch, key)
        return update(state, found, left)

    return jax.jit(
        step,
        out_shardings=(shardings(mesh, state_specs), NamedSharding(mesh, P())),
        donate_argnums=(0,) if donate else (),
    )


def _check_rows(batch: Any, mesh: Mesh) -> None:
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    for number in rows:
        if number % mesh.size:
            raise ValueError(
                f"batch must have a multiple of {mesh.size} examples, one for each device of the "
                f"mesh {dict(mesh.shape)}, got {number}: pad it and say so in its `where`."
            )
