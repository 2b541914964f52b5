"""Bins as numpy.histogram has them, and the calibration error of their sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

import calmoe_jax as cm

bins_of = jax.jit(cm.reliability_bins, static_argnames="num_bins")


def problem(seed=0, size=60):
    """Confidences with ties, exact zeros, exact ones and multiples of 1/20."""
    rng = np.random.RandomState(seed)
    confidence = np.where(rng.rand(size) < 0.5, rng.randint(21, size=size) / 20, rng.rand(size))
    confidence[:2] = 0, 1
    return confidence.astype(np.float32), rng.rand(size) < confidence, rng.randint(4, size=size)


def assert_same(bins, other, rtol=1e-5):
    for name, found, expected in zip(bins._fields, bins, other, strict=True):
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_bins", [1, 10, 15, 40])
def test_equals_numpy_histograms(num_bins, dtype):
    with jax.enable_x64(dtype == np.float64):
        confidence, outcome, weights = problem()
        edges = np.arange(num_bins + 1) / num_bins
        confidence = np.concatenate([confidence, edges, edges[1:] - 1e-6]).astype(dtype)
        outcome = np.resize(outcome, confidence.shape)
        weights = np.resize(weights, confidence.shape).astype(dtype)

        def histogram(values):
            return np.histogram(confidence, edges.astype(dtype), weights=values * weights)[0]

        found = bins_of(
            jnp.asarray(confidence),
            jnp.asarray(outcome),
            weights=jnp.asarray(weights),
            num_bins=num_bins,
        )
        assert_same(found, (histogram(1.0), histogram(confidence), histogram(confidence - outcome)))


@pytest.mark.parametrize("num_bins", [1, 2, 16])
def test_error_equals_a_loop(num_bins):
    confidence, outcome, weights = problem(1)
    confidence[2 : num_bins + 3] = np.arange(num_bins + 1) / num_bins  # every edge, exact
    for w in (None, weights.astype(np.float32)):
        found = bins_of(
            jnp.asarray(confidence),
            jnp.asarray(outcome),
            weights=None if w is None else jnp.asarray(w),
            num_bins=num_bins,
        )
        expected = references.calibration_error(
            confidence.astype(np.float64), outcome, w, num_bins=num_bins
        )
        np.testing.assert_allclose(cm.binned_calibration_error(found), expected, rtol=1e-5)


def test_outcomes_may_be_probabilities():
    confidence, outcome, _ = map(jnp.asarray, problem())
    assert_same(
        bins_of(confidence, outcome), bins_of(confidence, outcome.astype(jnp.bfloat16)), rtol=0
    )
    truth = jnp.asarray(np.random.RandomState(1).rand(60), jnp.float32)
    certain = jnp.stack([jnp.ones(60), jnp.zeros(60)])
    by_outcome = [
        bins_of(confidence, y, weights=w) for y, w in zip(certain, (truth, 1 - truth), strict=True)
    ]
    assert_same(bins_of(confidence, truth), jax.tree.map(jnp.add, *by_outcome))


def test_weights_repeat_and_masks_leave_out():
    confidence, outcome, times = problem()
    where = np.arange(60) % 3 != 0
    found = bins_of(
        jnp.asarray(confidence),
        jnp.asarray(outcome),
        weights=jnp.asarray(times, jnp.float32),
        where=jnp.asarray(where),
    )
    rows = np.repeat(np.arange(60), np.where(where, times, 0))
    assert_same(
        found, cm.reliability_bins(jnp.asarray(confidence[rows]), jnp.asarray(outcome[rows]))
    )


def test_nan_counts_only_where_it_has_weight():
    confidence, outcome, _ = map(jnp.asarray, problem())
    poisoned = confidence.at[3].set(jnp.nan)
    kept = jnp.arange(60) != 3
    clean = bins_of(confidence, outcome, where=kept)
    assert_same(bins_of(poisoned, outcome, where=kept), clean, rtol=0)
    assert_same(bins_of(poisoned, outcome, weights=kept.astype(jnp.float32)), clean, rtol=0)
    for sums in bins_of(poisoned, outcome):
        assert jnp.isnan(sums).all()


def test_small_residuals_are_not_lost():
    confidence = jnp.full(100_000, 1 - 2.0**-20)
    bins = bins_of(confidence, jnp.ones(100_000), num_bins=1)
    np.testing.assert_allclose(cm.binned_calibration_error(bins), 2.0**-20, rtol=1e-5)


def test_order_does_not_matter():
    confidence, outcome, _ = map(jnp.asarray, problem())
    order = np.random.RandomState(0).permutation(60)
    assert_same(bins_of(confidence[order], outcome[order]), bins_of(confidence, outcome))


def test_batches_and_transforms_agree():
    confidence, outcome, _ = map(jnp.asarray, problem())
    on_edges = jnp.concatenate([confidence, jnp.asarray(np.arange(16) / 15, jnp.float32)])
    outcomes = jnp.zeros(76)
    assert_same(cm.reliability_bins(on_edges, outcomes), bins_of(on_edges, outcomes))
    confidence, outcome = confidence.reshape(3, 20), outcome.reshape(3, 20)
    mapped = jax.jit(jax.vmap(cm.reliability_bins))(confidence, outcome)
    errors = cm.binned_calibration_error(mapped)
    for i in range(3):
        one = bins_of(confidence[i], outcome[i])
        assert_same(jax.tree.map(lambda x, i=i: x[i], mapped), one)
        np.testing.assert_allclose(errors[i], cm.binned_calibration_error(one), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_computed_in_float32(dtype):
    confidence, outcome, _ = map(jnp.asarray, problem())
    rough = bins_of(confidence.astype(dtype), outcome)
    assert all(x.dtype == jnp.float32 for x in rough)
    assert_same(rough, bins_of(confidence.astype(dtype).astype(jnp.float32), outcome), rtol=0)


def test_nothing_counts():
    empty = cm.reliability_bins(jnp.zeros(0), jnp.zeros(0), num_bins=3)
    masked = cm.reliability_bins(jnp.ones(2), jnp.ones(2), where=jnp.zeros(2, bool), num_bins=3)
    for bins in (empty, masked):
        assert all(x.tolist() == [0, 0, 0] for x in bins)
        assert jnp.isnan(cm.binned_calibration_error(bins))


@pytest.mark.parametrize("num_bins", [0, -3])
def test_too_few_bins(num_bins):
    with pytest.raises(ValueError, match=f"num_bins must be at least 1, got num_bins={num_bins}"):
        cm.reliability_bins(jnp.ones(1), jnp.ones(1), num_bins=num_bins)
