"""Checks the arrays given to a public function against its signature, and converts them.

The jaxtyping annotations of a function say which kind of numbers each argument has and which axes;
`checked` holds callers to that, in one place for the whole library. An array of another shape
would otherwise broadcast and give a wrong number without a word: labels of shape `[examples, 1]`
beside probabilities of shape `[examples, classes]`, say. Only types and shapes are read, so the
checks hold under `jax.jit` too, where they cost nothing at run time.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

from calmoe_jax._sharding import on_auto_axes

_Function = TypeVar("_Function", bound=Callable[..., Any])

# What the annotations' kinds of numbers are called in errors.
_KINDS = {
    jaxtyping.Float: "floats",
    jaxtyping.Int: "integers",
    jaxtyping.Integer: "integers",
    jaxtyping.Bool: "truth values",
    jaxtyping.Shaped: "numbers",
}
# JAX neither adds smaller floats nor promotes them.
_FEWEST_BYTES = 2


class _Form(NamedTuple):
    """An array that an argument may be.

    Attributes:
        kind: kind of its numbers, a value of `_KINDS`.
        axes: names or sizes of its axes; one of them may begin with `*`, for any number of axes.
    """

    kind: str
    axes: tuple[str, ...]


class _Argument(NamedTuple):
    """The arrays that an argument may be, or that its fields are.

    Attributes:
        forms: forms of the array, at least one unless there are fields.
        numbers: whether it may be a plain number.
        optional: whether it may be `None`.
        fields: arguments of a `NamedTuple`, by the name of their field.
        shared: whether the fields' axes are those of the other arguments.
    """

    forms: tuple[_Form, ...]
    numbers: bool
    optional: bool
    fields: dict[str, "_Argument"]
    shared: bool


class _Size(NamedTuple):
    """Size of an axis, or sizes of several, and the argument that determined it."""

    size: Any
    origin: str


def checked(function: _Function) -> _Function:
    """Checks and converts a function's arrays before every call.

    * An array must have the axes of its annotation, and axes of one name one size.
    * Where floats are asked for, integers and truth values become floats, as in `jax.numpy`; where
      integers are asked for they become int32, or int64 if they are: an unsigned integer cannot be
      compared with -1, nor an int8 with 128. Labels of two classes may be truth values.
    * NumPy arrays, columns of data frames, lists and variables of modules become JAX arrays, and
      float64 silently float32 unless JAX has 64 bits.

    Args:
        function: a function with jaxtyping annotations. Arguments without them, and `None`, pass
            unchecked; the arrays of a `NamedTuple` are checked by its annotations.

    Returns:
        The function with its own signature. It raises `TypeError` for another kind of numbers, and
        for floats of less than 16 bits; `ValueError` for another shape.

    Example:
        >>> @checked
        ... def mean(values: Float[Array, " n"], where: Bool[Array, " n"]) -> Float[Array, ""]:
        ...     return jnp.mean(values, where=where)
        >>> mean([1.0, 2.0], np.array([[True], [False]]))
        Traceback (most recent call last):
        ...
        ValueError: where must have the axes [n] with n=2 as in values, got where.shape=(2, 1).
    """
    signature = inspect.signature(function)
    names = tuple(signature.parameters)

    @functools.cache
    def arguments() -> dict[str, _Argument]:
        # read at the first call: importing the library stays fast
        return dict(_arguments({n: p.annotation for n, p in signature.parameters.items()}))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        sizes: dict[str, _Size] = {}
        positional, expected = list(args), arguments()
        for i, name in enumerate(names[: len(args)]):
            if name in expected:
                positional[i] = _convert(name, args[i], expected[name], sizes)
        for name in expected:
            if name in kwargs:
                kwargs[name] = _convert(name, kwargs[name], expected[name], sizes)
        return on_auto_axes(function, tuple(positional), kwargs)

    return typing.cast(_Function, call)


def _arguments(annotations: dict[str, Any]) -> Iterator[tuple[str, _Argument]]:
    """The arguments of a call, or the fields of a `NamedTuple`, that hold arrays."""
    required = [a for a in annotations.values() if _is_named_tuple(a)]
    for name, annotation in annotations.items():
        choices = _choices(annotation)
        forms = tuple(
            _Form(_KINDS[c.dtype], tuple(c.dim_str.split()))
            for c in choices
            if getattr(c, "dtype", None) in _KINDS
        )
        fields = {}
        shared = True
        for choice in filter(_is_named_tuple, choices):
            # their own named tuples may be stacked, over seeds or layers, and are left alone
            hints = typing.get_type_hints(choice).items()
            fields = dict(_arguments({n: a for n, a in hints if not _holds_named_tuple(a)}))
            # two samples of one type may differ in size
            shared = required.count(annotation) == 1
        if forms or fields:
            numbers = int in choices or float in choices
            optional = None in choices or types.NoneType in choices
            yield name, _Argument(forms, numbers, optional, fields, shared)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _is_named_tuple(choice: Any) -> bool:
    return isinstance(choice, type) and issubclass(choice, tuple) and hasattr(choice, "_fields")


def _holds_named_tuple(annotation: Any) -> bool:
    return any(map(_is_named_tuple, _choices(annotation)))


def _convert(name: str, value: Any, expected: _Argument, sizes: dict[str, _Size]) -> Any:
    if expected.numbers and isinstance(value, int | float):
        return value
    if value is None:
        if expected.forms and not expected.optional:
            raise TypeError(f"{name} must be an array of {_asked(expected)}, got {name}=None.")
        return value
    if expected.fields and _is_named_tuple(type(value)):
        known = sizes if expected.shared else {}
        # a field's own type may be a NamedTuple of another library: it is left alone
        changed = {}
        for field, of_field in expected.fields.items():
            if field in value._fields:
                old = getattr(value, field)
                new = _convert(f"{name}.{field}", old, of_field, known)
                if new is not old:
                    changed[field] = new
        return value._replace(**changed) if changed else value
    if not expected.forms:
        return value
    array, weak = _as_array(name, value, expected)
    kind = _kind(array.dtype)
    asked = _choose(kind, weak, expected, name, sizes)
    if asked is None:
        raise TypeError(f"{name} must be of {_asked(expected)}, got {name}.dtype={array.dtype}.")
    if kind == "floats" and array.dtype.itemsize < _FEWEST_BYTES:
        raise TypeError(
            f"{name} must be of floats of at least {8 * _FEWEST_BYTES} bits (cast it first), got "
            f"{name}.dtype={array.dtype}."
        )
    _check_axes(name, array, asked, expected.forms, sizes)
    if asked == "floats" and kind != "floats":
        return array.astype(jax.dtypes.canonicalize_dtype(float))
    if asked == "integers" and array.dtype not in (jnp.int32, jnp.int64):
        wide = array.dtype in (jnp.uint32, jnp.uint64)
        return array.astype(jax.dtypes.canonicalize_dtype(np.int64) if wide else jnp.int32)
    return array


def _as_array(name: str, value: Any, expected: _Argument) -> tuple[jax.Array, bool]:
    """The value as an array of JAX, and whether its numbers are Python's, which have no type."""
    if isinstance(value, jax.Array):
        return value, False
    if hasattr(value, "__jax_array__"):
        return value.__jax_array__(), False
    weak = isinstance(value, list | tuple | int | float)
    given = type(value).__name__
    try:
        if not weak:
            value = np.asarray(value)
            value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype))
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be an array of {_asked(expected)}, got {given}: {error}"
        ) from error
    return array, weak


def _asked(expected: _Argument) -> str:
    return " or ".join(dict.fromkeys(form.kind for form in expected.forms))


@functools.cache
def _kind(dtype: Any) -> str:
    for kind, base in (("floats", jnp.floating), ("integers", jnp.integer), ("truth values", bool)):
        if jnp.issubdtype(dtype, base):
            return kind
    return str(dtype)


def _choose(
    kind: str, weak: bool, expected: _Argument, name: str, sizes: dict[str, _Size]
) -> str | None:
    """The kind that numbers of this kind are, or can be converted to."""
    kinds = {form.kind for form in expected.forms}
    if kind in kinds:
        return kind
    if "numbers" in kinds:
        return "numbers"
    two_classes = "classes" in sizes and sizes["classes"].size == 2
    if kind == "truth values" and name == "labels" and two_classes and "integers" in kinds:
        return "integers"
    whole = kind in ("integers", "truth values")
    return "floats" if whole and "floats" in kinds and (weak or "integers" not in kinds) else None


def _check_axes(
    name: str, array: jax.Array, kind: str, forms: tuple[_Form, ...], sizes: dict[str, _Size]
) -> None:
    """Raises an error unless the array has the axes of a form; notes the sizes of new names."""
    fitting = {}
    for form in forms:
        found = _match(name, array.shape, form.axes, sizes)
        if found is not None:
            fitting[form.kind] = found
    if kind in fitting:
        sizes.update(fitting[kind])
        return
    if fitting:  # of these axes, but of another kind
        asked = " or ".join(fitting)
        raise TypeError(
            f"{name} must be of {asked} where its shape is {array.shape}, got "
            f"{name}.dtype={array.dtype}."
        )
    axes = [f"[{', '.join(f.axes)}]{_known(f.axes, sizes)}" for f in forms if f.kind == kind]
    raise ValueError(
        f"{name} must have the axes {' or '.join(axes)}, got {name}.shape={array.shape}."
    )


def _match(
    name: str, shape: tuple[Any, ...], axes: tuple[str, ...], sizes: dict[str, _Size]
) -> dict[str, _Size] | None:
    """The sizes of a form's axes in a shape; `None` if it does not have them."""
    spread = [i for i, axis in enumerate(axes) if axis.startswith("*") or axis == "..."]
    extra = len(shape) - (len(axes) - len(spread))
    if extra < 0 or (extra > 0 and not spread):
        return None
    found = dict(sizes)
    at = 0
    for i, axis in enumerate(axes):
        size: Any = shape[at : at + extra] if i in spread else shape[at]
        at += extra if i in spread else 1
        if not _fits(axis, size, found):
            return None
        if axis.lstrip("*")[:1].isalpha():
            found.setdefault(axis, _Size(size, name))
    return found


def _fits(axis: str, size: Any, sizes: dict[str, _Size]) -> bool:
    if axis.isdigit():
        return bool(size == int(axis))
    known = sizes.get(axis.replace("#", ""))
    if known is None or size == known.size:
        return True
    if "#" not in axis:
        return False
    if not axis.startswith("*"):
        return bool(size == 1)
    return len(size) == len(known.size) and all(
        a in (1, b) for a, b in zip(size, known.size, strict=True)
    )


def _known(axes: tuple[str, ...], sizes: dict[str, _Size]) -> str:
    """What is known of the axes, as words."""
    origins: dict[str, list[str]] = {}
    for axis in axes:
        if (size := sizes.get(axis.replace("#", ""))) is not None:
            origins.setdefault(size.origin, []).append(f"{axis.lstrip('*#')}={size.size}")
    parts = [f"{', '.join(dict.fromkeys(known))} as in {o}" for o, known in origins.items()]
    return " with " + " and ".join(parts) if parts else ""
