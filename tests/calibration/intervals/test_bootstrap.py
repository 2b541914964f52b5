"""Draws of whole clusters, and of binned sums, against loops and exact moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm
from calmoe_jax.calibration.intervals.bootstrap import (
    bootstrap_bins,
    bootstrap_counts,
    bootstrap_sums,
    cluster_bins,
    cluster_sums,
)

binned = jax.jit(cm.calibration.reliability_bins, static_argnames="num_bins")
clustered = jax.jit(cluster_bins, static_argnames=("num_bins", "num_clusters"))
drawn_bins = jax.jit(bootstrap_bins, static_argnames="num_replicates")
counts_of = jax.jit(bootstrap_counts, static_argnames=("num_clusters", "num_replicates"))
sums_of = jax.jit(cluster_sums, static_argnames="num_clusters")


def problem(seed=0, size=40, clusters=6):
    rng = np.random.RandomState(seed)
    confidence = rng.rand(size).astype(np.float32)
    outcome = (rng.rand(size) < confidence).astype(np.float32)
    weights = rng.rand(size).astype(np.float32) * 2
    numbers = rng.randint(clusters, size=size)
    return [jnp.asarray(x) for x in (confidence, outcome, weights, numbers)]


def assert_same(found, expected, rtol=1e-5, atol=1e-5):
    for name, ours, theirs in zip(found._fields, found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=name)


def test_only_clusters_that_exist_are_drawn():
    where = jnp.array([True, False, True, True, False])
    counts = np.asarray(counts_of(jax.random.key(0), 5, where=where, num_replicates=4000))
    assert (counts[:, ~np.asarray(where)] == 0).all()
    assert (counts.sum(axis=1) == 3).all()
    np.testing.assert_allclose(counts[:, [0, 2, 3]].mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(counts[:, [0, 2, 3]].var(axis=0), 1 - 1 / 3, atol=0.06)
    covariance = np.cov(counts[:, [0, 2]].T)[0, 1]
    np.testing.assert_allclose(covariance, -1 / 3, atol=0.06)


def test_without_clusters_nothing_is_drawn():
    where = jnp.zeros(3, bool)
    assert (counts_of(jax.random.key(0), 3, where=where, num_replicates=5) == 0).all()


def test_sums_of_a_replicate_are_those_of_its_examples():
    _, outcome, weights, numbers = problem()
    table = jnp.stack([outcome, weights], axis=1)
    counts = counts_of(jax.random.key(1), 6, num_replicates=20)
    sums = sums_of({"a": weights, "b": table}, numbers, num_clusters=6)
    found = jax.jit(bootstrap_sums)(counts, sums)
    weights, table, numbers = (np.asarray(x) for x in (weights, table, numbers))
    for r, row in enumerate(np.asarray(counts, int)):
        rows = np.concatenate([np.repeat(np.flatnonzero(numbers == c), row[c]) for c in range(6)])
        np.testing.assert_allclose(found["a"][r], weights[rows].sum(), rtol=1e-5)
        np.testing.assert_allclose(found["b"][r], table[rows].sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("outside", [-1, 6, 1000])
def test_an_example_outside_the_clusters_does_not_vanish(outside):
    values = jnp.array([1.0, 2.0, 3.0])
    numbers = jnp.array([0, outside, 5])
    assert jnp.isnan(sums_of(values, numbers, num_clusters=6)).all()
    found = sums_of(values.at[1].set(0), numbers, num_clusters=6)
    assert found.tolist() == [1, 0, 0, 0, 0, 3]


def test_without_examples_sums_are_zero():
    empty = jnp.zeros(0)
    found = sums_of(empty, jnp.zeros(0, jnp.int32), num_clusters=2)
    assert found.tolist() == [0, 0]
    bins = clustered(empty, empty, jnp.zeros(0, jnp.int32), num_clusters=2, num_bins=3)
    assert all(sums.shape == (2, 3) and (sums == 0).all() for sums in bins)


def test_bins_of_clusters_are_those_of_their_examples():
    confidence, outcome, weights, numbers = problem()
    where = jnp.arange(40) % 3 != 0
    options = {"weights": weights, "where": where, "num_bins": 5}
    found = clustered(confidence, outcome, numbers, num_clusters=6, **options)
    for c in range(6):
        options["where"] = where & (numbers == c)
        expected = binned(confidence, outcome, **options)
        assert_same(type(found)(*(sums[c] for sums in found)), expected)


def test_rows_that_do_not_count_may_be_anything():
    confidence, outcome, _, numbers = problem()
    where = jnp.arange(40) != 7
    clean = clustered(confidence, outcome, numbers, where=where, num_clusters=6)
    dirty = clustered(
        confidence.at[7].set(jnp.nan), outcome, numbers.at[7].set(99), where=where, num_clusters=6
    )
    assert_same(dirty, clean, rtol=0, atol=0)
    counted = clustered(confidence.at[7].set(jnp.nan), outcome, numbers, num_clusters=6)
    assert jnp.isnan(counted.residual[numbers[7]]).all()


@pytest.mark.parametrize("weighted", [False, True])
def test_replicates_of_bins_have_the_moments_of_a_poisson_bootstrap(weighted):
    confidence, outcome, weights, _ = problem(size=400)
    weights = weights if weighted else jnp.ones(400)
    bins = binned(confidence, outcome, weights=weights, num_bins=4)
    found = drawn_bins(jax.random.key(0), bins, num_replicates=20_000)
    rng = np.random.RandomState(0)
    times = rng.poisson(1, size=(20_000, 400))
    residual = np.asarray((confidence - outcome) * weights, np.float64)
    for b in range(4):
        inside = np.asarray(jnp.floor(confidence * 4) == b)
        both = np.stack([np.asarray(weights)[inside], residual[inside]])
        exact = both @ both.T  # a Poisson count has variance 1
        ours = np.cov(found.weight[:, b], found.residual[:, b])
        theirs = np.cov((times[:, inside] @ both.T).T)
        scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
        np.testing.assert_allclose(ours / scale, exact / scale, atol=0.04)
        np.testing.assert_allclose(theirs / scale, exact / scale, atol=0.04)
        noise = np.sqrt(np.diag(exact) / 20_000)
        means = np.array([found.weight[:, b].mean(), found.residual[:, b].mean()])
        assert (abs(means - both.sum(axis=1)) < 5 * noise).all()
    across = np.corrcoef(np.asarray(found.residual).T)
    assert abs(across - np.eye(4)).max() < 0.04


def test_replicates_of_bins_at_the_edges():
    confidence, outcome = jnp.array([0.1, 0.1, 0.9]), jnp.zeros(3)
    bins = binned(confidence, outcome, num_bins=3)
    found = drawn_bins(jax.random.key(0), bins, num_replicates=500)
    assert all(sums.shape == (500, 3) for sums in found)
    assert all((sums[:, 1] == 0).all() for sums in found)  # an empty bin stays empty
    assert (found.weight >= 0).all()
    # all residuals alike: where the weight is not cut off they move with it
    kept = np.asarray(found.weight[:, 0]) > 0
    np.testing.assert_allclose(
        found.residual[kept, 0], 0.1 * found.weight[kept, 0], rtol=1e-4, atol=1e-4
    )
    for name in ("confidence", "weight_square", "residual_square", "weight_residual"):
        ours, kept_mean = getattr(found, name)[:, 0], getattr(bins, name)[0] / bins.weight[0]
        np.testing.assert_allclose(ours, kept_mean * found.weight[:, 0], rtol=1e-5, atol=1e-6)


def test_draws_depend_on_nothing_but_the_key():
    bins = binned(*problem()[:2])
    first, again, other = (drawn_bins(jax.random.key(k), bins, num_replicates=8) for k in (0, 0, 1))
    assert_same(first, again, rtol=0, atol=0)
    assert (first.residual != other.residual).any()
    assert_same(bootstrap_bins(jax.random.key(0), bins, num_replicates=8), first, atol=1e-4)


def test_counts_are_float32_whatever_the_default():
    with jax.enable_x64(True):
        for where in (None, jnp.ones(5, bool)):
            counts = jax.eval_shape(lambda w=where: bootstrap_counts(jax.random.key(0), 5, where=w))
            assert counts.dtype == jnp.float32


def test_bad_numbers():
    bins = binned(*problem()[:2])
    with pytest.raises(ValueError, match="num_replicates must be at least 1"):
        bootstrap_bins(jax.random.key(0), bins, num_replicates=0)
    with pytest.raises(ValueError, match="num_clusters must be at least 1"):
        cluster_sums(jnp.ones(2), jnp.zeros(2, jnp.int32), num_clusters=0)
