"""The posterior of the gap against numerical integration; what a prior and pooling keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

import calmoe_jax as cm

few = cm.shift.few_labels


@pytest.mark.parametrize("error", [0.03, 0.2])
def test_posterior_is_the_integral(error):
    prior = few.label_free_prior(jnp.array(0.05), jnp.array(0.3))
    grid = np.linspace(-2, 3, 200_001)
    density = sum(
        w * norm.pdf(grid, m, s)
        for w, m, s in zip(*(np.asarray(x, float) for x in prior), strict=True)
    )
    density *= norm.pdf(0.22, grid, error)
    density /= density.sum()
    mean = density @ grid
    found = few.posterior_gap(jnp.array(0.22), jnp.array(error), prior)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4)
    median = grid[np.searchsorted(np.cumsum(density), 0.5)]
    np.testing.assert_allclose(found.median, median, atol=1e-4)
    deviation = np.sqrt(density @ (grid - mean) ** 2)
    np.testing.assert_allclose(found.standard_deviation, deviation, rtol=1e-3)


def test_many_labels_outweigh_the_prior_and_none_leave_it():
    prior = few.label_free_prior(jnp.array(0.0), jnp.array(0.4))
    assert abs(few.posterior_gap(jnp.array(0.2), jnp.array(1e-4), prior).mean - 0.2) < 1e-4
    far = few.posterior_gap(jnp.array(0.2), jnp.array(1e3), prior).mean
    np.testing.assert_allclose(far, prior.weights @ prior.means, rtol=1e-3)
    np.testing.assert_allclose(jnp.sum(prior.weights), 1, rtol=1e-6)
    assert jnp.isnan(few.posterior_gap(jnp.array(jnp.nan), jnp.array(0.1), prior).mean)
    assert jnp.isfinite(few.label_free_prior(jnp.array(jnp.nan), jnp.array(-0.2)).means).all()


def draw(groups, seed=0, spread=0.1):
    rng = np.random.RandomState(seed)
    errors = rng.uniform(0.02, 0.1, groups)
    expected = rng.uniform(0, 0.3, groups)
    gaps = expected + 0.05 + spread * rng.randn(groups)
    return (gaps + errors * rng.randn(groups)), errors, expected


def test_pooling_solves_its_equation():
    estimates, errors, expected = draw(12)
    rest = estimates - expected

    def excess(variance):
        weight = 1 / (errors**2 + variance)
        offset = np.average(rest, weights=weight)
        return weight @ (rest - offset) ** 2 - (len(rest) - 1)

    variance = brentq(excess, 0, 1)
    weight = 1 / (errors**2 + variance)
    offset = np.average(rest, weights=weight)
    kept = variance / (variance + errors**2)
    found = jax.jit(few.pooled_gaps)(estimates, errors, expected)
    np.testing.assert_allclose(found.spread, np.sqrt(variance), rtol=1e-3)
    np.testing.assert_allclose(found.offset, offset, rtol=1e-3)
    np.testing.assert_allclose(found.mean, expected + offset + kept * (rest - offset), rtol=1e-3)


def test_pooling_is_nearer_the_truth_and_says_how_near():
    rng = np.random.RandomState(1)
    errors = np.full(30, 0.1)
    gaps = 0.2 + 0.05 * rng.randn(400, 30)
    estimates = gaps + errors * rng.randn(400, 30)
    found = jax.vmap(few.pooled_gaps, in_axes=(0, None))(estimates, errors)
    off = np.asarray(found.mean) - gaps
    assert np.sqrt(np.mean(off**2)) < 0.6 * 0.1
    assert 0.85 < np.sqrt(np.mean(off**2)) / np.mean(found.standard_deviation) < 1.25


def test_groups_without_labels_get_what_is_expected():
    estimates, errors, expected = draw(6)
    where = np.arange(6) != 2
    lost = np.where(where, estimates, np.nan)
    found = few.pooled_gaps(lost, errors, expected, where=where)
    np.testing.assert_allclose(found.mean[2], expected[2] + found.offset, rtol=1e-5)
    alone = few.pooled_gaps(estimates[where], errors[where], expected[where])
    np.testing.assert_allclose(found.mean[where], alone.mean, rtol=1e-4)
    assert found.standard_deviation[2] > found.spread


def test_one_group_stays_and_none_is_nan():
    one = few.pooled_gaps(jnp.array([0.3]), jnp.array([0.1]))
    np.testing.assert_allclose((one.mean[0], one.standard_deviation[0]), (0.3, 0.1), rtol=1e-5)
    none = few.pooled_gaps(jnp.zeros(2), jnp.ones(2), where=jnp.zeros(2, bool))
    assert all(jnp.isnan(x).all() for x in none)
    assert jnp.isnan(few.pooled_gaps(jnp.array([0.3, jnp.nan]), jnp.ones(2)).mean).all()
