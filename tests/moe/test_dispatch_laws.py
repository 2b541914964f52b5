"""Laws of plans and layers, for every implementation."""

import functools

import numpy as np
import pytest
from dispatching import LAYOUTS, close, host, indices_of, plan_dispatch, route, same
from hypothesis import given, settings
from hypothesis import strategies as st


@functools.cache
def planner(layout, implementation):
    return functools.partial(
        host(plan_dispatch), num_experts=4, implementation=implementation, **LAYOUTS[layout]
    )


def slots_of(plan, e):
    start, size = plan.group_offsets[e], plan.group_sizes[e]
    return plan.slot_indices[start : start + size].tolist()


seeds = st.integers(0, 2**31 - 1)
some_layouts = st.integers(0, len(LAYOUTS) - 1)
laws = settings(max_examples=20, deadline=None, derandomize=True)


@pytest.mark.slow
@laws
@given(seed=seeds, layout=some_layouts)
def test_positions_and_slots_are_inverse(implementation, seed, layout):
    plan = planner(layout, implementation)(indices_of(seed, 6, 2, 4))
    rows, slots, positions = len(plan.slot_indices), plan.slot_indices, plan.positions.reshape(-1)
    kept, full = np.flatnonzero(positions < rows), np.flatnonzero(slots < 12)
    np.testing.assert_array_equal(slots[positions[kept]], kept)
    np.testing.assert_array_equal(positions[slots[full]], full)
    assert (positions[positions >= rows] == rows).all()
    assert (slots[slots >= 12] == 12).all()


@laws
@given(seed=seeds, layout=some_layouts)
def test_sizes_sum(implementation, seed, layout):
    indices = indices_of(seed, 6, 2, 4)
    plan = planner(layout, implementation)(indices)
    dropped = (plan.positions == len(plan.slot_indices)).sum()
    assert plan.group_sizes.sum() + dropped == 12
    assert plan.load.sum() == ((indices >= 0) & (indices < 4)).sum()
    assert (plan.group_sizes <= plan.load).all()
    ends = plan.group_offsets + plan.group_sizes
    assert (ends[:-1] <= plan.group_offsets[1:]).all()
    assert ends[-1] <= len(plan.slot_indices)


@pytest.mark.slow
@laws
@given(seed=seeds, layout=some_layouts)
def test_permuted_experts_are_relabelled(implementation, seed, layout):
    rng = np.random.RandomState(seed)
    logits, new = rng.randn(6, 4).astype(np.float32), rng.permutation(4)
    options = {"k": 2, "implementation": implementation} | LAYOUTS[layout]
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
