"""Experts on their views, the mixture against them, and the disagreement identity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from devices import shard_map
from expert_calibration import (
    assert_same,
    assert_trees_same,
    classwise,
    disagreement_per_example,
    identity_of,
    oracle_errors,
    oracle_identity,
    problem,
    results_of,
)

import calmoe_jax as cm
from calmoe_jax.calibration.metrics.disagreement import disagreement_identity
from calmoe_jax.calibration.metrics.experts import (
    chosen_region,
    expert_bins,
)

pytestmark = pytest.mark.exhaustive


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_loops(k, weighted):
    probs, routing, labels = problem(k, k=k)
    rng = np.random.RandomState(k)
    weights = rng.rand(60) if weighted else np.ones(60)
    where = rng.rand(60) < 0.8 if weighted else np.ones(60, bool)
    found = results_of(
        probs, routing, labels, jnp.asarray(weights, jnp.float32), jnp.asarray(where)
    )
    p, r, y = (np.asarray(x, np.float64) for x in (probs, routing, labels))
    y = y.astype(int)
    w = np.where(where, weights, 0)
    views = {"view": r, "region": np.eye(3)[r.argmax(1)], "active": (r > 0).astype(float)}
    errors = {name: oracle_errors(p, view, y, w, 15) for name, view in views.items()}
    for name, expected in errors.items():
        assert_same(found[name], expected)
    assert_same(found["identity"], oracle_identity(p, r, y, w))
    aggregate = references.mix(p, r)
    mixture = found["mixture"]
    top = references.calibration_error(*references.top_label(aggregate, y), w)
    for part, expected, name in (
        (mixture.top_label, top, "top_label"),
        (mixture.classwise, classwise(aggregate, y, w, 15), "classwise"),
    ):
        experts = errors["view"][name]
        mean = np.dot(errors["view"]["load"], experts)
        assert_same(
            part,
            {
                "aggregate": expected,
                "experts": experts,
                "expert_mean": mean,
                "gap": expected - mean,
            },
        )
    np.testing.assert_allclose(mixture.load, errors["view"]["load"], rtol=1e-5)
    np.testing.assert_allclose(
        mixture.router_confidence, np.average(r.max(1), weights=w), rtol=1e-5
    )
    entropies = [references.entropy(row) for row in r]
    np.testing.assert_allclose(
        mixture.routing_entropy, np.average(entropies, weights=w), rtol=1e-5, atol=1e-6
    )


def test_bins_of_experts_are_those_of_each_alone_and_add_up():
    probs, routing, labels = problem(5)
    weights, where = jnp.arange(60.0), jnp.arange(60) % 4 != 0
    options = {"num_bins": 7}
    bins_of = jax.jit(functools.partial(expert_bins, **options))
    found = bins_of(probs, routing, labels, weights=weights, where=where)
    one = jax.jit(functools.partial(cm.calibration.top_label_bins, **options))
    for k in range(3):
        alone = one(probs[:, k], labels, weights=weights * routing[:, k], where=where)
        assert_trees_same(jax.tree.map(lambda x, k=k: x[k], found), alone)
    parts = [
        bins_of(probs, routing, labels, weights=weights, where=where & (jnp.arange(60) % 2 == i))
        for i in range(2)
    ]
    assert_trees_same(jax.tree.map(jnp.add, *parts), found)


def test_sharded_sums_equal_the_whole(mesh):
    probs, routing, labels = problem(6, size=60)
    part = jax.sharding.PartitionSpec("d")
    summed = shard_map(
        lambda p, r, y: jax.lax.psum(expert_bins(p, r, y), "d"),
        mesh=mesh,
        in_specs=(part, part, part),
        out_specs=jax.sharding.PartitionSpec(),
    )
    rows = 60 // len(mesh.devices) * len(mesh.devices)
    args = probs[:rows], routing[:rows], labels[:rows]
    assert_trees_same(jax.jit(summed)(*args), jax.jit(expert_bins)(*args))


def test_regions():
    weights = jnp.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 0.0]])
    assert chosen_region(weights).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    strange = jnp.array([[0.5, jnp.nan]])
    assert jnp.isnan(chosen_region(strange)).all()
    assert chosen_region(weights.astype(jnp.bfloat16)).dtype == jnp.float32
    many = jnp.full((384, 100), 0.01).at[:, 50].set(jnp.nan)  # where a plain maximum loses NaN
    assert jnp.isnan(jax.jit(chosen_region)(many)).all()


def test_hard_routing_is_its_own_region_and_does_not_disagree():
    probs, routing, labels = problem(7, k=1)
    found = results_of(probs, routing, labels)
    assert_trees_same(found["view"], found["region"], rtol=0, atol=0)
    assert_trees_same(found["view"], found["active"], rtol=0, atol=0)
    assert found["identity"].disagreement == 0
    assert found["mixture"].router_confidence == 1
    assert found["mixture"].routing_entropy == 0


@pytest.mark.parametrize("seed", range(5))
def test_with_hard_routing_the_aggregate_is_never_worse_than_its_experts(seed):
    found = results_of(*problem(seed, k=1))["mixture"]
    assert found.top_label.gap < 1e-6
    assert found.classwise.gap < 1e-6


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_parts_of_the_identity_sum_for_any_data(seed, k):
    with jax.enable_x64(True):
        probs, routing, labels = problem(seed, k=k)
        probs, routing = (np.asarray(x, np.float64) for x in (probs, routing))
        probs /= probs.sum(-1, keepdims=True)
        routing /= routing.sum(-1, keepdims=True)
        weights = np.random.RandomState(seed).rand(60)
        for scale in (1.0, 0.7, 1.5):  # and for weights that do not sum to one
            found = identity_of(
                jnp.asarray(probs),
                jnp.asarray(routing * scale),
                labels,
                weights=jnp.asarray(weights),
            )
            total = found.disagreement + found.view.sum()
            np.testing.assert_allclose(found.aggregate, total, rtol=0, atol=1e-14)
            np.testing.assert_allclose(found.difference, found.view.sum(), rtol=0, atol=1e-14)
            aggregate = references.mix(probs, routing * scale)
            plain = (routing * scale * (probs**2).sum(-1)).sum(-1) - (aggregate**2).sum(-1)
            np.testing.assert_allclose(
                found.disagreement, np.average(plain, weights=weights), atol=1e-14
            )


def test_calibrated_experts_meet_the_identity_and_others_do_not():
    """Labels drawn from a distribution that all experts know in part."""
    rng = np.random.RandomState(0)
    size = 20_000
    side = rng.randint(2, size=(size, 2))
    table = np.array([[0.9, 0.6], [0.35, 0.1]])  # P(Y = 1 | what expert 1 sees, expert 2 sees)
    y = (rng.rand(size) < table[side[:, 0], side[:, 1]]).astype(int)
    ones = np.stack([table.mean(1)[side[:, 0]], table.mean(0)[side[:, 1]]], axis=1)
    probs = jnp.asarray(np.stack([1 - ones, ones], axis=-1), jnp.float32)
    labels = jnp.asarray(y)
    routing = jnp.full((size, 2), 0.5)
    found = identity_of(probs, routing, labels)
    assert found.disagreement > 0.02
    assert abs(found.difference) < 3 * found.standard_error
    assert (jnp.abs(found.view) < 3 * found.view_error).all()
    # one of them too sure
    logits = jnp.log(probs) * jnp.array([3.0, 1.0])[None, :, None]
    found = identity_of(jax.nn.softmax(logits), routing, labels)
    assert found.difference < -5 * found.standard_error
    assert found.view[0] < -5 * found.view_error[0]
    assert abs(found.view[1]) < 3 * found.view_error[1]


def test_the_standard_error_is_the_spread_of_the_difference():
    rng = np.random.RandomState(1)
    probs, routing, _ = problem(8, size=200)
    mixed = references.mix(np.asarray(probs), np.asarray(routing))
    draw = (rng.rand(400, 200, 1) > mixed.cumsum(1)[None, :, :3]).sum(-1)
    found = jax.jit(jax.vmap(lambda y: disagreement_identity(probs, routing, y)))(jnp.asarray(draw))
    # the inputs are fixed here: the error counts their spread too
    between = np.std(np.asarray(disagreement_per_example(probs, routing, mixed)))
    expected = np.sqrt(np.std(found.difference) ** 2 + between**2 / 200)
    np.testing.assert_allclose(np.mean(found.standard_error), expected, rtol=0.1)
