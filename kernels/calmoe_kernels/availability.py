"""Which implementations of kernels this machine can run, and why it cannot run the others."""

import os
from importlib.util import find_spec
from typing import NamedTuple

import jax


class Implementation(NamedTuple):
    """An implementation by the name that `implementation=` takes.

    Attributes:
        name: `xla`, `triton` or `pallas_tpu`.
        runs: whether this machine can run it.
        reason: why it cannot; empty where it can.
    """

    name: str
    runs: bool
    reason: str


def implementations() -> tuple[Implementation, ...]:
    """All implementations, the one that runs everywhere first.

    Returns:
        What can run on the default backend of JAX. That a machine can run an implementation does
        not say that a kernel has one. With `TRITON_INTERPRET=1` in the environment, Triton's
        interpreter runs its kernels on the host: for tests, and slowly.

    Example:
        >>> implementations()[0]
        Implementation(name='xla', runs=True, reason='')
    """
    backend = jax.default_backend()
    lacking = [name for name in ("triton", "jax_triton") if find_spec(name) is None]
    if os.environ.get("TRITON_INTERPRET") == "1":
        no_triton = "triton not installed" if "triton" in lacking else ""
    elif backend != "gpu":
        no_triton = f"JAX's default backend is {backend}, not gpu"
    else:
        no_triton = f"{' and '.join(lacking)} not installed" if lacking else ""
    no_pallas = "" if backend == "tpu" else f"JAX's default backend is {backend}, not tpu"
    return (
        Implementation("xla", True, ""),
        Implementation("triton", not no_triton, no_triton),
        Implementation("pallas_tpu", not no_pallas, no_pallas),
    )
