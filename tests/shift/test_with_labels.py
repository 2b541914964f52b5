"""Repairs with labels: what the temperatures promise, and what they do when nothing is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm
from calmoe_jax.shift.agreement import SAFE_MARGIN
from calmoe_jax.shift.repair import REFITS, Sample
from calmoe_jax.shift.repair import refit_with_labels as eager_refit

Evidence = cm.shift.estimators.Evidence
repair_with_labels = jax.jit(cm.shift.repair_with_labels, static_argnames=("level", "planned"))
refit_with_labels = jax.jit(eager_refit, static_argnames=("tolerance", "level"))


def draw(size, sharpness=1.0, seed=0, classes=4, peers=2):
    """Calibrated predictions, or over-confident ones."""
    rng = np.random.RandomState(seed)
    logits = 1.5 * rng.randn(size, classes)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(classes, p=p) for p in odds])
    log_probs = np.asarray(jax.nn.log_softmax(sharpness * logits), np.float32)
    others = log_probs[None] + 0.3 * rng.randn(peers, size, classes)
    return Evidence(log_probs, others.astype(np.float32), log_probs), labels


def measured(evidence, labels):
    confidence = np.exp(np.max(evidence.log_probs, axis=1))
    return np.mean(confidence) - np.mean(np.argmax(evidence.log_probs, axis=1) == labels)


def test_certified_lowers_confidence_by_the_bound_and_combined_stays_within():
    held_out, labels = draw(300)
    targets, theirs = draw(600, sharpness=3.0, seed=1)
    drawn = np.random.RandomState(0).permutation(600)[:80]
    known = np.where(np.isin(np.arange(600), drawn), theirs, -1)
    found = repair_with_labels(held_out, labels, targets, known, drawn)
    gap = measured(targets, theirs)
    assert 0 < found.lower < gap < found.upper
    assert 1 < found.certified < found.combined
    for temperature, by in ((found.certified, found.lower), (found.combined, found.posterior)):
        mean = cm.shift.mean_confidence(targets.log_probs, temperature)
        np.testing.assert_allclose(found.confidence - mean, by, atol=1e-3)
    assert found.lower <= found.posterior <= found.upper
    np.testing.assert_allclose(found.posterior, gap, atol=0.1)
    assert found.num_labels == 80


def test_no_gap_is_left_alone_and_no_label_changes_nothing():
    held_out, labels = draw(300)
    targets, theirs = draw(500, seed=1)
    drawn = np.random.RandomState(0).permutation(500)[:60]
    found = repair_with_labels(held_out, labels, targets, theirs, drawn)
    assert found.certified == 1
    nothing = repair_with_labels(held_out, labels, targets, np.full(500, -1), np.full(4, -1))
    assert nothing.certified == 1
    assert nothing.num_labels == 0
    safe = cm.shift.label_free_gaps(held_out, labels, targets).safe
    np.testing.assert_allclose(nothing.posterior, safe, atol=1e-6)


@pytest.mark.exhaustive
def test_over_models_is_a_loop():
    held_out, labels = draw(60)
    targets, theirs = draw(50, sharpness=2.0, seed=1)
    stacked = [
        jax.tree.map(lambda x: np.stack([x, x[..., ::-1]]), side) for side in (held_out, targets)
    ]
    drawn = np.arange(20)
    mapped = jax.vmap(repair_with_labels, in_axes=(0, None, 0, None, None))(
        stacked[0], labels, stacked[1], theirs, drawn
    )
    for i in range(2):
        one = repair_with_labels(
            *(jax.tree.map(lambda x, i=i: x[i], stacked[0]), labels),
            *(jax.tree.map(lambda x, i=i: x[i], stacked[1]), theirs, drawn),
        )
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4), mapped, one
        )


def test_label_free_gaps_by_their_estimators():
    held_out, labels = draw(200)
    targets, _ = draw(150, sharpness=3.0, seed=1)
    mean = np.mean(np.exp(np.max(targets.log_probs, axis=1)))
    agreed = cm.shift.estimators.seed_agreement(held_out, labels, targets, margin=SAFE_MARGIN)
    safe = agreed.accuracy
    near = cm.shift.estimators.neighbours(held_out, labels, targets).accuracy
    found = cm.shift.label_free_gaps(held_out, labels, targets)
    np.testing.assert_allclose(found.safe, max(mean - safe, 0), atol=1e-5)
    np.testing.assert_allclose(found.bold, max(mean - safe, mean - near, 0), atol=1e-5)
    alone = cm.shift.label_free_gaps(
        held_out._replace(peers=None, coordinates=None), labels, targets
    )
    assert alone.safe == alone.bold == 0


def test_labels_that_are_not_there_are_nan():
    held_out, labels = draw(80)
    targets, theirs = draw(60, seed=1)
    theirs[3] = -1
    found = repair_with_labels(held_out, labels, targets, theirs, jnp.arange(10))
    assert all(jnp.isnan(x) for x in (found.certified, found.combined, found.lower, found.estimate))


def sample(size, sharpness, seed):
    """Two experts, of which the second is over-confident as asked, on its half of the examples."""
    rng = np.random.RandomState(seed)
    logits = 1.5 * rng.randn(size, 3)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=p) for p in odds])
    experts = np.stack([logits, sharpness * logits], axis=1)
    log_probs = np.asarray(jax.nn.log_softmax(experts), np.float32)
    first = rng.rand(size) < 0.5
    weights = np.stack([first, ~first], axis=1).astype(np.float32)
    return Sample(log_probs, weights), labels.astype(np.int32)


def test_refit_finds_the_expert_that_is_over_confident():
    held_out, labels = sample(400, 1.0, 0)
    targets, theirs = sample(1500, 5.0, 1)
    found = refit_with_labels(
        held_out, labels, targets, theirs, np.random.RandomState(0).permutation(1500)[:800],
        temperature=jnp.array(1.0),
    )  # fmt: skip
    assert REFITS[int(found.chosen)] == "expert_temperatures"
    np.testing.assert_allclose(found.expert_temperatures, [1, 5], rtol=0.25)
    assert found.lower[1] > 0


@pytest.mark.parametrize("number", [0, 1, 30])
def test_refit_keeps_the_reference_where_nothing_is_shown(number):
    held_out, labels = sample(200, 1.0, 0)
    targets, theirs = sample(200, 1.0, 1)
    drawn = np.where(np.arange(30) < number, np.arange(30), -1)
    found = refit_with_labels(held_out, labels, targets, theirs, drawn, temperature=jnp.array(1.1))
    assert found.chosen == -1
    np.testing.assert_allclose(found.temperature, 1.1)
    np.testing.assert_allclose(found.expert_temperatures, 1)


@pytest.mark.exhaustive
def test_refit_is_seldom_worse_than_the_tolerance():
    held_out, labels = sample(150, 1.0, 0)
    targets, theirs = sample(400, 1.3, 1)
    rng = np.random.RandomState(0)
    drawn = np.stack([rng.permutation(400)[:120] for _ in range(60)])
    found = jax.jit(
        jax.vmap(
            lambda d: refit_with_labels(
                held_out, labels, targets, theirs, d, temperature=jnp.array(1.0)
            )
        )
    )(drawn)

    def brier(experts, temperature):
        scaled = jax.nn.log_softmax(targets.expert_log_probs / experts[None, :, None])
        mixed = cm.mix_log_probs(scaled, targets.routing_weights)
        probs = jax.nn.softmax(mixed / temperature)
        return cm.calibration.brier_score(probs, theirs)

    deployed = jax.vmap(brier)(found.expert_temperatures, found.temperature)
    worse = np.mean(deployed - brier(jnp.ones(2), 1.0) > 0.01)
    assert worse <= 0.1 + 3 * np.sqrt(0.09 / 60)


def test_refit_with_a_label_that_is_none_keeps_the_reference():
    held_out, labels = sample(100, 1.0, 0)
    targets, theirs = sample(100, 3.0, 1)
    theirs[90] = 7
    drawn = np.arange(99, 20, -1)
    found = refit_with_labels(held_out, labels, targets, theirs, drawn, temperature=jnp.array(1.0))
    assert found.chosen == -1
    assert found.temperature == 1
