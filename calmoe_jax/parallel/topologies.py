"""Hardware that need not be here: its devices, for compilation alone, and what it can do.

Names: `v5e:16x16` is a slice of TPU chips, `2*v5e:16x16` two of them joined by the data centre's
network, `h100:4x8` four hosts of eight GPUs, `cpu:8` this machine's own devices.
"""

import os
import re
from typing import Any, NamedTuple

import jax

from calmoe_jax._errors import UserError


class Hardware(NamedTuple):
    """What a device can do.

    Attributes:
        memory: bytes of its memory.
        flops: operations a second in bfloat16, at most.
        link: bytes a second that it sends to devices of its slice or host, at most.
        network: bytes a second that it sends beyond.
        source: where the figures are from.
    """

    memory: float
    flops: float
    link: float
    network: float
    source: str


class Topology(NamedTuple):
    """Devices to compile for.

    Attributes:
        name: the name that was asked for.
        devices: the devices; they cannot run anything.
        hardware: what one can do; `None` where that is not known.
        slices: number of slices or hosts between which the slower network is.
    """

    name: str
    devices: list[Any]
    hardware: Hardware | None
    slices: int


class TopologyError(UserError):
    """A topology that is unknown, or that cannot be compiled for here."""


_TPU = "cloud.google.com/tpu/docs/system-architecture; links: total of the chip, one way is half"
_GB, _TERA = 1e9, 1e12
HARDWARE = {
    "v4": Hardware(32 * _GB, 275 * _TERA, 150 * _GB, 6.25 * _GB, _TPU),
    "v5e": Hardware(16 * _GB, 197 * _TERA, 100 * _GB, 3.125 * _GB, _TPU),
    "v5p": Hardware(95 * _GB, 459 * _TERA, 300 * _GB, 6.25 * _GB, _TPU),
    "v6e": Hardware(32 * _GB, 918 * _TERA, 224 * _GB, 6.25 * _GB, _TPU),
    "h100": Hardware(
        80 * _GB, 989 * _TERA, 450 * _GB, 50 * _GB,
        "nvidia.com/h100, SXM; network: one 400 Gb/s adapter a GPU",
    ),
}  # fmt: skip
_LIBRARY_NAMES = {"v5p": "v5"}
_WORDS = re.compile(r"^(?:(?P<slices>\d+)\*)?(?P<kind>[a-z]+\w*):(?P<shape>\d+(?:x\d+)*)$")


def topology(name: str) -> Topology:
    """The devices of a topology.

    Args:
        name: as in the module's text.

    Returns:
        A `Topology`.

    Raises:
        TopologyError: if the name is unknown, or the compiler for it is not installed.

    Example:
        >>> len(topology("cpu:1").devices)
        1
    """
    match = _WORDS.match(name)
    if not match or match["kind"] not in (*HARDWARE, "cpu"):
        known = ", ".join(f"{kind}:..." for kind in (*HARDWARE, "cpu"))
        raise TopologyError(
            f"topology must be one of {known} with a shape, such as v5e:16x16 or 2*v5e:16x16, got "
            f"topology={name}."
        )
    kind, shape, slices = match["kind"], match["shape"], int(match["slices"] or 1)
    if kind == "cpu":
        return _cpu(name, int(shape.partition("x")[0]))
    if kind == "h100":
        return _gpu(name, kind, shape, slices)
    return _tpu(name, kind, shape, slices)


def _cpu(name: str, number: int) -> Topology:
    devices = jax.devices("cpu")
    if number > len(devices):
        raise TopologyError(
            f"topology={name} needs {number} devices, here are {len(devices)}: set "
            f"JAX_NUM_CPU_DEVICES={number}."
        )
    return Topology(name, devices[:number], None, 1)


def _tpu(name: str, kind: str, shape: str, slices: int) -> Topology:
    from jax.experimental import topologies

    # a compiler needs no machine: it must not look for one, nor keep others from doing so
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    }.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {} if slices == 1 else {"num_slices": slices}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{_LIBRARY_NAMES.get(kind, kind)}:{shape}", **options
        )
    except Exception as error:
        if "libtpu" in str(error).lower() or isinstance(error, ImportError | NotImplementedError):
            raise TopologyError(
                f"topology={name} needs the TPU compiler: pip install 'calmoe_jax[tpu]' ({error})."
            ) from error
        raise TopologyError(f"topology={name} is not one that libtpu knows: {error}") from error
    return Topology(name, list(found.devices), HARDWARE[kind], slices)


def _gpu(name: str, kind: str, shape: str, slices: int) -> Topology:
    from jax.experimental import topologies

    hosts, _, gpus = shape.rpartition("x")
    text = _TARGETS[kind]
    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=text, topology=f"{slices}x{hosts or 1}x{gpus}"
        )
    except Exception as error:
        raise TopologyError(
            f"topology={name} needs the CUDA compiler: pip install 'jax[cuda12]' ({error})."
        ) from error
    return Topology(name, list(found.devices), HARDWARE[kind], slices * int(hosts or 1))


# What XLA must know of a GPU to compile for it, from NVIDIA's data sheets.
_TARGETS = {
    "h100": """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
}
