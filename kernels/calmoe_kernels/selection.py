"""The rule that selects an implementation.

A name selects that implementation. `None` is a kernel only if a committed measurement shows that it
is correct and faster than XLA's form, on this kind of device and for operands of this size class
(`calmoe_kernels.measurements`); everywhere else it is XLA.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import jax

from calmoe_kernels import measurements
from calmoe_kernels.availability import implementations

NAMES = ("xla", "triton", "pallas_tpu", "batched", "blocks", "ragged_dot", "tokamax")
# The kernels of each operation. All operations have an XLA form.
OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "plan": ("triton",),
    "route": ("triton", "pallas_tpu"),
    "scatter_rows": ("triton",),
    "gather_rows": ("triton",),
    "combine_backward": ("triton",),
    "grouped_rows": ("triton",),
    "grouped_matrices": ("triton",),
    "moments": ("triton",),
    "means": ("triton",),
}
# The kernels of each of JAX's backends.
KERNELS: Mapping[str, str] = {"gpu": "triton", "tpu": "pallas_tpu"}
# The platform of the programs that hold them.
_PLATFORM = {"triton": "cuda", "pallas_tpu": "tpu"}


class Choice(NamedTuple):
    """The implementation that `None` selects for an operation on this machine.

    Attributes:
        operation: name of the operation.
        implementation: a kernel, if it is selected for any size; otherwise `xla`.
        size_classes: the size classes in which the kernel is selected; XLA in the others.
        status: `measured`, `unmeasured` or `not runnable`: status of the kernel on this machine.
        reason: the reason, as text.
    """

    operation: str
    implementation: str
    size_classes: tuple[int, ...]
    status: str
    reason: str


def run(
    attempts: Mapping[str, Callable[..., Any]],
    implementation: str | None,
    *args: Any,
    operation: str,
) -> Any:
    """Calls an implementation by name, or for `None` the best one according to measurements.

    Args:
        attempts: functions of `args` by the name of their implementation; `xla` is one of them. One
            declines by raising `NotImplementedError`.
        implementation: a name; `None` for a measured kernel, or XLA if it declines or there is
            none.
        *args: arrays, or pytrees of arrays.
        operation: a name of `OPERATIONS`, to look up measurements.

    Returns:
        What the implementation returns.

    Raises:
        ValueError: if the name of the implementation is unknown.
        NotImplementedError: if an implementation is given by name and declines.
    """
    if implementation is None:
        return _run_best(attempts, args, operation)
    if implementation not in NAMES:
        raise ValueError(
            f"implementation must be None or one of {', '.join(NAMES)}, got "
            f"implementation={implementation!r}."
        )
    if implementation not in attempts:
        raise NotImplementedError(f"{implementation} cannot do this operation.")
    reason = _reasons().get(implementation)
    if reason:
        raise NotImplementedError(f"{implementation}: {reason}.")
    return attempts[implementation](*args)


def lazy(module: str, name: str) -> Callable[..., Any]:
    """A function of a module whose dependencies, such as Triton, may not be installed.

    Args:
        module: name of a module within `calmoe_kernels`.
        name: name of a function in it.

    Returns:
        A function that imports the module when it is called.

    Example:
        >>> lazy("xla.permute", "gather_rows")(jnp.ones((1, 1)), jnp.array([[0, 0]]), None).tolist()
        [[2.0]]
    """

    def call(*args: Any, **statics: Any) -> Any:
        return getattr(import_module(f"calmoe_kernels.{module}"), name)(*args, **statics)

    return call


def choices() -> tuple[Choice, ...]:
    """The implementation that `None` selects here, for every operation with a kernel.

    Returns:
        A `Choice` for each, in the order of `OPERATIONS`.
    """
    return tuple(_choice(operation) for operation in OPERATIONS)


def _run_best(
    attempts: Mapping[str, Callable[..., Any]], args: tuple[Any, ...], operation: str
) -> Any:
    choice = _choice(operation)
    name = choice.implementation
    if name in attempts and measurements.size_class(*args) in choice.size_classes:
        here = {_PLATFORM[name]: attempts[name]}
        try:
            # the platform is that of the compiled program, which may be for this machine's CPU
            return jax.lax.platform_dependent(*args, default=attempts["xla"], **here)
        except NotImplementedError:
            pass
    return attempts["xla"](*args)


def _choice(operation: str) -> Choice:
    kernels, backend = OPERATIONS[operation], jax.default_backend()
    name = KERNELS.get(backend, "")
    if name not in kernels:
        reason = f"no kernel of it is for JAX's default backend, {backend}"
        return Choice(operation, "xla", (), "not runnable", reason)
    reason = _reasons().get(name, "")
    if reason:
        return Choice(operation, "xla", (), "not runnable", f"{name}: {reason}")
    found = measurements.read(measurements.folder(), jax.devices()[0].device_kind)
    if found.problem:
        return Choice(operation, "xla", (), "unmeasured", f"{name}: {found.problem}")
    tried = [e for e in found.entries if (e.operation, e.implementation) == (operation, name)]
    if not tried:
        reason = f"{name}: {found.path.name} has no entry of it"
        return Choice(operation, "xla", (), "unmeasured", reason)
    won = measurements.won(found.entries, operation=operation, implementation=name)
    if not won:
        reason = f"{name}: in {found.path.name} it is wrong or no faster in every size class"
        return Choice(operation, "xla", (), "measured", reason)
    reason = f"{name}: in {found.path.name} it is correct and faster in size classes " + ", ".join(
        map(str, won)
    )
    return Choice(operation, name, won, "measured", reason)


def _reasons() -> dict[str, str]:
    """The reasons why implementations do not run here; empty for those that do."""
    return {each.name: each.reason for each in implementations()}
