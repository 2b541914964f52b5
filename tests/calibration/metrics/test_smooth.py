"""Smooth calibration errors against direct summation, and their fixed point and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.optimize

import calmoe_jax as cm
from calmoe_jax.calibration.metrics.smooth import smooth_null_level

pytestmark = pytest.mark.exhaustive

jitted_smooth = jax.jit(cm.calibration.smooth_calibration_error)
jitted_soft_binned = jax.jit(
    cm.calibration.soft_binned_error, static_argnames=("num_bins", "bin_temperature")
)
null_level = jax.jit(smooth_null_level, static_argnames=("num_replicates", "probability"))


def with_defaults(confidence, outcome, weights=None, where=None):
    """With arrays for the defaults, so that one compilation serves most tests."""
    size = len(confidence)
    return {
        "confidence": confidence,
        "outcome": outcome.astype(jnp.float32),
        "weights": jnp.ones(size) if weights is None else weights,
        "where": jnp.ones(size, bool) if where is None else where,
    }


def smooth(*args, bandwidth=None, **options):
    return jitted_smooth(**with_defaults(*args, **options), bandwidth=bandwidth)


def soft_binned(*args, num_bins=15, bin_temperature=0.01, **options):
    return jitted_soft_binned(
        **with_defaults(*args, **options), num_bins=num_bins, bin_temperature=bin_temperature
    )


def problem(kind="spread", size=80):
    rng = np.random.RandomState(len(kind))
    confidence = {
        "spread": lambda: rng.rand(size),
        "few levels": lambda: rng.randint(4, size=size) / 3,
        "near zero": lambda: rng.rand(size) ** 8,
        "near one": lambda: 1 - rng.rand(size) ** 8,
        "confident": lambda: np.full(size, 0.9),
        "at the walls": lambda: rng.randint(2, size=size),
    }[kind]()
    return confidence.astype(np.float32), rng.rand(size) < 0.2 + 0.6 * confidence**2


KINDS = ("spread", "few levels", "near zero", "near one", "confident", "at the walls")


def assert_same(found, expected, atol=1e-6):
    np.testing.assert_allclose(found.value, expected.value, atol=atol)
    np.testing.assert_allclose(found.bandwidth, expected.bandwidth, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_smooth_error_is_a_fixed_point_of_direct_summation(kind):
    confidence, outcome = problem(kind)
    found = smooth(jnp.asarray(confidence), jnp.asarray(outcome))
    direct = references.smooth_error(
        confidence.astype(np.float64), outcome.astype(float), float(found.bandwidth)
    )
    np.testing.assert_allclose(found.value, direct, atol=1e-6)
    np.testing.assert_allclose(found.value, found.bandwidth, atol=2e-6)
    assert found.value > 0.01


@pytest.mark.parametrize("bandwidth", [0.01, 0.1, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_given_bandwidth_equals_direct_summation(kind, bandwidth):
    confidence, outcome = problem(kind)
    found = smooth(jnp.asarray(confidence), jnp.asarray(outcome), bandwidth=bandwidth)
    direct = references.smooth_error(
        confidence.astype(np.float64), outcome.astype(float), bandwidth
    )
    # the grid's cells add the square of 1/5000 to that of the bandwidth
    np.testing.assert_allclose(found.value, direct, atol=2e-6 if bandwidth > 0.05 else 1e-4)
    np.testing.assert_allclose(found.bandwidth, bandwidth)


def test_the_error_falls_with_the_bandwidth_to_the_gap():
    confidence, outcome = map(jnp.asarray, problem())
    values = [
        float(smooth(confidence, outcome, bandwidth=b).value)
        for b in (0.01, 0.03, 0.1, 0.3, 1.0, 9.0)
    ]
    assert (np.diff(values) < 1e-6).all()
    np.testing.assert_allclose(values[-1], abs(np.mean(confidence - outcome)), rtol=1e-5)


def fixed_point(confidence, outcome):
    def above(bandwidth):
        return references.smooth_error(confidence, outcome, bandwidth) - bandwidth

    return scipy.optimize.brentq(above, 0.01, 1, xtol=1e-12)


def test_smooth_gradient_is_that_of_the_fixed_point():
    confidence = np.linspace(0.05, 0.95, 12)  # residuals of either sign in turn
    outcome = np.where(np.arange(12) // 2 % 2 == 0, 0.9, 0.1)

    def at(bandwidth):
        def error(p, y):
            return cm.calibration.smooth_calibration_error(p, y, bandwidth=bandwidth).value

        return jax.jit(jax.grad(error, argnums=(0, 1)))(
            jnp.asarray(confidence), jnp.asarray(outcome)
        )

    with jax.enable_x64(True):
        gradient, held = at(None), at(fixed_point(confidence, outcome))
    numeric = (
        references.central_difference(lambda p: fixed_point(p, outcome), confidence, 1e-4),
        references.central_difference(lambda y: fixed_point(confidence, y), outcome, 1e-4),
    )
    np.testing.assert_allclose(gradient, numeric, atol=1e-4)
    # a bandwidth that stays would give another one
    assert np.abs(np.subtract(held, numeric)).max() > 0.01


def test_smooth_gradient_at_zero_error_is_finite():
    gradient = jax.jit(
        jax.grad(lambda p: cm.calibration.smooth_calibration_error(p, p * 0.0).value)
    )
    assert jnp.isfinite(gradient(jnp.zeros(5))).all()


def test_what_is_no_probability_makes_the_smooth_errors_nan():
    confidence, outcome = map(jnp.asarray, problem())
    weights = jnp.ones(80)
    for bad in (-0.1, 1.1):
        wrong = confidence.at[3].set(bad)
        assert jnp.isnan(smooth(wrong, outcome, weights=weights).value)
        assert jnp.isnan(soft_binned(wrong, outcome))
        outcomes = outcome.astype(jnp.float32).at[3].set(bad)
        assert jnp.isnan(smooth(confidence, outcomes, weights=weights).value)


def test_null_level_equals_a_simulation():
    confidence, _ = problem("few levels")
    weights = np.arange(80) % 3 + 1.0
    rng = np.random.RandomState(0)
    outcome = jnp.asarray(rng.rand(200, 80) < confidence[None, :])
    draws = jax.jit(
        lambda every: jax.lax.map(
            lambda y: (
                cm.calibration.smooth_calibration_error(
                    jnp.asarray(confidence), y, weights=jnp.asarray(weights, jnp.float32)
                ).value
            ),
            every,
        )
    )(outcome)
    options = {"weights": jnp.asarray(weights, jnp.float32), "num_replicates": 200}
    found = null_level(jax.random.key(0), jnp.asarray(confidence), **options)
    assert abs(found.mean - draws.mean()) < 4 * draws.std() * np.sqrt(2 / 200)
    # four standard errors of the difference in share
    assert abs((draws > found.quantile).mean() - 0.05) < 4 * np.sqrt(2 * 0.05 * 0.95 / 200)


def test_null_level_masks_leave_out_and_certainty_is_never_wrong():
    confidence = jnp.asarray(problem()[0])
    keep = jnp.arange(80) % 3 != 0
    key, options = jax.random.key(0), {"num_replicates": 20}
    clean = null_level(key, confidence, where=keep, **options)
    masked = null_level(key, jnp.where(keep, confidence, jnp.nan), where=keep, **options)
    assert 0 < clean.mean < clean.quantile
    assert clean == masked
    for bad in (
        null_level(key, confidence.at[1].set(jnp.nan), where=keep, **options),
        null_level(key, confidence, where=jnp.zeros(80, bool), **options),
    ):
        assert jnp.isnan(bad.mean)
        assert jnp.isnan(bad.quantile)
    certain = null_level(key, jnp.round(confidence), where=keep, **options)
    assert certain == (0, 0)


def test_smooth_error_of_a_calibrated_sample_is_small():
    rng = np.random.RandomState(0)
    confidence = rng.rand(2000).astype(np.float32)
    outcome = rng.rand(2000) < confidence
    found = smooth(jnp.asarray(confidence), jnp.asarray(outcome))
    direct = references.smooth_error(
        confidence.astype(np.float64), outcome.astype(float), float(found.bandwidth)
    )
    np.testing.assert_allclose(found.value, direct, atol=1e-5)
    assert found.value < 0.05
    assert smooth(jnp.asarray(confidence**2), jnp.asarray(outcome)).value > 0.1


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_one_level_has_the_error_of_its_mean(level):
    """The kernel keeps its mass at the walls, so the residuals of one level cannot cancel."""
    confidence = jnp.full(80, level)
    for right in (0, 24, 80):
        found = smooth(confidence, jnp.arange(80) < right)
        expected = abs(level - right / 80)
        if expected:
            np.testing.assert_allclose(found.value, expected, rtol=1e-5)
            np.testing.assert_allclose(found.bandwidth, expected, rtol=1e-5)
        else:
            assert found.value < 1e-6
            assert found.bandwidth < 1e-3


def test_smooth_weights_repeat_and_masks_leave_out():
    confidence, outcome = map(jnp.asarray, problem())
    times = np.random.RandomState(1).randint(4, size=80)
    where = np.arange(80) % 3 != 0
    found = smooth(
        confidence, outcome, weights=jnp.asarray(times, jnp.float32), where=jnp.asarray(where)
    )
    rows = np.repeat(np.arange(80), np.where(where, times, 0))
    assert_same(found, smooth(confidence[rows], outcome[rows]))


def test_smooth_nan_counts_only_where_it_has_weight():
    confidence, outcome = map(jnp.asarray, problem())
    poisoned, kept = confidence.at[3].set(jnp.nan), jnp.arange(80) != 3
    clean = smooth(confidence, outcome, where=kept)
    assert_same(smooth(poisoned, outcome, where=kept), clean, atol=0)
    assert_same(smooth(poisoned, outcome, weights=kept.astype(jnp.float32)), clean, atol=0)
    assert jnp.isnan(smooth(poisoned, outcome).value)


def test_smooth_nothing_counts():
    confidence, outcome = map(jnp.asarray, problem())
    assert jnp.isnan(smooth(jnp.zeros(0), jnp.zeros(0)).value)
    assert jnp.isnan(smooth(confidence, outcome, where=jnp.zeros(80, bool)).value)
    assert jnp.isnan(smooth(confidence, outcome, weights=jnp.zeros(80)).value)


def test_smooth_transforms_and_orders_agree():
    confidence, outcome = map(jnp.asarray, problem("few levels"))
    expected = smooth(confidence, outcome)
    order = np.random.RandomState(0).permutation(80)
    assert_same(smooth(confidence[order], outcome[order]), expected)
    assert_same(smooth(1 - confidence, ~outcome), expected)
    confidence, outcome = confidence.reshape(2, 40), outcome.reshape(2, 40)
    mapped = jax.jit(jax.vmap(cm.calibration.smooth_calibration_error))(confidence, outcome)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], mapped)
        assert_same(one, smooth(confidence[i], outcome[i]))


@pytest.mark.exhaustive  # a hundred programs
def test_smooth_eager_agrees_with_jitted():
    confidence, outcome = map(jnp.asarray, problem("few levels"))
    eager = cm.calibration.smooth_calibration_error(confidence, outcome, bandwidth=0.1)
    assert_same(eager, smooth(confidence, outcome, bandwidth=0.1))


def test_smooth_outcomes_may_be_probabilities():
    confidence, _ = map(jnp.asarray, problem())
    truth = jnp.square(confidence)
    both = jnp.tile(confidence, 2), jnp.repeat(jnp.array([True, False]), 80)
    expected = smooth(*both, weights=jnp.concatenate([truth, 1 - truth]))
    assert_same(smooth(confidence, truth), expected)
    assert smooth(confidence, confidence).value < 1e-6


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.exhaustive)]
)
def test_computed_in_float32(dtype):
    confidence, outcome = map(jnp.asarray, problem())
    rough = confidence.astype(dtype)
    found = smooth(rough, outcome)
    assert found.value.dtype == found.bandwidth.dtype == jnp.float32
    assert_same(found, smooth(rough.astype(jnp.float32), outcome))
    soft = soft_binned(rough, outcome)
    assert soft.dtype == jnp.float32
    np.testing.assert_allclose(soft, soft_binned(rough.astype(jnp.float32), outcome), rtol=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize("seed", range(3))
def test_smooth_error_equals_relplot(seed, monkeypatch):
    # relplot halves what it puts on 0 and 1 exactly, so the comparison stays clear of them
    relplot = pytest.importorskip("relplot")
    monkeypatch.setattr(relplot.config, "smECE_mesh_pts", 8000)
    rng = np.random.RandomState(seed)
    confidence = 0.05 + 0.9 * rng.rand(400)
    outcome = rng.rand(400) < confidence**1.5
    found = smooth(jnp.asarray(confidence, jnp.float32), jnp.asarray(outcome))
    at_ours = relplot.smECE_sigma(confidence, outcome.astype(float), float(found.bandwidth))
    np.testing.assert_allclose(found.value, at_ours, atol=1e-4)
    # its search for the bandwidth stops at steps of 2^-10
    np.testing.assert_allclose(
        found.value, relplot.smECE(confidence, outcome.astype(float)), atol=2**-10
    )


@pytest.mark.parametrize(
    ("num_bins", "bin_temperature"),
    [(15, 0.01), (5, 0.1), pytest.param(1, 0.01, marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize("kind", KINDS)
def test_soft_binned_error_equals_a_loop(kind, num_bins, bin_temperature):
    confidence, outcome = problem(kind)
    options = {"num_bins": num_bins, "bin_temperature": bin_temperature}
    found = soft_binned(jnp.asarray(confidence), jnp.asarray(outcome), **options)
    expected = references.soft_binned_error(confidence, outcome, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_soft_binned_gradient_equals_finite_differences():
    confidence, outcome = problem(size=12)
    where = np.arange(12) % 4 != 0
    with jax.enable_x64(True):
        gradient = jax.jit(
            jax.grad(
                lambda p: cm.calibration.soft_binned_error(
                    p, jnp.asarray(outcome), where=jnp.asarray(where)
                )
            )
        )(jnp.asarray(confidence, jnp.float64))
    numeric = references.central_difference(
        lambda p: references.soft_binned_error(p[where], outcome[where]), confidence
    )
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8)


def test_soft_binned_gradient_where_the_error_is_zero():
    value_and_grad = jax.jit(jax.value_and_grad(cm.calibration.soft_binned_error))
    for confidence, outcome in (([0.5, 0.5], [1.0, 0.0]), ([0.0, 1.0], [0.0, 1.0])):
        value, gradient = value_and_grad(jnp.array(confidence), jnp.array(outcome))
        assert value == 0
        assert gradient.tolist() == [0, 0]


def test_soft_binned_masks_leave_out():
    confidence, outcome = map(jnp.asarray, problem())
    where = jnp.arange(80) % 3 != 0
    value_and_grad = jax.jit(jax.value_and_grad(cm.calibration.soft_binned_error))
    expected, slope = value_and_grad(confidence[where], outcome[where])
    for filler in (0.3, jnp.nan, jnp.inf):
        filled = jnp.where(where, confidence, filler)
        outcomes = jnp.where(where, outcome.astype(jnp.float32), filler)
        value, gradient = value_and_grad(filled, outcomes, where=where)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient[where], slope, rtol=1e-4, atol=1e-7)
        assert (gradient[~where] == 0).all(), filler
    assert jnp.isnan(soft_binned(confidence.at[1].set(jnp.nan), outcome, where=where))
    assert soft_binned(confidence, outcome, where=jnp.zeros(80, bool)) == 0
    assert soft_binned(jnp.zeros(0), jnp.zeros(0)) == 0


def test_soft_binned_weights_repeat():
    confidence, outcome = map(jnp.asarray, problem())
    times = np.random.RandomState(1).randint(4, size=80)
    found = soft_binned(confidence, outcome, weights=jnp.asarray(times, jnp.float32))
    rows = np.repeat(np.arange(80), times)
    expected = references.soft_binned_error(confidence[rows], outcome[rows])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    poisoned = jnp.where(times > 0, confidence, jnp.nan)
    weighted = soft_binned(poisoned, outcome, weights=jnp.asarray(times, jnp.float32))
    np.testing.assert_allclose(weighted, expected, rtol=1e-5)
    scaled = soft_binned(confidence, outcome, weights=jnp.asarray(times * 1e-3, jnp.float32))
    np.testing.assert_allclose(scaled, expected, rtol=1e-5)


def test_soft_binned_transforms_and_orders_agree():
    confidence, outcome = map(jnp.asarray, problem())
    expected = soft_binned(confidence, outcome)
    order = np.random.RandomState(0).permutation(80)
    np.testing.assert_allclose(soft_binned(confidence[order], outcome[order]), expected, rtol=1e-5)
    confidence, outcome = confidence.reshape(2, 40), outcome.reshape(2, 40)
    mapped = jax.jit(jax.vmap(cm.calibration.soft_binned_error))(confidence, outcome)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], soft_binned(confidence[i], outcome[i]), rtol=1e-6)


def test_bad_settings():
    one = jnp.ones(1)
    with pytest.raises(ValueError, match="num_bins must be at least 1, got num_bins=0"):
        cm.calibration.soft_binned_error(one, one, num_bins=0)
    for bad in (0.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"bin_temperature must be .* bin_temperature={bad}"):
            cm.calibration.soft_binned_error(one, one, bin_temperature=bad)
        with pytest.raises(ValueError, match=f"bandwidth must be .* bandwidth={bad}"):
            cm.calibration.smooth_calibration_error(one, one, bandwidth=bad)
        with pytest.raises(ValueError, match=f"bandwidth must be .* bandwidth={bad}"):
            smooth_null_level(jax.random.key(0), one, bandwidth=bad)
    with pytest.raises(ValueError, match="num_replicates must be at least 1"):
        smooth_null_level(jax.random.key(0), one, num_replicates=0)
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\]"):
        smooth_null_level(jax.random.key(0), one, probability=1.5)
