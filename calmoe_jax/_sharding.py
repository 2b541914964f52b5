"""Arrays that are sharded over the axes of a mesh of JAX's default type, `Explicit`.

There every operation must know the sharding of its result, and JAX refuses to guess it for the
indexing, sorting and reshaping that this library is full of. The library therefore computes as on
axes of type `Auto`, where XLA decides, and gives its results a sharding that depends on nothing but
shapes: a result with as many rows as a sharded argument is sharded like its rows, any other is
whole on every device.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def on_auto_axes(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Calls a function whose arrays may be sharded over explicit axes.

    Args:
        function: any function of arrays.
        args: its positional arguments.
        kwargs: its other arguments.

    Returns:
        Its result; see the module for its sharding.
    """
    mesh = None
    rows: dict[int, Any] = {}
    for array in _arrays((args, kwargs)):
        sharding = jax.typeof(array).sharding
        if any(axis is not None for axis in sharding.spec) and sharding.mesh.explicit_axes:
            mesh = sharding.mesh
            if sharding.spec[0] is not None:
                rows[array.shape[0]] = sharding.spec[0]
    if mesh is None:
        return function(*args, **kwargs)
    auto = mesh.update_axis_types({axis: AxisType.Auto for axis in mesh.explicit_axes})

    def inside(x: Any) -> Any:
        given = isinstance(x, jax.Array) and jax.typeof(x).sharding.mesh == mesh
        return _reshard(x, auto, ()) if given else x

    def outside(x: Any) -> Any:
        if not isinstance(x, jax.Array) or jax.typeof(x).sharding.mesh != auto:
            return x
        if not isinstance(x, jax.core.Tracer) and len(x.sharding.device_set) < mesh.size:
            return x  # made on the host
        spec = (rows.get(x.shape[0]),) if x.ndim else ()
        return _reshard(x, mesh, spec)

    with jax.sharding.use_abstract_mesh(auto):
        args, kwargs = jax.tree.map(inside, (args, kwargs))
        result = function(*args, **kwargs)
    return jax.tree.map(outside, result)


def _arrays(tree: Any) -> Iterator[jax.Array]:
    return (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))


def _reshard(x: jax.Array, mesh: Any, spec: tuple[Any, ...]) -> jax.Array:
    result: jax.Array = jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))
    return result
