"""Average thresholds, rebalancing by the configuration, and inputs that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive


def test_the_average_threshold_equals_a_loop():
    rng = np.random.RandomState(3)
    held_out = np.round(rng.rand(50), 1).astype(np.float32)  # ties
    correct = rng.rand(50) < held_out
    targets = np.round(rng.rand(40), 1).astype(np.float32)
    threshold = np.sort(held_out)[np.sum(~correct)]
    found = cm.shift.average_threshold_accuracy(
        jnp.asarray(held_out), jnp.asarray(correct), jnp.asarray(targets)
    )
    np.testing.assert_allclose(found, np.mean(targets >= threshold), atol=1e-6)
    where = np.arange(40) < 7
    spoilt = jnp.where(jnp.asarray(where), jnp.asarray(targets), jnp.nan)
    masked = cm.shift.average_threshold_accuracy(
        jnp.asarray(held_out), jnp.asarray(correct), spoilt, target_where=jnp.asarray(where)
    )
    np.testing.assert_allclose(masked, np.mean(targets[:7] >= threshold), atol=1e-6)
    assert jnp.isnan(
        cm.shift.average_threshold_accuracy(jnp.asarray(held_out), jnp.asarray(correct), spoilt)
    )


def test_the_average_threshold_at_its_ends():
    confidence = jnp.array([0.5, 0.6, 0.7])
    right, wrong = jnp.ones(3, bool), jnp.zeros(3, bool)
    assert cm.shift.average_threshold_accuracy(confidence, right, confidence) == 1
    assert cm.shift.average_threshold_accuracy(confidence, wrong, confidence) == 0
    nothing = jnp.zeros(3)
    assert jnp.isnan(
        cm.shift.average_threshold_accuracy(confidence, right, confidence, weights=nothing)
    )
    assert jnp.isnan(cm.shift.average_threshold_accuracy(confidence, right, jnp.zeros(0)))


def test_on_the_held_out_examples_themselves_rules_change_nothing():
    rng = np.random.RandomState(4)
    confidence = jnp.asarray(rng.rand(500), jnp.float32)
    correct = jnp.asarray(rng.rand(500) < np.asarray(confidence))
    accuracy, mean = correct.mean(), confidence.mean()
    np.testing.assert_allclose(
        cm.shift.average_threshold_accuracy(confidence, correct, confidence), accuracy, atol=1e-6
    )
    np.testing.assert_allclose(cm.shift.difference_of_confidences(accuracy, mean, mean), accuracy)
    same = cm.shift.separability_confidence(
        mean, mean, jnp.array(0.0), jnp.array(1.0), num_classes=10
    )
    np.testing.assert_allclose(same, mean, rtol=1e-6)


def test_balanced_moments_are_those_of_the_targets():
    rng = np.random.RandomState(7)
    held_out = rng.randn(400, 3).astype(np.float32)
    targets = rng.randn(90, 3).astype(np.float32) * 0.5 + 0.4
    padded = jnp.concatenate([jnp.asarray(targets), jnp.full((10, 3), jnp.nan)])
    balance = jax.jit(cm.shift.configuration_balance)
    found = balance(jnp.asarray(held_out), padded, target_where=jnp.arange(100) < 90, ridge=0.0)
    weights = np.exp(np.asarray(found.log_weights, np.float64))
    assert found.converged
    np.testing.assert_allclose(weights @ held_out, targets.mean(axis=0), atol=1e-4)
    softer = balance(jnp.asarray(held_out), padded, target_where=jnp.arange(100) < 90, ridge=0.3)
    assert softer.effective_sample_size > found.effective_sample_size
    times = jnp.asarray(rng.randint(3, size=100), jnp.float32).at[90:].set(0.0)
    weighted = balance(jnp.asarray(held_out), padded, target_weights=times)
    repeated = jnp.repeat(padded, times.astype(int), axis=0)
    again = balance(jnp.asarray(held_out), repeated)
    np.testing.assert_allclose(weighted.log_weights, again.log_weights, atol=1e-4)
    base = jnp.asarray(rng.randint(1, 3, size=400), jnp.float32)
    counted = balance(jnp.asarray(held_out), jnp.asarray(targets), weights=base)
    rows = np.repeat(np.arange(400), np.asarray(base, int))
    again = balance(jnp.asarray(held_out[rows]), jnp.asarray(targets))
    by_row = np.exp(np.asarray(counted.log_weights - jnp.log(base)))[rows]
    np.testing.assert_allclose(np.exp(again.log_weights), by_row, rtol=1e-3)
    nobody = balance(jnp.asarray(held_out), padded, target_where=jnp.zeros(100, bool))
    assert not nobody.converged


def test_rebalancing_undoes_a_reweighting_by_the_configuration():
    """Theorem class: labels follow from S as before, and log dQ/dP is linear in the moments."""
    rng = np.random.RandomState(8)
    fit_temperature = jax.jit(cm.calibration.calibrators.fit_temperature)
    size = 20000
    logits = rng.randn(size, 3) * np.where(rng.rand(size) < 0.5, 1.0, 4.0)[:, None]
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    # sharper predictions are less well calibrated: one temperature depends on the mixture
    true_t = np.where(probs.max(axis=1) > 0.8, 3.0, 1.0)[:, None]
    law = np.exp(logits / true_t)
    law /= law.sum(axis=1, keepdims=True)
    labels = (rng.rand(size)[:, None] > law.cumsum(axis=1)).sum(axis=1)
    feature = probs.max(axis=1, keepdims=True).astype(np.float32)
    tilt = np.exp(4 * feature[:, 0])
    half = size // 2
    chosen = half + rng.choice(half, 6000, p=tilt[half:] / tilt[half:].sum())
    args = jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)
    held_out = [x[:half] for x in args]
    solution = cm.shift.configuration_balance(
        jnp.asarray(feature[:half]), jnp.asarray(feature[chosen]), ridge=0.0
    )
    plain = fit_temperature(*held_out).temperature
    balanced = fit_temperature(*held_out, weights=jnp.exp(solution.log_weights)).temperature
    oracle = fit_temperature(*(x[chosen] for x in args)).temperature
    resampled = [rng.choice(chosen, 6000) for _ in range(8)]
    draws = [fit_temperature(*(x[rows] for x in args)).temperature for rows in resampled]
    # both temperatures have an error
    error = np.sqrt(2) * np.std(np.asarray(draws), ddof=1)
    assert abs(balanced - oracle) < 2 * error
    assert abs(plain - oracle) > 4 * error


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cm.shift.repair_verdict(1.5, 0.5, 0.5, 0.5, 10, peers=True),
            "p_value must be in",
        ),
        (lambda: cm.shift.repair_verdict(0.5, 0.5, 2, 0.5, 10, peers=True), "safe must be in"),
        (
            lambda: cm.shift.repair_verdict(0.5, 0.5, 0.5, 0.5, -1, peers=True),
            "num_targets must be at least 0",
        ),
        (
            lambda: cm.shift.chance_corrected_agreement(jnp.zeros((2, 3), int), num_classes=1),
            "at least",
        ),
        (
            lambda: cm.shift.match_confidence(jnp.zeros((2, 2)), 0.5, at_least=-1.0),
            "at_least must be",
        ),
        (lambda: cm.shift.separability(jnp.zeros((2, 2)), jnp.zeros((2, 3))), "targets must have"),
        (
            lambda: cm.shift.separability(jnp.zeros((2, 2)), jnp.zeros((2, 2)), penalty=0.0),
            "penalty",
        ),
        (
            lambda: cm.shift.configuration_balance(jnp.zeros((2, 2)), jnp.zeros((2, 3))),
            "targets must",
        ),
        (
            lambda: cm.shift.difference_of_confidences(*(jnp.zeros(()),) * 3, slope=-1.0),
            "slope must be",
        ),
    ],
)
def test_bad_input_is_named(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_threshold_from_unknown_numbers_is_unknown():
    confidence, correct = jnp.array([0.5, 0.6, 0.8]), jnp.array([0.0, 1.0, 1.0])
    threshold, weights = cm.shift.error_threshold, jnp.array([1.0, 1.0, 1.0])
    for bad in (jnp.nan, -1.0):
        assert jnp.isnan(threshold(confidence, correct, weights=weights.at[1].set(bad)))
    assert jnp.isnan(threshold(confidence, correct.at[0].set(jnp.nan)))
    left_out = threshold(confidence, correct.at[0].set(jnp.nan), weights=weights.at[0].set(0))
    assert left_out == threshold(confidence[1:], correct[1:])
