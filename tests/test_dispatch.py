"""Loops and laws for dispatch, the same for every implementation."""

import functools
import math
import os
import re
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import references
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from jax.test_util import check_grads

import calmoe_jax as cm
from calmoe_jax.dispatch import PLAN_NAME, ROUTING_NAME
from calmoe_kernels import selection, xla

NO_TRITON = (
    "needs a GPU, or Triton's interpreter (TRITON_INTERPRET=1)"
    if jax.default_backend() != "gpu" and os.environ.get("TRITON_INTERPRET") != "1"
    else None
)


@pytest.fixture(params=["xla", "triton"], scope="module")
def implementation(request):
    if request.param == "triton" and NO_TRITON:
        pytest.skip(NO_TRITON)
    return request.param


@pytest.fixture
def unchecked(monkeypatch):
    """Without the hook that checks types before the library does."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


ROOMS = [{}, {"capacity": 3}, {"block_size": 4}]
ROOM_IDS = ["dropless", "capacity", "blocks"]
rooms = pytest.mark.parametrize("room", ROOMS, ids=ROOM_IDS)


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


def plan_of(seed, tokens, k, experts, *, implementation, **room):
    indices = indices_of(seed, tokens, k, experts)
    return plan_dispatch(indices, num_experts=experts, implementation=implementation, **room)


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


# Routing by loops.


def check_route(logits, bias=None, *, implementation, **options):
    routed = route(logits, bias, **options, implementation=implementation)
    options = OPTIONS | options
    capacity, block_size = options.pop("capacity"), options.pop("block_size")
    logits = np.asarray(logits, np.float64)
    rows = [references.route_row(row, bias, **options) for row in logits]
    shape = len(rows), options["k"]
    ids = np.reshape([ids for ids, _ in rows], shape)
    np.testing.assert_array_equal(routed.routing.expert_indices, ids)
    weights = np.reshape([weights for _, weights in rows], shape)
    close(routed.routing.combine_weights, weights, atol=0)
    same_plan(routed.plan, references.plan(ids, logits.shape[1], capacity, block_size))
    mean, log_sums, unroutable = references.gate_statistics(logits, options["scores"])
    close(routed.statistics[:2], (mean, log_sums))
    assert routed.statistics.num_unroutable == unroutable
    dtypes = ["int32", "float32"] + ["int32"] * 5 + ["float32"] * 2 + ["int32"]
    assert [x.dtype for x in jax.tree.leaves(routed)] == dtypes


@pytest.mark.parametrize(
    ("tokens", "experts", "k"),
    [
        *((0, 8, 2), (1, 3, 2), (1, 384, 8), (17, 1, 1), (17, 3, 1), (17, 8, 8), (17, 60, 2)),
        *((17, 128, 8), (17, 20, 17), (1000, 60, 2), (150, 384, 8)),
    ],
)
def test_route_equals_loops(tokens, experts, k, implementation):
    check_route(awkward(tokens + experts, tokens, experts), k=k, implementation=implementation)


@pytest.mark.parametrize(
    ("scores", "renormalize", "extra"),
    [
        *(("softmax", False, ""), ("sigmoid", False, ""), ("softmax", True, "bias")),
        *(("sigmoid", False, "bias"), ("softmax", False, "groups"), ("sigmoid", True, "groups")),
        *(("softmax", True, "bias groups"), ("sigmoid", True, "bias groups")),
    ],
)
def test_options_equal_loops(scores, renormalize, extra, implementation):
    bias = normal(2, 12) / 4 if "bias" in extra else None
    groups = {"num_groups": 4, "groups_per_token": 2} if "groups" in extra else {}
    for unroutable in (True, False):
        check_route(
            awkward(1, 35, 12, unroutable=unroutable), bias, k=4, scores=scores,
            renormalize=renormalize, **groups, implementation=implementation,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("experts", "k", "groups"), [(256, 8, (8, 4)), (12, 3, (12, 4)), (8, 2, (2, 1))]
)
def test_groups_of_other_sizes_equal_loops(experts, k, groups, implementation):
    check_route(
        awkward(3, 9, experts), normal(4, experts) / 4, k=k, scores="sigmoid",
        num_groups=groups[0], groups_per_token=groups[1], implementation=implementation,
    )  # fmt: skip


@rooms
def test_route_plans_as_loops_do(room, implementation):
    check_route(awkward(5, 40, 8, unroutable=False), k=2, **room, implementation=implementation)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_coarse_logits_are_routed_in_float32(dtype, implementation):
    logits = awkward(6, 20, 60, unroutable=False).astype(dtype)  # rounded to ties
    options = {"k": 4, "scores": "sigmoid", "implementation": implementation}
    close(route(logits, **options), route(logits.astype(np.float32), **options), rtol=1e-6)
    check_route(logits, **options)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_the_order_survives_scores_that_underflow(scores, implementation):
    logits = np.float32([[-200, -150, -1000, 50], [90, 130, 100, 120]])
    routed = route(logits, k=4, scores=scores, implementation=implementation)
    assert routed.routing.expert_indices.tolist() == [[3, 1, 0, 2], [1, 3, 2, 0]]


def test_ties_go_to_the_lower_index(implementation):
    logits = np.float32([[1, 2, 2, 1], [-0.0, 0.0, -0.0, 0.0], [0.0, -0.0, 0.0, -0.0]])
    routed = route(logits, k=3, implementation=implementation)
    assert routed.routing.expert_indices.tolist() == [[1, 2, 0], [0, 1, 2], [0, 1, 2]]


def test_unroutable_rows_get_the_first_experts_and_nan(implementation):
    inf, nan = np.inf, np.nan
    logits = np.float32(
        [[0, nan, 5, 1], [0, 1, inf, 2], [-inf] * 4, [nan] * 4, [inf, -inf, nan, 0], [0, 1, 2, 3]]
    )
    routed = route(logits, k=2, implementation=implementation)
    assert routed.routing.expert_indices.tolist() == [[0, 1]] * 5 + [[3, 2]]
    assert np.isnan(routed.routing.combine_weights).tolist() == [[True] * 2] * 5 + [[False] * 2]
    assert np.isnan(routed.statistics.logsumexp).tolist() == [True] * 5 + [False]
    assert np.isnan(routed.statistics.mean_gate_probs).all()
    assert routed.statistics.num_unroutable == 5


@pytest.mark.parametrize("experts", [60, 384])
def test_one_bad_logit_anywhere_is_seen(experts, implementation):
    logits = normal(7, experts, experts)
    for bad in (np.nan, np.inf):
        np.fill_diagonal(logits, bad)
        routed = route(logits, k=2, implementation=implementation)
        assert (routed.routing.expert_indices == [0, 1]).all()
        assert np.isnan(routed.routing.combine_weights).all()
        assert routed.statistics.num_unroutable == experts


@pytest.mark.parametrize("renormalize", [True, False])
def test_surplus_slots_hold_the_lowest_others_with_weight_zero(renormalize, implementation):
    inf = np.inf
    logits = np.float32([[-inf, -inf, 0, -inf], [-inf, 1, -inf, 2]])
    ids, weights = route(
        logits, k=3, renormalize=renormalize, implementation=implementation
    ).routing
    assert ids.tolist() == [[2, 0, 1], [3, 1, 0]]
    assert (weights == 0).tolist() == [[False, True, True], [False, False, True]]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_bias_moves_the_choice_and_never_the_weights(scores, implementation):
    logits, bias = normal(8, 17, 8), np.float32([0, 0, 0, 0, 0, 10, 0, 0])
    ids, weights = route(
        logits, bias, k=2, scores=scores, renormalize=False, implementation=implementation
    ).routing
    others = logits.copy()
    others[:, 5] = -np.inf
    assert (ids == np.stack([np.full(17, 5), others.argmax(axis=1)], axis=1)).all()
    softmax, sigmoid = references.softmax(logits), 1 / (1 + np.exp(-np.float64(logits)))
    unbiased = softmax if scores == "softmax" else sigmoid
    close(weights, np.take_along_axis(unbiased, ids, axis=1))


def test_bias_does_not_reach_masked_experts(implementation):
    bias = np.float32([100, 0, -100])
    routed = route(
        np.float32([[-np.inf, 0, 1]]), bias, k=2, scores="sigmoid", implementation=implementation
    )
    assert routed.routing.expert_indices.tolist() == [[1, 2]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bias_that_is_not_finite_routes_nothing(bad, implementation):
    bias = np.float32([0, 0, bad, 0])
    ids, weights = route(normal(9, 5, 4), bias, k=3, implementation=implementation).routing
    assert ids.tolist() == [[0, 1, 2]] * 5
    assert np.isnan(weights).all()


def test_only_the_best_groups_are_chosen_from(implementation):
    # sums of the two best: 1.0 + 0.9, then 1.5 + 0.2, though the best expert is of the second
    bias = np.float32([1.0, 0.9, -5.0, 0.2, 1.5, 0.1])
    routed = route(
        np.full((1, 6), -40, np.float32), bias, k=2, scores="sigmoid", num_groups=2,
        groups_per_token=1, implementation=implementation,
    )  # fmt: skip
    assert routed.routing.expert_indices.tolist() == [[0, 1]]


def test_groups_without_an_expert_come_last(implementation):
    inf = np.inf
    routed = route(
        np.float32([[-inf, -inf, -5, -inf, -inf, -inf]]), np.float32([9, 9, -9, 0, 0, 0]), k=2,
        num_groups=3, groups_per_token=1, implementation=implementation,
    )  # fmt: skip
    assert routed.routing.expert_indices.tolist() == [[2, 0]]
    assert routed.routing.combine_weights[0, 1] == 0


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_statistics_are_those_of_the_gate(scores, implementation):
    logits = awkward(10, 35, 12, unroutable=False)
    routed = route(logits, k=4, scores=scores, implementation=implementation)
    close(routed.statistics, jax.jit(lambda g: cm.gate_statistics(g, scores=scores))(logits))


def test_losses_by_the_formulas_of_the_statistics(implementation):
    logits = normal(12, 40, 8)
    routed = route(logits, k=2, implementation=implementation)
    load, statistics = routed.plan.load, routed.statistics

    @jax.jit
    def losses(logits):
        probs, routing = cm.gate_probabilities(logits), cm.top_k_routing(logits, k=2)
        return cm.load_balancing_loss(probs, routing), cm.router_z_loss(logits)

    balance = 8 * np.sum(statistics.mean_gate_probs * load) / np.sum(load)
    close((balance, np.mean(statistics.logsumexp**2)), losses(logits))


# Plans by loops.


@pytest.mark.parametrize(
    ("tokens", "k", "experts", "capacity", "block_size"),
    [
        *((0, 1, 3, None, None), (0, 2, 8, 5, None), (0, 2, 8, None, 16), (1, 1, 1, None, None)),
        *((17, 2, 1, 5, None), (17, 2, 3, None, 16), (5, 1, 60, 1, None), (17, 2, 128, 1, None)),
        *((17, 8, 60, 5, None), (17, 1, 384, None, None), (17, 1, 384, None, 16)),
        *((1000, 2, 8, None, None), (1000, 2, 8, 250, None), (1000, 2, 8, None, 128)),
    ],
)
def test_plan_equals_loops(tokens, k, experts, capacity, block_size, implementation):
    indices = indices_of(tokens, tokens, k, experts)
    plan = plan_dispatch(
        indices, num_experts=experts, capacity=capacity, block_size=block_size,
        implementation=implementation,
    )  # fmt: skip
    same_plan(plan, references.plan(indices, experts, capacity, block_size))


@rooms
def test_all_slots_to_one_expert(room, implementation):
    for expert in (0, 3, 7):
        indices = np.full((17, 2), expert, np.int32)
        plan = plan_dispatch(indices, num_experts=8, **room, implementation=implementation)
        same_plan(plan, references.plan(indices, 8, room.get("capacity"), room.get("block_size")))


def test_order_is_that_of_a_stable_sort(implementation):
    indices = np.random.RandomState(13).randint(0, 3, (50, 2)).astype(np.int32)
    plan = plan_dispatch(indices, num_experts=3, implementation=implementation)
    order = np.argsort(indices.reshape(-1), kind="stable")
    np.testing.assert_array_equal(plan.slot_indices, order)
    np.testing.assert_array_equal(np.argsort(np.asarray(plan.positions).reshape(-1)), order)


def test_order_where_expert_and_slot_do_not_fit_one_integer():
    expert = np.random.RandomState(61).randint(0, 3, 50).astype(np.int32)
    order = xla._stable_order(jnp.asarray(expert), 2**32)
    np.testing.assert_array_equal(order, np.argsort(expert, kind="stable"))
    assert order.dtype == jnp.int32


def test_the_last_tokens_are_dropped_and_counted(implementation):
    indices = jnp.array([[0, 1], [0, 2], [0, 1], [1, 0]])
    plan = plan_dispatch(indices, num_experts=3, capacity=2, implementation=implementation)
    assert plan.dropped.tolist() == [[False, False], [False, False], [True, False], [True, True]]
    assert plan.num_dropped == 3
    assert plan.load.tolist() == [4, 3, 1]
    assert plan.group_sizes.tolist() == [2, 2, 1]
    assert plan.positions.tolist() == [[0, 2], [1, 4], [6, 3], [6, 6]]


@pytest.mark.parametrize("none", [-1, 3, 2**31 - 1, -(2**31)])
def test_slots_to_no_expert_are_dropped(none, implementation):
    indices = np.int32([[0, none], [none, 2], [1, 1]])
    plan = plan_dispatch(indices, num_experts=3, implementation=implementation)
    assert plan.dropped.tolist() == [[False, True], [True, False], [False, False]]
    assert plan.num_dropped == 2
    assert plan.load.tolist() == [1, 2, 1]
    assert plan.slot_indices.tolist() == [0, 4, 5, 3, 6, 6]


@pytest.mark.usefixtures("unchecked")  # the hook's Int is signed
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32])
def test_indices_of_other_integers(dtype, implementation):
    indices = indices_of(14, 9, 2, 4)
    f = jax.jit(lambda i: cm.plan_dispatch(i, num_experts=4, implementation=implementation))
    same_plan(f(indices.astype(dtype)), references.plan(indices, 4, None, None))


def test_indices_of_64_bits(implementation):
    with jax.enable_x64(True):
        indices = np.int64([[2**32 + 1, 1], [-(2**32), 0]])
        plan = plan_dispatch(indices, num_experts=2, implementation=implementation)
    assert plan.positions.tolist() == [[4, 1], [4, 0]]


def test_groups_start_at_blocks_and_the_rest_is_empty(implementation):
    plan = plan_of(15, 30, 2, 5, block_size=8, implementation=implementation)
    offsets, sizes = np.asarray(plan.group_offsets), np.asarray(plan.group_sizes)
    assert (offsets % 8 == 0).all()
    full = np.zeros(plan.slot_indices.shape, bool)
    for start, size in zip(offsets, sizes, strict=True):
        full[start : start + size] = True
    np.testing.assert_array_equal(np.asarray(plan.slot_indices) == 60, ~full)
    rows = dispatch(np.ones((30, 3), np.float32), plan, implementation=implementation)
    np.testing.assert_array_equal(rows, np.where(full, 1, 0)[:, None].repeat(3, 1))


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        *(((100, 2, 8, 1.25), 32), ((100, 2, 8, 1.0), 25), ((101, 1, 8, 1.0), 13)),
        *(((0, 1, 8, 1.0), 1), ((3, 1, 8, 0.1), 1)),
    ],
)
def test_expert_capacity(sizes, expected):
    names = ("num_tokens", "k", "num_experts", "capacity_factor")
    assert cm.expert_capacity(**dict(zip(names, sizes, strict=True))) == expected


# Rows out and back.


def at_rows(plan):
    return references.one_hot_plan(plan.positions, len(plan.slot_indices))


@pytest.mark.parametrize(
    ("tokens", "k", "d", "room"),
    [
        *((0, 2, 3, {}), (0, 2, 3, {"capacity": 3}), (17, 1, 1, {})),
        *((17, 2, 5, room) for room in ROOMS),
        *((9, 17, 4, {}), (9, 17, 4, {"capacity": 3})),
    ],
)
def test_dispatch_and_combine_equal_loops(tokens, k, d, room, implementation):
    plan = plan_of(16, tokens, k, 6, **room, implementation=implementation)
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


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@rooms
def test_dispatch_copies_exactly(dtype, room, implementation):
    plan = plan_of(22, 17, 2, 4, **room, implementation=implementation)
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
        *((jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float32), (jnp.bfloat16, jnp.bfloat16)),
        *((jnp.float32, jnp.bfloat16), (jnp.float16, jnp.float16)),
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


def expected_results(plan, x, rows, weights):
    """`combine(rows)`, and the gradients to x, rows and weights of cotangents rows and x."""
    at = at_rows(plan)
    return (
        np.einsum("tkr,tk,rd->td", at, weights, rows),
        np.einsum("tkr,rd->td", at, rows),
        np.einsum("tkr,tk,td->rd", at, weights, x),
        np.einsum("tkr,rd,td->tk", at, rows, x),
    )


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


@pytest.mark.parametrize("room", [{"capacity": 3}, {"block_size": 4}], ids=["capacity", "blocks"])
def test_what_lies_in_empty_rows_is_not_seen(room, implementation):
    plan = plan_of(31, 9, 2, 4, **room, implementation=implementation)
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


# Gradients.


@pytest.mark.parametrize(
    ("tokens", "k", "room"),
    [
        *((0, 2, {}), (0, 2, {"capacity": 3})),
        *((9, 2, room) for room in ROOMS),
        *((5, 17, {}), (5, 17, {"capacity": 3})),
    ],
)
def test_gradients_equal_those_of_a_product_with_a_one_hot(tokens, k, room, implementation):
    plan = plan_of(35, tokens, k, 4, **room, implementation=implementation)
    x, rows, weights = (
        normal(36, tokens, 3), normal(37, len(plan.slot_indices), 3), normal(38, tokens, k),
    )  # fmt: skip
    found = gradients(rows, x, x, rows, weights, plan, implementation=implementation)
    close(found, expected_results(plan, x, rows, weights)[1:])


@pytest.mark.parametrize("form", [xla._dots_of_rows, xla._dots_of_slots])
@rooms
def test_gradients_to_weights_in_the_form_of_each_platform(form, room):
    plan = plan_of(35, 9, 2, 4, implementation="xla", **room)
    x, rows = normal(36, 9, 3), normal(37, len(plan.slot_indices), 3)
    found = jax.jit(form)(x, rows, plan.positions, plan.slot_indices)
    close(found, expected_results(plan, x, rows, np.ones((9, 2)))[3])


def test_gradients_equal_finite_differences(implementation):
    plan = plan_of(39, 5, 2, 3, capacity=3, implementation=implementation)

    @jax.jit
    def there_and_back(x, weights):
        rows = jnp.sin(cm.dispatch(x, plan, implementation=implementation))
        return cm.combine(rows, plan, weights, implementation=implementation)

    check_grads(
        there_and_back, (jnp.asarray(normal(40, 5, 2)), jnp.asarray(normal(41, 5, 2))), 1, ["rev"],
        atol=1e-2, rtol=1e-2, eps=1e-2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scores", "renormalize", "extra"),
    [
        *(("softmax", True, ""), ("softmax", False, ""), ("sigmoid", True, "")),
        *(("sigmoid", False, ""), ("softmax", True, "bias"), ("sigmoid", True, "bias groups")),
    ],
)
def test_gradients_to_logits_equal_differences(scores, renormalize, extra, implementation):
    logits, bias = normal(42, 5, 6), jnp.asarray(normal(43, 6) / 4) if "bias" in extra else None
    logits[2, 1] = logits[4, 1:] = -np.inf
    logits[3] = 0.0  # a gate that starts with zeros must learn
    groups = {"num_groups": 2} if "groups" in extra else {}
    towards = normal(44, 5, 3), normal(45, 6), normal(46, 5)

    def ours(logits):
        routed = cm.route(
            logits, bias, k=3, scores=scores, renormalize=renormalize, **groups,
            implementation=implementation,
        )  # fmt: skip
        result = (routed.routing.combine_weights, *routed.statistics[:2])
        return sum(jnp.vdot(a, b) for a, b in zip(result, towards, strict=True)), routed.routing

    gradient, (ids, _) = host(jax.jit(jax.grad(ours, has_aux=True)))(logits)

    def by_definition(logits):
        s = np.exp(logits) / (1 if scores == "softmax" else 1 + np.exp(logits))
        mean = np.mean(s / s.sum(1, keepdims=True), axis=0)
        if scores == "softmax":
            s = s / s.sum(1, keepdims=True)
        chosen = np.take_along_axis(s, ids, axis=1)
        weights = chosen / chosen.sum(1, keepdims=True) if renormalize else chosen
        result = weights, mean, np.log(np.exp(logits).sum(1))
        return sum(np.vdot(a, b) for a, b in zip(result, towards, strict=True))

    close(gradient, references.central_difference(by_definition, logits), atol=2e-6)


@pytest.mark.parametrize(
    ("scores", "dtype"), [("softmax", jnp.float32), ("sigmoid", jnp.float32), ("softmax", "bf16")]
)
def test_gradients_are_finite_and_zero_where_nothing_is_routed(dtype, scores, implementation):
    dtype = jnp.bfloat16 if dtype == "bf16" else dtype
    logits = awkward(47, 17, 6).astype(dtype)

    def loss(logits):
        routed = cm.route(logits, k=2, scores=scores, implementation=implementation)
        weights, log_sums = routed.routing.combine_weights, routed.statistics.logsumexp
        total = jnp.where(jnp.isnan(weights), 0, weights * weights[:, ::-1] ** 2).sum()
        return total + jnp.where(jnp.isnan(log_sums), 0, log_sums).sum()

    gradient = np.asarray(jax.jit(jax.grad(loss))(logits))
    assert gradient.dtype == dtype
    assert np.isfinite(np.float32(gradient)).all()
    assert (gradient[np.isneginf(logits)] == 0).all()
    assert (gradient[(np.isnan(logits) | np.isposinf(logits)).any(axis=1)] == 0).all()
    assert (gradient[0] != 0).any()


def test_the_mean_of_a_batch_with_an_unroutable_token_has_no_bad_gradient(implementation):
    logits = np.float32([[0, 1, 2], [np.nan, 0, 0], [3, 1, -np.inf]])

    def loss(logits):
        mean = cm.route(logits, k=1, implementation=implementation).statistics.mean_gate_probs
        return jnp.sum(jnp.where(jnp.isnan(mean), 0.0, mean))

    assert (jax.jit(jax.grad(loss))(logits) == 0).all()


def test_no_gradient_reaches_the_bias(implementation):
    def loss(logits, bias):
        routed = cm.route(logits, bias, k=2, renormalize=False, implementation=implementation)
        return routed.routing.combine_weights.sum() + routed.statistics.logsumexp.sum()

    to_logits, to_bias = jax.jit(jax.grad(loss, (0, 1)))(normal(48, 5, 4), normal(49, 4))
    assert not np.any(to_bias)
    assert np.any(to_logits)


def test_with_one_renormalised_expert_nothing_reaches_the_router(implementation):
    def loss(logits):
        weights = cm.route(logits, k=1, implementation=implementation).routing.combine_weights
        return jnp.sum(weights * jnp.arange(5.0)[:, None])

    assert not np.any(jax.jit(jax.grad(loss))(normal(50, 5, 4)))


# Transformations.


def layer(x, logits, scale, *, implementation, k=2, capacity=None):
    """A layer of experts that multiply by their own scale and take a sine."""
    routed = cm.route(logits, k=k, capacity=capacity, implementation=implementation)
    rows = cm.dispatch(x, routed.plan, implementation=implementation)
    if capacity is None:
        ends = jnp.cumsum(routed.plan.group_sizes)
        expert = jnp.searchsorted(ends, jnp.arange(len(rows)), side="right")
    else:
        expert = jnp.arange(len(rows)) // capacity
    rows = jnp.sin(rows * scale[expert])
    y = cm.combine(rows, routed.plan, routed.routing.combine_weights, implementation=implementation)
    return y, routed.plan, routed.statistics


def training_loss(x, logits, scale, **options):
    y, plan, statistics = layer(x, logits, scale, **options)
    balance = jnp.vdot(statistics.mean_gate_probs, plan.load.astype(jnp.float32))
    return jnp.sum(y**2) + balance + jnp.sum(statistics.logsumexp**2)


def layer_inputs(*batch, tokens=8, experts=4):
    x, logits = normal(51, *batch, tokens, 3), normal(52, *batch, tokens, experts)
    return x, logits, normal(53, experts, 1)


@functools.cache
def one_layer(**options):
    return jax.jit(functools.partial(layer, **options))


@functools.cache
def one_gradient(**options):
    return jax.jit(jax.grad(functools.partial(training_loss, **options), (0, 1, 2)))


def each(f, x, logits, scale):
    results = [f(a, b, scale) for a, b in zip(x, logits, strict=True)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


@pytest.mark.slow
def test_jit_is_eager(implementation):
    x, logits, _ = (jnp.asarray(a) for a in layer_inputs())
    options = {"k": 2, "capacity": 3, "implementation": implementation}
    routed = cm.route(logits, **options)
    same(routed.plan, route(logits, **options).plan)
    rows = cm.dispatch(x, routed.plan, implementation=implementation)
    same(rows, dispatch(x, routed.plan, implementation=implementation))
    args = rows, routed.plan, routed.routing.combine_weights
    y = cm.combine(*args, implementation=implementation)
    close(y, combine(*args, implementation=implementation))


@pytest.mark.parametrize("capacity", [None, 3])
def test_vmap_is_a_loop(capacity, implementation):
    f = one_layer(implementation=implementation, capacity=capacity)
    inputs = layer_inputs(3)
    mapped, looped = jax.jit(jax.vmap(f, (0, 0, None)))(*inputs), each(f, *inputs)
    same(mapped[1], looped[1])
    close(mapped, looped)


def test_a_batch_keeps_capacities_apart(implementation):
    indices = np.zeros((2, 3, 1), np.int32)
    indices[1] = 1
    plans = jax.jit(
        jax.vmap(
            functools.partial(
                cm.plan_dispatch, num_experts=2, capacity=2, implementation=implementation
            )
        )
    )(indices)
    assert plans.positions[..., 0].tolist() == [[0, 1, 4], [2, 3, 4]]
    assert plans.group_sizes.tolist() == [[2, 0], [0, 2]]


def test_gradient_under_vmap_is_a_loop(implementation):
    f = one_gradient(implementation=implementation, capacity=3)
    inputs = layer_inputs(3)
    close(jax.jit(jax.vmap(f, (0, 0, None)))(*inputs), each(f, *inputs))


def test_scan_is_a_loop(implementation):
    f = one_layer(implementation=implementation, capacity=3)
    x, logits, scale = layer_inputs(3)
    scan = jax.jit(lambda *xs: jax.lax.scan(lambda carry, each: (carry, f(*each, scale)), 0, xs))
    close(scan(x, logits)[1], each(f, x, logits, scale))


def test_gradient_through_a_scan_of_layers(implementation):
    x, logits, scale = (jnp.asarray(a) for a in layer_inputs())

    def step(x, _):
        return layer(x, logits, scale, implementation=implementation)[0], None

    def after_two(steps):
        return jax.jit(jax.grad(lambda x: jnp.sum(steps(x) ** 2)))(x)

    scanned = after_two(lambda x: jax.lax.scan(step, x, None, length=2)[0])
    close(scanned, after_two(lambda x: step(step(x, None)[0], None)[0]))


@pytest.fixture(scope="module")
def mesh():
    if len(jax.devices()) < 2:
        pytest.skip("one device is no mesh")
    return jax.sharding.Mesh(np.array(jax.devices()), ("d",))


def test_pmap_is_a_loop(mesh, implementation):
    f = one_layer(implementation=implementation, capacity=3)
    inputs = layer_inputs(mesh.size)
    close(jax.pmap(f, in_axes=(0, 0, None))(*inputs), each(f, *inputs))


def sharded(f, mesh, check_vma, in_specs=("d", "d", None)):
    """`f` of the first of each leading axis that is sharded; results are stacked again."""

    def of_device(*args):
        own = [a if spec is None else a[0] for a, spec in zip(args, in_specs, strict=True)]
        return jax.tree.map(lambda leaf: leaf[None], f(*own))

    specs = tuple(jax.P() if spec is None else jax.P(spec) for spec in in_specs)
    return jax.shard_map(
        of_device, mesh=mesh, in_specs=specs, out_specs=jax.P("d"), check_vma=check_vma
    )


@pytest.mark.parametrize(("check_vma", "capacity"), [(True, None), (True, 3), (False, None)])
def test_shard_map_is_a_loop(check_vma, capacity, mesh, implementation):
    f = one_layer(implementation=implementation, capacity=capacity)
    inputs = layer_inputs(mesh.size)
    close(jax.jit(sharded(f, mesh, check_vma))(*inputs), each(f, *inputs))


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_through_shard_map_are_a_loop(check_vma, mesh, implementation):
    mapped = sharded(
        functools.partial(training_loss, implementation=implementation), mesh, check_vma
    )
    inputs = layer_inputs(mesh.size)
    found = jax.jit(jax.grad(lambda *args: jnp.sum(mapped(*args)), (0, 1, 2)))(*inputs)
    to_x, to_logits, to_scale = each(one_gradient(implementation=implementation), *inputs)
    close(found, (to_x, to_logits, to_scale.sum(axis=0)), atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_many_slots_under_shard_map(check_vma, mesh, implementation):
    f = one_layer(implementation=implementation, k=17)
    inputs = layer_inputs(mesh.size, tokens=2, experts=20)
    close(jax.jit(sharded(f, mesh, check_vma))(*inputs), each(f, *inputs))


@functools.cache
def products(implementation):
    """A loss of x, experts, weights and a factor of the rows, and its gradient."""

    def loss(x, ids, weights, factor):
        plan = cm.plan_dispatch(ids, num_experts=3, implementation=implementation)
        rows = factor * cm.dispatch(x, plan, implementation=implementation)
        return jnp.sum(cm.combine(rows, plan, weights, implementation=implementation) ** 2)

    return loss, jax.jit(jax.grad(loss, (0, 2, 3)))


@pytest.mark.parametrize(
    ("check_vma", "shared"),
    [(True, "x"), (True, "ids"), (True, "weights"), (True, "ids weights"), (False, "x weights")],
)
def test_gradients_where_devices_share_an_argument(check_vma, shared, mesh, implementation):
    n, names = mesh.size, ["x", "ids", "weights", "factor"]
    ids = np.random.RandomState(54).randint(0, 3, (n, 6, 2)).astype(np.int32)
    inputs = [normal(55, n, 6, 2), ids, normal(56, n, 6, 2), normal(57, n, 12, 2)]
    specs = [None if name in shared.split() else "d" for name in names]
    inputs = [a if spec else a[0] for a, spec in zip(inputs, specs, strict=True)]
    loss, gradient = products(implementation)
    mapped = sharded(loss, mesh, check_vma, specs)
    found = jax.jit(jax.grad(lambda *args: jnp.sum(mapped(*args)), (0, 2, 3)))(*inputs)
    alone = [
        gradient(*(a[i] if spec else a for a, spec in zip(inputs, specs, strict=True)))
        for i in range(n)
    ]
    for result, spec, *parts in zip(found, [specs[i] for i in (0, 2, 3)], *alone, strict=True):
        close(result, np.stack(parts) if spec else sum(np.asarray(part) for part in parts))


def test_route_of_shared_logits_with_a_bias_of_each_device(mesh, implementation):
    logits, bias = jnp.asarray(normal(58, 6, 4)), jnp.asarray(normal(59, mesh.size, 4))

    def weights(logits, bias):
        routed = cm.route(logits, bias, k=2, renormalize=False, implementation=implementation)
        return jnp.sum(routed.routing.combine_weights)

    mapped = sharded(weights, mesh, True, [None, "d"])
    found = jax.jit(jax.grad(lambda logits: jnp.sum(mapped(logits, bias))))(logits)
    alone = jax.grad(lambda logits: sum(weights(logits, b) for b in bias))
    close(found, alone(logits))


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_with_constant_weights_under_shard_map(check_vma, mesh, implementation):
    x, logits, _ = layer_inputs(mesh.size)

    def f(x, logits):
        plan = cm.route(logits, k=2, implementation=implementation).plan
        rows = cm.dispatch(x, plan, implementation=implementation)
        halves = jnp.full(plan.positions.shape, 0.5)
        return cm.combine(rows, plan, halves, implementation=implementation)

    mapped = sharded(f, mesh, check_vma, in_specs=("d", "d"))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(mapped(x, logits) ** 2)))(x)
    close(gradient, 2 * x)  # half and half of the same


def test_shards_do_not_gather(mesh, implementation):
    if implementation != "xla":
        pytest.skip("the text of a program with kernels is not that of XLA's own operations")
    f = functools.partial(training_loss, implementation=implementation)
    *tokens, scale = layer_inputs(mesh.size)
    mapped = sharded(f, mesh, True)
    step = jax.jit(jax.grad(lambda *args: jnp.sum(mapped(*args)), (0, 1)))
    placed = [jax.device_put(a, jax.NamedSharding(mesh, jax.P("d"))) for a in tokens]
    text = step.lower(*placed, scale).compile().as_text()
    assert "sort" in text
    assert "all-gather" not in text
    assert "all-to-all" not in text


def tokens_over(mesh):
    spec = jax.NamedSharding(mesh, jax.P("d"))
    return [jax.device_put(a, spec) for a in layer_inputs(tokens=8 * mesh.size)[:2]]


def test_sharded_tokens_without_shard_map(mesh, implementation):
    def layer(x, logits):
        routed = cm.route(logits, k=2, implementation=implementation)
        rows = cm.dispatch(x, routed.plan, implementation=implementation)
        weights = routed.routing.combine_weights
        return cm.combine(rows, routed.plan, weights, implementation=implementation)

    x, logits = map(jnp.asarray, layer_inputs(tokens=8 * mesh.size)[:2])
    if implementation == "triton":
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"inside jax\.shard_map"):
            jax.jit(layer)(*tokens_over(mesh))
        return
    compiled = jax.jit(layer).lower(*tokens_over(mesh)).compile()
    gathered = re.findall(r"= (\w+)\[.*? all-gather", compiled.as_text())
    assert set(gathered) <= {"s32", "u32"}  # indices, and neither tokens nor logits
    close(compiled(*tokens_over(mesh)), layer(x, logits))


def saving(implementation):
    policy = jax.checkpoint_policies.save_only_these_names(PLAN_NAME, ROUTING_NAME)
    return jax.checkpoint(
        functools.partial(training_loss, implementation=implementation), policy=policy
    )


def test_checkpoint_gives_the_same_gradient(implementation):
    inputs = layer_inputs()
    saved = jax.jit(jax.grad(saving(implementation), (0, 1, 2)))
    close(saved(*inputs), one_gradient(implementation=implementation)(*inputs))


def test_checkpoint_finds_the_names(implementation):
    f = functools.partial(training_loss, implementation=implementation)
    text = str(jax.make_jaxpr(f)(*layer_inputs()))
    assert text.count(f"name[name={PLAN_NAME}]") == 5
    assert text.count(f"name[name={ROUTING_NAME}]") >= 2


def test_plan_dispatch_is_named(implementation):
    f = functools.partial(cm.plan_dispatch, num_experts=3, implementation=implementation)
    text = str(jax.make_jaxpr(f)(np.zeros((4, 2), np.int32)))
    assert text.count(f"name[name={PLAN_NAME}]") == 5


def test_with_the_names_saved_nothing_is_sorted_again(implementation):
    if implementation != "xla":
        pytest.skip("counts XLA's operations")

    def sorts(f, name="sort"):
        text = str(jax.make_jaxpr(jax.grad(f, (0, 1)))(*layer_inputs()))
        return len(re.findall(rf"\b{name}\[", text))

    f = functools.partial(training_loss, implementation=implementation)
    assert sorts(f) == sorts(saving(implementation)) == 1
    assert sorts(jax.checkpoint(f)) == 2
    assert sorts(f, "argmax") == sorts(saving(implementation), "argmax")


def test_a_layer_in_a_custom_gradient(implementation):
    f = functools.partial(training_loss, implementation=implementation)
    wrapped = jax.custom_vjp(f)
    wrapped.defvjp(lambda *a: jax.vjp(f, *a), lambda backward, cotangent: backward(cotangent))
    inputs = layer_inputs()
    found = jax.jit(jax.grad(wrapped, (0, 1, 2)))(*inputs)
    close(found, one_gradient(implementation=implementation)(*inputs))


def test_export(implementation):
    if implementation != "xla":
        pytest.skip("kernels are exported for their own device")
    f = one_layer(implementation=implementation, capacity=3)
    inputs = layer_inputs()
    # leaves, for a NamedTuple needs a registration to be serialised
    exported = jax.export.export(jax.jit(lambda *a: jax.tree.leaves(f(*a))), platforms=["cpu"])
    exported = exported(*inputs)
    if find_spec("flatbuffers"):
        exported = jax.export.deserialize(exported.serialize())
    close(exported.call(*inputs), jax.tree.leaves(f(*inputs)))


def test_two_runs_are_equal_to_the_bit(implementation):
    step, inputs = one_gradient(implementation=implementation), layer_inputs(tokens=64)
    same(step(*inputs), step(*inputs))


def test_memory_is_that_of_the_rows(implementation):
    if implementation != "xla" or jax.default_backend() != "cpu":
        pytest.skip("the figure is for XLA on CPU")
    tokens, k, d = 4096, 2, 256
    plan = plan_of(58, tokens, k, 8, implementation=implementation)

    def there_and_back(x, plan, weights, matrix):
        rows = cm.dispatch(x, plan, implementation=implementation)
        return cm.combine(rows @ matrix, plan, weights, implementation=implementation)

    inputs = normal(59, tokens, d), plan, normal(60, tokens, k), normal(61, d, d)
    memory = jax.jit(there_and_back).lower(*inputs).compile().memory_analysis()
    sizes = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    given, result = sum(leaf.nbytes for leaf in jax.tree.leaves(inputs)), 4 * d * tokens
    rows = 2 * k * result  # a product needs its operand and its result
    assert sum(sizes) <= 1.1 * (given + rows + result)


# Laws.


@functools.cache
def planner(room, implementation):
    return functools.partial(
        host(plan_dispatch), num_experts=4, implementation=implementation, **ROOMS[room]
    )


def slots_of(plan, e):
    start, size = plan.group_offsets[e], plan.group_sizes[e]
    return plan.slot_indices[start : start + size].tolist()


seeds = st.integers(0, 2**31 - 1)
some_rooms = st.integers(0, len(ROOMS) - 1)
laws = settings(max_examples=20, deadline=None, derandomize=True)


@pytest.mark.slow
@laws
@given(seed=seeds, room=some_rooms)
def test_positions_and_slots_are_inverse(implementation, seed, room):
    plan = planner(room, implementation)(indices_of(seed, 6, 2, 4))
    rows, slots, positions = len(plan.slot_indices), plan.slot_indices, plan.positions.reshape(-1)
    kept, full = np.flatnonzero(positions < rows), np.flatnonzero(slots < 12)
    np.testing.assert_array_equal(slots[positions[kept]], kept)
    np.testing.assert_array_equal(positions[slots[full]], full)
    assert (positions[positions >= rows] == rows).all()
    assert (slots[slots >= 12] == 12).all()


@laws
@given(seed=seeds, room=some_rooms)
def test_sizes_sum(implementation, seed, room):
    indices = indices_of(seed, 6, 2, 4)
    plan = planner(room, implementation)(indices)
    dropped = (plan.positions == len(plan.slot_indices)).sum()
    assert plan.group_sizes.sum() + dropped == 12
    assert plan.load.sum() == ((indices >= 0) & (indices < 4)).sum()
    assert (plan.group_sizes <= plan.load).all()
    ends = plan.group_offsets + plan.group_sizes
    assert (ends[:-1] <= plan.group_offsets[1:]).all()
    assert ends[-1] <= len(plan.slot_indices)


@pytest.mark.slow
@laws
@given(seed=seeds, room=some_rooms)
def test_permuted_experts_are_relabelled(implementation, seed, room):
    rng = np.random.RandomState(seed)
    logits, new = rng.randn(6, 4).astype(np.float32), rng.permutation(4)
    options = {"k": 2, "implementation": implementation} | ROOMS[room]
    before, after = route(logits, **options), route(logits[:, np.argsort(new)], **options)
    np.testing.assert_array_equal(after.routing.expert_indices, new[before.routing.expert_indices])
    close(after.routing.combine_weights, before.routing.combine_weights)
    for e in range(4):
        assert slots_of(after.plan, new[e]) == slots_of(before.plan, e)


@laws
@given(seed=seeds)
def test_permuted_tokens_keep_the_order_of_groups(implementation, seed):
    indices, tokens = indices_of(seed, 6, 2, 4), np.random.RandomState(seed).permutation(6)
    before, after = (planner(0, implementation)(i) for i in (indices, indices[tokens]))
    same(before[2:], after[2:])
    for e in range(4):
        moved = slots_of(after, e)
        assert moved == sorted(moved)
        assert sorted(tokens[slot // 2] * 2 + slot % 2 for slot in moved) == slots_of(before, e)


# Errors.


def a_plan(implementation):
    return plan_dispatch(jnp.array([[0, 1], [1, 2]]), num_experts=3, implementation=implementation)


KNOWN = f"implementation must be None or one of {', '.join(selection.NAMES)}"
BAD_ROUTES = [
    ({"k": 0}, "k must be in [1, num_experts=6], got k=0."),
    ({"k": 7}, "k must be in [1, num_experts=6], got k=7."),
    ({"scores": "tanh"}, "scores must be one of softmax, sigmoid, got scores='tanh'."),
    ({"num_groups": 4}, "num_groups must divide num_experts=6, got num_groups=4."),
    ({"num_groups": 0}, "num_groups must divide num_experts=6, got num_groups=0."),
    ({"groups_per_token": 0}, "must be in [1, num_groups=1], got groups_per_token=0."),
    (
        {"num_groups": 3, "groups_per_token": 4},
        "groups_per_token must be in [1, num_groups=3], got groups_per_token=4.",
    ),
    ({"num_groups": 3, "k": 3}, "k must be at most the 2 experts of groups_per_token=1 groups, "),
    ({"num_groups": 3, "k": 3}, "got k=3."),
    ({"capacity": 0}, "capacity must be at least 1, got capacity=0."),
    ({"block_size": -1}, "block_size must be at least 1, got block_size=-1."),
    ({"capacity": 1, "block_size": 2}, "got capacity=1 and block_size=2."),
    ({"capacity": 2**30}, "positions are int32: tokens * k and the rows of a plan must be less"),
    ({"implementation": "cuda"}, f"{KNOWN}, got implementation='cuda'."),
]


@pytest.mark.parametrize(
    ("change", "message"), BAD_ROUTES, ids=[f"{i}-{next(iter(c))}" for i, (c, _) in
                                            enumerate(BAD_ROUTES)]
)  # fmt: skip
def test_route_refuses(change, message, implementation):
    options = {"k": 2, "implementation": implementation} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        cm.route(jnp.zeros((4, 6)), **options)


@pytest.mark.usefixtures("unchecked")
def test_route_refuses_a_bias_of_another_size(implementation):
    with pytest.raises(ValueError, match=r"selection_bias must have shape \(6,\).*shape=\(5,\)"):
        cm.route(jnp.zeros((4, 6)), jnp.zeros(5), k=2, implementation=implementation)


def test_route_refuses_no_experts(implementation):
    with pytest.raises(ValueError, match="num_experts=0"):
        cm.route(jnp.zeros((4, 0)), k=1, implementation=implementation)


BAD_PLANS = [
    ({"num_experts": 0}, "num_experts must be at least 1, got num_experts=0."),
    ({"capacity": 0}, "capacity must be at least 1, got capacity=0."),
    ({"block_size": 0}, "block_size must be at least 1, got block_size=0."),
    ({"capacity": 3, "block_size": 2}, "got capacity=3 and block_size=2."),
    ({"capacity": 2**30}, "must be less than 2**31, got tokens=4, k=2 and 3221225472 rows."),
    ({"implementation": "cuda"}, f"{KNOWN}, got implementation='cuda'."),
]


@pytest.mark.parametrize(
    ("change", "message"), BAD_PLANS, ids=[f"{i}-{next(iter(c))}" for i, (c, _) in
                                           enumerate(BAD_PLANS)]
)  # fmt: skip
def test_plan_dispatch_refuses(change, message, implementation):
    options = {"num_experts": 3, "implementation": implementation} | change
    with pytest.raises(ValueError, match=re.escape(message)):
        cm.plan_dispatch(jnp.zeros((4, 2), jnp.int32), **options)


def test_plan_dispatch_refuses_too_many_slots(implementation):
    with pytest.raises(ValueError, match=r"2\*\*31, got tokens=1073741824, k=2"):
        jax.eval_shape(
            lambda i: cm.plan_dispatch(i, num_experts=3, implementation=implementation),
            jax.ShapeDtypeStruct((2**30, 2), jnp.int32),
        )


@pytest.mark.usefixtures("unchecked")
def test_arrays_of_the_wrong_dtype(implementation):
    plan, options = a_plan(implementation), {"implementation": implementation}
    whole, floats = jnp.zeros((2, 2), jnp.int32), jnp.zeros((2, 2))
    with pytest.raises(TypeError, match=r"gate_logits must be of floats.*dtype=int32\."):
        cm.route(whole, k=1, **options)
    with pytest.raises(TypeError, match=r"expert_indices must be of integers.*dtype=float32\."):
        cm.plan_dispatch(floats, num_experts=3, **options)
    with pytest.raises(TypeError, match=r"expert_indices must be of integers.*dtype=bool\."):
        cm.plan_dispatch(floats > 0, num_experts=3, **options)
    with pytest.raises(TypeError, match=r"x must be of floats, got x\.dtype=int32\."):
        cm.dispatch(whole, plan, **options)
    with pytest.raises(TypeError, match=r"rows must be of floats, got rows\.dtype=int32\."):
        cm.combine(jnp.zeros((4, 2), jnp.int32), plan, floats, **options)
    with pytest.raises(TypeError, match=r"combine_weights must be of floats.*dtype=int32\."):
        cm.combine(jnp.zeros((4, 2)), plan, whole, **options)


@pytest.mark.usefixtures("unchecked")
def test_arrays_with_another_number_of_axes(implementation):
    plan, options = a_plan(implementation), {"implementation": implementation}
    cube = jnp.zeros((2, 2, 2))
    for name, axes, call in (
        ("gate_logits", "tokens, experts", lambda: cm.route(cube, k=1, **options)),
        (
            "expert_indices",
            "tokens, k",
            lambda: cm.plan_dispatch(cube.astype(int), num_experts=3, **options),
        ),
        ("x", "tokens, d", lambda: cm.dispatch(cube, plan, **options)),
        ("rows", "rows, d", lambda: cm.combine(cube, plan, jnp.zeros((2, 2)), **options)),
    ):
        message = f"{name} must have the axes [{axes}] (reshape and vmap others), got {name}.shape="
        with pytest.raises(ValueError, match=re.escape(message + "(2, 2, 2).")):
            call()


def test_shapes_of_another_plan(implementation):
    plan, options = a_plan(implementation), {"implementation": implementation}
    with pytest.raises(ValueError, match=r"x must have the plan's 2 tokens.*x\.shape=\(3, 5\)"):
        cm.dispatch(jnp.zeros((3, 5)), plan, **options)
    with pytest.raises(ValueError, match=r"rows must have the plan's 4 rows.*shape=\(3, 5\)"):
        cm.combine(jnp.zeros((3, 5)), plan, jnp.zeros((2, 2)), **options)
    with pytest.raises(ValueError, match=r"combine_weights must have the plan's shape \(2, 2\).*"):
        cm.combine(jnp.zeros((4, 5)), plan, jnp.zeros((2, 3)), **options)


def test_dispatch_and_combine_refuse_unknown_implementations(implementation):
    plan, known = a_plan(implementation), f"{KNOWN}, got implementation='no'."
    with pytest.raises(ValueError, match=known):
        cm.dispatch(jnp.zeros((2, 5)), plan, implementation="no")
    with pytest.raises(ValueError, match=known):
        cm.combine(jnp.zeros((4, 5)), plan, jnp.zeros((2, 2)), implementation="no")


def test_pallas_declines(implementation):
    plan, name = a_plan(implementation), "pallas_tpu"
    if jax.default_backend() != "tpu":
        with pytest.raises(NotImplementedError, match=r"pallas_tpu: .* is \w+, not tpu\."):
            cm.route(jnp.zeros((2, 3)), k=1, implementation=name)
    for call in (
        lambda: cm.plan_dispatch(jnp.zeros((2, 1), jnp.int32), num_experts=3, implementation=name),
        lambda: cm.dispatch(jnp.zeros((2, 5)), plan, implementation=name),
        lambda: cm.combine(jnp.zeros((4, 5)), plan, jnp.zeros((2, 2)), implementation=name),
    ):
        with pytest.raises(NotImplementedError, match=r"pallas_tpu .* operation"):
            call()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_tokens": -1}, "num_tokens must be at least 0, got num_tokens=-1."),
        ({"k": 0}, "k must be at least 1, got k=0."),
        ({"num_experts": 0}, "num_experts must be at least 1, got num_experts=0."),
        *(
            ({"capacity_factor": bad}, f"positive and finite, got capacity_factor={bad}.")
            for bad in (0.0, -1.0, math.inf, math.nan)
        ),
    ],
)
def test_expert_capacity_refuses(change, message):
    good = {"num_tokens": 4, "k": 2, "num_experts": 3, "capacity_factor": 1.0}
    with pytest.raises(ValueError, match=re.escape(message)):
        cm.expert_capacity(**good | change)


def hand_made(positions, slot_indices):
    sizes = jnp.zeros(2, jnp.int32)
    return cm.DispatchPlan(
        jnp.array(positions, jnp.int32), jnp.array(slot_indices, jnp.int32), sizes, sizes, sizes
    )


BAD_HANDS = [
    ("positions", hand_made([[0], [-1], [3]], [0, 3, 3])),
    ("positions", hand_made([[0], [4], [3]], [0, 3, 3])),
    ("positions", hand_made([[0], [2**31 - 1], [-(2**31)]], [0, 3, 3])),
    ("slot_indices", hand_made([[0], [3], [3]], [0, -1, 3])),
    ("slot_indices", hand_made([[0], [3], [3]], [0, 3, 4])),
    ("slot_indices", hand_made([[0], [3], [3]], [0, 2**31 - 1, -(2**31)])),
]
bad_hands = pytest.mark.parametrize(("name", "plan"), BAD_HANDS, ids=[str(i) for i in range(6)])


@bad_hands
def test_checkify_reports_plans_that_point_nowhere(name, plan, implementation):
    x, weights = jnp.ones((3, 2)), jnp.ones((3, 1))

    def f(plan):
        cm.check_plan(plan)
        return cm.combine(cm.dispatch(x, plan), plan, weights, implementation=implementation)

    error, _ = checkify.checkify(jax.jit(f), errors=checkify.user_checks)(plan)
    with pytest.raises(checkify.JaxRuntimeError, match=rf"plan\.{name} must lie in \[0, 3\]"):
        error.throw()
    assert f(plan).shape == (3, 2)


def test_checkify_passes_plans_of_the_library(implementation):
    def f(logits):
        plan = cm.route(logits, k=2, capacity=3, implementation=implementation).plan
        cm.check_plan(plan)
        return plan

    error, _ = checkify.checkify(jax.jit(f), errors=checkify.user_checks)(layer_inputs()[1])
    error.throw()


@bad_hands
def test_plans_that_point_nowhere_give_zeros(name, plan, implementation):
    x, weights, expected = np.ones((3, 2), np.float32), np.ones((3, 1), np.float32), [[1], [0], [0]]
    found = (
        dispatch(x, plan, implementation=implementation),
        combine(x, plan, weights, implementation=implementation),
        *gradients(x, x, x, x, weights, plan, implementation=implementation),
    )
    for result in found[:4]:
        np.testing.assert_array_equal(result, np.repeat(expected, 2, axis=1))
    assert found[4].tolist() == [[2], [0], [0]]
