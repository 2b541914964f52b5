"""Targets without labels: agreement, matched confidence, separability, balance, verdicts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, roc_auc_score

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive

match = jax.jit(cm.shift.match_confidence)
separate = jax.jit(cm.shift.separability)


def draw_logits(size, classes=4, seed=0, scale=3.0):
    return (scale * np.random.RandomState(seed).randn(size, classes)).astype(np.float32)


# agreement


def test_kappa_equals_an_independent_one():
    rng = np.random.RandomState(0)
    predicted = rng.randint(3, size=(4, 60))
    found = cm.shift.chance_corrected_agreement(jnp.asarray(predicted), num_classes=3).kappa
    for i in range(4):
        expected = [cohen_kappa_score(predicted[i], predicted[j]) for j in range(4) if j != i]
        np.testing.assert_allclose(found[i], np.mean(expected), atol=1e-6)


@pytest.mark.parametrize("outside", [-1, 3])
def test_a_class_out_of_range_gives_no_agreement(outside):
    predicted = jnp.asarray(np.random.RandomState(1).randint(3, size=(3, 40)))
    agreement = cm.shift.chance_corrected_agreement
    bad, others = predicted.at[1, 5].set(outside), jnp.arange(40) != 5
    found = agreement(bad, num_classes=3)
    assert jnp.isnan(found.kappa).all()
    assert jnp.isnan(found.standard_error).all()
    masked, clean = (agreement(x, num_classes=3, where=others) for x in (bad, predicted))
    np.testing.assert_array_equal(masked.kappa, clean.kappa)


def test_masked_examples_do_not_agree():
    rng = np.random.RandomState(1)
    predicted = jnp.asarray(rng.randint(3, size=(3, 40)))
    where = jnp.asarray(rng.rand(40) < 0.6)
    found = cm.shift.chance_corrected_agreement(predicted, num_classes=3, where=where)
    alone = cm.shift.chance_corrected_agreement(predicted[:, where], num_classes=3)
    np.testing.assert_allclose(found.kappa, alone.kappa, atol=1e-6)
    np.testing.assert_allclose(found.standard_error, alone.standard_error, atol=1e-6)


def test_the_standard_error_is_the_spread_over_samples():
    rng = np.random.RandomState(2)
    truth = rng.randint(3, size=(200, 150))
    predicted = np.where(rng.rand(2, 200, 150) < 0.7, truth, rng.randint(3, size=(2, 200, 150)))
    found = jax.vmap(lambda x: cm.shift.chance_corrected_agreement(x, num_classes=3), in_axes=1)(
        jnp.asarray(predicted)
    )
    assert found.kappa.shape == (200, 2)
    spread, claimed = float(found.kappa[:, 0].std()), float(found.standard_error[:, 0].mean())
    assert 0.8 < claimed / spread < 1.25


def test_models_that_predict_one_class_have_kappa_0():
    same = jnp.zeros((3, 20), jnp.int32)
    np.testing.assert_array_equal(cm.shift.chance_corrected_agreement(same, num_classes=5).kappa, 0)
    other = jnp.arange(20) % 5
    alike = cm.shift.chance_corrected_agreement(jnp.stack([other, other]), num_classes=5)
    np.testing.assert_allclose(alike.kappa, 1, atol=1e-6)
    np.testing.assert_allclose(alike.standard_error, 0, atol=1e-3)
    assert jnp.isnan(cm.shift.chance_corrected_agreement(same[:1], num_classes=5).kappa).all()
    nothing = cm.shift.chance_corrected_agreement(same, num_classes=5, where=jnp.zeros(20, bool))
    assert jnp.isnan(nothing.kappa).all()


def sure(kappa, error=0.0):
    return cm.shift.Agreement(jnp.asarray(kappa), jnp.full_like(jnp.asarray(kappa), error))


def test_estimated_accuracy_falls_with_agreement_from_accuracy_to_chance():
    kappa = jnp.linspace(1, 0, 11)
    accuracy = jnp.full(11, 0.8)
    found = cm.shift.agreement_accuracy(sure(jnp.full(11, 0.9)), sure(0.9 * kappa), accuracy, 0.25)
    np.testing.assert_allclose(found[jnp.array([0, 10])], [0.8, 0.25], atol=1e-6)
    assert (jnp.diff(found) < 0).all()
    wide = cm.shift.agreement_accuracy(
        sure(jnp.full(11, 0.9)), sure(0.9 * kappa, 0.1), accuracy, 0.25
    )
    np.testing.assert_allclose(wide[:2], 0.8, atol=1e-6)
    assert (wide[2:] > found[2:]).all()
    better = cm.shift.agreement_accuracy(sure([0.5]), sure([0.9]), jnp.full(1, 0.8), 0.25)
    np.testing.assert_allclose(better, 0.8, atol=1e-6)
    useless = cm.shift.agreement_accuracy(sure([0.0]), sure([1.0]), jnp.full(1, 0.8), 0.25)
    assert jnp.isnan(useless).all()


def test_the_agreements_accuracy_falls_from_the_larger_of_accuracy_and_confidence():
    given = sure([0.8, 0.8, 0.8]), sure([0.8, 0.4, 0.4]), jnp.full(3, 0.7), 0.1
    plain = cm.shift.agreement_accuracy(*given)
    sure_of_it = jnp.array([0.9, 0.9, 0.6])
    found = cm.shift.agreement_accuracy(*given, target_confidence=sure_of_it)
    kept = (plain - 0.1) / 0.6
    np.testing.assert_allclose(found[:2], 0.1 + 0.8 * kept[:2], rtol=1e-6)
    np.testing.assert_allclose(found[2], plain[2], rtol=1e-6)
    unknown = cm.shift.agreement_accuracy(*given, target_confidence=jnp.full(3, jnp.nan))
    assert jnp.isnan(unknown).all()


def test_growth_and_margin_of_the_agreements_accuracy():
    given = sure([0.9]), sure([0.45], 0.1), jnp.full(1, 0.8), 0.25
    plain = cm.shift.agreement_accuracy(*given, growth=0.0, margin=0.0)
    np.testing.assert_allclose(plain, 0.25 + 0.55 * 0.5, rtol=1e-6)
    rho = (0.45 + 2 * 0.1) / 0.9
    found = cm.shift.agreement_accuracy(*given, growth=4.0, margin=2.0)
    np.testing.assert_allclose(found, 0.25 + 0.55 * rho ** (1 + 4 * (1 - rho) ** 2), rtol=1e-6)
    for options in ({"growth": -1.0}, {"margin": -0.5}):
        (name, value), *_ = options.items()
        with pytest.raises(ValueError, match=f"{name} must be non-negative.*{value}"):
            cm.shift.agreement_accuracy(*given, **options)


# confidence


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("wanted", [0.3, 0.6, 0.95])
def test_the_matched_temperature_gives_the_wanted_confidence(scale, wanted):
    logits = jnp.asarray(scale * draw_logits(200))
    found = match(logits, wanted)
    assert found.reached
    z = np.asarray(logits, np.float64) / float(found.temperature)
    probs = np.exp(z - z.max(axis=-1, keepdims=True))
    confidence = (probs / probs.sum(axis=-1, keepdims=True)).max(axis=-1).mean()
    np.testing.assert_allclose(confidence, wanted, atol=2e-6)
    np.testing.assert_allclose(found.confidence, wanted, atol=2e-6)


@pytest.mark.parametrize("mask", [-jnp.inf, -1e9, float(jnp.finfo(jnp.float32).min)])
def test_masked_classes_set_no_scale(mask):
    logits = jnp.asarray(draw_logits(60)).at[:, 3].set(mask)
    found = match(logits, 0.6)
    assert found.reached
    np.testing.assert_allclose(found.temperature, match(logits[:, :3], 0.6).temperature, rtol=1e-4)


def test_no_logit_is_too_large():
    logits = jnp.asarray(draw_logits(60)).at[:5, 0].set(3e38)
    found = match(logits, 0.6)
    assert found.reached
    rest = match(logits[5:], (0.6 * 60 - 5) / 55)
    np.testing.assert_allclose(found.temperature, rest.temperature, rtol=1e-4)


def test_the_floor_and_what_cannot_be_reached():
    logits = jnp.asarray(draw_logits(100))
    free = match(logits, 0.9)
    held = match(logits, 0.9, at_least=2 * free.temperature)
    np.testing.assert_allclose(held.temperature, 2 * free.temperature)
    assert not held.reached
    assert held.confidence < 0.9
    tied = match(jnp.zeros((5, 4)), 0.9)
    assert not tied.reached
    np.testing.assert_allclose(tied.confidence, 0.25)
    impossible = jnp.asarray([[0.0, -jnp.inf], [0.0, -jnp.inf]])
    assert not match(impossible, 0.6).reached
    assert not match(logits, 0.1).reached


def test_weights_repeat_and_masks_leave_out():
    logits = draw_logits(30)
    counts = np.random.RandomState(2).randint(3, size=30)
    weighted = match(jnp.asarray(logits), 0.6, weights=jnp.asarray(counts, jnp.float32))
    repeated = match(jnp.asarray(np.repeat(logits, counts, axis=0)), 0.6)
    np.testing.assert_allclose(weighted.temperature, repeated.temperature, rtol=1e-4)
    spoilt = jnp.asarray(logits).at[3:].set(jnp.nan)
    kept = match(spoilt, 0.6, where=jnp.arange(30) < 3)
    np.testing.assert_allclose(
        kept.temperature, match(jnp.asarray(logits[:3]), 0.6).temperature, rtol=1e-4
    )
    assert jnp.isnan(match(spoilt, 0.6).temperature)
    assert jnp.isnan(match(jnp.asarray(logits), jnp.nan).temperature)
    assert jnp.isnan(match(jnp.asarray(logits), 0.6, where=jnp.zeros(30, bool)).temperature)


def test_matching_under_vmap_is_a_loop():
    logits = jnp.asarray(np.stack([draw_logits(50, seed=i) for i in range(3)]))
    wanted = jnp.array([0.4, 0.6, 0.8])
    together = jax.jit(jax.vmap(cm.shift.match_confidence))(logits, wanted)
    for i in range(3):
        np.testing.assert_allclose(
            together.temperature[i], match(logits[i], wanted[i]).temperature, rtol=1e-5
        )


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


def test_separability_strengthens_a_drop_of_confidence():
    def aim(told, target=0.6, error=0.0):
        values = [jnp.asarray(x) for x in (0.9, target, error, told)]
        return cm.shift.separability_confidence(*values, num_classes=10)

    np.testing.assert_allclose(aim(0.0), 0.6, rtol=1e-6)
    assert aim(0.9) < aim(0.5) < aim(0.2)
    np.testing.assert_allclose(aim(1.0), 0.1 + 0.5 * (0.5 / 0.8) ** 1.5, rtol=1e-5)
    np.testing.assert_allclose(aim(0.5), 0.1 + 0.5 * (0.5 / 0.8) ** 0.375, rtol=1e-5)
    np.testing.assert_allclose(aim(1.0, error=0.3), 0.6, rtol=1e-6)
    np.testing.assert_allclose(aim(1.0, target=0.95), 0.95, rtol=1e-6)
    values = [jnp.asarray(x) for x in (jnp.nan, 0.7, 0.0, 1.0)]
    assert jnp.isnan(cm.shift.separability_confidence(*values, num_classes=10))


# separability


def oracle_separability(a, b):
    rows = np.concatenate([a, b]).astype(np.float64)
    label = np.repeat([0, 1], [len(a), len(b)])
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    even = np.concatenate([np.arange(len(a)), np.arange(len(b))]) % 2 == 0
    areas = []
    for fold in (even, ~even):
        share = np.bincount(label[fold])[label[fold]]
        weight = 0.5 * fold.sum() / share
        model = LogisticRegression(C=0.01, tol=1e-8, max_iter=1000)
        model.fit(rows[fold], label[fold], sample_weight=weight)
        areas.append(roc_auc_score(label[~fold], model.decision_function(rows[~fold])))
    return np.clip(2 * np.mean(areas) - 1, 0, 1)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_separability_equals_a_general_solver(shift):
    rng = np.random.RandomState(5)
    a = rng.randn(301, 6).astype(np.float32)
    b = (rng.randn(200, 6) * np.linspace(0.5, 2, 6) + shift).astype(np.float32)
    found = separate(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, oracle_separability(a, b), atol=3e-3)


def test_coordinates_are_centred_logarithms():
    rng = np.random.RandomState(0)
    logs = np.log(rng.dirichlet(np.ones(3), (5, 2)))
    weights = np.array([[0.25, 0.75]] * 4 + [[0.0, 1.0]])  # taken for at least 1e-6
    gates = np.log(np.maximum(weights, 1e-6))
    expected = [(x - x.mean(axis=-1, keepdims=True)).reshape(5, -1) for x in (logs, gates)]
    found = cm.shift.configuration_coordinates(
        *(jnp.asarray(x, jnp.float32) for x in (logs, weights))
    )
    np.testing.assert_allclose(found, np.concatenate(expected, axis=1), atol=1e-5)


def test_accuracy_falls_by_the_slope():
    values = [jnp.asarray(x) for x in (0.9, 0.8, 0.7)]
    found = cm.shift.difference_of_confidences(*values, slope=2.0)
    np.testing.assert_allclose(found, 0.7, rtol=1e-6)


def test_separability_of_masked_samples_is_that_of_what_counts():
    rng = np.random.RandomState(0)
    a, b = (jnp.asarray(rng.randn(n, 3) + d, jnp.float32) for n, d in ((90, 0.0), (70, 0.5)))
    own, other = jnp.asarray(rng.rand(90) < 0.6), jnp.asarray(rng.rand(70) < 0.7)
    spoiled = jnp.where(own[:, None], a, jnp.nan), jnp.where(other[:, None], b, jnp.nan)
    found = separate(*spoiled, where=own, target_where=other)
    np.testing.assert_allclose(found, separate(a[own], b[other]), atol=1e-4)
    assert 0.1 < found < 0.9


def test_separability_of_scores_that_tie():
    rng = np.random.RandomState(5)
    a, b = (rng.binomial(2, p, size=(n, 1)).astype(np.float32) for p, n in ((0.4, 301), (0.6, 60)))
    found = separate(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, oracle_separability(a, b), atol=1e-4)
    assert separate(jnp.ones((40, 2)), jnp.ones((30, 2))) == 0


def test_separability_is_of_samples_of_any_sizes():
    rng = np.random.RandomState(5)
    a = rng.randn(901, 3).astype(np.float32)
    b = (rng.randn(41, 3) @ np.diag([3, 0.3, 1]) + [0.5, 0.3, 0]).astype(np.float32)
    found = separate(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found, oracle_separability(a, b), atol=3e-3)


def wide(size, *, of_all=0.0, of_last=0.0):
    """Two samples with 600 correlated columns, of which all shift, or the last one."""
    rng = np.random.RandomState(3)
    common = rng.randn(12, 600)
    a, b = (
        (rng.randn(n, 12) + shift) @ common + rng.randn(n, 600)
        for n, shift in ((size, 0.0), (size - 50, of_all))
    )
    b[:, -1] += of_last
    return [jnp.asarray(x, jnp.float32) for x in (a, b)]


# nothing is lost where rows are fewer than the directions; the leading ones hold little of the last
# column alone: its shift is seen by the difference of the means
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("size", "shift", "tolerance"),
    [
        (150, {"of_all": 0.3}, 3e-3),
        (900, {"of_last": 2.0}, 0.01),
        pytest.param(900, {"of_all": 0.2}, 0.01, marks=pytest.mark.exhaustive),
    ],
)
def test_separability_on_many_columns_is_near_the_exact_one(size, shift, tolerance):
    a, b = wide(size, **shift)
    exact = oracle_separability(np.asarray(a), np.asarray(b))
    assert 0.1 < exact < 0.9
    np.testing.assert_allclose(separate(a, b), exact, atol=tolerance)


def test_separability_on_many_columns_ignores_masked_rows_and_reports_nan():
    a, b = wide(150, of_all=0.3)
    where = jnp.arange(len(b)) < 60
    found = separate(a, jnp.where(where[:, None], b, jnp.nan), target_where=where)
    np.testing.assert_allclose(found, separate(a, b[:60]), atol=1e-5)
    assert jnp.isnan(separate(a.at[7, 5].set(jnp.nan), b))


def test_separability_ignores_scale_masked_rows_and_constant_columns():
    rng = np.random.RandomState(6)
    a = rng.randn(120, 3).astype(np.float32)
    b = rng.randn(80, 3).astype(np.float32) + 0.7
    plain = separate(jnp.asarray(a), jnp.asarray(b))
    scaled = separate(jnp.asarray(a * [1e-3, 1, 1e3] + 5), jnp.asarray(b * [1e-3, 1, 1e3] + 5))
    np.testing.assert_allclose(plain, scaled, atol=3e-3)
    padded = jnp.concatenate([jnp.asarray(b), jnp.full((50, 3), jnp.nan)])
    masked = separate(jnp.asarray(a), padded, target_where=jnp.arange(130) < 80)
    np.testing.assert_allclose(plain, masked, atol=1e-5)
    constant = [jnp.concatenate([jnp.asarray(x), jnp.full((len(x), 1), 7.0)], 1) for x in (a, b)]
    np.testing.assert_allclose(plain, separate(*constant), atol=1e-5)
    assert jnp.isnan(separate(jnp.asarray(a), padded))
    for some in (0, 1):
        few = separate(jnp.asarray(a), padded, target_where=jnp.arange(130) < some)
        assert few == 0
    assert separate(jnp.asarray(a[:1]), jnp.asarray(b + 9)) == 0


# balance


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


# verdicts


NAN = float("nan")


@pytest.mark.parametrize(
    ("p_value", "confidences", "decision"),
    [
        (0.3, (0.9, 0.9, 0.6), "keep"),
        (0.05, (0.9, 0.9, 0.9), "label_some"),
        (0.051, (0.9, 0.9, 0.9), "keep"),
        (0.01, (0.9, 0.896, 0.6), "label_some"),
        (0.01, (0.9, 0.8, 0.6), "lower_confidence"),
        (0.3, (0.9, 0.8, 0.8), "lower_confidence"),
        (NAN, (0.9, 0.8, 0.8), "lower_confidence"),
        (NAN, (0.9, 0.9, 0.8), "label_some"),
        (0.3, (NAN, 0.9, 0.8), "label_some"),
        (0.3, (0.9, NAN, 0.8), "label_some"),
        (0.3, (0.9, 0.9, NAN), "label_some"),
    ],
)
def test_verdicts(p_value, confidences, decision):
    found = cm.shift.repair_verdict(p_value, *confidences, 10_000, peers=True)
    assert found.decision == decision
    assert (found.labels == 0) == (decision == "keep")
    assert f"label {found.labels} targets" in found.reason or decision == "keep"
    assert "nan" not in found.reason
    before, safe, bold = confidences
    if decision == "lower_confidence":
        assert f"from {before:.3f} to {safe:.3f}" in found.reason
        assert ("bold would" in found.reason) == (bold < safe)


def test_more_labels_are_needed_for_a_smaller_gap_and_never_more_than_there_are():
    def labels(bold, num_targets=10_000, **options):
        return cm.shift.repair_verdict(0.01, 0.9, 0.9, bold, num_targets, peers=True, **options)

    for bold, gap in ((0.6, 0.3), (0.8, 0.1), (0.85, 0.1)):
        assert labels(bold).labels == cm.shift.few_labels.labels_needed(gap, share=0.5)
        assert f"half of a gap of {gap:.2f}" in labels(bold).reason
    # the gap is that of the temperature in distribution, also where safe closes some of it
    lowered = cm.shift.repair_verdict(0.01, 0.9, 0.8, 0.6, 10_000, peers=True)
    assert lowered.labels == labels(0.6).labels
    few = labels(0.8, 40, units="clusters of targets")
    assert few.labels == 40
    assert "label all 40 clusters of targets" in few.reason


def test_without_peers_it_is_said_why_safe_does_nothing():
    for peers in (True, False):
        found = cm.shift.repair_verdict(0.01, 0.9, 0.9, 0.8, 1000, peers=peers)
        assert ("no model of another seed" in found.reason) != peers


@pytest.mark.parametrize(
    ("share", "number", "options", "words"),
    [
        (0.4, 1000, {}, ("400 effective of 1000 held-out examples are like", "share 0.40")),
        (0.4, 1000, {"units": "clusters"}, ("held-out clusters are like",)),
        (0.09, 1000, {}, ("90 effective", "too few")),
        (0.9, 40, {}, ("36 effective", "too few")),
        (0.9, 1000, {"hard": True}, ("900 effective", "one expert per example")),
        (0.9, 1000, {"feasible": False}, ("no weights of held-out examples match",)),
        (NAN, 1000, {}, ("no weights of held-out examples match",)),
    ],
)
def test_what_a_balanced_temperature_rests_on(share, number, options, words):
    found = cm.shift.repair.balance_evidence(share, number, **{"hard": False, **options})
    for each in words:
        assert each in found
    assert ("too few" in found) == ("too few" in words)
    assert "nan" not in found


def test_too_few_clusters_give_no_verdict():
    for own, other in ((3, 3), (2, 3), (1, 1), (0, 5), (1, 9)):
        sides = {frozenset(x) for x in itertools.combinations(range(own + other), own)}
        if own == other:  # the sides have no names
            sides = {frozenset([side, frozenset(range(2 * own)) - side]) for side in sides}
        np.testing.assert_allclose(
            cm.shift.smallest_p_value(own, other), 1 / len(sides), rtol=1e-12
        )
    assert cm.shift.smallest_p_value(2_000_000, 1_000_000) == 0
    assert cm.shift.smallest_p_value(1000, 1000) < 1e-9
    for p_value in (0.01, 0.9):
        found = cm.shift.repair_verdict(
            p_value, 0.9, 0.9, 0.9, 1000, peers=True, smallest_p_value=0.1
        )
        assert found.decision == "label_some"
        assert "clusters" in found.reason


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
