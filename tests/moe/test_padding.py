"""A padded batch gives what the batch without its padding gives, whatever the padding holds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from devices import shard_map
from dispatching import (
    awkward,
    close,
    exhaustive,
    host,
    layouts,
    normal,
    plan_dispatch,
    route,
    same,
)
from flax import nnx

import calmoe_jax as cm
from calmoe_jax.nn import MoELayer

pytestmark = pytest.mark.exhaustive

GARBAGE = [np.nan, np.inf, -np.inf, 3e38]


def padded(array, where, seed=0):
    """The rows of an array where the mask is true; elsewhere garbage, and some usual numbers."""
    rng = np.random.RandomState(seed)
    result = rng.choice(GARBAGE, (len(where), *array.shape[1:])).astype(array.dtype)
    usual = np.flatnonzero(~where)[::2]
    result[usual] = rng.randn(len(usual), *array.shape[1:])
    result[where] = array
    return result


def mask(seed, tokens=11, padding=6):
    return np.random.RandomState(seed).permutation(np.arange(tokens + padding) < tokens)


@layouts
@pytest.mark.parametrize(
    "extra",
    [
        *({"scores": "sigmoid", "num_groups": 2, "groups_per_token": 1, "bias": True},),
        *exhaustive({}, {"renormalize": False}),
    ],
    ids=lambda extra: "-".join(extra) or "plain",
)
def test_route(extra, layout, implementation):
    where, logits = mask(0), awkward(1, 11, 6, unroutable=False)
    options = {"k": 2, "implementation": implementation} | layout | extra
    bias = normal(2, 6) / 4 if options.pop("bias", False) else None
    found = route(padded(logits, where), bias, where=where, **options)
    alone = route(logits, bias, **options)
    same(jax.tree.map(lambda leaf: leaf[where], found.routing), alone.routing)
    assert (found.routing.expert_indices[~where] == [0, 1]).all()
    assert (found.routing.combine_weights[~where] == 0).all()
    same(found.plan[2:], alone.plan[2:])
    assert found.plan.dropped[~where].all()
    # a row's token, numbered among those that count; the padding makes rows at the end or none
    of_row, of_row_alone = (plan.slot_indices for plan in (found.plan, alone.plan))
    rows = len(of_row_alone)
    number = np.append((np.cumsum(where) - 1)[:, None] * 2 + np.arange(2), 22)
    kept = np.where(of_row[:rows] < 2 * len(where), of_row[:rows], 2 * len(where))
    np.testing.assert_array_equal(number[kept], of_row_alone)
    assert (of_row[rows:] == 2 * len(where)).all()
    close(found.statistics.mean_gate_probs, alone.statistics.mean_gate_probs)
    close(found.statistics.logsumexp[where], alone.statistics.logsumexp)
    assert (found.statistics.logsumexp[~where] == 0).all()
    assert found.statistics.num_tokens == 11
    assert found.statistics.num_unroutable == 0
    for loss in (cm.moe.load_balancing_loss, cm.moe.router_z_loss):
        close(*(loss(jax.tree.map(jnp.asarray, routed)) for routed in (found, alone)))


def test_unroutable_tokens_that_count_are_seen(implementation):
    where, logits = mask(3), awkward(4, 11, 6)
    options = {"k": 2, "implementation": implementation}
    found = route(padded(logits, where), where=where, **options)
    alone = route(logits, **options)
    assert found.statistics.num_unroutable == alone.statistics.num_unroutable > 0
    assert np.isnan(found.statistics.mean_gate_probs).all()
    same(found.routing.combine_weights[where], alone.routing.combine_weights)


@layouts
def test_plan_of_indices(layout, implementation):
    where = mask(5)
    indices = np.random.RandomState(6).randint(0, 4, (17, 2)).astype(np.int32)
    options = {"num_experts": 4, "implementation": implementation} | layout
    found = host(plan_dispatch)(indices, where=where, **options)
    same(found, host(plan_dispatch)(np.where(where[:, None], indices, -1), **options))


@partial(jax.jit, static_argnames=("capacity", "implementation"))
def layer_and_gradients(x, logits, params, where, *, capacity, implementation):
    def loss(x, logits, params):
        out = cm.sparse_layer(
            x, logits, params, where=where, k=2, capacity=capacity, implementation=implementation
        )
        losses = cm.moe.load_balancing_loss(out.routed) + cm.moe.router_z_loss(out.routed)
        return jnp.sum(jnp.sin(out.output)) + losses, (out.output, out.routed.plan.load)

    return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, logits, params)


def problem(seed, tokens=11):
    shapes = (5, 4, 6), (5, 6, 4), (5, 6), (5, 4)
    params = cm.ExpertParams(*(normal(seed + i, *s) for i, s in enumerate(shapes)))
    return normal(seed + 4, tokens, 4), normal(seed + 5, tokens, 5), params


@pytest.mark.parametrize("capacity", [None, 3])
def test_layer_and_gradients(capacity, implementation):
    where, (x, logits, params) = mask(7), problem(8)
    call = host(partial(layer_and_gradients, capacity=capacity, implementation=implementation))
    found = call(padded(x, where), padded(logits, where), params, where)
    alone = call(x, logits, params, None)
    (_, (y, load)), (to_x, to_logits, to_params) = found
    for rows in (y, to_x, to_logits):
        assert (rows[~where] == 0).all()
    own = (found[0][0], (y[where], load)), (to_x[where], to_logits[where], to_params)
    close(own, alone)


def test_a_batch_of_masks_under_vmap(implementation):
    masks, (x, logits, params) = np.stack([mask(9), mask(10)]), problem(11)
    inputs = [np.stack([padded(a, w, i) for i, w in enumerate(masks)]) for a in (x, logits)]
    call = partial(layer_and_gradients, capacity=3, implementation=implementation)
    found = jax.jit(jax.vmap(call, in_axes=(0, 0, None, 0)))(*inputs, params, masks)
    alone = call(x, logits, params, None)
    for i, where in enumerate(masks):
        close(found[0][1][0][i][where], alone[0][1][0])
        close(jax.tree.map(lambda g, i=i: g[i], found[1][2]), alone[1][2])


def test_no_token_counts(implementation):
    x, logits, params = problem(12)
    (_, (y, load)), gradients = host(layer_and_gradients)(
        x, logits, params, np.zeros(11, bool), capacity=3, implementation=implementation
    )
    assert (y == 0).all()
    assert (load == 0).all()
    for gradient in jax.tree.leaves(gradients):
        assert (gradient == 0).all()


def test_statistics_of_shards_are_those_of_all_tokens(mesh):
    """With a different number of tokens that count on each device, on one none."""
    where = np.random.RandomState(13).rand(8 * mesh.size) < 0.5
    where[:8] = False
    logits = padded(normal(14, where.sum(), 5), where)

    def statistics(logits, where):
        found = cm.routing.gate_statistics(logits, where=where, axis_name="d")
        return found._replace(num_tokens=found.num_tokens[None])

    out = cm.routing.GateStatistics(jax.P(), jax.P("d"), jax.P(), jax.P("d"))
    mapped = shard_map(statistics, mesh=mesh, in_specs=jax.P("d"), out_specs=out)
    found = jax.jit(mapped)(logits, where)
    alone = cm.routing.gate_statistics(jnp.asarray(logits), where=jnp.asarray(where))
    close(found[:3], alone[:3])
    assert found.num_tokens.tolist() == where.reshape(mesh.size, 8).sum(1).tolist()

    def losses(logits, where, axis_name=None):
        routed = cm.route(logits, where=where, k=2)
        each = cm.moe.load_balancing_loss, cm.moe.router_z_loss
        return [loss(routed, axis_name=axis_name) for loss in each]

    mapped = shard_map(
        partial(losses, axis_name="d"), mesh=mesh, in_specs=jax.P("d"), out_specs=jax.P()
    )
    close(jax.jit(mapped)(logits, where), jax.jit(losses)(logits, where))


def test_losses_of_stacked_results_are_stacked():
    logits, where = normal(15, 3, 11, 5), np.stack([mask(s, 6, 5) for s in range(3)])
    stacked = jax.jit(jax.vmap(lambda g, w: cm.route(g, where=w, k=2)))(logits, where)
    for loss in (cm.moe.load_balancing_loss, cm.moe.router_z_loss):
        each = [loss(jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(3)]
        close(loss(stacked), np.stack(each))


def test_the_module():
    layer = MoELayer(4, 3, 5, k=2, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    where, x = mask(16).reshape(1, 17), normal(17, 11, 4)

    @jax.jit
    def value_and_gradient(state, x, where):
        def loss(state, x):
            out = nnx.merge(graph, state)(x, where=where)
            return jnp.sum(jnp.sin(out.output)), out.output

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state, x)

    (found, y), (to_state, to_x) = value_and_gradient(state, padded(x, where[0])[None], where)
    (alone, y_alone), (to_state_alone, to_x_alone) = value_and_gradient(state, x, None)
    close((found, y[where], to_x[where], to_state), (alone, y_alone, to_x_alone, to_state_alone))
    assert (y[~where] == 0).all()
    assert (to_x[~where] == 0).all()


def test_masks_of_another_shape_are_refused(unchecked):
    logits, wrong = jnp.zeros((3, 2)), jnp.ones((1,), bool)
    for call in (
        partial(cm.route, logits, k=1),
        partial(cm.routing.gate_statistics, logits),
        partial(cm.plan_dispatch, jnp.zeros((3, 1), jnp.int32), num_experts=2),
        partial(MoELayer(2, 2, 2, k=1, rngs=nnx.Rngs(0)), logits),
    ):
        with pytest.raises(ValueError, match=r"where must have the (axes|shape) .*3"):
            call(where=wrong)
