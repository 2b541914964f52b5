"""Functions whose derivatives are given in both directions.

`jax.custom_vjp` forbids forward mode, `jax.custom_jvp` cannot say how its tangents are transposed,
and `jax.custom_derivatives.linear_call` has no rule for `vmap`, nor for derivatives to what it is
not linear in. `with_derivatives` has all of them: `jvp`, `vjp`, `linearize`, `linear_transpose`,
what these are composed to, `vmap`, `jit`, `checkpoint` and `shard_map`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax._src.dispatch import prim_requires_devices_during_lowering as _needs_devices
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Arrays = tuple[Any, ...]


class Derivatives(NamedTuple):
    """The derivatives of a function `value(facts, arrays) -> results`.

    Both are differentiated again for higher orders.

    Attributes:
        tangent: `(facts, arrays, tangents) -> tangents of the results`. A tangent is `None` where
            it is 0; at least one is not.
        transpose: `(facts, arrays, cotangents, wanted) -> cotangents of the arrays`, the transpose
            of `tangent`. A cotangent of a result is `None` where it is 0; at least one is not. So
            may those of the arrays be, and are ignored where they are not `wanted`.
    """

    tangent: Callable[[Any, Arrays, Arrays], Arrays]
    transpose: Callable[[Any, Arrays, Arrays, tuple[bool, ...]], Arrays]


class _Operation(NamedTuple):
    """What a primitive computes from its operands, the leaves of a tree."""

    run: Callable[..., Arrays]
    derivatives: Derivatives
    tree: Any
    types: Arrays  # of the results

    def __repr__(self) -> str:
        return "given"  # in the text of a program, without addresses of functions

    def flat(self, *leaves: Any) -> Arrays:
        return self.run(*jax.tree.unflatten(self.tree, leaves))


# A function with derivatives: `run(facts, arrays)`.
_call = Primitive("calmoe_call")
# A derivative: `run(facts, arrays, tangents)`, linear in the tangents.
_derivative = Primitive("calmoe_derivative")


def with_derivatives(
    value: Callable[[Any, Arrays], Arrays], derivatives: Derivatives, facts: Any, arrays: Arrays
) -> Arrays:
    """Calls a function whose derivatives are given.

    Args:
        value: takes `facts` and `arrays` and returns a tuple of arrays. It is never differentiated
            itself, and must not close over arrays.
        derivatives: its derivatives to `arrays`.
        facts: pytree of arrays without derivatives, such as indices.
        arrays: arrays of floats, or `None` where there is none. Inside `shard_map` all operands
            must vary along the same axes.

    Returns:
        The results.
    """
    return tuple(_traced(_call, value, derivatives, (facts, arrays)))


def _traced(
    primitive: Primitive, run: Callable[..., Arrays], derivatives: Derivatives, operands: Any
) -> Sequence[Any]:
    body = jax.make_jaxpr(run)(*operands)
    return _bind(primitive, run, derivatives, operands, tuple(body.out_avals))


def _bind(
    primitive: Primitive, run: Any, derivatives: Derivatives, operands: Any, types: Arrays
) -> Sequence[Any]:
    leaves, tree = jax.tree.flatten(operands)
    given = _Operation(run, derivatives, tree, types)
    results: Sequence[Any] = primitive.bind(*leaves, given=given)
    return results


def _call_jvp(primals: Arrays, tangents: Arrays, *, given: _Operation) -> tuple[Any, Any]:
    results = _call.bind(*primals, given=given)
    facts, arrays = jax.tree.unflatten(given.tree, primals)
    moved = _like(arrays, tangents[len(jax.tree.leaves(facts)) :])
    types = tuple(aval.to_tangent_aval() for aval in given.types)
    tangent = given.derivatives.tangent
    return results, _bind(_derivative, tangent, given.derivatives, (facts, arrays, moved), types)


def _derivative_jvp(primals: Arrays, tangents: Arrays, *, given: _Operation) -> tuple[Any, Any]:
    results = _derivative.bind(*primals, given=given)
    facts, arrays, moved = jax.tree.unflatten(given.tree, primals)
    start, end = len(jax.tree.leaves(facts)), len(primals) - len(jax.tree.leaves(moved))
    if all(_present(t) is None for t in tangents[start:end]):
        operands = facts, arrays, _like(moved, tangents[end:])
        return results, _bind(_derivative, given.run, given.derivatives, operands, given.types)
    floats = primals[start:]
    filled = tuple(
        jnp.zeros_like(x) if _present(t) is None else t
        for x, t in zip(floats, tangents[start:], strict=True)
    )
    function = partial(given.flat, *primals[:start])
    return results, jax.jvp(function, floats, filled)[1]


def _like(arrays: Arrays, tangents: Sequence[Any]) -> Arrays:
    """Tangents of arrays, `None` for a zero and for what is `None` itself."""
    rest = iter(tangents)
    return tuple(None if x is None else _present(next(rest)) for x in arrays)


def _present(tangent: Any) -> Any:
    """A tangent or cotangent, or `None` for a zero."""
    is_zero = type(tangent) is ad.Zero or jax.typeof(tangent).dtype == jax.dtypes.float0
    return None if is_zero else tangent


def _transpose(cotangents: Sequence[Any], *args: Any, given: _Operation) -> list[Any]:
    """Cotangents of the undefined ones of the last operands; `None` for the others."""
    facts, arrays, *moved = jax.tree.unflatten(given.tree, args)
    over = moved[0] if moved else arrays
    arrays = tuple(None if ad.is_undefined_primal(x) else x for x in arrays)
    wanted = tuple(ad.is_undefined_primal(x) for x in over)
    nonzero = tuple(map(_present, cotangents))
    if all(c is None for c in nonzero):
        return [None] * len(args)
    found = given.derivatives.transpose(facts, arrays, nonzero, wanted)
    pairs = zip(over, wanted, found, strict=True)
    last = [ct if is_wanted else None for x, is_wanted, ct in pairs if x is not None]
    return [None] * (len(args) - len(last)) + last


def _batch(
    primitive: Primitive, args: Arrays, dims: Arrays, *, given: _Operation
) -> tuple[Any, Any]:
    args = tuple(
        x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims, strict=True)
    )
    flat_axes = [None if dim is None else 0 for dim in dims]
    size = next(x.shape[0] for x, axis in zip(args, flat_axes, strict=True) if axis == 0)
    axes = jax.tree.unflatten(given.tree, flat_axes)
    run = jax.vmap(given.run, axes, axis_size=size)
    derivatives = _batched(given.derivatives, (*axes, axes[1])[:3], size)
    results = _traced(primitive, run, derivatives, jax.tree.unflatten(given.tree, args))
    return results, [0] * len(results)


def _batched(derivatives: Derivatives, axes: Any, size: int) -> Derivatives:
    """Derivatives of a batch; `axes` are those of facts, arrays and tangents."""
    of_facts, of_arrays, of_tangents = axes

    def tangent(facts: Any, arrays: Arrays, tangents: Arrays) -> Arrays:
        mapped = jax.vmap(derivatives.tangent, axes, axis_size=size)
        results: Arrays = mapped(facts, arrays, tangents)
        return results

    def transpose(
        facts: Any, arrays: Arrays, cotangents: Arrays, wanted: tuple[bool, ...]
    ) -> Arrays:
        def one(facts: Any, arrays: Arrays, cotangents: Arrays) -> Arrays:
            found = derivatives.transpose(facts, arrays, cotangents, wanted)
            return tuple(ct if w else None for ct, w in zip(found, wanted, strict=True))

        mapped = jax.vmap(one, (of_facts, of_arrays, 0), axis_size=size)
        # what the batch shares gets the sum over it
        return tuple(
            ct if ct is None or axis == 0 else jnp.sum(ct, axis=0)
            for ct, axis in zip(mapped(facts, arrays, cotangents), of_tangents, strict=True)
        )

    return Derivatives(tangent, transpose)


def _flat(*leaves: Any, given: _Operation) -> Arrays:
    return given.flat(*leaves)


def _eager(*leaves: Any, given: _Operation) -> Arrays:
    return given.flat(*map(jnp.asarray, leaves))  # what was differentiated may be of NumPy


for _primitive, _jvp in ((_call, _call_jvp), (_derivative, _derivative_jvp)):
    _primitive.multiple_results = True
    # a kernel inside may be partitioned by its own rule, which JAX cannot see from outside
    _needs_devices.add(_primitive)
    _primitive.def_impl(_eager)
    _primitive.def_abstract_eval(lambda *_, given: list(given.types))
    mlir.register_lowering(_primitive, mlir.lower_fun(_flat))
    ad.primitive_jvps[_primitive] = _jvp
    ad.primitive_transposes[_primitive] = _transpose
    batching.primitive_batchers[_primitive] = partial(_batch, _primitive)
