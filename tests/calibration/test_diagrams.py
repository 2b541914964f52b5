"""The arrays behind plots: curves with bands, and gaps along a statistic."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import calmoe_jax as cm
from calmoe_jax.calibration.diagrams import gap_by_statistic, mean_and_error, reliability_curve
from calmoe_jax.calibration.metrics.equal_mass import equal_mass_bins

curve_of = jax.jit(reliability_curve)
bins_of = jax.jit(cm.calibration.reliability_bins, static_argnames="num_bins")
gaps_of = jax.jit(gap_by_statistic, static_argnames="num_groups")


def draw(seed=0, size=200):
    rng = np.random.RandomState(seed)
    confidence = rng.rand(size).astype(np.float32)
    return confidence, rng.rand(size) < confidence**1.5, rng.rand(size).astype(np.float32)


@functools.partial(jax.jit, static_argnames="num_bins")
def curve_and_error(confidence, outcome, weights, num_bins=10):
    bins = cm.calibration.reliability_bins(confidence, outcome, weights=weights, num_bins=num_bins)
    return reliability_curve(bins), cm.calibration.calibration_error(bins)


def test_the_band_is_wilson_s_interval_on_the_effective_number():
    confidence, outcome, weights = draw()
    confidence[:30] = 0.05  # a bin of the first tenth in which nothing happens
    outcome[confidence < 0.1] = False
    confidence = np.where((confidence > 0.4) & (confidence < 0.5), 0.55, confidence)
    curve, error = curve_and_error(*map(jnp.asarray, (confidence, outcome, weights)))
    for b in range(10):
        inside = (confidence >= b / 10) & (confidence < (b + 1) / 10)
        w = weights[inside].astype(np.float64)
        np.testing.assert_allclose(curve.share[b], w.sum() / weights.sum(), rtol=1e-5)
        if b == 4:
            assert all(jnp.isnan(values[b]) for values in curve[:4])
            continue
        number = w.sum() ** 2 / (w**2).sum()
        accuracy = np.average(outcome[inside], weights=w)
        np.testing.assert_allclose(curve.accuracy[b], accuracy, atol=1e-6)
        np.testing.assert_allclose(
            curve.confidence[b], np.average(confidence[inside], weights=w), rtol=1e-5
        )

        # the shares that a normal test at its own variance does not reject
        def statistic(p, accuracy=accuracy, number=number):
            return (accuracy - p) ** 2 * number - scipy.stats.norm.ppf(0.975) ** 2 * p * (1 - p)

        for end, side in ((curve.low[b], 0), (curve.high[b], 1)):
            assert 0 <= end <= 1
            if accuracy != side:
                np.testing.assert_allclose(statistic(float(end)), 0, atol=1e-4)
            else:
                assert end == side
    np.testing.assert_allclose(
        np.nansum(curve.share * np.abs(curve.confidence - curve.accuracy)), error, rtol=1e-5
    )
    np.testing.assert_allclose(np.nansum(curve.share), 1, rtol=1e-6)


def test_the_band_equals_scipy_s_where_examples_weigh_the_same():
    for happened, number in ((0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (499, 1000)):
        place = jnp.arange(1000)
        bins = bins_of(jnp.full(1000, 0.5), place < happened, where=place < number, num_bins=1)
        curve = curve_of(bins)
        exact = scipy.stats.binomtest(happened, number).proportion_ci(method="wilson")
        np.testing.assert_allclose([curve.low[0], curve.high[0]], exact, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
def test_the_band_does_not_depend_on_the_scale_of_weights(scale):
    args = [jnp.asarray(x) for x in draw()]
    expected, _ = curve_and_error(*args)
    found, _ = curve_and_error(*args[:2], args[2] * scale)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_bands_cover_the_truth_pointwise():
    rng = np.random.RandomState(3)
    size, problems = 300, 400
    confidence = jnp.asarray(np.tile([0.05, 0.35, 0.75, 0.95], (problems, size // 4)), jnp.float32)
    outcome = jnp.asarray(rng.rand(problems, size)) < confidence
    weights = jnp.asarray(rng.rand(problems, size) + 0.5, jnp.float32)
    curves, _ = jax.jit(jax.vmap(lambda *args: curve_and_error(*args, num_bins=10)))(
        confidence, outcome, weights
    )
    held = np.asarray(curves.share) > 0
    inside = (curves.low <= curves.confidence) & (curves.confidence <= curves.high)
    share = np.asarray(inside)[held].mean()
    assert 0.93 < share < 0.97


def test_bands_stay_in_the_unit_interval_and_around_the_curve():
    for certain in (0.0, 1.0):
        confidence = jnp.full(7, certain)
        curve = curve_of(bins_of(confidence, confidence, num_bins=5))
        b = int(4 * certain)
        assert curve.accuracy[b] == curve.confidence[b] == certain
        assert 0 <= curve.low[b] <= curve.accuracy[b] <= curve.high[b] <= 1
        assert curve.high[b] - curve.low[b] > 0.3


def test_curves_of_a_batch_are_those_of_each():
    rng = np.random.RandomState(0)
    probs = jax.nn.softmax(jnp.asarray(rng.randn(100, 3), jnp.float32))
    bins = [bins_of(p, jnp.asarray(rng.rand(100) < 0.4), num_bins=5) for p in probs.T]
    together = curve_of(jax.tree.map(lambda *xs: jnp.stack(xs), *bins))
    for i, one in enumerate(bins):
        for a, b in zip(together, curve_of(one), strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-6)


def test_empty_bins():
    nothing = curve_of(bins_of(jnp.zeros(0), jnp.zeros(0), num_bins=5))
    assert all(jnp.isnan(values).all() for values in nothing)
    poisoned = curve_of(bins_of(jnp.full(7, jnp.nan), jnp.ones(7), num_bins=5))
    assert all(jnp.isnan(values).all() for values in poisoned)


def groups_by_loops(statistic, weights, num_groups):
    """Each value's group, by the middle of the weight that ties with it."""
    result = np.full(len(statistic), -1)
    for i, s in enumerate(statistic):
        if weights[i] > 0:
            below = weights[statistic < s].sum()
            tied = weights[statistic == s].sum()
            place = num_groups * (below + tied / 2) / weights.sum()
            result[i] = min(int(place), num_groups - 1)
    return result


@pytest.mark.parametrize("ties", [False, True])
def test_gaps_equal_loops(ties):
    rng = np.random.RandomState(1)
    confidence, correct, weights = draw(1)
    # whole weights: their sums are exact
    weights = rng.randint(0, 4, size=200).astype(np.float32)
    statistic = rng.gamma(1.0, size=200).astype(np.float32)
    if ties:
        statistic = np.floor(3 * statistic)
    found = gaps_of(
        *map(jnp.asarray, (statistic, confidence, correct)),
        weights=jnp.asarray(weights),
        where=jnp.ones(200, bool),
        num_groups=7,
    )
    group = groups_by_loops(statistic, weights, 7)
    for g in range(7):
        w = weights[group == g].astype(np.float64)
        np.testing.assert_allclose(found.share[g], w.sum() / weights.sum(), rtol=1e-5)
        if w.sum() == 0:
            assert all(jnp.isnan(values[g]) for values in found[:3])
            continue
        residual = (confidence - correct)[group == g]
        gap = np.average(residual, weights=w)
        np.testing.assert_allclose(found.gap[g], gap, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            found.statistic[g], np.average(statistic[group == g], weights=w), rtol=1e-5
        )
        s = w / w.sum()
        error = math.sqrt(np.sum(s**2 * (residual - gap) ** 2) / (1 - np.sum(s**2)))
        np.testing.assert_allclose(found.standard_error[g], error, rtol=1e-4)
    if not ties:
        assert np.ptp(np.asarray(found.share)) < 0.02
    np.testing.assert_allclose(found.share.sum(), 1, rtol=1e-6)


def test_groups_are_equal_mass_bins():
    """By exact comparisons: a quotient may be rounded to the other side of an edge under jit."""
    confidence, correct, _ = map(jnp.asarray, draw(3))
    for size in (49, 196):
        given = confidence[:size], correct[:size]
        found = gaps_of(given[0], *given, num_groups=7)
        bins = jax.jit(functools.partial(equal_mass_bins, num_bins=7))(*given)
        np.testing.assert_array_equal(jnp.round(found.share * size), bins.weight)


def test_equal_values_stay_together_in_any_order():
    rng = np.random.RandomState(2)
    statistic = np.repeat([0.0, 1.0, 2.0], [20, 160, 20]).astype(np.float32)
    confidence, correct, weights = draw(2)
    order = rng.permutation(200)
    args = statistic, confidence, correct
    found = [
        gaps_of(*(jnp.asarray(x[o]) for x in args), weights=jnp.asarray(weights[o]), num_groups=5)
        for o in (np.arange(200), order)
    ]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found[0].statistic[jnp.array([0, 2, 4])], [0, 1, 2], rtol=1e-6)
    assert jnp.isnan(found[0].gap[jnp.array([1, 3])]).all()
    assert (found[0].share[jnp.array([1, 3])] == 0).all()


def test_a_constant_statistic_is_one_group():
    confidence, correct, _ = map(jnp.asarray, draw())
    found = gaps_of(jnp.zeros(200), confidence, correct, num_groups=5)  # hard routing, say
    assert found.share.tolist() == [0, 0, 1, 0, 0]
    gap = np.mean(np.asarray(confidence) - np.asarray(correct))
    np.testing.assert_allclose(found.gap[2], gap, rtol=1e-4)


def test_what_does_not_count_may_be_anything():
    confidence, correct, weights = map(jnp.asarray, draw(4))
    statistic = jnp.asarray(np.random.RandomState(4).randn(200), jnp.float32)
    kept = jnp.arange(200) >= 50
    options = {"num_groups": 6}
    expected = gaps_of(
        statistic[50:], confidence[50:], correct[50:], weights=weights[50:], **options
    )
    holes = [jnp.where(kept, x, jnp.nan) for x in (statistic, confidence)]
    for given in (
        {"weights": weights, "where": kept},
        {"weights": jnp.where(kept, weights, 0)},
    ):
        found = gaps_of(*holes, correct, **given, **options)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_nan_does_not_vanish():
    confidence, correct, weights = map(jnp.asarray, draw(5))
    statistic = weights
    lost = gaps_of(statistic.at[3].set(jnp.nan), confidence, correct, num_groups=6)
    assert all(jnp.isnan(values).all() for values in lost)
    in_one = gaps_of(statistic, confidence.at[3].set(1.5), correct, num_groups=6)
    assert int(jnp.isnan(in_one.gap).sum()) == 1
    assert jnp.isfinite(in_one.statistic).all()
    none = gaps_of(statistic, confidence, correct, weights=jnp.zeros(200), num_groups=6)
    assert all(jnp.isnan(values).all() for values in none)
    empty = gaps_of(*(x[:0] for x in (statistic, confidence, correct)), num_groups=6)
    assert all(jnp.isnan(values).all() for values in empty)


def test_a_group_of_one_has_no_error():
    found = gaps_of(jnp.arange(3.0), jnp.full(3, 0.75), jnp.ones(3), num_groups=3)
    np.testing.assert_allclose(found.gap, -0.25)
    assert jnp.isnan(found.standard_error).all()


def test_gaps_are_mapped():
    rng = np.random.RandomState(6)
    statistic = jnp.asarray(rng.rand(3, 50), jnp.float32)
    confidence, correct = (
        jnp.asarray(rng.rand(3, 50), jnp.float32),
        jnp.asarray(rng.rand(3, 50) < 0.5),
    )
    mapped = jax.jit(jax.vmap(functools.partial(gap_by_statistic, num_groups=4)))(
        statistic, confidence, correct
    )
    for i in range(3):
        alone = gaps_of(statistic[i], confidence[i], correct[i], num_groups=4)
        for a, b in zip(mapped, alone, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6)


def test_groups_are_at_least_one(unchecked):
    with pytest.raises(ValueError, match="num_groups must be at least 1, got num_groups=0"):
        gap_by_statistic(jnp.zeros(2), jnp.zeros(2), jnp.zeros(2), num_groups=0)


def test_the_error_of_a_mean():
    rng = np.random.RandomState(7)
    values = rng.randn(40)
    mean, error = mean_and_error(jnp.asarray(values, jnp.float32), jnp.ones(40))
    np.testing.assert_allclose(mean, values.mean(), rtol=1e-5)
    np.testing.assert_allclose(error, scipy.stats.sem(values), rtol=1e-5)
    # unequal weights: unbiased for values of one variance
    weights = jnp.asarray(rng.gamma(1.0, size=40), jnp.float32)
    draws = jnp.asarray(rng.randn(4000, 40), jnp.float32)
    means, errors = jax.jit(jax.vmap(mean_and_error, in_axes=(0, None)))(draws, weights)
    np.testing.assert_allclose(jnp.mean(errors**2), jnp.var(means), rtol=0.1)
