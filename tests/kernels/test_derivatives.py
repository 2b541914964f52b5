"""Given derivatives under JAX's transformations, on products that JAX can differentiate itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import close, normal

from calmoe_kernels.derivatives import Derivatives, with_derivatives
from calmoe_kernels.multilinear import gradients

# y_f = sum_d x_i(d) w_df: linear in x and in w, with indices
pytestmark = pytest.mark.exhaustive

X, W, Y = range(3)


def _form(indices, arrays, wanted):
    x, w, y = arrays
    functions = {
        X: lambda: jnp.zeros(len(indices), y.dtype).at[indices].add(w @ y),
        W: lambda: jnp.outer(x[indices], y),
        Y: lambda: x[indices] @ w,
    }
    return tuple(functions[i]() for i in wanted)


def ours(indices, x, w):
    return gradients(_form, indices, (x, w, None), Y)[0]


def by_jax(indices, x, w):
    return x[indices] @ w


INDICES, ARRAYS = np.int32([2, 0, 1]), (normal(0, 3), normal(1, 3, 2))
TANGENTS = (normal(2, 3), normal(3, 3, 2))
OTHERS = (normal(4, 3), normal(5, 3, 2))


def loss(product, indices, *arrays):
    return jnp.sum(jnp.sin(product(indices, *arrays)))


def transposed(f, *arrays):
    """Of the linear map that `f` is near `arrays`."""
    return jax.linear_transpose(jax.linearize(f, *arrays)[1], *arrays)


ORDERS = {
    "value": lambda f: f(*ARRAYS),
    "jvp": lambda f: jax.jvp(f, ARRAYS, TANGENTS),
    "jvp of one": lambda f: jax.jvp(lambda w: f(ARRAYS[0], w), ARRAYS[1:], TANGENTS[1:]),
    "grad": lambda f: jax.grad(f, (0, 1))(*ARRAYS),
    "grad of one": lambda f: jax.grad(f, 1)(*ARRAYS),
    "forward over reverse": lambda f: jax.jvp(jax.grad(f, (0, 1)), ARRAYS, TANGENTS)[1],
    "reverse over forward": lambda f: jax.grad(lambda a: jax.jvp(f, a, TANGENTS)[1] ** 2)(ARRAYS),
    "forward over forward": lambda f: jax.jvp(lambda *a: jax.jvp(f, a, TANGENTS), ARRAYS, OTHERS),
    "reverse over reverse": lambda f: jax.jacrev(jax.grad(f, (0, 1)), (0, 1))(*ARRAYS),
    "hessian": lambda f: jax.hessian(f, (0, 1))(*ARRAYS),
    "third": lambda f: jax.jvp(jax.hessian(f, (0, 1)), ARRAYS, TANGENTS)[1],
    "transpose": lambda f: transposed(f, *ARRAYS)(jnp.float32(2)),
    "batch of tangents": lambda f: jax.vmap(jax.linearize(f, *ARRAYS)[1])(
        *(np.stack([a, b]) for a, b in zip(TANGENTS, OTHERS, strict=True))
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_derivatives_are_those_of_jax(order):
    @jax.jit
    def both():
        return [ORDERS[order](partial(loss, f, INDICES)) for f in (ours, by_jax)]

    close(*both())


@pytest.mark.parametrize(
    "axes", [(None, 0, None), (None, None, 1), (0, None, None), (0, 1, 0)], ids=str
)
def test_derivatives_of_a_batch(axes):
    whole = (INDICES, *ARRAYS)
    several = [
        x if axis is None else np.stack([x, x[::-1], 2 * x % 3], axis=axis)
        for x, axis in zip(whole, axes, strict=True)
    ]
    indices, arrays = several[0], several[1:]

    def total(product, *arrays):
        of_each = jax.vmap(partial(loss, product), axes, axis_size=3)(indices, *arrays)
        return jnp.sum(of_each**2)

    @jax.jit
    def both():
        return [
            (
                jax.value_and_grad(f, (0, 1))(*arrays),
                jax.hessian(f, (0, 1))(*arrays),
                jax.jacrev(jax.grad(f, (0, 1)), (0, 1))(*arrays),
                jax.vmap(jax.grad(partial(loss, product), (1, 2)), axes, axis_size=3)(
                    indices, *arrays
                ),
                jax.grad(lambda *a, f=f: jax.jvp(f, a, tuple(arrays))[1])(*arrays),
            )
            for product in (ours, by_jax)
            for f in [partial(total, product)]
        ]

    close(*both(), rtol=1e-4, atol=1e-4)


def test_a_transposed_batch_of_tangents():
    def sums(product):
        tangents = jax.vmap(jax.linearize(partial(product, INDICES), *ARRAYS)[1], (0, None))
        batch = np.stack([TANGENTS[0], OTHERS[0]]), TANGENTS[1]
        return jax.linear_transpose(tangents, *batch)(normal(6, 2, 2))

    close(sums(ours), sums(by_jax))


def test_the_given_rules_are_used_and_nothing_else():
    value = lambda _, arrays: (jnp.floor(arrays[0]),)  # noqa: E731
    straight_through = Derivatives(
        lambda _, arrays, tangents: tangents,
        lambda _, arrays, cotangents, wanted: cotangents,
    )

    def rounded(x):
        return with_derivatives(value, straight_through, (), (x,))[0]

    assert rounded(2.5) == 2
    assert jax.grad(lambda x: rounded(x) ** 2)(2.5) == 4
    assert jax.jvp(rounded, (2.5,), (3.0,)) == (2, 3)


def test_a_zero_tangent_or_cotangent_computes_nothing():
    seen = []

    def form(indices, arrays, wanted):
        seen.append(wanted)
        return _form(indices, arrays, wanted)

    def product(x, w):
        return gradients(form, INDICES, (x, w, None), Y)[0]

    jax.make_jaxpr(lambda x: jax.grad(lambda x: product(x, ARRAYS[1])[0])(x))(ARRAYS[0])
    assert set(seen) == {(Y,), (X,)}
