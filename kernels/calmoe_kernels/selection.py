"""The one rule by which an implementation is chosen."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from calmoe_kernels.availability import implementations

NAMES = ("xla", "triton", "pallas_tpu", "batched", "blocks", "ragged_dot", "tokamax")
# What `None` tries on each platform, in order. On TPU that is XLA until a kernel has been measured.
_PREFERENCE = {
    "gpu": ("triton", "xla", "batched", "ragged_dot"),
    "tpu": ("xla", "batched", "ragged_dot"),
    "cpu": ("xla", "batched", "blocks"),
}
# Those that need one platform, and its name in a program; the others run everywhere.
_PLATFORM = {"triton": "cuda", "pallas_tpu": "tpu"}


def run(attempts: Mapping[str, Callable[..., Any]], implementation: str | None, *args: Any) -> Any:
    """Calls the implementation that is asked for, or the first that does not decline.

    Args:
        attempts: functions of `args` by the name of their implementation, at least one of them of
            a name that runs everywhere. One declines by raising `NotImplementedError`.
        implementation: a name; `None` for the best one that works here.
        *args: arrays, or pytrees of arrays.

    Returns:
        What the implementation returns.

    Raises:
        ValueError: if the name is unknown.
        NotImplementedError: if the implementation was asked for by name and declines.
    """
    if implementation is not None and implementation not in NAMES:
        raise ValueError(
            f"implementation must be None or one of {', '.join(NAMES)}, got "
            f"implementation={implementation!r}."
        )
    reasons = {each.name: each.reason for each in implementations()}
    if implementation is not None:
        if implementation not in attempts:
            raise NotImplementedError(f"{implementation} cannot do this operation.")
        if reasons.get(implementation):
            raise NotImplementedError(f"{implementation}: {reasons[implementation]}.")
        return attempts[implementation](*args)
    backend = jax.default_backend()
    for name in _PREFERENCE.get(backend, _PREFERENCE["cpu"]):
        if name not in attempts or reasons.get(name):
            continue
        try:
            if name not in _PLATFORM:
                return attempts[name](*args)
            # the platform is that of the compiled program, which may be for this machine's CPU
            everywhere = (*_PREFERENCE["cpu"], "ragged_dot")
            other = next(attempts[each] for each in everywhere if each in attempts)
            here = {_PLATFORM[name]: attempts[name]}
            return jax.lax.platform_dependent(*args, default=other, **here)
        except NotImplementedError:
            continue
    raise NotImplementedError(f"none of {', '.join(attempts)} can do this operation here.")
