"""Runs a launch on the host through Triton's interpreter, on NumPy arrays."""

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np

# The interpreter keeps the running program's number in a global.
_ONE_AT_A_TIME = Lock()


class _Storage:
    """The storage that the interpreter copies to the host and back; already on the host here."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def cpu(self) -> "_Storage":
        return self

    def copy_(self, other: Any) -> None:
        del other


class _HostTensor:
    """The few methods of a tensor that the interpreter calls, over a NumPy array."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.dtype = str(array.dtype)

    def data_ptr(self) -> int:
        return self._array.ctypes.data

    def untyped_storage(self) -> _Storage:
        return _Storage(self._array)

    def new_empty(self, *shape: Any, device: Any = None) -> "_HostTensor":
        del shape, device
        return _HostTensor(self._array)

    def set_(self, *storage: Any) -> "_HostTensor":
        del storage
        return self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self._array.shape

    def stride(self) -> tuple[int, ...]:
        return self._array.strides


def run_on_host(one: Any, arrays: Sequence[Any]) -> tuple[np.ndarray, ...]:
    """Runs a `Launch` on host arrays.

    Args:
        one: the launch.
        arrays: its inputs that are arrays.

    Returns:
        The outputs. Entries that the kernel does not write are NaN, or the smallest integer.
    """
    rest = iter(arrays)
    # a copy with its own memory: the interpreter works on addresses
    inputs = [
        x if isinstance(x, int) else _HostTensor(np.array(next(rest), order="C"))
        for x in one.inputs
    ]
    outputs = [_poison(output.shape, np.dtype(output.dtype)) for output in one.outputs]
    with _ONE_AT_A_TIME:
        one.kernel[one.grid](*inputs, *map(_HostTensor, outputs), **one.constants)
    return tuple(outputs)


def _poison(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        return np.full(shape, np.iinfo(dtype).min, dtype)
    return np.full(shape, np.nan, dtype)
