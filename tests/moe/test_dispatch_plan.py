"""Loops and order for plans, for every implementation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from dispatching import dispatch, exhaustive, indices_of, layouts, plan_dispatch, plan_of, same_plan
from jax.experimental import checkify

import calmoe_jax as cm
from calmoe_kernels.xla.plan import _stable_order


@pytest.mark.parametrize(
    ("tokens", "k", "experts", "capacity", "block_size"),
    [
        *((0, 1, 3, None, None), (0, 2, 8, 5, None), (0, 2, 8, None, 16), (1, 1, 1, None, None)),
        *((17, 2, 1, 5, None), (17, 1, 384, None, 16), (17, 8, 60, 5, None)),
        *((1000, 2, 8, None, None), (1000, 2, 8, 250, None), (1000, 2, 8, None, 128)),
        *exhaustive((17, 2, 3, None, 16), (5, 1, 60, 1, None), (17, 2, 128, 1, None)),
        *exhaustive((17, 1, 384, None, None)),
    ],
)
def test_plan_equals_loops(tokens, k, experts, capacity, block_size, implementation):
    indices = indices_of(tokens, tokens, k, experts)
    plan = plan_dispatch(
        indices, num_experts=experts, capacity=capacity, block_size=block_size,
        implementation=implementation,
    )  # fmt: skip
    same_plan(plan, references.plan(indices, experts, capacity, block_size))


@layouts
def test_all_slots_to_one_expert(layout, implementation):
    for expert in (0, 3, 7):
        indices = np.full((17, 2), expert, np.int32)
        plan = plan_dispatch(indices, num_experts=8, **layout, implementation=implementation)
        same_plan(
            plan, references.plan(indices, 8, layout.get("capacity"), layout.get("block_size"))
        )


def test_order_is_that_of_a_stable_sort(implementation):
    indices = np.random.RandomState(13).randint(0, 3, (50, 2)).astype(np.int32)
    plan = plan_dispatch(indices, num_experts=3, implementation=implementation)
    order = np.argsort(indices.reshape(-1), kind="stable")
    np.testing.assert_array_equal(plan.slot_indices, order)
    np.testing.assert_array_equal(np.argsort(np.asarray(plan.positions).reshape(-1)), order)


def test_order_where_expert_and_slot_do_not_fit_one_integer():
    expert = np.random.RandomState(61).randint(0, 3, 50).astype(np.int32)
    order = _stable_order(jnp.asarray(expert), 2**32)
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
@pytest.mark.parametrize("dtype", [np.int8, np.uint32, *exhaustive(np.uint8, np.int16)])
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
        *(((10, 8, 8, 4.0), 10), ((10, 2, 8, 3.9), 10), ((10, 2, 8, 4.1), 10)),  # a token once
    ],
)
def test_expert_capacity(sizes, expected):
    names = ("num_tokens", "k", "num_experts", "capacity_factor")
    assert cm.expert_capacity(**dict(zip(names, sizes, strict=True))) == expected


def test_what_is_derived_from_stacked_plans_is_that_of_each():
    indices = jnp.array([[[0], [0], [0]], [[0], [1], [-1]]])
    make = partial(cm.plan_dispatch, num_experts=2, capacity=2)
    plans = jax.jit(jax.vmap(make))(indices)
    each = [make(one) for one in indices]
    for name in ("dropped", "num_dropped", "num_over_capacity"):
        np.testing.assert_array_equal(
            getattr(plans, name), [getattr(plan, name) for plan in each], err_msg=name
        )
    assert plans.num_dropped.tolist() == [1, 1]
    assert plans.num_over_capacity.tolist() == [1, 0]
    again = jax.tree.map(lambda leaf: leaf[None, None], plans)
    assert again.num_dropped.tolist() == [[[1, 1]]]
    error, _ = checkify.checkify(cm.moe.check_plan, errors=checkify.user_checks)(plans)
    error.throw()
