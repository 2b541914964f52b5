"""Floating-point operations of a program's products, counted before XLA sees them.

XLA's own count takes the body of a loop once, and that of its TPU kernels not at all.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """Counts two operations for each multiply-add of matrix products and convolutions.

    Loops count by their length, loops of unknown length once, branches by their largest. Inside
    `shard_map` it counts what one device does. Work for rematerialisation counts.

    Args:
        function: the function.
        args: its arguments, or their shapes.

    Returns:
        The number of operations; those outside products are left out.

    Example:
        >>> count_flops(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
        60
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return (
            2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        )
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features
    if name in ("ragged_dot", "ragged_dot_general"):
        rows, width = equation.invars[0].aval.shape
        return 2 * rows * width * equation.outvars[0].aval.shape[-1]
    inner = [
        _of_jaxpr(getattr(each, "jaxpr", each))
        for value in params.values()
        for each in (value if isinstance(value, tuple | list) else (value,))
        if hasattr(each, "eqns") or hasattr(getattr(each, "jaxpr", None), "eqns")
    ]
    if name == "cond":
        return max(inner, default=0)
    return int(params.get("length", 1) if name == "scan" else 1) * sum(inner)
