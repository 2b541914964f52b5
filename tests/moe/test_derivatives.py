"""Derivatives in both modes and of second order, against a layer that computes all experts."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import close, exhaustive, host, layouts, normal, plan_of
from jax.test_util import check_grads

import calmoe_jax as cm
from calmoe_jax.moe import ExpertParams, gather_slots, grouped_matmul, sparse_layer

pytestmark = pytest.mark.exhaustive

TOKENS, EXPERTS, D, HIDDEN, D_OUT = 6, 4, 3, 5, 2


def inputs(seed):
    sizes = [(EXPERTS, D, HIDDEN), (EXPERTS, HIDDEN, D_OUT), (EXPERTS, HIDDEN), (EXPERTS, D_OUT)]
    params = ExpertParams(*(normal(seed + i, *size) for i, size in enumerate(sizes)))
    return normal(seed + 4, TOKENS, D), normal(seed + 5, TOKENS, EXPERTS), params


def all_experts(dropped, indices, x, logits, params):
    """The layer without dispatch, for experts that were chosen before."""
    chosen = jnp.where(dropped, 0, jax.nn.softmax(jnp.take_along_axis(logits, indices, axis=1)))
    inner = jnp.einsum("td,edf->tef", x, params.w_in) + params.b_in[None]
    every = jnp.einsum("tef,efo->teo", jnp.tanh(inner) * inner, params.w_out) + params.b_out[None]
    return jnp.einsum("tk,tko->to", chosen, jnp.take_along_axis(every, indices[..., None], axis=1))


def ours(implementation, capacity, x, logits, params):
    """The layer, with an activation whose second derivatives are plain."""
    block_size = 4 if capacity is None and implementation in (None, "xla", "triton") else None
    routed = cm.route(logits, k=2, capacity=capacity, block_size=block_size)
    fast = implementation if implementation in ("xla", "triton") else None
    rows = cm.dispatch(x, routed.plan, implementation=fast)
    for i, (w, bias) in enumerate(zip(params[:2], params[2:], strict=True)):
        product = functools.partial(
            grouped_matmul, group_sizes=routed.plan.group_sizes,
            group_offsets=routed.plan.group_offsets, capacity=capacity, block_size=block_size,
            implementation=implementation,
        )  # fmt: skip
        rows = product(rows, w) + product(jnp.ones((len(rows), 1), rows.dtype), bias[:, None])
        rows = jnp.tanh(rows) * rows if i == 0 else rows
    return cm.combine(rows, routed.plan, routed.routing.combine_weights, implementation=fast)


def derivatives(layer):
    """By name, functions of arrays and tangents that JAX makes of a layer."""

    def loss(*arrays):
        return jnp.sum(jnp.sin(layer(*arrays)))

    every = (0, 1, 2)
    return {
        "forward": lambda arrays, tangents: jax.jvp(layer, arrays, tangents),
        "forward over reverse": lambda arrays, tangents: jax.jvp(
            jax.grad(loss, every), arrays, tangents
        )[1],
        "reverse over forward": lambda arrays, tangents: jax.grad(
            lambda a: jnp.sum(jax.jvp(layer, a, tangents)[1] ** 2)
        )(arrays),
        "jacobian": lambda arrays, _: jax.jacfwd(layer, every)(*arrays),
        "reverse": lambda arrays, _: jax.grad(loss, every)(*arrays),
        "reverse over reverse": lambda arrays, tangents: jax.grad(
            lambda a: sum(
                map(jnp.vdot, *map(jax.tree.leaves, (jax.grad(loss, every)(*a), tangents)))
            )
        )(arrays),
        "hessian": lambda arrays, _: jax.hessian(loss, every)(*arrays),
    }


KINDS = tuple(derivatives(None))
FORMS = [(None, 2), ("ragged_dot", None), ("blocks", None)]


@functools.cache
def expected(capacity):
    arrays, tangents = inputs(80), inputs(90)
    routed = jax.jit(functools.partial(cm.route, k=2, capacity=capacity))(arrays[1])
    dense = functools.partial(all_experts, routed.plan.dropped, routed.routing.expert_indices)
    every = derivatives(dense)
    return host(jax.jit(lambda *args: {name: f(*args) for name, f in every.items()}))(
        arrays, tangents
    )


@pytest.mark.parametrize(
    ("kind", "implementation", "capacity"),
    [
        *((kind, None, None) for kind in KINDS[:2]),
        *exhaustive(
            *((kind, None, None) for kind in KINDS[2:]),
            ("reverse over reverse", None, 2),
            *((kind, *form) for kind in KINDS for form in FORMS),
        ),
    ],
)
def test_derivatives_are_those_of_all_experts(kind, implementation, capacity):
    layer = functools.partial(ours, implementation, capacity)
    found = jax.jit(derivatives(layer)[kind])(inputs(80), inputs(90))
    close(found, expected(capacity)[kind], rtol=1e-4, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("capacity", [None, 2])
def test_second_derivatives_of_the_layer_equal_differences(capacity):
    x, logits, params = jax.tree.map(jnp.asarray, inputs(80))

    @jax.jit
    def layer(x, w_in):
        changed = params._replace(w_in=w_in)
        return sparse_layer(x, logits, changed, k=2, capacity=capacity).output

    check_grads(layer, (x, params.w_in), 2, ["fwd", "rev"], atol=0.02, rtol=0.02, eps=1e-2)


def linear_maps(layout, implementation):
    """By name, a linear map and its argument."""
    plan = plan_of(70, 5, 2, 3, implementation=implementation, **layout)
    shapes = (5, 4), (len(plan.slot_indices), 4), (5, 2), (3, 4, 2)
    x, rows, weights, matrices = (jnp.asarray(normal(71, *shape)) for shape in shapes)

    def product(x, w):
        sizes, offsets = plan.group_sizes, plan.group_offsets
        return grouped_matmul(x, w, sizes, offsets, implementation=implementation, **layout)

    call = {"implementation": implementation}
    return {
        "dispatch": (lambda x: cm.dispatch(x, plan, **call), x),
        "combine rows": (lambda rows: cm.combine(rows, plan, weights, **call), rows),
        "combine weights": (lambda weights: cm.combine(rows, plan, weights, **call), weights),
        "gather_slots": (lambda rows: gather_slots(rows, plan, **call), rows),
        "grouped_matmul rows": (lambda rows: product(rows, matrices), rows),
        "grouped_matmul matrices": (lambda matrices: product(rows, matrices), matrices),
    }


@layouts
def test_linear_maps_have_their_jacobian_and_its_transpose(layout, implementation):
    def transposed(f, x):
        backward = jax.linear_transpose(f, x)
        return lambda y: backward(y)[0]

    @jax.jit
    def both():
        matrices = []
        for f, x in linear_maps(layout, implementation).values():
            backward = transposed(f, x)
            there, back = jax.jacfwd(f)(x), jax.jacfwd(backward)(f(x))
            twice = jax.jacfwd(transposed(backward, jax.eval_shape(f, x)))(x)
            matrices.append(
                [there.reshape(-1, x.size), back.reshape(x.size, -1), twice.reshape(-1, x.size)]
            )
        return matrices, [f(x).reshape(-1) for f, x in linear_maps(layout, implementation).values()]

    every, values = host(both)()
    arrays = [x for _, x in linear_maps(layout, implementation).values()]
    for (there, back, twice), value, x in zip(every, values, arrays, strict=True):
        close(there @ x.reshape(-1), value, atol=1e-5)
        close(back, there.T)
        close(twice, there)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_tangents_have_the_dtype_of_their_value(dtype, implementation):
    plan = plan_of(70, 5, 2, 3, implementation=implementation)
    x, weights = jnp.asarray(normal(71, 5, 4), dtype), jnp.asarray(normal(73, 5, 2))

    @jax.jit
    def there_and_back(x, weights):
        rows = cm.dispatch(x, plan, implementation=implementation)
        w = jnp.ones((3, 4, 2), dtype)
        sizes = plan.group_sizes
        product = grouped_matmul(rows, w, sizes, preferred_element_type=jnp.float32)
        return product, cm.combine(rows, plan, weights, implementation=implementation)

    results, tangents = jax.jvp(there_and_back, (x, weights), (x, weights))
    assert [r.dtype for r in results] == [t.dtype for t in tangents] == [jnp.float32, dtype]
    close(tangents[0], results[0])  # of a linear function at itself
    close(tangents[1], 2 * np.float32(results[1]), rtol=0.02)  # of a product of two


def test_no_derivative_adds_rows_one_by_one():
    plan = plan_of(70, 8, 2, 3, implementation="xla", block_size=4)

    def layer(x, w, weights):
        rows = cm.dispatch(x, plan)
        products = grouped_matmul(rows, w, plan.group_sizes, plan.group_offsets, block_size=4)
        return cm.combine(products, plan, weights)

    def loss(*arrays):
        return jnp.sum(jnp.sin(layer(*arrays)))

    arrays = tuple(map(jnp.asarray, (normal(71, 8, 4), normal(72, 3, 4, 2), normal(73, 8, 2))))
    gradient = jax.grad(loss, (0, 1, 2))

    @jax.jit
    def every(*arrays):
        return gradient(*arrays), jax.jvp(gradient, arrays, arrays), jax.jvp(layer, arrays, arrays)

    text = every.lower(*arrays).as_text()
    results = re.findall(r"stablehlo\.scatter.*?-> tensor<(\w+)>", text, re.DOTALL)
    assert set(results) == {"3x4x2xf32"}  # sums of blocks of rows for each expert's matrix
