"""Loops and roundings for tokens out and back, for every implementation."""

import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import (
    LAYOUTS,
    at_rows,
    close,
    combine,
    dispatch,
    exhaustive,
    expected_results,
    gradients,
    layouts,
    normal,
    plan_dispatch,
    plan_of,
    route,
)


@pytest.mark.parametrize(
    ("tokens", "k", "d", "layout"),
    [
        *((0, 2, 3, {}), (0, 2, 3, {"capacity": 3}), (17, 1, 1, {})),
        *((17, 2, 5, layout) for layout in LAYOUTS),
        *((9, 17, 4, {}), (9, 17, 4, {"capacity": 3})),
    ],
)
def test_dispatch_and_combine_equal_loops(tokens, k, d, layout, implementation):
    plan = plan_of(16, tokens, k, 6, **layout, implementation=implementation)
    x, weights, at = normal(17, tokens, d), normal(18, tokens, k), at_rows(plan)
    rows = dispatch(x, plan, implementation=implementation)
    np.testing.assert_array_equal(rows, np.einsum("tkr,td->rd", at, x))
    y = combine(rows, plan, weights, implementation=implementation)
    close(y, np.einsum("tkr,tk,rd->td", at, weights, rows))


def test_many_rows_equal_loops(implementation):
    tokens, d = 1000, 96
    plan = plan_of(19, tokens, 2, 60, implementation=implementation)
    x, weights = normal(20, tokens, d), normal(21, tokens, 2)
    rows, y = np.zeros((2 * tokens, d)), np.zeros((tokens, d))
    for (t, j), row in np.ndenumerate(np.asarray(plan.positions)):
        if row < 2 * tokens:
            rows[row] = x[t]
            y[t] += float(weights[t, j]) * rows[row]
    dispatched = dispatch(x, plan, implementation=implementation)
    np.testing.assert_array_equal(dispatched, rows)
    close(combine(dispatched, plan, weights, implementation=implementation), y)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, *exhaustive(jnp.float16)])
@layouts
def test_dispatch_copies_exactly(dtype, layout, implementation):
    plan = plan_of(22, 17, 2, 4, **layout, implementation=implementation)
    x = normal(23, 17, 5).astype(dtype)
    rows = dispatch(x, plan, implementation=implementation)
    assert rows.dtype == dtype
    padded = np.append(x, np.zeros((1, 5), dtype), axis=0)
    np.testing.assert_array_equal(rows, padded[np.asarray(plan.slot_indices) // 2])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_are_in_float32(dtype, implementation):
    tiny = 2.0 ** -(8 if dtype == jnp.bfloat16 else 11)  # half of the step above 1
    indices = np.zeros((1, 9), np.int32)
    plan = plan_dispatch(indices, num_experts=1, implementation=implementation)
    parts = np.full((9, 9), tiny).astype(dtype)
    parts[0] = parts[:, 0] = 1
    ones, weights = np.ones((9, 9), dtype), np.ones((1, 9), np.float32)
    total = combine(parts, plan, weights, implementation=implementation)
    to_x, _, to_weights = gradients(
        parts, parts[1:2], ones[:1], ones, weights, plan, implementation=implementation
    )
    exact = [[9] + [1 + 8 * tiny] * 8]
    assert total.tolist() == to_x.tolist() == exact
    assert (to_weights == 1 + 8 * tiny).all()


def test_weights_stay_in_float32(implementation):
    plan = plan_dispatch(np.zeros((1, 2), np.int32), num_experts=1, implementation=implementation)
    rows, weights = np.full((2, 1), 256, jnp.bfloat16), np.float32([[1 + 2.0**-10, -1]])
    assert combine(rows, plan, weights, implementation=implementation) == 0.25


@pytest.mark.parametrize(
    ("of_rows", "of_weights"),
    [
        *((jnp.bfloat16, jnp.float32), (jnp.float32, jnp.bfloat16), (jnp.float16, jnp.float16)),
        *exhaustive((jnp.float16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)),
    ],
)
def test_dtypes_of_results_and_gradients(of_rows, of_weights, implementation):
    plan = plan_of(24, 7, 2, 3, implementation=implementation)
    x, rows, weights = normal(25, 7, 4), normal(26, 14, 4), normal(27, 7, 2)
    x, rows, weights = x.astype(of_rows), rows.astype(of_rows), weights.astype(of_weights)
    y = combine(rows, plan, weights, implementation=implementation)
    assert y.dtype == of_rows
    found = gradients(rows, x, x, rows, weights, plan, implementation=implementation)
    assert [g.dtype for g in found] == [of_rows, of_rows, of_weights]
    exact = [np.float64(values) for values in (x, rows, weights)]
    # two units of float32, a step of the others: Triton's interpreter rounds towards zero
    tolerance = {jnp.float32: 1e-6, jnp.float16: 1e-3, jnp.bfloat16: 8e-3}
    for result, expected in zip((y, *found), expected_results(plan, *exact), strict=True):
        off = tolerance[result.dtype.type]
        close(result, expected, rtol=off, atol=1e-6)


def test_there_and_back(implementation):
    (_, weights), plan, _ = route(normal(29, 17, 6), k=3, implementation=implementation)
    # a step of bfloat16: Triton's interpreter rounds towards zero
    for dtype, off in ((jnp.float32, 1e-6), (jnp.bfloat16, 8e-3)):
        x = normal(30, 17, 4).astype(dtype)
        rows = dispatch(x, plan, implementation=implementation)
        close(combine(rows, plan, weights, implementation=implementation), x, rtol=off, atol=0)


def test_dropped_slots_count_as_zeros(implementation):
    indices = np.zeros((3, 1), np.int32)
    plan = plan_dispatch(indices, num_experts=2, capacity=2, implementation=implementation)
    rows, weights = np.ones((4, 2), np.float32), np.full((3, 1), 2, np.float32)
    y = combine(rows, plan, weights, implementation=implementation)
    assert y.tolist() == [[2, 2], [2, 2], [0, 0]]


@pytest.mark.parametrize("token", [0, 1, 2])
def test_a_nan_weight_is_its_tokens_alone(token, implementation):
    indices = np.int32([[0, 1], [1, 0], [0, 0]])
    plan = plan_dispatch(indices, num_experts=2, capacity=2, implementation=implementation)
    assert plan.dropped.tolist() == [[False, False], [False, False], [True, True]]
    weights = np.ones((3, 2), np.float32)
    weights[token, 1] = np.nan
    y = combine(np.ones((4, 2), np.float32), plan, weights, implementation=implementation)
    assert np.isnan(y).tolist() == [[t == token] * 2 for t in range(3)]


@pytest.mark.parametrize("layout", [{"capacity": 3}, {"block_size": 4}], ids=["capacity", "blocks"])
def test_values_in_empty_rows_do_not_matter(layout, implementation):
    plan = plan_of(31, 9, 2, 4, **layout, implementation=implementation)
    empty = np.asarray(plan.slot_indices) == 18
    assert empty.any()
    rows, x, weights = normal(32, len(empty), 3), normal(33, 9, 3), normal(34, 9, 2)
    rows[empty] = 0
    filled = rows.copy()
    filled[empty] = np.nan
    y, *found = (
        combine(filled, plan, weights, implementation=implementation),
        *gradients(filled, x, x, filled, weights, plan, implementation=implementation),
    )
    close((y, *found), expected_results(plan, x, rows, weights))
    assert (found[1][empty] == 0).all()
    assert (found[2][np.asarray(plan.dropped)] == 0).all()
