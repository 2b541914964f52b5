"""Sums over ten million examples in float32, against float64.

Adding number by number loses a tenth of such a sum where the numbers are alike: a constant
forecast is the worst case, two levels and a uniform one stand for the rest.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import calmoe_jax as cm
from calmoe_jax.calibration import calibrators, intervals
from calmoe_jax.calibration.metrics.smooth import smooth_calibration_error

SIZE = 10_000_000
FORECASTS = ["constant", *(pytest.param(x, marks=pytest.mark.exhaustive) for x in ("two", "even"))]
every = pytest.mark.parametrize("forecast", FORECASTS)
pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


@functools.cache
def confidence(forecast):
    rng = np.random.RandomState(0)
    return {
        "constant": lambda: np.full(SIZE, 0.6, np.float32),
        "two": lambda: np.where(rng.rand(SIZE) < 0.3, np.float32(0.1), np.float32(0.7)),
        "even": lambda: rng.rand(SIZE).astype(np.float32),
    }[forecast]()


@functools.cache
def happened():
    """A tenth happens, whatever the forecast."""
    return np.random.RandomState(1).rand(SIZE) < 0.1


def given(forecast):
    return jnp.asarray(confidence(forecast)), jnp.asarray(happened())


def exact(forecast):
    return confidence(forecast).astype(np.float64), happened().astype(np.float64)


@every
def test_smooth_error_of_what_never_happens(forecast):
    """Residuals of one sign: smoothing moves them, and keeps their sum."""
    level = confidence(forecast)
    error = jax.jit(smooth_calibration_error)(jnp.asarray(level), jnp.zeros(SIZE, bool))
    np.testing.assert_allclose(error.value, level.mean(dtype=np.float64), rtol=1e-4)


@every
def test_sums_of_bins(forecast):
    level, event = exact(forecast)
    index = np.minimum((level * 15).astype(int), 14)
    miss = level - event
    found = jax.jit(cm.calibration.reliability_bins)(*given(forecast))
    columns = np.ones(SIZE), level, miss, np.ones(SIZE), miss**2, miss
    for ours, column in zip(found, columns, strict=True):
        wanted = np.bincount(index, column, 15)
        np.testing.assert_allclose(ours, wanted, rtol=2e-6, atol=1e-6 * SIZE)


@every
def test_decomposition_of_the_brier_score(forecast):
    level, event = exact(forecast)
    found = jax.jit(cm.calibration.brier_decomposition)(*given(forecast))
    np.testing.assert_allclose(found.score, np.mean((level - event) ** 2), rtol=2e-6)
    np.testing.assert_allclose(found.uncertainty, event.mean() * (1 - event.mean()), rtol=1e-5)
    inside = np.minimum((level * 15).astype(int), 14)
    centre = np.bincount(inside, level, 15) / np.maximum(np.bincount(inside, minlength=15), 1)
    np.testing.assert_allclose(
        found.within_variance, np.mean((level - centre[inside]) ** 2), rtol=1e-4, atol=1e-7
    )


@every
def test_sums_of_clusters(forecast):
    """Two clusters: the sum of each is that of millions."""
    level, event = exact(forecast)
    cluster = np.arange(SIZE) % 2
    summed = jax.jit(functools.partial(intervals.cluster_sums, num_clusters=2))
    found = summed(jnp.asarray(confidence(forecast)), jnp.asarray(cluster))
    np.testing.assert_allclose(found, np.bincount(cluster, level), rtol=1e-6)
    binned = jax.jit(functools.partial(intervals.cluster_bins, num_clusters=2, num_bins=1))
    bins = binned(*given(forecast), jnp.asarray(cluster))
    np.testing.assert_allclose(
        bins.residual[:, 0], np.bincount(cluster, level - event), rtol=2e-6, atol=1
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("forecast", ["constant", "two", "even"])
def test_a_state(forecast):
    level, event = exact(forecast)
    both = jnp.stack([1 - given(forecast)[0], given(forecast)[0]], axis=-1)
    labels = jnp.asarray(happened().astype(np.int32))
    state = jax.jit(cm.calibration.update_state)(
        cm.calibration.init_state(num_classes=2), both, labels
    )
    summary = cm.calibration.summarise(state)
    with np.errstate(divide="ignore"):
        losses = -np.log(np.where(event > 0, level, 1 - level))
    wanted = np.mean(losses)
    assert np.isfinite(wanted)
    np.testing.assert_allclose(summary.negative_log_likelihood, wanted, rtol=2e-6)
    np.testing.assert_allclose(summary.brier_score, 2 * np.mean((level - event) ** 2), rtol=2e-6)
    top = np.maximum(level, 1 - level)
    right = (level > 0.5) == (event > 0)
    np.testing.assert_allclose(summary.accuracy, right.mean(), atol=1e-6)
    np.testing.assert_allclose(summary.confidence_gap, np.mean(top - right), rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("forecast", ["constant", "two", "even"])
def test_groups_and_means(forecast):
    level, event = exact(forecast)
    grouped = jax.jit(functools.partial(cm.calibration.gap_by_statistic, num_groups=1))
    found = grouped(*given(forecast)[:1], *given(forecast))
    miss = level - event
    np.testing.assert_allclose(found.gap[0], miss.mean(), rtol=2e-6)
    error = miss.std() / np.sqrt(SIZE)
    np.testing.assert_allclose(found.standard_error[0], error, rtol=1e-5)
    mean = jax.jit(functools.partial(intervals.mean, num_replicates=10))
    value = mean(jax.random.key(0), given(forecast)[0]).value
    np.testing.assert_allclose(value, level.mean(), rtol=1e-6)


@pytest.mark.exhaustive
def test_temperature_and_platt_of_two_levels():
    """Two levels of log odds, whose best maps have closed forms."""
    odds = np.where(np.arange(SIZE) % 2 == 0, np.float32(1), np.float32(3))
    chance = np.where(odds == 1, 0.6, 0.9)
    event = np.random.RandomState(0).rand(SIZE) < chance
    labels = jnp.asarray(event.astype(np.int32))
    logits = jnp.stack([jnp.zeros(SIZE), jnp.asarray(odds)], axis=-1)
    fit = jax.jit(calibrators.fit_temperature)(logits, labels)
    rates = np.array([event[::2].mean(), event[1::2].mean()])
    # slope in 1/T: sum of odds times (predicted minus actual rate)
    scaled = np.array([1.0, 3.0]) / float(fit.temperature)
    slope = np.dot([1.0, 3.0], scipy.special.expit(scaled) - rates)
    assert abs(slope) < 3e-6
    assert fit.converged
    platt = jax.jit(calibrators.fit_platt)(jnp.asarray(odds), jnp.asarray(event))
    high, low = (event.sum() + 1) / (event.sum() + 2), 1 / ((~event).sum() + 2)
    wanted = scipy.special.logit(rates * high + (1 - rates) * low)
    found = platt.slope * np.array([1.0, 3.0]) + platt.offset
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


@pytest.mark.exhaustive
def test_matrix_scaling_of_two_levels():
    odds = np.where(np.arange(SIZE) % 2 == 0, np.float32(1), np.float32(3))
    event = np.random.RandomState(0).rand(SIZE) < np.where(odds == 1, 0.6, 0.9)
    logits = jnp.stack([jnp.zeros(SIZE), jnp.asarray(odds)], axis=-1)
    fit = jax.jit(calibrators.fit_matrix_scaling)(logits, jnp.asarray(event.astype(np.int32)))
    shown = jnp.array([[0.0, 1.0], [0.0, 3.0]])
    rates = np.array([event[::2].mean(), event[1::2].mean()])
    found = calibrators.apply_matrix_scaling(fit, shown)[:, 1]
    np.testing.assert_allclose(found, rates, rtol=1e-4)


@pytest.mark.exhaustive
def test_kernel_error_of_many_tiles():
    """Thousands of tiles of equal terms."""
    size = 20_000
    probs = jnp.tile(jnp.array([[0.4, 0.6]]), (size, 1))
    found = jax.jit(cm.calibration.squared_kernel_calibration_error)(probs, jnp.zeros(size, int))
    np.testing.assert_allclose(found, 2 * np.float64(np.float32(0.6)) ** 2, rtol=1e-6)
