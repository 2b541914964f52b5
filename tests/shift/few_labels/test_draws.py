"""Which targets are drawn, how often, and how many labels it takes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm

few = cm.shift.few_labels


def chances_by_loops(guess, weight, num_strata, even):
    order = sorted(np.flatnonzero(weight), key=lambda i: (guess[i], i))
    result = np.zeros(len(guess))
    spread = np.zeros(len(guess))
    for rows in np.array_split(np.array(order), num_strata):
        if len(rows):
            mean = np.average(guess[rows] * (1 - guess[rows]), weights=weight[rows])
            spread[rows] = np.sqrt(mean)
    for i in order:
        result[i] = even * weight[i] / weight.sum()
        result[i] += (1 - even) * weight[i] * spread[i] / np.sum(weight * spread)
    return result


@pytest.mark.parametrize("size", [1, 3, 23])
def test_chances_are_the_definition(size):
    rng = np.random.RandomState(size)
    guess = rng.rand(size).astype(np.float32)
    weight = rng.uniform(0.5, 2, size).astype(np.float32)
    if size > 5:
        weight[::7] = 0
        guess[3] = guess[4]
    found = few.label_chances(guess, weights=weight, num_strata=5, even=0.3)
    np.testing.assert_allclose(found, chances_by_loops(guess, weight, 5, 0.3), rtol=1e-5, atol=1e-7)
    jitted = jax.jit(lambda g: few.label_chances(g, weights=weight, even=0.3))(guess)
    np.testing.assert_allclose(jitted, found, rtol=1e-6)


def test_chances_of_certainty_masks_and_faults():
    np.testing.assert_allclose(few.label_chances(jnp.ones(4)), 0.25)
    where = jnp.array([True, False, True, True])
    found = few.label_chances(jnp.array([0.5, jnp.nan, 0.9, 1.0]), where=where)
    assert found[1] == 0
    np.testing.assert_allclose(jnp.sum(found), 1, rtol=1e-6)
    assert jnp.isnan(few.label_chances(jnp.array([0.5, 1.2]))).all()
    assert jnp.isnan(few.label_chances(jnp.ones(3), where=jnp.zeros(3, bool))).all()


def test_draws_have_the_probabilities_of_successive_sampling():
    chances = np.array([0.1, 0.2, 0.3, 0.4])
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.jit(jax.vmap(lambda k: few.draw_units(k, chances, num_draws=2)))(keys)
    for first, second in itertools.permutations(range(4), 2):
        expected = chances[first] * chances[second] / (1 - chances[first])
        share = np.mean((drawn[:, 0] == first) & (drawn[:, 1] == second))
        assert abs(share - expected) < 4 * np.sqrt(expected / 20_000)


def test_draws_end_where_nothing_is_left():
    drawn = few.draw_units(jax.random.key(0), jnp.array([0.0, 1.0, 2.0]), num_draws=5)
    assert sorted(drawn[:2].tolist()) == [1, 2]
    assert drawn[2:].tolist() == [-1, -1, -1]
    assert (few.draw_units(jax.random.key(0), jnp.array([jnp.nan, 1.0]), num_draws=1) == -1).all()
    with pytest.raises(ValueError, match="num_draws"):
        few.draw_units(jax.random.key(0), jnp.ones(3), num_draws=0)


@pytest.mark.parametrize("gap", [0.3, 0.15])
def test_labels_needed_are_enough_and_half_of_them_are_not(gap):
    accuracy = 0.6
    number = few.labels_needed(gap, deviation=float(np.sqrt(accuracy * (1 - accuracy))), power=0.8)
    rng = np.random.RandomState(0)

    def reached(count):
        residuals = (accuracy + gap - (rng.rand(400, count) < accuracy)).astype(np.float32)
        lower = jax.vmap(
            lambda x: few.lower_confidence_sequence(
                x, least=gap + accuracy - 1, mean_range=(-1.0, 1.0), planned=count
            )
        )(residuals)[:, -1]
        return np.mean(lower >= 0.5 * gap)

    assert reached(number) > 0.78
    assert reached(number // 2) < 0.7


@pytest.mark.parametrize(
    ("name", "value"), [("gap", 0.0), ("share", 1.0), ("level", 1.0), ("power", 1.0)]
)
def test_labels_needed_refuses(name, value):
    given = {"gap": 0.2} | {name: value}
    with pytest.raises(ValueError, match=name):
        few.labels_needed(given.pop("gap"), **given)
