"""What a training step costs on devices that need not be here: compiled ahead of time, not run."""

import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from calmoe_jax.parallel.collectives import Collective, collectives_of
from calmoe_jax.parallel.flops import count_flops
from calmoe_jax.parallel.topologies import Topology


class Memory(NamedTuple):
    """Bytes on each device.

    Attributes:
        arguments: what a step is given, by name, such as parameters and moments.
        temporary: what it needs meanwhile, such as activations and gradients.
        code: the program.
        total: the most at one time. A new state takes the place of the old one.
    """

    arguments: dict[str, int]
    temporary: int
    code: int
    total: int


class Plan(NamedTuple):
    """The cost of a step.

    Attributes:
        topology: name of the devices.
        mesh: sizes of the mesh's axes.
        num_examples: examples of a batch.
        memory: bytes on each device; `None` where the compiler found that they do not fit.
        needed: bytes that a device needs: `memory.total`, or what the compiler says.
        available: bytes that it has; `None` where that is not known.
        flops: operations of matrix products on each device.
        collectives: exchanges between devices, the largest first.
        compile_seconds: how long compilation took.
        compute_seconds: time for the operations at the device's peak; `None` if not known.
        exchange_seconds: time for the exchanges at the full speed of its links; `None` if not
            known. Both are lower bounds.
    """

    topology: str
    mesh: dict[str, int]
    num_examples: int
    memory: Memory | None
    needed: int
    available: int | None
    flops: int
    collectives: list[Collective]
    compile_seconds: float
    compute_seconds: float | None
    exchange_seconds: float | None

    @property
    def fits(self) -> bool | None:
        """Whether a device has enough memory; `None` where that is not known."""
        if self.memory is None:
            return False
        return None if self.available is None else self.needed <= self.available

    @property
    def bytes_sent(self) -> float:
        """Bytes that a device sends in a step, at least."""
        return sum(each.bytes_sent for each in self.collectives)


def plan_step(
    step: Any,
    arguments: tuple[PyTree, ...],
    mesh: Mesh,
    topology: Topology,
    *,
    names: Mapping[str, PyTree],
    num_examples: int,
) -> Plan:
    """Compiles a step for a topology and reads what it costs.

    Args:
        step: the jitted step.
        arguments: shapes of its arguments, with shardings on the mesh.
        mesh: the devices of the topology as a mesh.
        topology: the devices.
        names: parts of the arguments by name, whose bytes are listed one by one.
        num_examples: examples of the batch.

    Returns:
        A `Plan`.

    Raises:
        RuntimeError: what the compiler raises, where it is not for lack of memory.
    """
    start = time.perf_counter()
    lowered = step.lower(*arguments)
    flops = count_flops(step, *arguments)
    sizes = {name: bytes_on_a_device(part) for name, part in names.items()}
    memory, collectives, needed = None, [], 0
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = _needed(str(error))
        if not needed:
            raise
    else:
        memory = _memory(compiled.memory_analysis(), sizes)
        needed = memory.total
        collectives = collectives_of(compiled.as_text(), dict(mesh.shape), slices=topology.slices)
    seconds = time.perf_counter() - start
    hardware = topology.hardware
    return Plan(
        topology=topology.name,
        mesh=dict(mesh.shape),
        num_examples=num_examples,
        memory=memory,
        needed=needed,
        available=None if hardware is None else int(hardware.memory),
        flops=flops,
        collectives=collectives,
        compile_seconds=seconds,
        compute_seconds=None if hardware is None else flops / hardware.flops,
        exchange_seconds=_exchange_seconds(collectives, topology) if memory else None,
    )


def bytes_on_a_device(tree: PyTree) -> int:
    """Bytes of a tree's arrays on each device.

    Args:
        tree: arrays, or their shapes with shardings.

    Example:
        >>> bytes_on_a_device({"w": jnp.ones((2, 3))})
        24
    """

    def one(leaf: Any) -> int:
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct((), leaf.dtype))
            return math.prod(shape) * data.size * data.dtype.itemsize
        return int(math.prod(shape) * leaf.dtype.itemsize)

    return sum(map(one, jax.tree.leaves(tree)))


def _memory(analysis: Any, sizes: dict[str, int]) -> Memory:
    given = analysis.argument_size_in_bytes
    # what padding of the arrays to the device's tiles adds
    sizes = sizes | {"padding and other": max(0, given - sum(sizes.values()))}
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    code = analysis.generated_code_size_in_bytes
    temporary = analysis.temp_size_in_bytes
    return Memory(sizes, temporary, code, given + new + temporary + code)


def _needed(message: str) -> int:
    """Bytes that a program needs, from the compiler's words where they are too many."""
    match = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    if match is None:
        return 0
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def _exchange_seconds(collectives: list[Collective], topology: Topology) -> float | None:
    """Time of the exchanges at full speed, where those from slice to slice use the network."""
    hardware = topology.hardware
    if hardware is None:
        return None
    return sum(c.bytes_sent / (hardware.network if c.far else hardware.link) for c in collectives)
