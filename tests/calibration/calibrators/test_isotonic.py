"""Isotonic calibration: fitted by scikit-learn, applied in JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from sklearn.isotonic import IsotonicRegression

from calmoe_jax.calibration.calibrators import isotonic
from calmoe_jax.calibration.calibrators import pool_adjacent_violators as isotonic_pool

apply = jax.jit(isotonic.apply_isotonic)


def events(seed=0, size=300):
    rng = np.random.RandomState(seed)
    confidence = np.round(rng.rand(size), 2).astype(np.float32)  # with ties
    return confidence, (rng.rand(size) < confidence**2).astype(np.float32)


def test_equals_scikit_learn_between_the_knots_too():
    for seed in range(3):
        confidence, outcome = events(seed)
        weights = np.random.RandomState(seed).rand(300).astype(np.float32)
        weights[:50] = 0
        fit = isotonic.fit_isotonic(
            *map(
                jnp.asarray,
                (
                    confidence,
                    outcome,
                ),
            ),
            weights=jnp.asarray(weights),
        )
        theirs = IsotonicRegression(out_of_bounds="clip").fit(
            confidence[50:].astype(np.float64), outcome[50:], sample_weight=weights[50:]
        )
        at = np.linspace(0, 1, 500)
        after = apply(fit, jnp.asarray(at, jnp.float32))
        np.testing.assert_allclose(after, theirs.predict(at), atol=1e-4)
        assert (jnp.diff(after) >= 0).all()


def test_each_level_keeps_its_mean():
    """Where the map is constant, the mean outcome is its value: it is calibrated in the sample."""
    confidence, outcome = events()
    fit = isotonic.fit_isotonic(jnp.asarray(confidence), jnp.asarray(outcome))
    after = np.asarray(apply(fit, jnp.asarray(confidence)))
    for level in np.unique(after):
        np.testing.assert_allclose(outcome[after == level].mean(), level, atol=1e-6)


def test_edges():
    confidence, outcome = map(jnp.asarray, events())
    fit = isotonic.fit_isotonic(confidence[:0], outcome[:0])
    np.testing.assert_allclose(apply(fit, confidence), confidence, atol=1e-7)
    one = isotonic.fit_isotonic(confidence[:1], jnp.ones(1))
    assert (apply(one, confidence) == 1).all()


def test_classwise_equals_a_loop_and_sums_to_one():
    rng = np.random.RandomState(0)
    probs = references.softmax(rng.randn(200, 3) * 2)
    labels = np.argmax(np.log(probs) / 2 + rng.gumbel(size=(200, 3)), axis=-1)
    given = jnp.asarray(probs, jnp.float32)
    fit = isotonic.fit_classwise_isotonic(given, jnp.asarray(labels))
    assert fit.knots.shape[0] == 3
    ours = jax.jit(isotonic.apply_classwise_isotonic)(fit, given)
    columns = [
        IsotonicRegression(out_of_bounds="clip").fit(p, labels == c).predict(p)
        for c, p in enumerate(np.asarray(given, np.float64).T)
    ]
    expected = np.stack(columns, axis=1)
    total = expected.sum(axis=1, keepdims=True)
    expected = np.where(total == 0, 1 / 3, expected / np.where(total == 0, 1, total))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    np.testing.assert_allclose(ours.sum(-1), 1, rtol=1e-6)
    strange = isotonic.apply_classwise_isotonic(fit, given.at[0, 0].set(np.nan))
    np.testing.assert_array_equal(jnp.isnan(strange).all(-1), np.arange(200) == 0)


def test_labels_are_integers(unchecked):
    with pytest.raises(TypeError, match="labels must be of integers"):
        isotonic.fit_classwise_isotonic(jnp.full((2, 2), 0.5), jnp.zeros(2))


def test_a_row_with_all_classes_at_0_is_uniform():
    fit = isotonic.IsotonicFit(jnp.array([[0.0, 1.0]] * 2), jnp.zeros((2, 2)))
    np.testing.assert_array_equal(
        isotonic.apply_classwise_isotonic(fit, jnp.array([[0.3, 0.7]])), [[0.5, 0.5]]
    )


def test_tracing_is_an_error():
    confidence, outcome = map(jnp.asarray, events())
    with pytest.raises(TypeError, match="confidence must be an array with values"):
        jax.jit(isotonic.fit_isotonic)(confidence, outcome)
    probs = jnp.stack([confidence, 1 - confidence], axis=1)
    with pytest.raises(TypeError, match="labels must be an array with values"):
        jax.jit(lambda y: isotonic.fit_classwise_isotonic(probs, y))(jnp.zeros(300, jnp.int32))


@pytest.mark.parametrize("seed", range(3))
def test_pooling_under_jit_gives_the_same_map(seed):
    confidence, outcome = map(jnp.asarray, events(seed))
    weights = np.random.RandomState(seed).rand(300).astype(np.float32)
    weights[:40] = 0
    where = jnp.arange(300) % 7 > 0
    confidence = confidence.at[0].set(jnp.nan)  # of weight 0
    given = {"weights": jnp.asarray(weights), "where": where}
    found = jax.jit(isotonic_pool)(confidence, outcome, **given)
    expected = isotonic.fit_isotonic(confidence, outcome, **given)
    at = jnp.linspace(0, 1, 501)
    np.testing.assert_allclose(apply(found, at), apply(expected, at), atol=2e-5)
    assert (jnp.diff(found.knots) >= 0).all()
    assert (jnp.diff(found.values) >= 0).all()


def test_pooling_of_runs_that_take_many_rounds_and_of_batches():
    confidence = jnp.linspace(0, 1, 64)
    falling = jnp.stack([1 - confidence, confidence, jnp.sqrt(confidence) % 0.3])
    batch = jax.jit(jax.vmap(lambda outcome: isotonic_pool(confidence, outcome)))(falling)
    for outcome, fit in zip(falling, zip(*batch, strict=True), strict=True):
        theirs = IsotonicRegression().fit_transform(np.float64(confidence), np.float64(outcome))
        np.testing.assert_allclose(fit[1], theirs, atol=1e-6)
    np.testing.assert_allclose(batch.values[0], 0.5, atol=1e-6)


def test_pooling_reports_what_it_cannot_fit():
    confidence, outcome = jnp.array([0.2, 0.4, 0.6]), jnp.array([0.0, 1.0, 1.0])
    for given in (
        {"confidence": confidence.at[1].set(jnp.nan)},
        {"confidence": confidence.at[1].set(1.5)},
        {"outcome": outcome.at[0].set(jnp.nan)},
        {"weights": jnp.array([1.0, -1.0, 1.0])},
        {"where": jnp.zeros(3, bool)},
    ):
        fit = isotonic_pool(**{"confidence": confidence, "outcome": outcome} | given)
        assert jnp.isnan(fit.values).all(), given
    assert jnp.isnan(isotonic_pool(confidence[:0], outcome[:0]).values).all()
    assert isotonic_pool(confidence[:1], outcome[1:2]).values == 1
