"""Bins of equal weight: ties stay together, and order does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm
from calmoe_jax.calibration.metrics.equal_mass import equal_mass_bins

jitted = jax.jit(equal_mass_bins, static_argnames="num_bins")


def bins_of(confidence, outcome, *, weights=None, where=None, num_bins=15):
    """With arrays for the defaults and rows that do not count: one compilation for most tests."""
    missing = max(60 - confidence.shape[0], 0)
    weights = jnp.ones(confidence.shape[0]) if weights is None else weights
    where = jnp.ones(confidence.shape[0], bool) if where is None else where
    confidence, outcome, weights, where = (
        jnp.pad(x, (0, missing)) for x in (confidence, outcome, weights, where)
    )
    outcome = outcome.astype(jnp.float32)
    return jitted(confidence, outcome, weights=weights, where=where, num_bins=num_bins)


def problem(seed=0, size=60):
    """Confidences, a third of them tied at a few levels; outcomes; whole weights, some 0."""
    rng = np.random.RandomState(seed)
    confidence = np.where(rng.rand(size) < 0.34, rng.randint(5, size=size) / 4, rng.rand(size))
    return confidence.astype(np.float32), rng.rand(size) < confidence, rng.randint(4, size=size)


def loop(confidence, outcome, weights, num_bins):
    """Weight, confidence and residual of each bin, group of ties by group of ties."""
    sums = np.zeros((3, num_bins))
    below = 0.0
    for level in sorted(set(confidence[weights > 0].tolist())):
        held = (confidence == level) & (weights > 0)
        group = weights[held].sum()
        b = min(int((below + group / 2) * num_bins / weights.sum()), num_bins - 1)
        sums[:, b] += group, group * level, np.sum(weights[held] * (level - outcome[held]))
        below += group
    return sums


def assert_same(bins, other):
    for found, expected in zip(bins, other, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "num_bins", [1, 15, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (2, 100))]
)
def test_equals_a_loop_over_groups(num_bins):
    for seed in range(5):
        confidence, outcome, weights = problem(seed)
        found = bins_of(
            jnp.asarray(confidence),
            jnp.asarray(outcome),
            weights=jnp.asarray(weights, jnp.float32),
            num_bins=num_bins,
        )
        assert_same(found[:3], loop(confidence, outcome, weights, num_bins))


@pytest.mark.parametrize(("size", "num_bins"), [(60, 15), (59, 15), (31, 2), (5, 15), (1, 15)])
def test_without_ties_bins_differ_by_one_example_at_most(size, num_bins):
    confidence = np.random.RandomState(size).permutation(size) / size
    weight = bins_of(jnp.asarray(confidence, jnp.float32), jnp.ones(size), num_bins=num_bins).weight
    assert weight.sum() == size
    assert weight.max() - weight.min() <= 1


def test_whole_shares_are_cut_as_an_array_is_split():
    rng = np.random.RandomState(0)
    confidence, outcome = rng.rand(60).astype(np.float32), rng.rand(60) < 0.5
    order = np.argsort(confidence)
    residual = (confidence - outcome)[order].reshape(15, 4).sum(1)
    found = bins_of(jnp.asarray(confidence), jnp.asarray(outcome))
    np.testing.assert_allclose(found.residual, residual, rtol=1e-5, atol=1e-6)


def test_ties_stay_together():
    confidence = jnp.array([0.5] * 9 + [0.9])
    weight = bins_of(confidence, jnp.ones(10)).weight
    assert weight.tolist() == [0] * 6 + [9] + [0] * 7 + [1]
    assert bins_of(jnp.full(7, 0.3), jnp.ones(7), num_bins=2).weight.tolist() == [0, 7]


def test_order_does_not_matter():
    confidence, outcome, weights = map(jnp.asarray, problem(1))
    weights = weights.astype(jnp.float32)
    expected = bins_of(confidence, outcome, weights=weights)
    for seed in range(10):
        order = np.random.RandomState(seed).permutation(60)
        found = bins_of(confidence[order], outcome[order], weights=weights[order])
        assert_same(found, expected)


def test_weights_repeat_and_masks_leave_out():
    confidence, outcome, times = problem(2)
    where = np.arange(60) % 2 != 0
    found = bins_of(
        jnp.asarray(confidence),
        jnp.asarray(outcome),
        weights=jnp.asarray(times, jnp.float32),
        where=jnp.asarray(where),
    )
    rows = np.repeat(np.arange(60), np.where(where, times, 0))
    repeated = bins_of(jnp.asarray(confidence[rows]), jnp.asarray(outcome[rows]))
    assert_same(found[:3], repeated[:3])


def test_only_the_order_of_confidences_decides_the_bins():
    confidence, outcome, _ = map(jnp.asarray, problem(3))
    squeezed = bins_of(confidence**3, outcome)
    np.testing.assert_array_equal(squeezed.weight, bins_of(confidence, outcome).weight)


@pytest.mark.parametrize("value", [jnp.nan, -0.1, 1.5])
def test_nan_counts_only_where_it_has_weight(value):
    confidence, outcome, _ = map(jnp.asarray, problem())
    kept = jnp.arange(60) != 3
    clean = bins_of(confidence, outcome, where=kept)
    strange = confidence.at[3].set(value)
    assert_same(bins_of(strange, outcome, where=kept), clean)
    assert_same(bins_of(strange, outcome, weights=kept.astype(jnp.float32)), clean)
    assert all(jnp.isnan(x).all() for x in bins_of(strange, outcome))


def test_nothing_counts():
    for bins in (
        jitted(jnp.zeros(0), jnp.zeros(0), num_bins=2),
        bins_of(jnp.ones(2), jnp.ones(2), where=jnp.zeros(2, bool), num_bins=2),
    ):
        assert all(x.tolist() == [0, 0] for x in bins)
        assert jnp.isnan(cm.calibration.calibration_error(bins))


def test_transforms_agree():
    confidence, outcome, _ = map(jnp.asarray, problem())
    mapped = jax.jit(jax.vmap(equal_mass_bins))(confidence.reshape(3, 20), outcome.reshape(3, 20))
    for i in range(3):
        one = bins_of(confidence[20 * i :][:20], outcome[20 * i :][:20])
        assert_same(jax.tree.map(lambda x, i=i: x[i], mapped), one)
    gradient = jax.grad(lambda c: jnp.abs(bins_of(c, outcome).residual).sum())(confidence)
    assert set(np.unique(gradient)) <= {-1.0, 0.0, 1.0}
    assert jnp.abs(gradient).sum() > 30


@pytest.mark.parametrize("from_logits", [False, True])
def test_error_of_the_top_label(from_logits):
    rng = np.random.RandomState(0)
    probs = rng.dirichlet(np.ones(4), size=90).astype(np.float32)
    labels = rng.randint(4, size=90)
    given = jnp.log(probs) + 2 if from_logits else jnp.asarray(probs)
    weights = rng.randint(3, size=90)

    @jax.jit
    def error(p, y, w):
        event = cm.calibration.top_label(p, y, from_logits=from_logits)
        return cm.calibration.calibration_error(equal_mass_bins(*event, weights=w, num_bins=7))

    found = error(given, jnp.asarray(labels), jnp.asarray(weights, jnp.float32))
    correct = probs.argmax(1) == labels
    residual = loop(probs.max(1), correct, weights, 7)[2]
    np.testing.assert_allclose(found, np.abs(residual).sum() / weights.sum(), rtol=1e-4)


@pytest.mark.parametrize("num_bins", [0, -1])
def test_too_few_bins(num_bins):
    with pytest.raises(ValueError, match=f"num_bins must be at least 1, got num_bins={num_bins}"):
        equal_mass_bins(jnp.ones(1), jnp.ones(1), num_bins=num_bins)
