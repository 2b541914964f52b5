"""Meshes of devices: one axis for examples, one for experts."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh

from calmoe_jax._checks import check_at_least

DATA_AXIS, EXPERT_AXIS = "data", "expert"


def data_mesh(devices: Sequence[Any] | None = None, *, axis_name: str = DATA_AXIS) -> Mesh:
    """A mesh of devices along one axis, over which batches are spread.

    Args:
        devices: the devices; all by default.
        axis_name: name of the axis.

    Returns:
        The mesh; its axis is of the automatic type, so that plain `jit` may reshard.

    Example:
        >>> from calmoe_jax.parallel import data_mesh
        >>> data_mesh(jax.devices()[:1]).shape["data"]
        1
    """
    chosen = jax.devices() if devices is None else list(devices)
    return jax.make_mesh((len(chosen),), (axis_name,), devices=chosen, axis_types=(AxisType.Auto,))


def device_mesh(devices: Sequence[Any] | None = None, *, expert_shards: int = 1) -> Mesh:
    """A mesh with the axes `"data"` and `"expert"`.

    A batch is spread over both; experts that are sharded over `"expert"` lie on each of its
    devices once for every device of `"data"`. Devices that are neighbours in the machine's network
    are neighbours along `"expert"`, and with several slices (or hosts of GPUs) that axis stays
    within one.

    Args:
        devices: the devices; all by default. They may be those of an abstract topology.
        expert_shards: devices along `"expert"`, a divisor of the number of devices.

    Returns:
        The mesh; its axes are of the automatic type.

    Raises:
        ValueError: if the shards do not divide the devices, or those of a slice.

    Example:
        >>> from calmoe_jax.parallel import device_mesh
        >>> dict(device_mesh(jax.devices()[:1]).shape)
        {'data': 1, 'expert': 1}
    """
    check_at_least("expert_shards", expert_shards, 1)
    chosen = jax.devices() if devices is None else list(devices)
    slices = len({getattr(device, "slice_index", 0) for device in chosen})
    what = f"the {len(chosen)} devices" + (f" of {slices} slices" if slices > 1 else "")
    if len(chosen) % (slices * expert_shards):
        raise ValueError(f"expert_shards must divide {what}, got expert_shards={expert_shards}.")
    shape = len(chosen) // expert_shards, expert_shards
    axes = DATA_AXIS, EXPERT_AXIS
    types = (AxisType.Auto,) * 2
    # experts may share a part of a physical axis: 32 of a torus of 16 x 16, say
    options: Any = {"devices": chosen, "allow_split_physical_axes": True}
    if slices == 1:
        ordered = create_device_mesh(shape, **options)
    else:
        inside = shape[0] // slices, expert_shards
        ordered = create_hybrid_device_mesh(inside, (slices, 1), **options)
    return Mesh(ordered, axes, axis_types=types)
