"""A training step on a batch that is spread over devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def over_devices(
    step: Callable[..., Any], mesh: Mesh, *, donate: bool = True
) -> Callable[..., Any]:
    """Compiles a step for a batch that is spread over all axes of a mesh.

    Every device takes the step on its part of the batch, with losses, weights, gradients and
    statistics of the whole batch: the result is what one device would get from all of it.

    Args:
        step: `(state, batch, key, *, axis_name) -> (state, log)`:
            `calmoe_jax.training.train_step` with its other arguments given.
        mesh: the devices.
        donate: whether the memory of the old state is used for the new one.

    Returns:
        `(state, batch, key) -> (state, log)`. The state is the same on every device.

    Raises:
        ValueError: from `jax.shard_map`, where the batch does not divide by the devices.

    Example:
        >>> from calmoe_jax.parallel import data_mesh, over_devices
        >>> def step(state, batch, key, *, axis_name):
        ...     return state + jax.lax.psum(batch.sum(), axis_name), ()
        >>> over_devices(step, data_mesh(jax.devices()[:1]))(jnp.zeros(()), jnp.ones(4), None)[0]
        Array(4., dtype=float32)
    """
    axes = tuple(mesh.axis_names)
    axis_name = axes[0] if len(axes) == 1 else axes

    def of_part(state: Any, batch: Any, key: Any) -> Any:
        return step(state, batch, key, axis_name=axis_name)

    specs = P(), P(axes), P()
    mapped = jax.shard_map(of_part, mesh=mesh, in_specs=specs, out_specs=P())

    def spread(*args: Any) -> Any:
        if (
            mesh.explicit_axes
        ):  # where `in_specs` says how they are sharded, and does not shard them
            shardings = [NamedSharding(mesh, spec) for spec in specs]
            args = tuple(map(jax.sharding.reshard, args, shardings))
        return mapped(*args)

    return jax.jit(spread, donate_argnums=(0,) if donate else ())
