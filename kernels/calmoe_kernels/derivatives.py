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
from jax.extend.core import Primitive, jaxpr_as_fun
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

    def __repr__(self) -> str:
        return "derivatives"  # in the text of a program, without addresses of functions


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
    leaves, tree = jax.tree.flatten((facts, arrays))

    def flat(*leaves: Any) -> Arrays:
        return value(*jax.tree.unflatten(tree, leaves))

    body = jax.make_jaxpr(flat)(*leaves)
    return tuple(_call.bind(*leaves, body=body, derivatives=derivatives, tree=tree))


# The function: its operands are facts and arrays. `body` is what it computes.
_call = Primitive("calmoe_call")
_call.multiple_results = True
# Its derivative: facts, arrays and the tangents, which it is linear in. `types` are its results'.
_linear = Primitive("calmoe_derivative")
_linear.multiple_results = True


def _call_impl(*leaves: Any, body: Any, **_: Any) -> Sequence[Any]:
    run: Any = jaxpr_as_fun
    results: Sequence[Any] = run(body)(*leaves)
    return results


def _linear_impl(*leaves: Any, derivatives: Derivatives, tree: Any, types: Any) -> Sequence[Any]:
    del types
    return derivatives.tangent(*jax.tree.unflatten(tree, leaves))


def _call_jvp(
    primals: Arrays, tangents: Arrays, *, body: Any, derivatives: Derivatives, tree: Any
) -> tuple[Any, Any]:
    results = _call.bind(*primals, body=body, derivatives=derivatives, tree=tree)
    facts, arrays = jax.tree.unflatten(tree, primals)
    of_facts = len(jax.tree.leaves(facts))
    rest = iter(tangents[of_facts:])
    moved = tuple(None if x is None else _present(next(rest)) for x in arrays)
    types = tuple(jax.typeof(result).to_tangent_aval() for result in results)
    return results, _bind_linear((facts, arrays, moved), derivatives, types)


def _linear_jvp(
    primals: Arrays, tangents: Arrays, *, derivatives: Derivatives, tree: Any, types: Any
) -> tuple[Any, Any]:
    results = _linear.bind(*primals, derivatives=derivatives, tree=tree, types=types)
    facts, arrays, moved = jax.tree.unflatten(tree, primals)
    of_facts, of_moved = len(jax.tree.leaves(facts)), len(jax.tree.leaves(moved))
    fixed, rest = primals[:of_facts], iter(tangents[len(tangents) - of_moved :])
    if all(_present(t) is None for t in tangents[of_facts : len(tangents) - of_moved]):
        again = tuple(None if x is None else _present(next(rest)) for x in moved)
        return results, _bind_linear((facts, arrays, again), derivatives, types)
    floats = primals[of_facts:]
    filled = tuple(
        jnp.zeros_like(x) if _present(t) is None else t
        for x, t in zip(floats, tangents[of_facts:], strict=True)
    )

    def tangent(*floats: Any) -> list[Any]:
        return list(derivatives.tangent(*jax.tree.unflatten(tree, (*fixed, *floats))))

    return results, jax.jvp(tangent, floats, filled)[1]


def _bind_linear(operands: Any, derivatives: Derivatives, types: Any) -> Sequence[Any]:
    leaves, tree = jax.tree.flatten(operands)
    results: Sequence[Any] = _linear.bind(*leaves, derivatives=derivatives, tree=tree, types=types)
    return results


def _present(tangent: Any) -> Any:
    """A tangent or cotangent, or `None` for a zero."""
    is_zero = type(tangent) is ad.Zero or jax.typeof(tangent).dtype == jax.dtypes.float0
    return None if is_zero else tangent


def _call_transpose(
    cotangents: Sequence[Any], *args: Any, body: Any, derivatives: Derivatives, tree: Any
) -> list[Any]:
    del body
    facts, arrays = jax.tree.unflatten(tree, args)
    known = tuple(None if ad.is_undefined_primal(x) else x for x in arrays)
    return _transposed(cotangents, args, derivatives, (facts, known), arrays)


def _linear_transpose(
    cotangents: Sequence[Any], *args: Any, derivatives: Derivatives, tree: Any, types: Any
) -> list[Any]:
    del types
    facts, arrays, moved = jax.tree.unflatten(tree, args)
    return _transposed(cotangents, args, derivatives, (facts, arrays), moved)


def _transposed(
    cotangents: Sequence[Any], args: Arrays, derivatives: Derivatives, known: Any, over: Arrays
) -> list[Any]:
    """Cotangents of `args`, the last of which are `over`; `None` for what is defined, or 0."""
    wanted = tuple(ad.is_undefined_primal(x) for x in over)
    given = tuple(map(_present, cotangents))
    if all(c is None for c in given):
        return [None] * len(args)
    facts, arrays = known
    found = derivatives.transpose(facts, arrays, given, wanted)
    pairs = zip(over, wanted, found, strict=True)
    last = [ct if is_wanted else None for x, is_wanted, ct in pairs if x is not None]
    return [None] * (len(args) - len(last)) + last


def _call_batch(
    args: Arrays, dims: Arrays, *, body: Any, derivatives: Derivatives, tree: Any
) -> tuple[Any, Any]:
    args, axes, size = _in_front(args, dims)
    mapped: Any = jax.vmap(partial(_call_impl, body=body), axes, axis_size=size)
    facts, arrays = jax.tree.unflatten(tree, axes)
    several = _batched(derivatives, (facts, arrays, arrays), size)
    mapped_body = jax.make_jaxpr(mapped)(*args)
    results = _call.bind(*args, body=mapped_body, derivatives=several, tree=tree)
    return results, [0] * len(results)


def _linear_batch(
    args: Arrays, dims: Arrays, *, derivatives: Derivatives, tree: Any, types: Any
) -> tuple[Any, Any]:
    del types
    args, axes, size = _in_front(args, dims)
    several = _batched(derivatives, jax.tree.unflatten(tree, axes), size)
    body = jax.make_jaxpr(several.tangent)(*jax.tree.unflatten(tree, args))
    results = _linear.bind(*args, derivatives=several, tree=tree, types=tuple(body.out_avals))
    return results, [0] * len(results)


def _in_front(args: Arrays, dims: Arrays) -> tuple[Arrays, tuple[int | None, ...], int]:
    """Operands with the batch along the first axis, their axes, and its size."""
    moved = tuple(
        x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(args, dims, strict=True)
    )
    axes = tuple(None if dim is None else 0 for dim in dims)
    return moved, axes, next(x.shape[0] for x, axis in zip(moved, axes, strict=True) if axis == 0)


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


def _register() -> None:
    _call.def_impl(_call_impl)
    _call.def_abstract_eval(lambda *_, body, **__: list(body.out_avals))
    _linear.def_impl(_linear_impl)
    _linear.def_abstract_eval(lambda *_, types, **__: list(types))
    for primitive, run, jvp, transpose, batch in (
        (_call, _call_impl, _call_jvp, _call_transpose, _call_batch),
        (_linear, _linear_impl, _linear_jvp, _linear_transpose, _linear_batch),
    ):
        mlir.register_lowering(primitive, mlir.lower_fun(run))
        ad.primitive_jvps[primitive] = jvp
        ad.primitive_transposes[primitive] = transpose
        batching.primitive_batchers[primitive] = batch


_register()
