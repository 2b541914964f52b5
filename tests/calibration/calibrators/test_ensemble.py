"""Ensemble temperature scaling against scipy, and its certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.optimize

from calmoe_jax.calibration.calibrators import ensemble, fit_temperature

compiled = jax.jit(ensemble.fit_ensemble_temperature)
temperature_of = jax.jit(fit_temperature)


def fit_of(logits, labels, weights=None, where=None):
    size = len(labels)
    weights = jnp.ones(size) if weights is None else jnp.asarray(weights, jnp.float32)
    where = jnp.ones(size, bool) if where is None else jnp.asarray(where)
    return compiled(jnp.asarray(logits), jnp.asarray(labels), weights=weights, where=where)


def problem(seed=0, noise=0.3, scale=1.5):
    """Sharp logits, and labels a share of which is noise: the uniform part is needed."""
    rng = np.random.RandomState(seed)
    logits = rng.randn(300, 4) * 3
    labels = np.argmax(logits / 1.5 + rng.gumbel(size=(300, 4)), axis=-1)
    labels = np.where(rng.rand(300) < noise, rng.randint(4, size=300), labels)
    return (logits * scale).astype(np.float32), labels


def parts_of(logits, labels, temperature):
    rows = np.arange(len(labels))
    return np.stack(
        [
            references.softmax(logits / temperature)[rows, labels],
            references.softmax(logits)[rows, labels],
            np.full(len(labels), 1 / logits.shape[1]),
        ],
        axis=1,
    )


def loss(mixing, parts, weights=None):
    return np.average(-np.log(parts @ mixing), weights=weights)


@pytest.mark.parametrize(
    ("noise", "scale"), [(0.3, 1.5), (0.0, 1.0), (0.0, 12.0), (0.3, 0.015), (0.9, 1.5), (0.1, 0.3)]
)
def test_equals_scipy(noise, scale):
    for seed in range(3):
        logits, labels = problem(seed, noise, scale)
        fit = fit_of(logits, labels)
        assert fit.converged
        expected = references.temperature(logits, labels)
        np.testing.assert_allclose(fit.temperature, expected, rtol=1e-4)
        assert (fit.mixing >= 0).all()
        np.testing.assert_allclose(fit.mixing.sum(), 1, rtol=1e-6)
        parts = parts_of(logits.astype(np.float64), labels, float(fit.temperature))
        found = scipy.optimize.minimize(
            loss,
            np.full(3, 1 / 3),
            args=(parts,),
            method="SLSQP",
            bounds=[(0, 1)] * 3,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            options={"ftol": 1e-13, "maxiter": 500},
        )
        ours = loss(np.asarray(fit.mixing, np.float64), parts)
        np.testing.assert_allclose(ours, found.fun, atol=2e-6)


def test_the_residual_bounds_the_excess_loss():
    logits, labels = problem()
    fit = fit_of(logits, labels)
    parts = parts_of(logits.astype(np.float64), labels, float(fit.temperature))
    mixing = np.asarray(fit.mixing, np.float64)
    gain = np.mean(parts / (parts @ mixing)[:, None], axis=0)
    np.testing.assert_allclose(fit.residual, max(gain.max() - 1, 0), atol=3e-6)
    assert fit.mixing[2] > 0.05


def test_never_worse_than_temperature_scaling():
    for seed in range(3):
        logits, labels = problem(seed)
        fit = fit_of(logits, labels)
        rows = np.arange(300)
        ours = ensemble.apply_ensemble_temperature(fit, jnp.asarray(logits))
        np.testing.assert_allclose(ours.sum(-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(jnp.argmax(ours, -1), np.argmax(logits, -1))
        alone = references.softmax(logits / float(fit.temperature))
        assert -np.log(ours[rows, labels]).mean() < -np.log(alone[rows, labels]).mean()


def test_edges():
    logits, labels = problem()
    nothing = fit_of(logits, labels, weights=np.zeros(300))
    assert not nothing.converged
    np.testing.assert_array_equal(nothing.mixing, [1, 0, 0])
    right = fit_of(logits, np.argmax(logits, axis=-1))
    assert right.at_bound
    assert not right.converged
    np.testing.assert_allclose(right.mixing[0], 1, atol=1e-3)


def test_impossible_classes_stay_so():
    logits, labels = problem()
    more = np.concatenate([logits, np.full((300, 1), -np.inf, np.float32)], axis=1)
    fit, without = fit_of(more, labels), fit_of(logits, labels)
    np.testing.assert_allclose(fit.mixing, without.mixing, atol=1e-4)
    after = ensemble.apply_ensemble_temperature(fit, jnp.asarray(more))
    assert (after[:, 4] == 0).all()
    np.testing.assert_allclose(after.sum(-1), 1, rtol=1e-5)


def test_the_temperature_is_that_of_temperature_scaling():
    for seed in range(3):
        logits, labels = problem(seed)
        scaled = temperature_of(jnp.asarray(logits), jnp.asarray(labels))
        np.testing.assert_allclose(
            fit_of(logits, labels).temperature, scaled.temperature, rtol=1e-5
        )
