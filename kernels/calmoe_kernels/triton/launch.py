"""Makes a JAX operation of a Triton kernel; the only module that imports jax-triton.

With `TRITON_INTERPRET=1` in the environment, before Triton is imported, kernels run on the host
through Triton's interpreter, so that their sources can be tested and debugged without a GPU.

jax-triton must be of the 0.3 series: 0.4 needs Triton 3.7 and breaks with JAX 0.12.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from calmoe_kernels.varying import vary_along, varying_axes

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Launch(NamedTuple):
    """One launch of a kernel.

    Attributes:
        kernel: takes arrays and integers, then the outputs, then constants by name.
        inputs: arrays, or integers.
        outputs: shapes and dtypes of its outputs; it writes all of their elements.
        grid: number of programs along up to three axes.
        constants: compile-time arguments by name.
        num_warps: warps a program.
        num_stages: stages of software pipelines.
    """

    kernel: Any
    inputs: Sequence[Any]
    outputs: Sequence[jax.ShapeDtypeStruct]
    grid: tuple[int, ...]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 2


def launch(one: Launch) -> tuple[jax.Array, ...]:
    """Runs a kernel, under `jit`, `vmap`, `scan`, `pmap` and `shard_map`.

    Args:
        one: the launch; it must write every element of its outputs.

    Returns:
        The outputs. Under `vmap` it is launched once per batch element.

    Raises:
        ValueError: when a program is compiled in which an operand is sharded outside `shard_map`.
    """
    arrays = [x for x in one.inputs if not isinstance(x, int)]
    bind = _interpret if INTERPRETED else _bind

    def with_arrays(given: Sequence[jax.Array]) -> Launch:
        rest = iter(given)
        inputs = [x if isinstance(x, int) else next(rest) for x in one.inputs]
        return one._replace(inputs=inputs)

    @jax.custom_batching.custom_vmap
    def run(*given: jax.Array) -> tuple[jax.Array, ...]:
        whole = _unsharded(lambda *own: bind(with_arrays(own)), one, given)
        return vary_along(
            whole(*given), varying_axes(given)
        )  # the type of a kernel does not show it

    @run.def_vmap
    def _run_one_by_one(
        axis_size: int, in_batched: Sequence[bool], *given: jax.Array
    ) -> tuple[tuple[jax.Array, ...], tuple[bool, ...]]:
        del axis_size
        if not any(in_batched):
            return run(*given), (False,) * len(one.outputs)
        batched = tuple(x for x, is_batched in zip(given, in_batched, strict=True) if is_batched)

        def example(some: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            rest = iter(some)
            pairs = zip(given, in_batched, strict=True)
            return run(*(next(rest) if is_batched else x for x, is_batched in pairs))

        return jax.lax.map(example, batched), (True,) * len(one.outputs)

    result: tuple[jax.Array, ...] = run(*arrays)
    return result


def _unsharded(
    function: Callable[..., tuple[jax.Array, ...]], one: Launch, given: Sequence[jax.Array]
) -> Callable[..., tuple[jax.Array, ...]]:
    """Wraps a function so that compiling it with a sharded operand raises an error.

    Without this, XLA would silently gather every operand on every device.
    """
    partitioned = custom_partitioning(function)

    def refuse_or_run(mesh: Any, arguments: Any, results: Any) -> Any:
        for argument in arguments:
            if not argument.sharding.is_fully_replicated:
                raise ValueError(
                    f"{one.kernel.__name__} got an operand of shape {argument.shape} that is "
                    f"sharded as {argument.sharding.spec}: Triton kernels run on whole arrays. "
                    "Call them inside jax.shard_map, or use implementation='xla'."
                )
        if INTERPRETED:
            raise ValueError(
                "Triton's interpreter runs on one device, or inside jax.shard_map on several."
            )
        whole = NamedSharding(mesh, PartitionSpec())
        return (
            mesh,
            function,
            jax.tree.map(lambda _: whole, results),
            jax.tree.map(lambda _: whole, arguments),
        )

    # every axis of every array is a separate factor: nothing is sharded, nothing is propagated
    names = (f"a{i}" for i in itertools.count())
    rule = " -> ".join(
        ", ".join(" ".join(next(names) for _ in x.shape) for x in arrays)
        for arrays in (given, one.outputs)
    )
    partitioned.def_partition(
        partition=refuse_or_run,
        infer_sharding_from_operands=lambda mesh, arguments, results: jax.tree.map(
            lambda _: NamedSharding(mesh, PartitionSpec()), results
        ),
        sharding_rule=rule,
    )
    wrapped: Callable[..., tuple[jax.Array, ...]] = partitioned
    return wrapped


def _bind(one: Launch) -> tuple[jax.Array, ...]:
    import jax_triton

    result: tuple[jax.Array, ...] = jax_triton.triton_call(
        *one.inputs,
        kernel=one.kernel,
        out_shape=tuple(one.outputs),
        grid=one.grid,
        num_warps=one.num_warps,
        num_stages=one.num_stages,
        **one.constants,
    )
    return result


def _interpret(one: Launch) -> tuple[jax.Array, ...]:
    from calmoe_kernels.triton.interpreter import run_on_host

    def call(*arrays: Any) -> Any:
        return run_on_host(one, arrays)

    arrays = [x for x in one.inputs if not isinstance(x, int)]
    result: tuple[jax.Array, ...] = jax.pure_callback(call, tuple(one.outputs), *arrays)
    return result
