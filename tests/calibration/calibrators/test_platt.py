"""Calibrators of one event: Platt, beta and histogram binning, against scipy and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from sklearn.calibration import _SigmoidCalibration

from calmoe_jax.calibration.calibrators import beta, histogram, platt


def compiled(fit, static=()):
    """One compilation for all that have a shape and dtype."""
    jitted = jax.jit(fit, static_argnames=static)

    def run(confidence, outcome, weights=None, where=None, **options):
        weights = jnp.ones(len(outcome)) if weights is None else weights
        where = jnp.ones(len(outcome), bool) if where is None else where
        return jitted(
            confidence, outcome.astype(confidence.dtype), weights=weights, where=where, **options
        )

    return run


fit_platt = compiled(platt.fit_platt)
fit_beta = compiled(beta.fit_beta)
fit_histogram = compiled(histogram.fit_histogram_binning, ("num_bins",))


def events(seed=0, size=200, power=1.7):
    """Confidences, and events that happen with confidence to a power."""
    rng = np.random.RandomState(seed)
    confidence = rng.rand(size)
    return confidence.astype(np.float32), (rng.rand(size) < confidence**power).astype(np.float32)


def log_loss(x, columns, outcome, weights=None):
    scores = columns @ x
    return np.average(np.logaddexp(0, scores) - outcome * scores, weights=weights)


@pytest.mark.parametrize("scale", [1.0, 8.0, 0.01])
def test_platt_equals_scikit_learn(scale):
    for seed in range(3):
        confidence, outcome = events(seed)
        score = (scipy.special.logit(np.clip(confidence, 0.01, 0.99)) * scale).astype(np.float32)
        weights = np.random.RandomState(seed).rand(200).astype(np.float32)
        fit = fit_platt(*map(jnp.asarray, (score, outcome)), weights=jnp.asarray(weights))
        assert fit.converged
        theirs = _SigmoidCalibration().fit(score, outcome, sample_weight=weights)
        np.testing.assert_allclose(
            platt.apply_platt(fit, jnp.asarray(score)), theirs.predict(score), atol=1e-3
        )
        happened, missed = np.sum(weights * outcome), np.sum(weights * (1 - outcome))
        target = np.where(outcome > 0, (happened + 1) / (happened + 2), 1 / (missed + 2))
        columns = np.stack([score / scale, np.ones(200)], axis=1)
        least = functools.partial(log_loss, columns=columns, outcome=target, weights=weights)
        found = scipy.optimize.minimize(least, [1, 0], options={"gtol": 1e-9})
        np.testing.assert_allclose(
            [fit.slope * scale, fit.offset], found.x, atol=2e-5, err_msg=str(seed)
        )


def test_platt_has_an_optimum_for_separable_scores():
    score = jnp.linspace(-2, 2, 200)
    fit = fit_platt(score, score > 0)
    assert fit.converged
    assert 0 < fit.slope < 100
    one = fit_platt(score, score > 3)
    assert one.converged
    np.testing.assert_allclose(platt.apply_platt(one, jnp.ones(1)), 1 / 202, atol=1e-5)


@pytest.mark.parametrize("power", [0.3, 1.0, 3.0, -0.5])
def test_beta_equals_scipy_within_its_bounds(power):
    for seed in range(3):
        confidence, outcome = events(seed)
        if power < 0:  # events that happen the less the likelier they seem
            outcome = 1 - outcome
        else:
            confidence, outcome = events(seed, power=power)
        outcome[:5] = 1 - outcome[:5]
        fit = fit_beta(jnp.asarray(confidence), jnp.asarray(outcome))
        assert fit.converged
        given = np.float64(confidence)
        columns = np.stack([np.log(given), -np.log1p(-given), np.ones(200)], axis=1)
        least = functools.partial(log_loss, columns=columns, outcome=outcome)
        found = scipy.optimize.minimize(
            least,
            [1, 1, 0],
            method="L-BFGS-B",
            bounds=[(0, None), (0, None), (None, None)],
            options={"ftol": 1e-15, "gtol": 1e-9},
        )
        ours = np.array([fit.low, fit.high, fit.offset], np.float64)
        assert (ours[:2] >= 0).all()
        np.testing.assert_allclose(least(ours), found.fun, atol=1e-7)
        if power < 0:
            assert (ours[:2] == 0).any()


def test_beta_contains_the_identity_and_inverts_beta_maps():
    confidence = np.linspace(0.02, 0.98, 200)
    for low, high, offset in [(1, 1, 0), (0.5, 2, 0.3), (2, 0, -0.5)]:
        scores = low * np.log(confidence) - high * np.log1p(-confidence) + offset
        chance = jnp.asarray(scipy.special.expit(scores), jnp.float32)
        fit = fit_beta(jnp.asarray(confidence, jnp.float32), chance)
        np.testing.assert_allclose([fit.low, fit.high, fit.offset], [low, high, offset], atol=1e-3)


def test_beta_accepts_0_and_1_and_is_monotone():
    confidence, outcome = events()
    confidence[:4] = [0, 1, 0, 1]
    fit = fit_beta(jnp.asarray(confidence), jnp.asarray(outcome))
    assert fit.converged
    after = beta.apply_beta(fit, jnp.linspace(0, 1, 50))
    assert jnp.isfinite(after).all()
    assert (jnp.diff(after) >= 0).all()


def test_beta_without_a_finite_optimum_is_at_bound():
    confidence, outcome = events()
    for truth in (outcome * 0, outcome * 0 + 1, confidence > 0.5):
        fit = fit_beta(jnp.asarray(confidence), jnp.asarray(truth, jnp.float32))
        assert fit.at_bound
        assert not fit.converged
        np.testing.assert_allclose(beta.apply_beta(fit, jnp.asarray(confidence)), truth, atol=0.05)


@pytest.mark.parametrize("num_bins", [1, 7, pytest.param(15, marks=pytest.mark.exhaustive)])
def test_histogram_equals_a_loop(num_bins):
    confidence, outcome = events()
    confidence[:3] = [0, 1, 1 / 7]
    confidence = np.where((confidence > 0.3) & (confidence < 0.6), 0.65, confidence)
    weights = np.random.RandomState(2).rand(200).astype(np.float32)
    given = jnp.asarray(confidence, jnp.float32)
    fit = fit_histogram(
        given, jnp.asarray(outcome), weights=jnp.asarray(weights), num_bins=num_bins
    )
    after = histogram.apply_histogram_binning(fit, given)
    for b in range(num_bins):
        low, high = np.float32(b / num_bins), np.float32((b + 1) / num_bins)
        last = (confidence >= low) & (b == num_bins - 1)
        inside = ((np.asarray(given) >= low) & (np.asarray(given) < high)) | last
        if inside.any():
            mean = np.average(outcome[inside], weights=weights[inside])
            np.testing.assert_allclose(np.asarray(after)[inside], mean, atol=1e-5)
            np.testing.assert_allclose(fit.weight[b], weights[inside].sum(), rtol=1e-5)
        else:
            assert fit.probability[b] == np.float32((b + 0.5) / num_bins)
            assert fit.weight[b] == 0


def test_double_precision_stays():
    with jax.enable_x64(True):
        level, happened = (jnp.asarray(x, jnp.float64) for x in events())
        fit = fit_beta(level, happened)
        assert fit.low.dtype == jnp.float64
        assert fit.converged
        assert fit.residual < 1e-10
