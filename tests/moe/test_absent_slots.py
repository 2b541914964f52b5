"""Slots of weight 0: no row, no capacity, no load, and no NaN from their experts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from dispatching import (
    close,
    combine,
    exhaustive,
    gradients,
    host,
    layouts,
    normal,
    plan_dispatch,
    route,
    same,
    same_plan,
)

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive


def masked_logits(tokens=12, experts=5):
    """Every third token has one expert left, the last expert none."""
    logits = normal(1, tokens, experts)
    logits[::3, 1:] = -np.inf
    logits[:, -1] = -np.inf
    return logits


@layouts
def test_they_take_no_row(layout, implementation):
    routed = route(masked_logits(), k=2, **layout, implementation=implementation)
    absent = routed.routing.combine_weights == 0
    assert absent.sum() == 4
    assert routed.plan.dropped[absent].all()
    counted = np.bincount(routed.routing.expert_indices[~absent], minlength=5)
    assert routed.plan.load.tolist() == counted.tolist()
    assert routed.plan.load[-1] == 0
    beyond = 0 if "capacity" not in layout else np.maximum(counted - layout["capacity"], 0).sum()
    assert routed.plan.num_over_capacity == beyond
    assert routed.plan.num_dropped == 4 + beyond


@layouts
def test_a_plan_of_weights_is_that_of_the_routing(layout, implementation):
    routed = route(masked_logits(), k=2, **layout, implementation=implementation)
    options = {"num_experts": 5, "implementation": implementation} | layout
    plan = host(plan_dispatch)(*routed.routing, **options)
    same(plan, routed.plan)
    ids = np.where(routed.routing.combine_weights == 0, -1, routed.routing.expert_indices)
    same(plan, host(plan_dispatch)(ids, **options))


def test_they_take_no_capacity_from_others(implementation):
    # the surplus slots of the first four tokens would fill expert 0
    logits = np.full((8, 3), -np.inf, np.float32)
    logits[:4, 2] = 0
    logits[4:] = [2, 1, -np.inf]
    plan = route(logits, k=2, capacity=4, implementation=implementation).plan
    assert plan.load.tolist() == [4, 4, 4]
    assert not plan.dropped[4:].any()
    assert plan.num_over_capacity == 0


@pytest.mark.parametrize(
    ("extra", "bias"),
    [
        *(({"scores": "sigmoid", "renormalize": False}, None),),
        *(({"num_groups": 2, "groups_per_token": 1}, np.float32([0, 1, 0, 2, 0, 1])),),
        *exhaustive(
            ({"renormalize": False}, np.zeros(6, np.float32)),
        ),
    ],
)
def test_they_are_found_whatever_the_choice(extra, bias, implementation):
    inf = np.inf
    logits = np.float32(
        [[-300, -200, 3, 2, 1, 0], [-inf] * 5 + [1], [1, 2, 3, 4, 5, 6], [0, 0, 0, 5, -inf, -inf]]
    )
    options = {"k": 3, "implementation": implementation} | extra
    routed = route(np.tile(logits, (3, 1)), bias, **options)
    ids, weights = routed.routing
    choice = {"k": 3, "scores": "softmax", "renormalize": True, "num_groups": 1,
              "groups_per_token": 1} | extra  # fmt: skip
    for row, found_ids, found in zip(logits, ids, weights, strict=False):
        expected_ids, expected = references.route_row(row, bias, **choice)
        assert found_ids.tolist() == expected_ids
        close(found, np.array(expected))
    sent = np.where(weights == 0, 6, ids)
    assert (sent == 6).any()
    same_plan(routed.plan, plan_dispatch(sent, num_experts=6))


def test_rows_of_weight_zero_may_hold_nan(implementation):
    ids = np.int32([[0, 1], [1, 2], [2, 0]])
    weights = np.float32([[0.5, 0], [0, 1], [0.25, 0.75]])
    plan = plan_dispatch(ids, num_experts=3, implementation=implementation)
    rows = normal(2, 6, 4)
    rows[np.asarray(plan.positions)[:2][weights[:2] == 0]] = np.nan
    clean = np.nan_to_num(rows)
    call = partial(combine, implementation=implementation)
    same(call(rows, plan, weights), call(clean, plan, weights))
    cotangents = normal(3, 6, 4), normal(4, 3, 4)
    x = normal(5, 3, 4)
    broken, whole = (
        gradients(*cotangents, x, r, weights, plan, implementation=implementation)
        for r in (rows, clean)
    )
    same(broken, whole)
    finite = np.isfinite(rows).all()
    assert not finite
    assert (whole[2][weights > 0] != 0).all()
    # a weight of 0 of a finite row keeps its gradient
    assert gradients(*cotangents, x, normal(2, 6, 4), weights, plan,
                     implementation=implementation)[2].all()  # fmt: skip


def test_a_nan_weight_is_not_absent(implementation):
    ids, weights = np.int32([[0, 1], [1, 0]]), np.float32([[np.nan, 0], [1, 0]])
    plan = host(plan_dispatch)(ids, weights, num_experts=2, implementation=implementation)
    assert plan.dropped.tolist() == [[False, True], [False, True]]
    y = combine(np.ones((4, 3), np.float32), plan, weights, implementation=implementation)
    assert np.isnan(y).tolist() == [[True] * 3, [False] * 3]


@pytest.mark.exhaustive
@pytest.mark.parametrize("capacity", [None, 6])
def test_a_masked_expert_of_nan_does_not_reach_the_layer(capacity, implementation):
    """Nor do its gradients, which are exactly 0."""
    logits, x = jnp.asarray(masked_logits()), jnp.asarray(normal(6, 12, 4))
    shapes = (5, 4, 6), (5, 6, 4), (5, 6), (5, 4)
    params = cm.ExpertParams(*(jnp.asarray(normal(7 + i, *s)) for i, s in enumerate(shapes)))
    broken = jax.tree.map(lambda w: w.at[-1].set(jnp.nan), params)
    zeroed = jax.tree.map(lambda w: w.at[-1].set(0), params)

    @jax.jit
    def value_and_gradient(x, logits, params):
        def loss(*args):
            options = {"k": 2, "capacity": capacity, "implementation": implementation}
            return jnp.sum(jnp.sin(cm.sparse_layer(*args, **options).output))

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(x, logits, params)

    found, expected = (host(value_and_gradient)(x, logits, p) for p in (broken, zeroed))
    close(found, expected)
    assert all((g[-1] == 0).all() for g in found[1][2])


def test_weights_of_another_shape_are_refused(unchecked):
    with pytest.raises(ValueError, match=r"combine_weights must have .* k=1 as in expert_indices"):
        cm.plan_dispatch(jnp.zeros((2, 1), jnp.int32), jnp.ones((2, 2)), num_experts=2)
