"""Smooth calibration errors against direct summation, and their fixed point and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

import calmoe_jax as cm

smooth = jax.jit(cm.smooth_calibration_error)
soft_binned = jax.jit(
    cm.soft_binned_calibration_error, static_argnames=("num_bins", "bin_temperature")
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
    assert_same(cm.smooth_calibration_error(confidence, outcome), expected)
    order = np.random.RandomState(0).permutation(80)
    assert_same(smooth(confidence[order], outcome[order]), expected)
    assert_same(smooth(1 - confidence, ~outcome), expected)
    confidence, outcome = confidence.reshape(2, 40), outcome.reshape(2, 40)
    mapped = jax.jit(jax.vmap(cm.smooth_calibration_error))(confidence, outcome)
    for i in range(2):
        one = jax.tree.map(lambda x, i=i: x[i], mapped)
        assert_same(one, smooth(confidence[i], outcome[i]))


def test_smooth_outcomes_may_be_probabilities():
    confidence, outcome = map(jnp.asarray, problem())
    truth = jnp.square(confidence)
    both = jnp.tile(confidence, 2), jnp.repeat(jnp.array([True, False]), 80)
    expected = smooth(*both, weights=jnp.concatenate([truth, 1 - truth]))
    assert_same(smooth(confidence, truth), expected)
    assert smooth(confidence, confidence).value < 1e-6
    del outcome


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
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


@pytest.mark.parametrize(("num_bins", "bin_temperature"), [(15, 0.01), (5, 0.1), (1, 0.01)])
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
                lambda p: cm.soft_binned_calibration_error(
                    p, jnp.asarray(outcome), where=jnp.asarray(where)
                )
            )
        )(jnp.asarray(confidence, jnp.float64))
    numeric = references.central_difference(
        lambda p: references.soft_binned_error(p[where], outcome[where]), confidence
    )
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-8)


def test_soft_binned_gradient_where_the_error_is_zero():
    value_and_grad = jax.jit(jax.value_and_grad(cm.soft_binned_calibration_error))
    for confidence, outcome in (([0.5, 0.5], [1.0, 0.0]), ([0.0, 1.0], [0.0, 1.0])):
        value, gradient = value_and_grad(jnp.array(confidence), jnp.array(outcome))
        assert value == 0
        assert gradient.tolist() == [0, 0]


def test_soft_binned_masks_leave_out():
    confidence, outcome = map(jnp.asarray, problem())
    where = jnp.arange(80) % 3 != 0
    value_and_grad = jax.jit(jax.value_and_grad(cm.soft_binned_calibration_error))
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


def test_soft_binned_transforms_and_orders_agree():
    confidence, outcome = map(jnp.asarray, problem())
    expected = soft_binned(confidence, outcome)
    np.testing.assert_allclose(
        cm.soft_binned_calibration_error(confidence, outcome), expected, rtol=1e-6
    )
    order = np.random.RandomState(0).permutation(80)
    np.testing.assert_allclose(soft_binned(confidence[order], outcome[order]), expected, rtol=1e-5)
    confidence, outcome = confidence.reshape(2, 40), outcome.reshape(2, 40)
    mapped = jax.jit(jax.vmap(cm.soft_binned_calibration_error))(confidence, outcome)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], soft_binned(confidence[i], outcome[i]), rtol=1e-6)


def test_bad_settings():
    one = jnp.ones(1)
    with pytest.raises(ValueError, match="num_bins must be at least 1, got num_bins=0"):
        cm.soft_binned_calibration_error(one, one, num_bins=0)
    for bad in (0.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match=f"bin_temperature must be .* bin_temperature={bad}"):
            cm.soft_binned_calibration_error(one, one, bin_temperature=bad)
