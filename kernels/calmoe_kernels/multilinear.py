"""Functions that are linear in each of their arrays, as the gradients of one multilinear form.

The form `c(a, b) = sum_r <a_r, b_r>` has the gradients `a` and `b`; the form of an expert's product
`sum_r <y_r, x_r w_e>` has `x_r w_e`, `y_r w_e^T` and `sum_r x_r^T y_r`. The derivative of a
gradient is a sum of gradients, and so is its transpose: given all of them, all derivatives of all
orders are known.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from calmoe_kernels.derivatives import Arrays, Derivatives, with_derivatives

# `(facts, arrays, wanted) -> gradients to the arrays of these numbers`. A gradient has the dtype of
# its own array, which it does not depend on, and which may be `None`; where there is one, it may
# tell what the gradient is where it is not defined, as that of `0 * inf`.
Form = Callable[[Any, Arrays, tuple[int, ...]], Arrays]


def gradients(form: Form, facts: Any, arrays: Arrays, *wanted: int) -> Arrays:
    """Gradients of a multilinear form, as functions with derivatives.

    Args:
        form: computes gradients; it is not differentiated itself.
        facts: pytree of arrays without derivatives.
        arrays: the form's arguments; `None` where no wanted gradient depends on it.
        *wanted: numbers of the arguments.

    Returns:
        A gradient for each.
    """
    value = partial(_value, form, wanted)
    derivatives = Derivatives(partial(_tangent, form, wanted), partial(_transpose, form, wanted))
    return with_derivatives(value, derivatives, facts, arrays)


def _value(form: Form, wanted: tuple[int, ...], facts: Any, arrays: Arrays) -> Arrays:
    return form(facts, arrays, wanted)


def _tangent(
    form: Form, wanted: tuple[int, ...], facts: Any, arrays: Arrays, tangents: Arrays
) -> Arrays:
    results = []
    for i in wanted:
        parts = [
            gradients(form, facts, _with(arrays, {j: tangent}), i)[0]
            for j, tangent in enumerate(tangents)
            if tangent is not None and j != i
        ]
        # without parts the gradient is that to a given array, whose tangent is the only one
        results.append(sum(parts[1:], parts[0]) if parts else jnp.zeros_like(arrays[i]))
    return tuple(results)


def _transpose(
    form: Form,
    wanted: tuple[int, ...],
    facts: Any,
    arrays: Arrays,
    cotangents: Arrays,
    asked: tuple[bool, ...],
) -> Arrays:
    totals: list[jax.Array | None] = [None] * len(arrays)
    for i, cotangent in zip(wanted, cotangents, strict=True):
        over = tuple(j for j, is_asked in enumerate(asked) if is_asked and j != i)
        if cotangent is None or not over:
            continue
        known = _with(arrays, {i: cotangent})
        for j, part in zip(over, gradients(form, facts, known, *over), strict=True):
            total = totals[j]
            totals[j] = part if total is None else total + part
    return tuple(totals)


def _with(arrays: Arrays, changed: dict[int, Any]) -> Arrays:
    return tuple(changed.get(i, x) for i, x in enumerate(arrays))
