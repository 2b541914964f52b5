"""Worst-case calibration errors against brute force over groups and over reweightings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.optimize

from calmoe_jax.calibration import ReliabilityBins, calibration_error, reliability_bins
from calmoe_jax.calibration.metrics import worst
from calmoe_jax.calibration.metrics.worst import worst_reweighting

jitted_group = jax.jit(worst.worst_group, static_argnames=("num_groups", "num_bins", "from_logits"))
worst_tilt = jax.jit(worst_reweighting)


def problem(seed=0, size=60):
    rng = np.random.RandomState(seed)
    probs = references.softmax(2 * rng.randn(size, 3)).astype(np.float32)
    return map(jnp.asarray, (probs, rng.randint(3, size=size), rng.randint(4, size=size)))


def worst_group(probs, labels, groups, weights=None, where=None, **options):
    """With arrays for the defaults, so that one compilation serves most tests."""
    weights = jnp.ones(len(labels)) if weights is None else weights
    where = jnp.ones(len(labels), bool) if where is None else where
    options = {"num_groups": 5, "num_bins": 10} | options
    return jitted_group(probs, labels, groups, weights=weights, where=where, **options)


def groups_by_loops(probs, labels, groups, weights):
    confidence, correct = references.top_label(np.asarray(probs), np.asarray(labels))
    errors = np.full(5, np.nan)
    for g in range(5):
        rows = np.flatnonzero((groups == g) & (weights != 0))
        if len(rows):
            errors[g] = references.calibration_error(
                confidence[rows], correct[rows], weights=weights[rows], num_bins=10
            )
    return errors


@pytest.mark.parametrize("seed", range(3))
def test_groups_equal_a_loop(seed):
    probs, labels, groups = problem(seed)
    weights = np.random.RandomState(seed).randint(3, size=60).astype(np.float32)
    where = np.arange(60) % 7 != 0
    found = worst_group(
        probs, labels, groups, weights=jnp.asarray(weights), where=jnp.asarray(where)
    )
    errors = groups_by_loops(probs, labels, np.asarray(groups), np.where(where, weights, 0))
    np.testing.assert_allclose(found.errors, errors, rtol=1e-5)
    np.testing.assert_allclose(found.value, np.nanmax(errors), rtol=1e-5)
    assert found.group == np.nanargmax(errors)


def test_ties_go_to_the_lower_group_and_empty_groups_are_left_out():
    probs = jnp.array([[0.75, 0.25]] * 3)
    found = worst_group(probs, jnp.array([1, 0, 1]), jnp.array([3, 0, 1]))
    np.testing.assert_allclose(found.errors, [0.25, 0.75, np.nan, 0.75, np.nan])
    assert (found.value, found.group) == (0.75, 1)


def test_one_perfect_group_is_still_a_group():
    found = worst_group(jnp.array([[1.0, 0.0]]), jnp.array([0]), jnp.array([2]))
    assert (found.value, found.group) == (0, 2)


def test_nan_of_a_group_and_rows_of_no_group_make_nan():
    probs, labels, groups = problem()
    bad = probs.at[3].set(jnp.nan)
    found = worst_group(bad, labels, groups)
    assert jnp.isnan(found.value)
    assert found.group == -1
    assert np.isnan(found.errors).tolist() == [g in (int(groups[3]), 4) for g in range(5)]
    for outside in (-1, 5):
        assert jnp.isnan(worst_group(probs, labels, groups.at[3].set(outside)).value)
    keep = jnp.arange(60) != 3
    expected = worst_group(probs, labels, groups, where=keep)
    for options in ({"where": keep}, {"weights": keep.astype(jnp.float32)}):
        found = worst_group(bad, labels, groups.at[3].set(9), **options)
        np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-6)
        assert found.value == expected.value


def test_groups_where_nothing_counts():
    probs, labels, groups = problem()
    for found in (
        worst_group(probs, labels, groups, where=jnp.zeros(60, bool)),
        worst_group(probs[:0], labels[:0], groups[:0]),
    ):
        assert jnp.isnan(found.value)
        assert found.group == -1
        assert jnp.isnan(found.errors).all()


def test_groups_transforms_agree():
    probs, labels, groups = problem()
    options = {"num_groups": 5, "num_bins": 10}
    expected = worst_group(probs, labels, groups)
    eager = worst_group(jnp.log(probs), labels, groups, from_logits=True, **options)
    both = jax.jit(jax.vmap(functools.partial(worst_group, **options)))(
        jnp.stack([probs, probs]), jnp.stack([labels, labels]), jnp.stack([groups, groups + 1])
    )
    np.testing.assert_allclose(eager.errors, expected.errors, rtol=1e-5)
    np.testing.assert_allclose(both.value, [expected.value] * 2, rtol=1e-6)
    assert both.group.tolist() == [expected.group, expected.group + 1]


def bins_of(seed=0, size=50, num_bins=6):
    rng = np.random.RandomState(seed)
    confidence = rng.choice([0.05, 0.3, 0.31, 0.6, 0.8, 0.95, 1.0], size=size)
    return reliability_bins(
        jnp.asarray(confidence, jnp.float32),
        jnp.asarray(rng.rand(size) < 0.5),
        weights=jnp.asarray(rng.rand(size), jnp.float32),
        num_bins=num_bins,
    )


def tilt_by_linear_programme(bins, alpha):
    weight, residual = np.asarray(bins.weight, float), np.asarray(bins.residual, float)
    held = weight > 0
    share, gap = weight[held] / weight.sum(), np.abs(residual[held]) / weight[held]
    found = scipy.optimize.linprog(
        -gap, A_eq=np.ones((1, len(gap))), b_eq=[1], bounds=[(0, s / alpha) for s in share]
    )
    return -found.fun


@pytest.mark.exhaustive
@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_the_worst_reweighting_equals_a_linear_programme(seed, alpha):
    bins = bins_of(seed)
    found = worst_tilt(bins, alpha=alpha)
    np.testing.assert_allclose(found.value, tilt_by_linear_programme(bins, alpha), rtol=1e-5)
    share = bins.weight / bins.weight.sum()
    np.testing.assert_allclose(jnp.sum(share * found.density), 1, rtol=1e-5)
    assert (found.density >= 0).all()
    assert (found.density <= (1 + 1e-5) / alpha).all()
    gap = jnp.where(bins.weight > 0, jnp.abs(bins.residual) / bins.weight, 0)
    np.testing.assert_allclose(jnp.sum(share * found.density * gap), found.value, rtol=1e-5)


@pytest.mark.parametrize(("alpha", "value"), [(1e-5, 0.505), (2e-7, 0.75), (1e-7, 1.0)])
def test_a_small_alpha_keeps_its_digits(alpha, value):
    share, gap = np.array([1e-7, 0.9, 0.1 - 1e-7]), np.array([1.0, 0.5, 0.2])
    sums = [jnp.asarray(x, jnp.float32) for x in (share, share, share * gap)]
    bins = ReliabilityBins(*sums, *[jnp.zeros(3)] * 3)
    np.testing.assert_allclose(worst_tilt(bins, alpha=alpha).value, value, rtol=1e-5)


def test_the_density_is_a_reweighting_of_the_examples():
    """The calibration error under these weights is the value."""
    rng = np.random.RandomState(0)
    confidence = jnp.asarray(rng.rand(80), jnp.float32)
    outcome = jnp.asarray(rng.rand(80) < 0.5)
    found = worst_tilt(reliability_bins(confidence, outcome, num_bins=5), alpha=0.3)
    weights = found.density[jnp.floor(confidence * 5).astype(jnp.int32)]
    tilted = reliability_bins(confidence, outcome, weights=weights, num_bins=5)
    np.testing.assert_allclose(calibration_error(tilted), found.value, rtol=1e-5)


def test_the_worst_reweighting_lies_between_the_expected_and_the_maximum_error():
    bins = bins_of()
    values = [float(worst_tilt(bins, alpha=a).value) for a in (1.0, 0.7, 0.4, 0.1, 1e-3)]
    np.testing.assert_allclose(values[0], calibration_error(bins), rtol=1e-6)
    np.testing.assert_allclose(values[-1], calibration_error(bins, norm="max"), rtol=1e-6)
    assert (np.diff(values) >= -1e-6).all()


def test_reweighting_of_batches_and_of_nothing():
    first, second = bins_of(0), bins_of(1)
    both = worst_tilt(jax.tree.map(lambda a, b: jnp.stack([a, b]), first, second), alpha=0.2)
    for i, bins in enumerate((first, second)):
        np.testing.assert_allclose(both.value[i], worst_tilt(bins, alpha=0.2).value, rtol=1e-6)
    eager = worst_reweighting(first, alpha=0.2)
    np.testing.assert_allclose(both.value[0], eager.value, rtol=1e-6)
    for scale in (0.0, jnp.nan):
        none = jax.tree.map(lambda x, scale=scale: x * scale, first)
        assert jnp.isnan(worst_tilt(none, alpha=0.2).value)


@pytest.mark.parametrize("alpha", [0.0, -1.0, 1.5, float("nan")])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\], got alpha="):
        worst_reweighting(bins_of(), alpha=alpha)


def test_bad_numbers():
    probs, labels, groups = problem()
    with pytest.raises(ValueError, match="num_groups must be at least 1, got num_groups=0"):
        worst.worst_group(probs, labels, groups, num_groups=0)
    with pytest.raises(ValueError, match="num_bins must be at least 1, got num_bins=0"):
        worst.worst_group(probs, labels, groups, num_groups=2, num_bins=0)
