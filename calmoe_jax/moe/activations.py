"""Activations of experts: names, or functions of a user, also of those that split their columns."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calmoe_jax._checks import check_choice
from calmoe_jax._numerics import normal_cdf

Function = Callable[[jax.Array], jax.Array]
Activation = str | Function


def _gelu(inner: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact form: each number times the chance that a normal one is smaller."""
    return inner * normal_cdf(inner)


def _swiglu(inner: Float[Array, "rows columns"]) -> Float[Array, "rows hidden"]:
    gate, value = jnp.split(inner, 2, axis=1)
    return jax.nn.silu(gate) * value


# Under `checkpoint`: otherwise factors of their derivatives would be stored with the hidden units,
# two more arrays of that size, which save no time (measured on CPU).
_NAMED: dict[str, Function] = {
    "relu": jax.nn.relu,
    "gelu": jax.checkpoint(_gelu),
    "swiglu": jax.checkpoint(_swiglu),
}
_SPLIT = ("swiglu",)
ACTIVATIONS = tuple(_NAMED)


def function_of(activation: Activation) -> Function:
    """The function, from `[rows, columns]` to `[rows, hidden]`, of a name or of a function.

    Args:
        activation: one of `ACTIVATIONS`, or a function. It is recomputed in the backward pass.

    Raises:
        ValueError: if the name is unknown.
    """
    if callable(activation):
        return jax.checkpoint(activation)
    check_choice("activation", activation, ACTIVATIONS)
    return _NAMED[activation]


def columns_of(activation: Activation, hidden: int) -> int:
    """Columns that an activation takes to give a number of hidden units: as many, or twice.

    Args:
        activation: one of `ACTIVATIONS`, or a function. Its shapes tell: it maps `[rows, hidden]`
            or `[rows, 2 hidden]` to `[rows, hidden]`.
        hidden: number of hidden units, at least 1.

    Raises:
        ValueError: if the name is unknown, or a function does neither.
    """
    if not callable(activation):
        check_choice("activation", activation, ACTIVATIONS)
        return hidden * (2 if activation in _SPLIT else 1)
    problem: Exception | None = None
    for columns in (hidden, 2 * hidden):
        inner = jax.ShapeDtypeStruct((2, columns), jnp.float32)
        try:
            result = jax.eval_shape(activation, inner)
        except (TypeError, ValueError, IndexError) as error:
            problem = error
            continue
        if getattr(result, "shape", None) == (2, hidden):
            return columns
    raise ValueError(
        f"activation must map [rows, hidden] or [rows, 2 * hidden] to [rows, hidden={hidden}], got "
        f"activation={activation}."
    ) from problem


def name_of(activation: Activation) -> str:
    """The name of an activation for messages."""
    return str(getattr(activation, "__name__", activation))
