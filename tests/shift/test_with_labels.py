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
    if number < 2:  # nothing is excluded, not even the greatest loss
        np.testing.assert_allclose(found.lower, -2, atol=0.03)


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


def two_kinds(size=4000):
    """One expert; of each ten targets nine are calibrated and one is far too confident."""
    rng = np.random.RandomState(5)
    logits = 1.5 * rng.randn(size, 3)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = np.array([rng.choice(3, p=p) for p in odds], np.int32)
    wrong = np.arange(size) % 10 == 0
    labels[wrong] = rng.randint(3, size=wrong.sum())
    log_probs = np.asarray(jax.nn.log_softmax(logits)[:, None], np.float32)
    return Sample(log_probs, np.ones((size, 1), np.float32)), labels, wrong


def improvement_of(sample, labels, temperature):
    """Mean improvement of the Brier score over T = 1, in plain NumPy."""
    true = np.eye(3)[labels]

    def brier(t):
        probs = np.exp(np.asarray(sample.expert_log_probs[:, 0], float) / t)
        probs /= probs.sum(axis=1, keepdims=True)
        return np.square(probs - true).sum(axis=1).mean()

    return brier(1.0) - brier(float(temperature))


def test_refit_counts_labels_by_their_chances():
    """Labels drawn far more often from the wrong ones fit all targets, not those drawn."""
    targets, labels, wrong = two_kinds()
    chances = jnp.where(wrong, 20.0, 1.0)
    keys = jax.random.split(jax.random.key(0), 12)
    drawn = [cm.shift.few_labels.draw_units(k, chances, num_draws=200) for k in keys]
    found, naive = [], []
    for order in drawn:
        given = (targets, labels, targets, labels, order)
        found.append(refit_with_labels(*given, temperature=jnp.array(1.0), chances=chances))
        naive.append(refit_with_labels(*given, temperature=jnp.array(1.0)))
    oracle = cm.calibration.calibrators.fit_temperature(targets.expert_log_probs[:, 0], labels)
    shown = np.array([improvement_of(targets, labels, oracle.temperature)] * 12)
    # a temperature of the aggregate was fitted; estimates of what it does are without bias
    errors = [float(x.improvement[0]) for x in found] - shown
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(12) + 0.002
    assert np.mean([float(x.improvement[0]) for x in naive]) > np.mean(shown) + 0.02
    harmed = [improvement_of(targets, labels, x.temperature) for x in naive]
    assert min(harmed) < -0.01
    kept = [improvement_of(targets, labels, x.temperature) for x in found]
    assert min(kept) > -0.01
    for x in found:
        assert x.lower[0] <= improvement_of(targets, labels, oracle.temperature) + 1e-6


def test_refit_with_equal_chances_is_that_without():
    held_out, labels = sample(200, 1.0, 0)
    targets, theirs = sample(500, 5.0, 1)
    where = np.arange(500) % 5 != 0
    drawn = np.random.RandomState(0).permutation(np.flatnonzero(where))[:300]
    given = (held_out, labels, targets, theirs, drawn)
    options = {"temperature": jnp.array(1.0), "target_where": where}
    plain = refit_with_labels(*given, **options)
    equal = refit_with_labels(*given, **options, chances=jnp.full(500, 0.3))
    for x, y in zip(plain, equal, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_refit_of_all_labels_knows_the_improvement():
    """Once every target is labelled nothing is left to bound."""
    held_out, labels = sample(200, 1.0, 0)
    targets, theirs = sample(400, 5.0, 1)
    drawn = np.random.RandomState(0).permutation(400)
    found = refit_with_labels(held_out, labels, targets, theirs, drawn, temperature=jnp.array(1.0))
    assert REFITS[int(found.chosen)] == "expert_temperatures"
    experts = np.asarray(targets.expert_log_probs, float)

    def brier(temperatures):
        probs = np.exp(experts / np.asarray(temperatures)[:, None])
        probs /= probs.sum(axis=2, keepdims=True)
        mixed = (probs * targets.routing_weights[:, :, None]).sum(axis=1)
        return np.square(mixed - np.eye(3)[theirs]).sum(axis=1).mean()

    truth = brier([1, 1]) - brier(found.expert_temperatures)
    assert truth - 1e-5 < found.lower[1] <= truth + 1e-5


@pytest.mark.parametrize("place", [3, 70])
def test_refit_refuses_draws_that_cannot_be(place):
    held_out, labels = sample(100, 1.0, 0)
    targets, theirs = sample(100, 3.0, 1)
    for other, where in ((1, None), (100, None), (99, np.arange(100) != 99)):
        drawn = np.arange(99)
        drawn[place] = other
        found = refit_with_labels(
            held_out, labels, targets, theirs, drawn, temperature=jnp.array(1.0),
            target_where=where,
        )  # fmt: skip
        assert found.chosen == -1
        assert np.isnan(found.lower).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_refit_knows_what_labels_have_settled(seed):
    """With four targets of five labelled, an improvement is shown that draws alone do not show."""
    held_out, labels = sample(200, 1.0, 0)
    targets, theirs = sample(400, 5.0, 1)
    drawn = np.random.RandomState(seed).permutation(400)[:320]
    found = refit_with_labels(held_out, labels, targets, theirs, drawn, temperature=jnp.array(1.0))
    assert 0 < found.lower[1] < found.improvement[1]


def test_refit_bounds_what_was_drawn_against_the_odds():
    """A target of a tiny chance, drawn all the same, stands for many: no bound above its loss."""
    targets, labels, wrong = two_kinds(400)
    right = np.flatnonzero(
        ~wrong & (np.asarray(targets.expert_log_probs)[:, 0].argmax(1) == labels)
    )
    rare = right[np.asarray(targets.expert_log_probs)[right, 0].max(1).argmax()]
    others = np.random.RandomState(0).permutation(np.setdiff1d(np.flatnonzero(wrong), rare))
    drawn = np.concatenate([others, [rare]])
    found = refit_with_labels(
        targets, labels, targets, labels, drawn, temperature=jnp.array(1.0),
        chances=jnp.where(jnp.arange(400) == rare, 1e-6, 1.0),
    )  # fmt: skip
    assert found.temperature == 1
    assert (found.lower < -0.1).all()
