"""The gap from few labels: unbiased by enumeration, bounded, exact with all of them."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm

eager = cm.shift.few_labels.confidence_gap_sequence
sequence = jax.jit(eager, static_argnames=("num_units", "level", "planned"))


def population(size, seed=0, accuracy=0.5):
    rng = np.random.RandomState(seed)
    confidence = rng.uniform(0.4, 1, size).astype(np.float32)
    correct = (rng.rand(size) < accuracy).astype(np.float32)
    return confidence, correct, rng


def orders(chances, number):
    """Every ordered draw without replacement, and its probability."""
    for order in itertools.permutations(range(len(chances)), number):
        left, probability = sum(chances), 1.0
        for unit in order:
            probability *= chances[unit] / left
            left -= chances[unit]
        yield order, probability


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.every_case
def test_estimate_is_unbiased_over_all_draws(clustered):
    size = 9 if clustered else 5
    confidence, correct, rng = population(size)
    weights = rng.uniform(0.5, 2, size).astype(np.float32)
    units = np.array([0, 0, 1, 2, 2, 2, 3, 4, 4]) if clustered else np.arange(5)
    chances = np.array([0.1, 0.3, 0.2, 0.25, 0.15], np.float32)
    guess = rng.uniform(0, 1, size).astype(np.float32)
    drawn, probability = map(np.array, zip(*orders(chances.astype(float), 3), strict=True))
    np.testing.assert_allclose(probability.sum(), 1)
    found = jax.vmap(
        lambda d: sequence(
            confidence,
            correct,
            d,
            correctness=guess,
            weights=weights,
            units=units,
            num_units=5,
            chances=chances,
        )
    )(drawn)
    gap = np.average(confidence - correct, weights=weights)
    # of one draw there is no regression yet
    np.testing.assert_allclose(probability @ found.estimate[:, 0], gap, atol=1e-5)
    flat = jax.vmap(lambda d: sequence(jnp.full(5, 0.7), correct[:5], d))(drawn)
    np.testing.assert_allclose(
        np.mean(flat.estimate, axis=0), 0.7 - np.mean(correct[:5]), atol=1e-5
    )


def estimate_by_loops(confidence, correct, guess, drawn):
    """Equal chances: sample means, less their regression on guess and confidence."""
    size = len(confidence)
    controls = np.stack([guess - guess.mean(), confidence - confidence.mean()], axis=1)
    residual = guess - correct
    rows = np.concatenate([residual[:, None], controls], axis=1)[drawn]
    products, mean = np.zeros((3, 3)), np.zeros(3)
    for t, row in enumerate(rows):
        # Welford's update, with the finite population's correction of either mean
        share = (t / (size - t)) / ((t + 1) / (size - t - 1)) if t + 1 < size else 0
        products += share * np.outer(row - mean, row - mean)
        mean += (row - mean) / (t + 1)
    ridge = np.diag(10 * np.mean(controls**2, axis=0) + 1e-6)
    slopes = np.linalg.solve(products[1:, 1:] + ridge, products[1:, 0])
    # the means that are not drawn are known to cancel those that are
    return np.mean(confidence - guess) + mean[0] - slopes @ mean[1:]


@pytest.mark.parametrize("number", [2, 25])
def test_estimate_is_the_regression_estimator_where_chances_are_equal(number):
    confidence, correct, rng = population(40)
    guess = np.clip(confidence + 0.1 * rng.randn(40), 0, 1).astype(np.float32)
    drawn = rng.permutation(40)
    found = sequence(confidence, correct, drawn, correctness=guess)
    expected = estimate_by_loops(
        *(x.astype(float) for x in (confidence, correct, guess)), drawn[:number]
    )
    np.testing.assert_allclose(found.estimate[number - 1], expected, atol=1e-4)


def test_of_one_draw_by_hand():
    confidence, correct = np.array([0.9, 0.6, 0.8]), np.array([1.0, 0.0, 1.0])
    chances = np.array([0.2, 0.5, 0.3])
    found = sequence(confidence, correct, np.array([1]), chances=chances)
    # the others' residuals, with the confidence as guess, are not known: 0.6 / 3 over 0.5
    np.testing.assert_allclose(found.estimate[0], 0.6 / 3 / 0.5, rtol=1e-6)


def test_all_labels_give_the_gap_itself():
    confidence, correct, rng = population(40)
    guess = rng.rand(40).astype(np.float32)
    found = sequence(confidence, correct, rng.permutation(40), correctness=guess, planned=40)
    gap = np.mean(confidence - correct)
    for value in (found.estimate, found.lower, found.upper):
        np.testing.assert_allclose(value[-1], gap, atol=1e-4)
    assert found.standard_error[-1] < 1e-3


def test_labels_tell_how_far_to_trust_the_guess():
    confidence, correct, rng = population(2000)
    told = np.where(correct > 0, 0.55, 0.5).astype(np.float32)
    drawn = rng.permutation(2000)[:100]
    # a guess that is right and far too timid: the regression finds its slope
    assert sequence(confidence, correct, drawn, correctness=told).standard_error[-1] < 0.025


@pytest.mark.parametrize("case", ["even", "chances", "guess", "clusters"])
@pytest.mark.every_case
def test_bounds_hold_at_every_number_of_labels(case):
    confidence, correct, rng = population(300, accuracy=0.7)
    given = {}
    number = 300
    if case == "chances":
        given = {"chances": np.sqrt(confidence * (1 - confidence) + 0.05)}
    if case == "guess":
        # a poor guess costs width, not validity
        given = {"correctness": 1 - confidence}
    if case == "clusters":
        units = np.sort(rng.randint(0, 60, 300))
        units = np.unique(units, return_inverse=True)[1]
        number = int(units.max()) + 1
        correct = (rng.rand(number)[units] < 0.7).astype(np.float32)
        given = {"units": units, "num_units": number}
    chances = given.get("chances", np.ones(number))
    noise = rng.gumbel(size=(800, number)) + np.log(chances)
    drawn = np.argsort(-noise, axis=1)[:, : min(60, number // 2)]
    found = jax.jit(jax.vmap(lambda d: sequence(confidence, correct, d, **given)))(drawn)
    gap = np.mean(confidence - correct)
    allowed = 0.1 + 3 * math.sqrt(0.1 * 0.9 / 800)
    assert np.mean(np.any(found.lower > gap + 1e-5, axis=1)) <= allowed
    assert np.mean(np.any(found.upper < gap - 1e-5, axis=1)) <= allowed
    error = np.mean(found.standard_error[:, -1])
    assert 0.75 < error / np.std(found.estimate[:, -1]) < 1.35


def test_a_good_guess_narrows_the_bounds():
    confidence, correct, rng = population(400)
    drawn = rng.permutation(400)[:50]
    plain = sequence(confidence, correct, drawn)
    told = sequence(confidence, correct, drawn, correctness=0.1 + 0.8 * correct)
    assert told.standard_error[-1] < 0.6 * plain.standard_error[-1]
    assert told.upper[-1] - told.lower[-1] < 0.8 * (plain.upper[-1] - plain.lower[-1])


def test_masks_leave_out_and_weights_repeat():
    confidence, correct, rng = population(60)
    where = rng.rand(60) < 0.7
    rows = np.flatnonzero(where)
    place = np.cumsum(where) - 1
    drawn = rng.permutation(rows)[:20]
    lost = np.where(where, confidence, np.nan).astype(np.float32)
    masked = sequence(lost, np.where(where, correct, np.nan), drawn, where=where)
    alone = sequence(confidence[rows], correct[rows], place[drawn])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), masked, alone)
    twice = np.arange(60) % 2 + 1
    weighted = sequence(
        confidence, correct, np.arange(10), weights=twice.astype(np.float32), chances=np.ones(60)
    )
    repeated = np.repeat(np.arange(60), twice)
    units = sequence(
        confidence[repeated], correct[repeated], np.arange(10), units=repeated, num_units=60
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), weighted, units)


def test_padding_repeats_and_jit_is_eager():
    confidence, correct, _ = population(50)
    drawn = np.array([3, -1, 7, 9, -1, -1])
    found = sequence(confidence, correct, drawn)
    alone = sequence(confidence, correct, drawn[drawn >= 0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[np.array([0, 0, 1, 2, 2, 2])], atol=1e-6),
        found, alone,
    )  # fmt: skip
    by_steps = eager(confidence, correct, drawn)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, by_steps)
    nothing = sequence(confidence, correct, np.full(2, -1))
    assert nothing.estimate[-1] == 0
    assert nothing.lower[-1] < 0 < nothing.upper[-1]


@pytest.mark.parametrize("fault", ["no label", "twice", "outside", "weight 0"])
def test_draws_that_cannot_be_used_are_nan_from_there(fault):
    confidence, correct, _ = population(30)
    drawn, weights = np.arange(8), np.ones(30, np.float32)
    if fault == "no label":
        correct[4] = np.nan
    if fault == "twice":
        drawn[4] = 1
    if fault == "outside":
        drawn[4] = 30
    if fault == "weight 0":
        weights[4] = 0
    for column in sequence(confidence, correct, drawn, weights=weights):
        assert np.isfinite(column[:4]).all()
        assert np.isnan(column[4:]).all()


@pytest.mark.parametrize("fault", ["confidence", "chance", "nothing counts"])
def test_faults_of_all_are_nan(fault):
    confidence, correct, _ = population(30)
    given = {}
    if fault == "confidence":
        confidence[20] = np.nan
    if fault == "chance":
        given["chances"] = np.ones(30, np.float32) - (np.arange(30) == 20)
    if fault == "nothing counts":
        given["where"] = np.zeros(30, bool)
    found = sequence(confidence, correct, jnp.arange(3), **given)
    assert all(np.isnan(x).all() for x in found)


def test_units_need_their_number():
    confidence, correct, _ = population(5)
    with pytest.raises(ValueError, match="num_units"):
        sequence(confidence, correct, jnp.arange(2), units=jnp.arange(5))
