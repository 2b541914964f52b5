"""How the library reaches kernels whose modules need what may not be installed."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def kernel(module: str, name: str) -> Callable[..., Any]:
    """A function of a module of `calmoe_kernels` that is imported when it is called."""

    def call(*args: Any, **statics: Any) -> Any:
        return getattr(import_module(f"calmoe_kernels.{module}"), name)(*args, **statics)

    return call
