"""Functions of examples that are sharded over devices against the same on one device."""

from functools import partial

import jax
import numpy as np


def shard_map(function, *, mesh, in_specs, **options):
    """`jax.shard_map` of arguments that need not be sharded yet.

    On explicit axes `in_specs` only says how they are sharded, and does not shard them.
    """
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, **options)
    if not mesh.abstract_mesh.explicit_axes:
        return mapped

    def call(*args):
        specs = (in_specs,) * len(args) if isinstance(in_specs, jax.P) else in_specs
        shardings = [jax.NamedSharding(mesh, spec) for spec in specs]
        return mapped(*map(jax.sharding.reshard, args, shardings))

    return call


def assert_devices_agree(function, *arrays, rtol=1e-5, atol=1e-6):
    """`function(*arrays, axis_name=...)` under `shard_map` and `pmap` gives what one device gives.

    Args:
        function: with the rows of each array in front; it must take `axis_name`.
        arrays: arrays with rows along the first axis. A result with as many rows is spread too.
        rtol: relative tolerance.
        atol: absolute tolerance.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))
    count = len(mesh.devices)
    rows = len(jax.tree.leaves(arrays)[0])
    one = jax.jit(function)(*arrays)
    spread = jax.tree.map(lambda x: x.shape[:1] == (rows,), one)
    spec = jax.tree.map(lambda s: jax.P("d") if s else jax.P(), spread)
    mapped = partial(function, axis_name="d")
    sharded = jax.shard_map(mapped, mesh=mesh, in_specs=jax.P("d"), out_specs=spec)
    several = jax.jit(sharded)(*arrays)
    parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), arrays)
    by_pmap = jax.tree.map(
        lambda x, s: x.reshape(-1, *x.shape[2:]) if s else x,
        jax.pmap(mapped, axis_name="d", devices=jax.devices()[:4])(*parts),
        spread,
    )

    def close(found, wanted):
        found, wanted = np.asarray(found), np.asarray(wanted)
        if wanted.dtype == bool:
            np.testing.assert_array_equal(found, wanted)
        else:
            np.testing.assert_allclose(found, wanted, rtol=rtol, atol=atol)

    jax.tree.map(close, several, one)
    jax.tree.map(
        lambda found, wanted, s: close(
            found, wanted if s else np.broadcast_to(wanted, found.shape)
        ),
        by_pmap,
        one,
        spread,
    )
