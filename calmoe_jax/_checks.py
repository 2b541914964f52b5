"""Checks of static facts: each error names the argument, the rule and the value."""

import math
from typing import Any

import jax


def is_concrete_number(value: Any) -> bool:
    """Whether `value` is a plain Python number, not an array that may be traced."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> None:
    """Raises `ValueError` unless a plain number is finite and above zero.

    Arrays pass unchecked, because their values may be traced.
    """
    if is_concrete_number(value) and not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {name}={value}.")


def check_non_negative(name: str, value: Any) -> None:
    """Raises `ValueError` unless a plain number is finite and at least zero."""
    if is_concrete_number(value) and not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be non-negative and finite, got {name}={value}.")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raises `ValueError` unless `value >= least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {name}={value}.")


def check_range(name: str, value: Any, low: float | int, high: float | int) -> None:
    """Raises `ValueError` unless a plain number lies in `[low, high]`."""
    if is_concrete_number(value) and not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {name}={value}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {name}={value!r}.")


def check_same_size(name: str, array: jax.Array, axis: int, size: int, rule: str) -> None:
    """Raises `ValueError` unless `array.shape[axis] == size`; `rule` says what `size` is."""
    if array.shape[axis] != size:
        raise ValueError(
            f"{name} must have {rule}={size} along axis {axis}, got {name}.shape={array.shape}."
        )


def check_where(name: str, where: jax.Array | None, shape: tuple[int, ...]) -> None:
    """Raises `ValueError` if a mask is given and its shape is not that of the array it masks."""
    if where is not None and where.shape != shape:
        raise ValueError(
            f"{name} must have the shape {shape} of what it masks, got {name}.shape={where.shape}."
        )
