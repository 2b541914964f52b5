"""Dataclasses to plain JSON values and back, checked against the types of their fields.

A field may be a number, a string, a bool, a literal, another dataclass, a tuple of any length, a
dictionary with strings as keys, `object` (any JSON value, not looked into), or a union of these.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Union

_NOUNS = {
    float: "a finite number",
    int: "an integer",
    str: "a string",
    bool: "true or false",
    types.NoneType: "null",
    tuple: "a list",
    dict: "a mapping with strings as keys",
}


class PlainValueError(ValueError):
    """A value is not of the declared type; the message names its place."""


class _Direction(NamedTuple):
    """The differences between reading and writing.

    Attributes:
        fields_of: the values of a dataclass's fields by name, or `None` for other values.
        build: makes a dataclass, or its mapping, from converted fields.
        listed: accepted types of a sequence.
        sequence: type of a converted sequence.
    """

    fields_of: Callable[[Any, object], dict[str, object] | None]
    build: Callable[[Any, dict[str, Any]], Any]
    listed: tuple[type, ...]
    sequence: type


def from_plain(kind: Any, value: object, place: str = "") -> Any:
    """Converts a JSON value to a value of a type.

    Args:
        kind: the type, a dataclass as a rule.
        value: as from `json.loads`.
        place: path of the value, for messages.

    Returns:
        The value: dataclasses from mappings, tuples from lists, floats from integers if the
        type is float.

    Raises:
        PlainValueError: if a field is missing or unknown, or a value is of another type.
    """
    return _convert(kind, value, place, _READING)


def to_plain(kind: Any, value: object, place: str = "") -> Any:
    """Converts a value to JSON, so that `from_plain` restores it.

    Args:
        kind: the type, a dataclass as a rule.
        value: a value of it.
        place: path of the value, for messages.

    Returns:
        Mappings in the order of the fields, lists, numbers, strings, bools and `None`.

    Raises:
        PlainValueError: if a value is not of the type that its field declares.
    """
    return _convert(kind, value, place, _WRITING)


def _convert(kind: Any, value: object, place: str, direction: _Direction) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, place, direction)
    if origin is tuple:
        if not isinstance(value, direction.listed):
            raise _mismatch(kind, value, place)
        items = typing.cast(list[object], value)
        return direction.sequence(
            _convert(arguments[0], item, f"{place}[{i}]", direction) for i, item in enumerate(items)
        )
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise _mismatch(kind, value, place)
        return {
            key: _convert(arguments[1], item, _below(place, key), direction)
            for key, item in value.items()
        }
    if origin in (Union, types.UnionType):
        return _union(kind, arguments, value, place, direction)
    if origin is Literal:
        if value not in arguments:
            raise _mismatch(kind, value, place)
        return value
    return value if kind is object else _scalar(kind, value, place)


def _dataclass(kind: Any, value: object, place: str, direction: _Direction) -> Any:
    held = direction.fields_of(kind, value)
    if held is None:
        raise _mismatch(kind, value, place)
    hints = _hints(kind)
    for name in hints:
        if name not in held:
            raise PlainValueError(f"{_below(place, name)} is missing.")
    for name in held:
        if name not in hints:
            raise PlainValueError(f"{_below(place, name)} is not a field of {kind.__name__}.")
    converted = {
        name: _convert(hint, held[name], _below(place, name), direction)
        for name, hint in hints.items()
    }
    return direction.build(kind, converted)


def _union(
    kind: Any, members: tuple[Any, ...], value: object, place: str, direction: _Direction
) -> Any:
    if value is None and types.NoneType in members:
        return None
    others = [member for member in members if member is not types.NoneType]
    if len(others) == 1:
        return _convert(others[0], value, place, direction)
    for member in others:
        try:
            return _convert(member, value, place, direction)
        except PlainValueError:
            continue
    raise _mismatch(kind, value, place)


def _scalar(kind: Any, value: object, place: str) -> Any:
    # a bool is an integer to Python, and an integer stands for a float in JSON
    accepted = (float, int) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(kind, value, place)
    if kind is float and not math.isfinite(typing.cast(float, value)):
        raise _mismatch(kind, value, place)
    return None if value is None else kind(value)


def _mismatch(kind: Any, value: object, place: str) -> PlainValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return PlainValueError(f"{place or 'the value'} must be {_noun(kind)}, got {shown}.")


def _noun(kind: Any) -> str:
    """The type in words."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_noun(member) for member in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if dataclasses.is_dataclass(kind):
        return f"a mapping with the fields of {getattr(kind, '__name__', kind)}"
    return _NOUNS[origin or kind]


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    """Types of a dataclass's fields by name, in order."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


_READING = _Direction(
    fields_of=lambda kind, value: value if isinstance(value, dict) else None,
    build=lambda kind, values: kind(**values),
    listed=(list,),
    sequence=tuple,
)
_WRITING = _Direction(
    fields_of=lambda kind, value: (
        {name: getattr(value, name) for name in _hints(kind)} if isinstance(value, kind) else None
    ),
    build=lambda kind, values: values,
    listed=(tuple, list),
    sequence=list,
)
