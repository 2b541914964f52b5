"""Shared by the tests of dispatch: jitted calls, edge-case inputs, comparisons."""

import functools

import jax
import numpy as np
import pytest
import references

import calmoe_jax as cm

LAYOUTS = [{}, {"capacity": 3}, {"block_size": 4}]
LAYOUT_IDS = ["dropless", "capacity", "blocks"]
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=LAYOUT_IDS)


def exhaustive(*cases):
    """Cases similar to others: not run by default."""
    return [
        pytest.param(*(c if isinstance(c, tuple) else (c,)), marks=pytest.mark.exhaustive)
        for c in cases
    ]


def host(f):
    """Arrays come back as NumPy's: what a test then does with them need not be compiled."""
    return lambda *args, **options: jax.tree.map(np.asarray, f(*args, **options))


OPTIONS = {
    "scores": "softmax",
    "renormalize": True,
    "num_groups": 1,
    "groups_per_token": 1,
    "capacity": None,
    "block_size": None,
}
jitted_route = host(jax.jit(cm.route, static_argnames=(*OPTIONS, "k", "implementation")))


def route(logits, bias=None, **options):
    return jitted_route(logits, bias, **OPTIONS | options)


plan_dispatch = jax.jit(
    cm.plan_dispatch, static_argnames=("num_experts", "capacity", "block_size", "implementation")
)
dispatch = host(jax.jit(cm.dispatch, static_argnames="implementation"))
combine = host(jax.jit(cm.combine, static_argnames="implementation"))


@host
@functools.partial(jax.jit, static_argnames="implementation")
def gradients(to_dispatched, to_combined, x, rows, weights, plan, *, implementation):
    """Gradients of `dispatch` to x, and of `combine` to rows and weights."""

    def both(x, rows, weights):
        dispatched = cm.dispatch(x, plan, implementation=implementation)
        return dispatched, cm.combine(rows, plan, weights, implementation=implementation)

    return jax.vjp(both, x, rows, weights)[1]((to_dispatched, to_combined))


def normal(seed, *shape, dtype=np.float32):
    return np.random.RandomState(seed).randn(*shape).astype(dtype)


def awkward(seed, tokens, experts, *, unroutable=True):
    """Logits with, among plain rows, ties, masks and one expert left; and NaN and infinities."""
    rng = np.random.RandomState(seed)
    logits = (2 * rng.randn(tokens, experts)).astype(np.float32)
    for t in range(tokens):
        e, row = rng.randint(experts), logits[t]
        match t % (8 if unroutable else 5):
            case 1:
                row[:] = np.round(row / 2)
            case 2:
                row[(rng.rand(experts) < 0.5) & (np.arange(experts) != e)] = -np.inf
            case 3:
                row[np.arange(experts) != e] = -np.inf
            case 4:
                row[:] = rng.choice([0.0, -0.0], experts)
            case 5:
                row[e] = np.nan
            case 6:
                row[e] = np.inf
            case 7:
                row[:] = -np.inf
    return logits


def indices_of(seed, tokens, k, experts):
    """Experts of slots, a few of which are none."""
    chosen = np.random.RandomState(seed).randint(-1, experts + 1, (tokens, k))
    return chosen.astype(np.int32)


def plan_of(seed, tokens, k, experts, *, implementation, **layout):
    indices = indices_of(seed, tokens, k, experts)
    return plan_dispatch(indices, num_experts=experts, implementation=implementation, **layout)


def same(tree, other):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def close(tree, other, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        a, b = (np.asarray(values, np.float64) for values in (a, b))
        np.testing.assert_allclose(a, b, **tolerance)


def same_plan(plan, expected):
    for name, values in zip(plan._fields, expected, strict=True):
        assert getattr(plan, name).dtype == np.int32, name
        np.testing.assert_array_equal(getattr(plan, name), values, err_msg=name)


def at_rows(plan):
    return references.one_hot_plan(plan.positions, len(plan.slot_indices))


def expected_results(plan, x, rows, weights):
    """`combine(rows)`, and the gradients to x, rows and weights of cotangents rows and x."""
    at = at_rows(plan)
    return (
        np.einsum("tkr,tk,rd->td", at, weights, rows),
        np.einsum("tkr,rd->td", at, rows),
        np.einsum("tkr,tk,td->rd", at, weights, x),
        np.einsum("tkr,rd,td->tk", at, rows, x),
    )
