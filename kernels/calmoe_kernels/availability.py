"""Which implementations of kernels this machine can run, and why not the others."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_JAX_TRITON = "0.3"
_LEAST_CAPABILITY = 8.0


class Implementation(NamedTuple):
    """An implementation by the name that `implementation=` takes.

    Attributes:
        name: `xla`, `triton` or `pallas_tpu`.
        runs: whether this machine can run it.
        reason: why it cannot; empty if it can.
    """

    name: str
    runs: bool
    reason: str


def implementations() -> tuple[Implementation, ...]:
    """All implementations, the one that runs everywhere first.

    Returns:
        The implementations for the default backend of JAX. Not every kernel has every
        implementation. With `TRITON_INTERPRET=1` in the environment, Triton's
        interpreter runs its kernels on the host: for tests, and slowly.

    Example:
        >>> implementations()[0]
        Implementation(name='xla', runs=True, reason='')
    """
    backend = jax.default_backend()
    no_triton = _why_no_triton(backend)
    no_pallas = "" if backend == "tpu" else f"JAX's default backend is {backend}, not tpu"
    return (
        Implementation("xla", True, ""),
        Implementation("triton", not no_triton, no_triton),
        Implementation("pallas_tpu", not no_pallas, no_pallas),
    )


def _why_no_triton(backend: str) -> str:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if backend != "gpu" and not interpreted:
        return f"JAX's default backend is {backend}, not gpu"
    needed = ("triton",) if interpreted else ("triton", "jax_triton")
    lacking = [name for name in needed if find_spec(name) is None]
    if lacking:
        return f"{' and '.join(lacking)} not installed"
    if interpreted:
        return ""
    try:
        installed = version("jax-triton")
    except PackageNotFoundError:
        installed = ""  # a bare folder on the path has no version
    if installed and not installed.startswith(f"{_JAX_TRITON}."):
        return f"jax-triton {installed} is installed, {_JAX_TRITON}.1 is needed"
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    if not capability.replace(".", "").isdigit():
        return "the GPU is not NVIDIA's"
    if float(capability) < _LEAST_CAPABILITY:
        return f"the GPU is of compute capability {capability}, {_LEAST_CAPABILITY} is needed"
    return ""


@functools.cache
def ragged_all_to_all_runs() -> bool:
    """Whether `jax.lax.ragged_all_to_all` compiles and runs on this process's devices.

    Found by trying, once, in a thread of its own: the call may come from a function that is being
    traced.

    Returns:
        Whether it gives what it should; `False` on CPU.

    Example:
        >>> ragged_all_to_all_runs() and jax.default_backend() == "cpu"
        False
    """
    with ThreadPoolExecutor(max_workers=1) as other_thread:
        return other_thread.submit(_try_ragged_all_to_all).result()


def _try_ragged_all_to_all() -> bool:
    devices = jax.local_devices()
    count = len(devices)

    def transpose(row: jax.Array) -> jax.Array:
        each = jnp.arange(count, dtype=jnp.int32)
        ones = jnp.ones(count, jnp.int32)
        there = jnp.full(count, jax.lax.axis_index("d"), jnp.int32)
        return jax.lax.ragged_all_to_all(
            row, jnp.zeros_like(row), each, ones, there, ones, axis_name="d"
        )

    values = np.arange(count * count, dtype=np.float32).reshape(count, count)
    try:
        found = jax.pmap(transpose, axis_name="d", devices=devices)(values)
        return bool((np.asarray(found) == values.T).all())
    except Exception:  # backends decline with errors of several types
        return False
