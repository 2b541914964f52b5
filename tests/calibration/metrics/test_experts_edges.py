"""Experts at the edges: without load, invalid, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from expert_calibration import assert_trees_same, mixed, mixed_of, problem, results_of

import calmoe_jax as cm
from calmoe_jax.calibration.metrics.disagreement import disagreement_identity
from calmoe_jax.calibration.metrics.experts import (
    expert_bins,
)

pytestmark = pytest.mark.exhaustive


def test_experts_without_load_are_left_out():
    probs, routing, labels = problem(9, k=1)
    routing = jnp.stack([routing[:, 0] + routing[:, 2], routing[:, 1], jnp.zeros(60)], axis=1)
    found = results_of(probs, routing, labels)
    for name in ("view", "region", "active"):
        errors = found[name]
        assert errors.load[2] == 0
        assert errors.effective_examples[2] == 0
        for value in (errors.top_label, errors.classwise, errors.gap):
            assert jnp.isnan(value).tolist() == [False, False, True]
    load = found["mixture"].load[:2]
    for part in found["mixture"][:2]:
        np.testing.assert_allclose(part.expert_mean, load @ part.experts[:2], rtol=1e-6)
        np.testing.assert_allclose(part.gap, part.aggregate - part.expert_mean, atol=1e-7)


def test_an_expert_without_weight_need_not_be_computed():
    probs, routing, labels = problem(10, k=2)
    holes = jnp.where(routing[..., None] > 0, probs, jnp.nan)
    expected = results_of(probs, routing, labels)
    assert_trees_same(results_of(holes, routing, labels), expected)
    found = mixed_of(jnp.log(holes) + 1.0, routing, labels, from_logits=True)
    for name, values in found.items():
        assert_trees_same(values, expected[name], rtol=1e-4, atol=1e-5)


def test_nothing_counts():
    probs, routing, labels = problem()
    for found in (
        mixed_of(probs[:0], routing[:0], labels[:0]),
        results_of(probs, routing, labels, where=jnp.zeros(60, bool)),
        results_of(probs, routing, labels, weights=jnp.zeros(60)),
    ):
        assert all(jnp.isnan(value).all() for value in jax.tree.leaves(found))


def test_one_example_has_no_standard_error():
    probs, routing, labels = problem()
    found = results_of(probs, routing, labels, where=jnp.arange(60) == 4)
    confidence, correct = references.top_label(np.asarray(probs[4]), np.full(3, labels[4]))
    np.testing.assert_allclose(found["view"].gap, confidence - correct, rtol=1e-5)
    np.testing.assert_allclose(found["view"].top_label, abs(confidence - correct), rtol=1e-5)
    assert jnp.isfinite(found["identity"].difference)
    assert jnp.isnan(found["identity"].standard_error)
    assert jnp.isnan(found["identity"].view_error).all()
    np.testing.assert_allclose(found["view"].effective_examples, 1, rtol=1e-6)


def test_what_is_invalid_is_nan_only_where_it_counts():
    probs, routing, labels = problem()
    clean = results_of(probs, routing, labels, where=jnp.arange(60) != 3)
    bad = {
        "a distribution that is none": (probs.at[3, 1, 0].add(0.5), routing, labels),
        "NaN experts": (probs.at[3].set(jnp.nan), routing, labels),
        "NaN weights": (probs, routing.at[3].set(jnp.nan), labels),
        "a negative weight": (probs, routing.at[3].set(jnp.array([-0.2, 0.6, 0.6])), labels),
        "a label": (probs, routing, labels.at[3].set(4)),
        "a negative label": (probs, routing, labels.at[3].set(-1)),
    }
    for name, args in bad.items():
        masked = results_of(*args, where=jnp.arange(60) != 3)
        assert_trees_same(masked, clean, rtol=0, atol=0)
        found = results_of(*args)
        experts = found["view"].top_label
        assert jnp.isnan(experts).any(), name
        assert jnp.isnan(found["identity"].difference), name
        assert jnp.isnan(found["mixture"].top_label.aggregate), name
        assert jnp.isnan(found["mixture"].classwise.expert_mean), name


def test_routing_weights_of_a_mixture_sum_to_one():
    probs, routing, labels = problem()
    found = results_of(probs, 0.9 * routing, labels)
    assert all(jnp.isnan(x).all() for x in jax.tree.leaves(found["mixture"]))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found["view"]))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found["identity"]))
    whole = results_of(probs, routing, labels)["view"]
    assert_trees_same(found["view"]._replace(load=whole.load), whole)


def test_the_scale_of_weights_does_not_matter():
    probs, routing, labels = problem(11)
    weights = jnp.asarray(np.random.RandomState(0).rand(60), jnp.float32)
    expected = results_of(probs, routing, labels, weights)
    for scale in (1e-12, 1e6):
        assert_trees_same(results_of(probs, routing, labels, weights * scale), expected, rtol=1e-4)


def test_order_of_examples_and_of_experts_does_not_matter():
    probs, routing, labels = problem(12)
    expected = results_of(probs, routing, labels)
    order = np.random.RandomState(0).permutation(60)
    assert_trees_same(results_of(probs[order], routing[order], labels[order]), expected)
    turned = results_of(probs[:, ::-1], routing[:, ::-1], labels)
    assert_trees_same(turned["mixture"].top_label.gap, expected["mixture"].top_label.gap)
    assert_trees_same(turned["view"].top_label[::-1], expected["view"].top_label)
    assert_trees_same(turned["identity"].view[::-1], expected["identity"].view)


def test_vmap_equals_a_loop():
    several = [problem(seed) for seed in range(3)]
    mapped = jax.jit(jax.vmap(mixed))(*map(jnp.stack, zip(*several, strict=True)))
    for i, args in enumerate(several):
        found = results_of(*args)
        for name, values in mapped.items():
            assert_trees_same(jax.tree.map(lambda x, i=i: x[i], values), found[name])


def test_rough_inputs_are_computed_in_float32():
    probs, routing, labels = problem(14)
    rough = probs.astype(jnp.bfloat16), routing.astype(jnp.bfloat16)
    found = mixed_of(*rough, labels)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))
    mixture, identity = found["mixture"], found["identity"]
    assert jnp.isfinite(mixture.top_label.aggregate)
    np.testing.assert_allclose(mixture.router_confidence, routing.max(1).mean(), rtol=1e-2)
    exact = results_of(probs, routing, labels)
    assert_trees_same(identity, exact["identity"], rtol=0.01, atol=3e-3)
    # such sums are no distribution for float32
    widened = results_of(*(x.astype(jnp.float32) for x in rough), labels)
    assert jnp.isnan(widened["identity"].difference)


def test_float_labels_are_refused(unchecked):
    probs, routing, labels = problem()
    with pytest.raises(TypeError, match="labels must be of integers"):
        disagreement_identity(probs, routing, labels.astype(jnp.float32))
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        expert_bins(probs, routing, labels, num_bins=0)


def test_the_aggregate_may_be_calibrated_by_gradients():
    """The identity's parts have finite gradients, hard routing included."""
    for k in (1, 3):
        probs, routing, labels = problem(15, k=k)
        gradients = jax.jit(
            jax.grad(lambda p, r, y: disagreement_identity(p, r, y).disagreement, argnums=(0, 1))
        )(probs, routing, labels)
        assert all(jnp.isfinite(x).all() for x in gradients)


def test_gradients_leave_out_experts_that_were_not_computed():
    rng = np.random.RandomState(0)
    logits = jnp.asarray(rng.randn(30, 3, 4), jnp.float32)
    labels = jnp.asarray(rng.randint(4, size=30))
    routing = jnp.asarray(rng.dirichlet(np.ones(3), size=30), jnp.float32)
    routing = routing.at[5].set(jnp.array([0.25, 0.75, 0.0]))

    @jax.jit
    @jax.grad
    def slope(logits):
        found = cm.calibration.mixture_calibration(logits, routing, labels, from_logits=True)
        return found.top_label.aggregate + found.classwise.aggregate + found.top_label.expert_mean

    clean = slope(logits)
    assert jnp.isfinite(clean).all()
    np.testing.assert_allclose(slope(logits.at[5, 2].set(jnp.nan)), clean, atol=1e-6)
