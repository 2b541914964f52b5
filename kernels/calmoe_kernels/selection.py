"""The one rule by which an implementation is chosen."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from calmoe_kernels.availability import implementations

NAMES = ("xla", "triton", "pallas_tpu")
# What `None` tries on each platform, in order. On TPU that is XLA until a kernel has been measured.
_PREFERENCE = {"gpu": ("triton", "xla"), "tpu": ("xla",), "cpu": ("xla",)}
_PLATFORM = {"triton": "cuda", "pallas_tpu": "tpu"}


def run(
    attempts: Mapping[str, Callable[..., Any]],
    implementation: str | None,
    *args: Any,
    prefer: Callable[[str], bool] = lambda name: True,
) -> Any:
    """Calls the implementation that is asked for, or the first that does not decline.

    Args:
        attempts: functions of `args` by the name of their implementation; always one for `xla`.
            One declines by raising `NotImplementedError`.
        implementation: a name; `None` for the best one that works here.
        *args: arrays, or pytrees of arrays.
        prefer: whether a name is worth trying where `None` was given: measured tables say so.

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
            raise NotImplementedError(f"{implementation} has no kernel for this operation.")
        if reasons[implementation]:
            raise NotImplementedError(f"{implementation}: {reasons[implementation]}.")
        return attempts[implementation](*args)
    for name in _PREFERENCE.get(jax.default_backend(), ("xla",)):
        if name == "xla" or name not in attempts or reasons[name] or not prefer(name):
            continue
        try:
            # the platform is that of the compiled program, which may be for this machine's CPU
            here = {_PLATFORM[name]: attempts[name]}
            return jax.lax.platform_dependent(*args, default=attempts["xla"], **here)
        except NotImplementedError:
            continue
    return attempts["xla"](*args)
