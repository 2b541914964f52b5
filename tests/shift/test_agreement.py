"""Agreement of models with one training recipe, and the accuracy that it lets expect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive


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
