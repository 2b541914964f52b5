"""Bins as numpy.histogram has them, and the calibration error of their sums."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.stats

import calmoe_jax as cm
from calmoe_jax.calibration import _sums
from calmoe_jax.calibration.metrics.errors import (
    debiased_calibration_error,
    debiased_squared_calibration_error,
)

bins_of = jax.jit(cm.calibration.reliability_bins, static_argnames="num_bins")
NORMS = ("l1", "l2", "max")
error_of = jax.jit(cm.calibration.calibration_error, static_argnames="norm")
DEBIASED = tuple(map(jax.jit, (debiased_calibration_error, debiased_squared_calibration_error)))
ERRORS = (
    *(functools.partial(error_of, norm=n) for n in NORMS),
    *DEBIASED,
)


def problem(seed=0, size=60):
    """Confidences with ties, exact zeros, exact ones and multiples of 1/20."""
    rng = np.random.RandomState(seed)
    confidence = np.where(rng.rand(size) < 0.5, rng.randint(21, size=size) / 20, rng.rand(size))
    confidence[:2] = 0, 1
    return confidence.astype(np.float32), rng.rand(size) < confidence, rng.randint(4, size=size)


def assert_same(bins, other, rtol=1e-5):
    for i, (found, expected) in enumerate(zip(bins, other, strict=True)):
        name = cm.calibration.ReliabilityBins._fields[i]
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "num_bins", [1, 15, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (10, 40))]
)
def test_equals_numpy_histograms(num_bins, dtype):
    with jax.enable_x64(dtype == np.float64):
        confidence, outcome, weights = problem()
        edges = np.arange(num_bins + 1) / num_bins
        confidence = np.concatenate([confidence, edges, edges[1:] - 1e-6]).astype(dtype)
        outcome = np.resize(outcome, confidence.shape)
        weights = np.resize(weights, confidence.shape).astype(dtype)

        def histogram(values):
            return np.histogram(confidence, edges.astype(dtype), weights=values * weights)[0]

        residual = confidence - outcome

        found = bins_of(
            jnp.asarray(confidence),
            jnp.asarray(outcome),
            weights=jnp.asarray(weights),
            num_bins=num_bins,
        )
        first = histogram(1.0), histogram(confidence), histogram(residual)
        second = histogram(weights), histogram(weights * residual**2), histogram(weights * residual)
        assert_same(found, first + second)


@pytest.mark.parametrize("num_bins", [1, pytest.param(2, marks=pytest.mark.exhaustive), 16])
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
        np.testing.assert_allclose(error_of(found), expected, rtol=1e-5)


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
    expected = jax.tree.map(jnp.add, *by_outcome)
    assert_same(bins_of(confidence, truth)[:3], expected[:3])


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
    repeated = bins_of(jnp.asarray(confidence[rows]), jnp.asarray(outcome[rows]))
    assert_same(found[:3], repeated[:3])  # one example of weight 2 is noisier than two


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
    np.testing.assert_allclose(error_of(bins), 2.0**-20, rtol=1e-5)


def test_order_does_not_matter():
    confidence, outcome, _ = map(jnp.asarray, problem())
    order = np.random.RandomState(0).permutation(60)
    assert_same(bins_of(confidence[order], outcome[order]), bins_of(confidence, outcome))


@pytest.mark.exhaustive  # a hundred programs
def test_eager_agrees_with_jitted_on_edges():
    confidence, _, _ = map(jnp.asarray, problem())
    on_edges = jnp.concatenate([confidence, jnp.asarray(np.arange(16) / 15, jnp.float32)])
    outcomes = jnp.zeros(76)
    assert_same(cm.calibration.reliability_bins(on_edges, outcomes), bins_of(on_edges, outcomes))


def test_batches_and_transforms_agree():
    confidence, outcome, _ = map(jnp.asarray, problem())
    confidence, outcome = confidence.reshape(3, 20), outcome.reshape(3, 20)
    mapped = jax.jit(jax.vmap(cm.calibration.reliability_bins))(confidence, outcome)
    errors = error_of(mapped)
    for i in range(3):
        one = bins_of(confidence[i], outcome[i])
        assert_same(jax.tree.map(lambda x, i=i: x[i], mapped), one)
        np.testing.assert_allclose(errors[i], error_of(one), rtol=1e-6)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.exhaustive)]
)
def test_computed_in_float32(dtype):
    confidence, outcome, _ = map(jnp.asarray, problem())
    rough = bins_of(confidence.astype(dtype), outcome)
    assert all(x.dtype == jnp.float32 for x in rough)
    assert_same(rough, bins_of(confidence.astype(dtype).astype(jnp.float32), outcome), rtol=0)


def test_nothing_counts():
    empty = bins_of(jnp.zeros(0), jnp.zeros(0), num_bins=3)
    masked = bins_of(jnp.ones(2), jnp.ones(2), where=jnp.zeros(2, bool), num_bins=3)
    for bins in (empty, masked):
        assert all(x.tolist() == [0, 0, 0] for x in bins)
        for error in ERRORS:
            assert jnp.isnan(error(bins))


@pytest.mark.parametrize("num_bins", [0, -3])
def test_too_few_bins(num_bins):
    with pytest.raises(ValueError, match=f"num_bins must be at least 1, got num_bins={num_bins}"):
        cm.calibration.reliability_bins(jnp.ones(1), jnp.ones(1), num_bins=num_bins)


@pytest.mark.parametrize(
    "num_bins", [7, 49, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (30, 1000))]
)
def test_levels_at_and_beside_every_edge(num_bins):
    edges = (np.arange(num_bins + 1) / num_bins).astype(np.float32)
    beside = [np.nextafter(edges[1:], np.float32(0)), np.nextafter(edges[:-1], np.float32(2))]
    levels = np.concatenate([edges, *beside])
    found = bins_of(jnp.asarray(levels), jnp.zeros(levels.size), num_bins=num_bins)
    np.testing.assert_array_equal(found.weight, np.histogram(levels, edges)[0])


def loop_over_bins(confidence, outcome, weights, num_bins):
    """Share, gap and estimated variance of the gap of every bin that holds weight."""
    index = np.minimum(np.searchsorted(np.arange(1, num_bins) / num_bins, confidence, "right"), 99)
    for b in range(num_bins):
        held = (index == b) & (weights > 0)
        w, r = weights[held], (confidence - outcome)[held]
        if w.sum() > 0:
            gap = np.sum(w * r) / w.sum()
            effective = w.sum() ** 2 / np.sum(w**2)
            variance = None
            if effective > 1.001:
                variance = np.sum((w * (r - gap)) ** 2) / w.sum() ** 2
                variance *= effective / (effective - 1)
            yield w.sum() / weights.sum(), gap, variance


@pytest.mark.parametrize("weighted", [False, True])
def test_norms_and_debiased_errors_equal_a_loop(weighted):
    rng = np.random.RandomState(3)
    confidence = np.concatenate([rng.rand(300), [0.01], np.full(4, 0.99)])
    outcome = np.concatenate([rng.rand(300) < confidence[:300] ** 2, [1], np.ones(4)])
    weights = rng.randint(1, 5, size=305) * rng.rand(305) if weighted else np.ones(305)
    weights[:40] = 0 if weighted else 1
    with jax.enable_x64(True):
        found = bins_of(
            jnp.asarray(confidence),
            jnp.asarray(outcome),
            weights=jnp.asarray(weights),
            num_bins=100,
        )
        rows = list(loop_over_bins(confidence, outcome, weights, 100))
        assert any(v is None for _, _, v in rows)
        l1 = sum(s * abs(g) for s, g, _ in rows)
        l2 = math.sqrt(sum(s * g**2 for s, g, _ in rows))
        largest = max(abs(g) for _, g, _ in rows)
        squared = sum(s * (g**2 - v) for s, g, v in rows if v is not None)
        debiased = 0.0
        for share, gap, variance in rows:
            if variance == 0:
                debiased += share * abs(gap)
            elif variance is not None:
                folded = scipy.stats.foldnorm(abs(gap) / variance**0.5, scale=variance**0.5)
                debiased += share * (2 * abs(gap) - folded.mean())
        for error, expected in zip(ERRORS, (l1, l2, largest, debiased, squared), strict=True):
            np.testing.assert_allclose(error(found), expected, rtol=1e-9, err_msg=str(error))


def test_norms_are_ordered_and_invariant_to_scale():
    confidence, outcome, weights = problem(4)
    for factor in (1.0, 1e-3, 1e6):
        bins = bins_of(
            jnp.asarray(confidence),
            jnp.asarray(outcome),
            weights=jnp.asarray(factor * weights, jnp.float32),
        )
        values = [float(error(bins)) for error in ERRORS]
        assert values[0] <= values[1] <= values[2] <= 1
        assert values[3] < values[0]
        assert values[4] < values[1] ** 2
        if factor == 1:
            expected = values
        np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_debiased_errors_of_many_samples_are_near_the_truth():
    """Mean over 400 samples of 15 bins of 40: the squared one is unbiased, the other nearly."""
    rng = np.random.RandomState(0)
    centres = (np.arange(15) + 0.5) / 15
    confidence = np.repeat(centres, 40)
    for shift, plain_bias in ((0.0, 0.04), (0.15, 0.0)):
        chance = np.clip(confidence - shift * np.sign(centres.repeat(40) - 0.5), 0, 1)
        gap = np.abs(chance - confidence)
        outcome = rng.rand(400, 600) < chance
        bins = jax.jit(jax.vmap(cm.calibration.reliability_bins, in_axes=(None, 0)))(
            jnp.asarray(confidence, jnp.float32), jnp.asarray(outcome)
        )
        l1, squared = (np.asarray(error(bins)) for error in DEBIASED)
        plain = np.asarray(error_of(bins))
        error = squared.std() / 20
        assert abs(squared.mean() - np.mean(gap**2)) < 4 * error
        assert abs(l1.mean() - gap.mean()) < 0.62 * abs(plain.mean() - gap.mean()) + 0.002
        assert plain.mean() - gap.mean() > plain_bias


def test_pairs_of_equal_examples_have_no_noise():
    bins = bins_of(jnp.full(5, 0.9), jnp.ones(5))
    for error, expected in zip(ERRORS, (0.1, 0.1, 0.1, 0.1, 0.01), strict=True):
        np.testing.assert_allclose(error(bins), expected, rtol=1e-5)
    alone = bins_of(jnp.array([0.9]), jnp.ones(1))
    assert [float(error(alone)) for error in DEBIASED] == [0, 0]


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_are_the_signs_of_the_gaps(norm):
    confidence = jnp.array([0.1, 0.15, 0.8, 0.9])
    outcome = jnp.array([0.0, 1.0, 1.0, 0.0])

    def error(c):
        return error_of(bins_of(c, outcome, num_bins=2), norm=norm)

    jitted = jax.jit(error)
    numeric = references.central_difference(
        lambda c: float(jitted(jnp.asarray(c, jnp.float32))), np.asarray(confidence), step=1e-3
    )
    np.testing.assert_allclose(jax.jit(jax.grad(error))(confidence), numeric, atol=2e-4)
    perfect = jax.jit(jax.grad(lambda c: error_of(bins_of(c, c, num_bins=2), norm=norm)))(
        confidence
    )
    assert jnp.isfinite(perfect).all()


@pytest.mark.parametrize("level", [-0.1, 1.1, jnp.inf, -jnp.inf, jnp.nan])
def test_what_is_no_probability_is_nan_where_it_counts(level):
    confidence, outcome, _ = map(jnp.asarray, problem())
    outcome, where = outcome.astype(jnp.float32), jnp.arange(60) != 7
    clean = bins_of(confidence, outcome, where=where)
    strange = confidence.at[7].set(level), outcome.at[7].set(level)
    for pair in ((strange[0], outcome), (confidence, strange[1])):
        assert all(jnp.isnan(x).all() for x in bins_of(*pair))
        assert_same(bins_of(*pair, where=where), clean, rtol=0)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 2.0**-20, 0.7])
def test_equal_numbers_are_summed_to_their_last_digits(value):
    size = 1_000_003
    values = jnp.full(size, value, jnp.float32)
    exact = size * float(np.float32(value))
    spread = jax.jit(lambda v: _sums.sum_by_bin(v, jnp.zeros(size, jnp.int32), 15))(values)
    np.testing.assert_allclose(spread[0], exact, rtol=1.0e-6)
    assert spread[1:].tolist() == [0] * 14
    np.testing.assert_allclose(jax.jit(_sums.total)(values), exact, rtol=2e-7)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 255, 257, 4111])
def test_sums_in_pairs_are_of_every_row_once(size):
    rows = jnp.arange(3.0 * size).reshape(size, 3)
    np.testing.assert_allclose(_sums.pairwise_sum(rows), np.arange(3 * size).reshape(-1, 3).sum(0))
    np.testing.assert_array_equal(_sums.pairwise_sum(jnp.ones((size, 3))), size)


def test_sums_in_pairs_are_linear():
    assert _sums.pairwise_sum(jnp.array([jnp.inf, 1.0])) == jnp.inf
    assert jnp.isnan(_sums.pairwise_sum(jnp.array([jnp.nan, 1.0])))
    assert _sums.total(jnp.zeros(0)) == 0
    rows = jnp.arange(12.0).reshape(4, 3)
    assert jax.grad(lambda x: _sums.pairwise_sum(x)[1])(rows).tolist() == [[0, 1, 0]] * 4
    mapped = jax.vmap(_sums.pairwise_sum)(rows[:, :, None])
    np.testing.assert_array_equal(mapped[:, 0], rows.sum(1))


def test_bins_anywhere_where_the_value_is_0():
    values, bins = jnp.array([1.0, 0.0, 0.0, 2.0] * 100), jnp.array([1, -3, 70, 2] * 100)
    assert _sums.sum_by_bin(values, bins, 3).tolist() == [0, 100, 200]


def test_bins_of_a_narrow_dtype():
    bins = jnp.arange(10_000, dtype=jnp.int32) % 3
    summed = _sums.sum_by_bin(jnp.ones(10_000), bins.astype(jnp.int8), 3)
    assert summed.tolist() == [3334, 3333, 3333]


def test_an_unknown_norm(unchecked):
    bins = bins_of(jnp.ones(1), jnp.ones(1))
    with pytest.raises(ValueError, match="norm must be one of l1, l2, max, got norm='l3'"):
        error_of(bins, norm="l3")
