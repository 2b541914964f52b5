"""Batch-prioritised dropping: who is served first, and that it changes nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import sparse_references
from dispatching import close, exhaustive, normal, same
from jax.experimental import checkify

import calmoe_jax as cm
from calmoe_jax.moe import ExpertParams, check_plan, plan_by_priority, sparse_layer

planned = jax.jit(plan_by_priority, static_argnames=("num_experts", "capacity"))


def served(priority, where):
    """Tokens in the order of service, by a loop that looks for the next one."""
    left, order = list(range(len(priority))), []
    while left:
        best = left[0]
        for t in left[1:]:
            rank, best_rank = (where[t], priority[t]), (where[best], priority[best])
            best = t if rank > best_rank else best
        left.remove(best)
        order.append(best)
    return order


def inputs(seed=0, tokens=30, k=2, experts=4):
    rng = np.random.RandomState(seed)
    ids = np.array([rng.permutation(experts)[:k] for _ in range(tokens)], np.int32)
    weights = rng.rand(tokens, k).astype(np.float32)
    weights[rng.rand(tokens, k) < 0.1] = 0
    priority = rng.randint(0, 8, tokens).astype(np.float32)  # with ties
    return priority, ids, weights, rng.rand(tokens) < 0.8


@pytest.mark.parametrize("capacity", [3, *exhaustive(1, 100)])
def test_tokens_are_served_by_priority(capacity):
    priority, ids, weights, where = inputs()
    plan = planned(priority, ids, weights, where=where, num_experts=4, capacity=capacity)
    order = served(priority, where)
    kept, load = sparse_references.slots_with_rows(
        ids[order], weights[order], where[order], 4, capacity
    )
    np.testing.assert_array_equal(~np.asarray(plan.dropped)[order], kept)
    np.testing.assert_array_equal(plan.load, load)
    np.testing.assert_array_equal(plan.group_sizes, np.minimum(load, capacity))
    # each is the inverse of the other, in the order of service, and in the rows of its expert
    positions, slots = np.asarray(plan.positions).reshape(-1), np.asarray(plan.slot_indices)
    for slot, row in enumerate(positions):
        assert row == len(slots) or slots[row] == slot
    rank = np.argsort(order)
    for e, (first, size) in enumerate(zip(plan.group_offsets, plan.group_sizes, strict=True)):
        own = slots[first : first + size]
        assert (ids.reshape(-1)[own] == e).all()
        assert (np.diff(rank[own // 2]) > 0).all()
    filled = np.concatenate([np.arange(o, o + s) for o, s in zip(*plan[3:1:-1], strict=True)])
    assert (np.delete(slots, filled) == ids.size).all()
    checked = checkify.checkify(jax.jit(check_plan), errors=checkify.user_checks)
    assert checked(plan)[0].get() is None


def test_equal_priorities_are_the_plain_plan():
    _, ids, weights, where = inputs(1)
    options = {"num_experts": 4, "capacity": 3}
    want = cm.plan_dispatch(ids, weights, where=where, **options)
    jax.tree.map(same, planned(jnp.ones(len(ids)), ids, weights, where=where, **options), want)
    jax.tree.map(same, planned(-jnp.arange(30.0), ids, weights, where=where, **options), want)


def test_nan_and_padding_come_last():
    priority = jnp.array([jnp.nan, 0.0, 9.0, -jnp.inf])
    where = jnp.array([True, True, False, True])
    plan = planned(priority, jnp.zeros((4, 1), int), where=where, num_experts=1, capacity=3)
    np.testing.assert_array_equal(plan.positions[:, 0], [2, 0, 3, 1])


def layer_inputs(tokens=24):
    params = ExpertParams(normal(1, 4, 3, 5), normal(2, 4, 5, 3), normal(3, 4, 5), normal(4, 4, 3))
    return normal(5, tokens, 3), 2 * normal(6, tokens, 4), jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("scores", ["softmax", *exhaustive("sigmoid")])
def test_a_layer_serves_the_surest_tokens(scores):
    x, logits, params = layer_inputs()
    where = np.arange(24) % 5 != 0
    if scores == "softmax":
        priority = np.max(references.softmax(logits), axis=1)
    else:
        priority = np.max(logits, axis=1)
    order = served(priority, where)
    want = sparse_references.sparse_layer(
        x[order], logits[order], params, where=where[order], k=2, act=sparse_references.relu,
        scores=scores, capacity=7,
    )  # fmt: skip
    dirty = np.where(where[:, None], logits, np.nan).astype(np.float32)
    found = sparse_layer(
        x, dirty, params, where=where, k=2, activation="relu", scores=scores, capacity=7,
        prioritized=True,
    )  # fmt: skip
    assert want[2].sum() < 2 * where.sum()  # some are dropped
    close(np.asarray(found.output)[order], want[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(~np.asarray(found.routed.plan.dropped)[order], want[2])
    np.testing.assert_array_equal(found.routed.plan.load, want[1])


def test_the_order_of_the_tokens_does_not_matter():
    x, logits, params = layer_inputs()
    call = jax.jit(
        jax.value_and_grad(
            lambda x, logits: jnp.sum(
                jnp.sin(sparse_layer(x, logits, params, k=2, capacity=5, prioritized=True).output)
            ),
            argnums=(0, 1),
        )
    )
    order = np.random.RandomState(0).permutation(24)
    value, gradients = call(x, logits)
    other, permuted = call(x[order], logits[order])
    close(value, other, rtol=1e-5)
    for a, b in zip(gradients, permuted, strict=True):
        close(np.asarray(a)[order], b, rtol=1e-4, atol=1e-5)
        assert np.abs(a).max() > 0.01


def test_without_a_capacity_it_is_no_matter():
    _, logits, _ = layer_inputs()
    jax.tree.map(same, cm.route(logits, k=2, prioritized=True), cm.route(logits, k=2))


def test_kernels_decline():
    with pytest.raises(NotImplementedError, match="triton"):
        cm.route(jnp.zeros((4, 2)), k=1, capacity=1, prioritized=True, implementation="triton")
