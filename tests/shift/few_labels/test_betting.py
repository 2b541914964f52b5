"""Bounds of a mean by betting: against loops, how often they miss, and how near they come."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm

bounds = cm.shift.few_labels.lower_confidence_sequence


def bounds_by_loops(values, least, low, high, known, level, planned, deviation=0.45):
    """The definition, candidate after candidate, in float64."""
    candidates = [low + (high - low) * (j + 1) / 512 for j in range(512)]
    threshold = -math.log(1 - level)
    rejected_at = []
    for g in candidates:
        wealth, total, squares, at = 0.0, 0.0, 0.0, math.inf
        deadline = planned
        for t, (value, settled) in enumerate(zip(values, known, strict=True)):
            if t == deadline:
                deadline *= 2
            mean = g - settled - least
            if mean <= 0:
                at = t
                break
            about = g - settled
            moment = 4 * deviation**2 + max(squares - 2 * about * total + t * about**2, 0)
            stake = mean * math.sqrt(2 * (threshold - wealth) / ((deadline - t) * moment / (4 + t)))
            wealth += math.log1p(min(stake, 0.99) * ((value - least) / mean - 1))
            total, squares = total + value, squares + value**2
            if wealth >= threshold:
                at = t
                break
        rejected_at.append(at)
    found = []
    for t in range(len(values)):
        number = next((j for j, at in enumerate(rejected_at) if at > t), 512)
        found.append(low + (high - low) * number / 512)
    return np.array(found)


@pytest.mark.parametrize(("planned", "least"), [(30, -1.0), (8, -0.7)])
def test_is_the_definition(planned, least):
    rng = np.random.RandomState(planned)
    values = np.where(rng.rand(30) < 0.5, rng.uniform(0.5, 1, 30), rng.uniform(least, 0, 30))
    known = 0.1 * rng.randn(30)
    values, known = values.astype(np.float32), known.astype(np.float32)
    values = np.maximum(values, least)
    found = bounds(
        values, least=least, mean_range=(-0.5, 1.0), known=known, level=0.8, planned=planned
    )
    expected = bounds_by_loops(
        values.astype(float), least, -0.5, 1.0, known.astype(float), 0.8, planned
    )
    # a candidate whose wealth ends at the threshold may go either way
    assert np.max(np.abs(found - expected)) <= 1.5 / 512 + 1e-6
    assert expected[-1] > -0.5


def two_point(rng, shape):
    return np.where(rng.random_sample(shape) < 0.9, 0.1, -0.9), 0.0


def skewed(rng, shape):
    # rare large values: the normal approximation misses far more often than it says
    return np.where(rng.random_sample(shape) < 0.02, 0.98, -0.02), 0.0


def spread(rng, shape):
    return rng.uniform(-1, 1, shape), 0.0


def shifted(rng, shape):
    return rng.uniform(0, 0.9, shape) - (rng.random_sample(shape) < 0.3), 0.15


@pytest.mark.parametrize("draw", [two_point, skewed, spread, shifted])
@pytest.mark.every_case
def test_misses_no_more_often_than_stated_at_any_draw(draw):
    values, mean = draw(np.random.RandomState(0), (1500, 80))
    found = jax.jit(jax.vmap(lambda x: bounds(x, least=-1.0, mean_range=(-1.0, 1.0), planned=40)))(
        values.astype(np.float32)
    )
    missed = np.mean(np.any(np.asarray(found) > mean + 1e-6, axis=1))
    assert missed <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 1500)


def test_is_near_what_the_normal_approximation_gives():
    rng = np.random.RandomState(0)
    values = (0.85 - (rng.rand(500, 100) < 0.5)).astype(np.float32)
    found = jax.vmap(lambda x: bounds(x, least=-1.0, mean_range=(-1.0, 1.0), planned=100))(values)
    short = 0.35 - np.mean(found[:, -1])
    assert 1.2 < short / (0.5 / math.sqrt(100)) < 1.75  # 1.28 if the variance were known


def test_plan_matters_only_for_width_and_is_doubled():
    values = jnp.asarray(np.random.RandomState(0).rand(60) < 0.7, jnp.float32)
    found = bounds(values, least=0.0, mean_range=(0.0, 1.0), planned=15)
    assert found[14] > 0
    assert found[-1] > found[14]
    assert found[-1] < 0.75


def test_masked_draws_are_absent_and_bounds_never_fall():
    rng = np.random.RandomState(1)
    values = rng.uniform(-0.2, 1, 40).astype(np.float32)
    where = rng.rand(40) < 0.6
    given = {"least": -1.0, "mean_range": (-1.0, 1.0), "planned": 20}
    found = bounds(np.where(where, values, np.nan).astype(np.float32), where=where, **given)
    alone = bounds(values[where], **given)
    np.testing.assert_allclose(found[where], alone, atol=1e-6)
    assert np.all(np.diff(found) >= 0)
    assert found[-1] > -1


def test_units_do_not_matter():
    values = np.random.RandomState(2).uniform(-0.2, 1, 30).astype(np.float32)
    found = bounds(values, least=-1.0, mean_range=(-1.0, 1.0))
    scaled = bounds(4 * values, least=-4.0, mean_range=(-4.0, 4.0), deviation=1.8)
    np.testing.assert_allclose(scaled, 4 * found, atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, -1.5])
def test_what_cannot_be_is_nan_from_there(bad):
    values = np.full(6, 0.5, np.float32)
    values[3] = bad
    found = np.asarray(bounds(values, least=-1.0, mean_range=(-1.0, 1.0)))
    assert np.isfinite(found[:3]).all()
    assert np.isnan(found[3:]).all()


def test_where_nothing_is_shown_the_bound_is_the_smallest_mean():
    found = bounds(jnp.full(5, -1.0), least=-1.0, mean_range=(-1.0, 1.0))
    np.testing.assert_array_equal(found, -1)


def test_no_draw():
    assert bounds(jnp.zeros(0), least=-1.0, mean_range=(-1.0, 1.0)).shape == (0,)


@pytest.mark.parametrize(
    ("name", "value"), [("level", 1.0), ("level", 0.0), ("planned", 0), ("deviation", 0.0)]
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=name):
        bounds(jnp.zeros(3), least=-1.0, mean_range=(-1.0, 1.0), **{name: value})
