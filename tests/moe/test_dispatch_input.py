"""Errors of dispatch, and plans with indices out of range."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import combine, dispatch, gradients, normal, plan_dispatch
from jax.experimental import checkify

import calmoe_jax as cm
from calmoe_kernels import selection


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
    with pytest.raises(ValueError, match=r"selection_bias must .* experts=6 .*shape=\(5,\)"):
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
    numbers, floats = jnp.zeros((2, 2), jnp.complex64), jnp.zeros((2, 2), jnp.float32)
    with pytest.raises(TypeError, match=r"gate_logits must be of floats.*dtype=complex64\."):
        cm.route(numbers, k=1, **options)
    with pytest.raises(TypeError, match=r"expert_indices must be of integers.*dtype=float32\."):
        cm.plan_dispatch(floats, num_experts=3, **options)
    with pytest.raises(TypeError, match=r"expert_indices must be of integers.*dtype=bool\."):
        cm.plan_dispatch(floats > 0, num_experts=3, **options)
    with pytest.raises(TypeError, match=r"x must be of floats, got x\.dtype=complex64\."):
        cm.dispatch(numbers, plan, **options)
    with pytest.raises(TypeError, match=r"rows must be of floats, got rows\.dtype=complex64\."):
        cm.combine(jnp.zeros((4, 2), jnp.complex64), plan, floats, **options)
    with pytest.raises(TypeError, match=r"combine_weights must be of floats.*dtype=complex64\."):
        cm.combine(jnp.zeros((4, 2)), plan, numbers, **options)
    # integers become floats, as in jax.numpy
    rows = cm.dispatch(jnp.ones((2, 2), jnp.int32), plan, **options)
    assert rows.dtype == jnp.zeros(()).dtype


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
        words = re.escape(f"{name} must have the axes [{axes}]") + ".*, got "
        with pytest.raises(ValueError, match=words + re.escape(f"{name}.shape=(2, 2, 2).")):
            call()


def test_shapes_of_another_plan(implementation):
    plan, options = a_plan(implementation), {"implementation": implementation}
    with pytest.raises(
        ValueError, match=r"plan\.positions must .* tokens=3 as in x, got .*\(2, 2\)"
    ):
        cm.dispatch(jnp.zeros((3, 5)), plan, **options)
    with pytest.raises(ValueError, match=r"plan\.slot_indices must .* rows=3 as in rows"):
        cm.combine(jnp.zeros((3, 5)), plan, jnp.zeros((2, 2)), **options)
    with pytest.raises(ValueError, match=r"combine_weights must .* k=2 as in plan\.positions"):
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
def test_checkify_reports_plans_with_indices_out_of_range(name, plan, implementation):
    x, weights = jnp.ones((3, 2)), jnp.ones((3, 1))

    def f(plan):
        cm.moe.check_plan(plan)
        return cm.combine(cm.dispatch(x, plan), plan, weights, implementation=implementation)

    error, _ = checkify.checkify(jax.jit(f), errors=checkify.user_checks)(plan)
    with pytest.raises(checkify.JaxRuntimeError, match=rf"plan\.{name} must lie in \[0, 3\]"):
        error.throw()
    assert f(plan).shape == (3, 2)


def test_checkify_passes_plans_of_the_library(implementation):
    def f(logits):
        plan = cm.route(logits, k=2, capacity=3, implementation=implementation).plan
        cm.moe.check_plan(plan)
        return plan

    error, _ = checkify.checkify(jax.jit(f), errors=checkify.user_checks)(normal(52, 8, 4))
    error.throw()


@bad_hands
def test_plans_with_indices_out_of_range_give_zeros(name, plan, implementation):
    x, weights, expected = np.ones((3, 2), np.float32), np.ones((3, 1), np.float32), [[1], [0], [0]]
    found = (
        dispatch(x, plan, implementation=implementation),
        combine(x, plan, weights, implementation=implementation),
        *gradients(x, x, x, x, weights, plan, implementation=implementation),
    )
    for result in found[:4]:
        np.testing.assert_array_equal(result, np.repeat(expected, 2, axis=1))
    assert found[4].tolist() == [[2], [0], [0]]
