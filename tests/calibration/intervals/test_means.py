"""Bootstrap intervals of means against a loop, and against the truth in simulation."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.stats

import calmoe_jax as cm
from calmoe_jax.calibration import intervals
from calmoe_jax.calibration.intervals import Interval, ScoreIntervals, bootstrap_counts

pytestmark = pytest.mark.exhaustive

KEY = jax.random.key(7)
STATIC = ("num_clusters", "level", "num_replicates")
jitted = jax.jit(intervals.mean, static_argnames=STATIC)
scores_of = jax.jit(intervals.scores, static_argnames=(*STATIC, "from_logits"))
differences_of = jax.jit(intervals.score_differences, static_argnames=(*STATIC, "from_logits"))
counts_of = jax.jit(bootstrap_counts, static_argnames=("num_clusters", "num_replicates"))
SMALL = 6  # examples of small problems, the last ones of which may not count


def small(values, weights=None, where=None, clusters=None):
    """With arrays for the defaults: one compilation for all small problems of a kind."""
    size = len(values)
    values = np.pad(np.asarray(values, np.float32), (0, SMALL - size), constant_values=np.nan)
    weights = np.ones(size) if weights is None else weights
    where = np.ones(size, bool) if where is None else where
    options = {
        "weights": jnp.asarray(np.pad(weights, (0, SMALL - size)), jnp.float32),
        "where": jnp.asarray(np.pad(where, (0, SMALL - size))),
    }
    if clusters is not None:
        options |= {"clusters": jnp.asarray(np.pad(clusters, (0, SMALL - size))), "num_clusters": 4}
    return jitted(KEY, jnp.asarray(values), **options)


def assert_same(found, expected, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    for name, ours, theirs in zip(found._fields, found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, err_msg=name, **tolerance)


def loop(values, weights, clusters, num_clusters, level, replicates):
    """BCa of Efron (1987) at levels of Student's t, replicate by replicate."""
    values, weights = np.asarray(values, np.float64), np.asarray(weights, np.float64)
    clusters = np.asarray(clusters)
    members = [np.flatnonzero(clusters == c) for c in range(num_clusters)]
    existing = np.array([weights[m].sum() > 0 for m in members])
    counts = counts_of(KEY, num_clusters, where=jnp.asarray(existing), num_replicates=replicates)
    mean = np.average(values, weights=weights)
    means = []
    for row in np.asarray(counts, int):
        rows = np.concatenate([np.repeat(m, times) for m, times in zip(members, row, strict=True)])
        means.append(np.average(values[rows], weights=weights[rows]))
    means = np.sort(means)
    off = np.array([np.sum(weights[m] * (values[m] - mean)) for m in members])
    a = np.sum(off**3) / (6 * np.sum(off**2) ** 1.5)
    z0 = scipy.stats.norm.ppf(np.mean(means < mean) + np.mean(means == mean) / 2)
    count = existing.sum()
    ends = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = scipy.stats.t.ppf(tail, count - 1) * math.sqrt(count / (count - 1))
        at = scipy.stats.norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z)))
        ends.append(np.quantile(means, at))
    return mean, *ends


@pytest.mark.parametrize(
    ("weighted", "level"),
    [pytest.param(False, 0.95, marks=pytest.mark.exhaustive), (True, 0.8)],
)
def test_equals_a_loop_over_the_same_draws(weighted, level):
    rng = np.random.RandomState(0)
    values = jnp.asarray(rng.gamma(0.5, size=90), jnp.float32)  # skewed
    weights = jnp.asarray(rng.rand(90) * (rng.rand(90) < 0.8), jnp.float32)
    weights = weights if weighted else jnp.ones(90)
    clusters = jnp.asarray(rng.randint(30, size=90))
    expected = loop(values, weights, clusters, 32, level, 200)
    found = jitted(
        KEY, values, weights=weights, clusters=clusters, num_clusters=32, level=level,
        num_replicates=200,
    )  # fmt: skip
    # the quantile of Student's t is an expansion
    assert_same(found, expected, rtol=2e-3)


@jax.jit
def scores_and_intervals(logits, labels, weights, where):
    """The scores, their intervals, and the same from logits."""
    probs, options = jax.nn.softmax(logits), {"weights": weights, "where": where}
    values = {
        name: getattr(cm.calibration, name)(probs, labels, **options)
        for name in ScoreIntervals._fields
    }
    from_probs = intervals.scores(KEY, probs, labels, **options)
    return values, from_probs, intervals.scores(KEY, logits, labels, from_logits=True, **options)


def test_score_intervals_are_those_of_the_metrics():
    rng = np.random.RandomState(1)
    logits = jnp.asarray(rng.randn(60, 3) * 2, jnp.float32)
    labels = jnp.asarray(rng.randint(3, size=60))
    weights = jnp.asarray(rng.rand(60), jnp.float32)
    where = jnp.arange(60) % 4 != 0
    values, found, of_logits = scores_and_intervals(logits, labels, weights, where)
    for name, interval in found._asdict().items():
        np.testing.assert_allclose(interval.value, values[name], rtol=1e-5, err_msg=name)
        assert interval.low < interval.value < interval.high
        for end, other in zip(interval, getattr(of_logits, name), strict=True):
            np.testing.assert_allclose(end, other, rtol=1e-4, atol=1e-5)
    pairs = zip(references.softmax(logits), np.asarray(labels), strict=True)
    nll = [references.negative_log_likelihood([p], [y]) for p, y in pairs]
    kept = jnp.where(where, weights, 0)
    expected = jitted(KEY, jnp.asarray(nll, jnp.float32), weights=kept)
    assert_same(found.negative_log_likelihood, expected)


@functools.partial(jax.jit, static_argnames=("level", "num_clusters"))
def intervals_of(keys, values, clusters, *, level, num_clusters):
    options = {"clusters": clusters, "num_clusters": num_clusters}

    def one(x):
        return intervals.mean(x[0], x[1], level=level, num_replicates=250, **options)

    return jax.lax.map(one, (keys, values), batch_size=50)


def coverage(values, truth, level=0.95, clusters=None):
    """Share of the rows whose interval holds the truth, and of those that lie above it."""
    size = values.shape[1]
    clusters = jnp.arange(size) if clusters is None else clusters
    keys = jax.random.split(jax.random.key(0), len(values))
    values = jnp.asarray(values, jnp.float32)
    found = intervals_of(keys, values, clusters, level=level, num_clusters=size)
    low, high = np.asarray(found.low), np.asarray(found.high)
    return np.mean((low <= truth) & (truth <= high)), np.mean(low > truth)


def assert_covers(share, level, problems):
    """Within 1.5 points of the level, and four standard errors of a binomial share."""
    tolerance = 0.015 + 4 * math.sqrt(level * (1 - level) / problems)
    assert abs(share - level) < tolerance, f"{share} for {level}"


@pytest.mark.exhaustive
@pytest.mark.parametrize("level", [pytest.param(0.8, marks=pytest.mark.exhaustive), 0.95])
def test_covers_the_mean_of_skewed_losses(level):
    rng = np.random.RandomState(0)
    share, above = coverage(rng.gamma(1.0, size=(400, 80)), 1.0, level)
    assert_covers(share, level, 400)
    tail = (1 - level) / 2
    assert abs(above - tail) < 0.015 + 4 * math.sqrt(tail * (1 - tail) / 400)


@pytest.mark.exhaustive
def test_clusters_that_vary_together_need_to_be_drawn_together():
    rng = np.random.RandomState(0)
    values = (rng.randn(250, 30, 1) + 0.3 * rng.randn(250, 30, 4)).reshape(250, 120)
    assert_covers(coverage(values, 0.0, clusters=jnp.arange(120) // 4)[0], 0.95, 250)
    assert coverage(values, 0.0)[0] < 0.8


def test_few_clusters_widen():
    rng = np.random.RandomState(0)
    assert_covers(coverage(rng.randn(500, 8), 0.0)[0], 0.95, 500)


def test_many_examples_are_dealt_into_groups():
    rng = np.random.RandomState(0)
    # sorted values must not fool the dealing
    values = jnp.asarray(np.sort(rng.randn(20_000)), jnp.float32)
    interval = jitted(KEY, values)
    expected = 2 * 1.96 * values.std() / math.sqrt(20_000)
    np.testing.assert_allclose(interval.high - interval.low, expected, rtol=0.15)


def test_duplicated_rows_of_a_cluster_do_not_narrow_the_interval():
    rng = np.random.RandomState(0)
    values = jnp.asarray(rng.randn(50), jnp.float32)
    expected = jitted(KEY, values)
    clusters = {"clusters": jnp.repeat(jnp.arange(50), 3), "num_clusters": 50}
    assert_same(jitted(KEY, jnp.repeat(values, 3), **clusters), expected)
    alone = jitted(KEY, jnp.repeat(values, 3))
    assert alone.high - alone.low < 0.7 * (expected.high - expected.low)


def test_a_model_differs_from_itself_by_exactly_0():
    rng = np.random.RandomState(0)
    logits = jnp.asarray(rng.randn(60, 3), jnp.float32)
    labels = jnp.asarray(rng.randint(3, size=60))
    found = differences_of(KEY, logits, logits, labels, from_logits=True)
    assert all((end == 0).all() for interval in found for end in interval)


def test_a_pair_is_closer_than_its_models():
    rng = np.random.RandomState(0)
    logits = jnp.asarray(rng.randn(200, 3) * 2, jnp.float32)
    labels = jnp.asarray(rng.randint(3, size=200))
    near = logits + jnp.asarray(rng.randn(200, 3), jnp.float32) / 10
    pair = differences_of(KEY, logits, near, labels, from_logits=True)
    first, second = (scores_of(KEY, z, labels, from_logits=True) for z in (logits, near))
    for name in ("negative_log_likelihood", "brier_score", "confidence_gap"):
        ours, one, two = (getattr(x, name) for x in (pair, first, second))
        np.testing.assert_allclose(ours.value, one.value - two.value, atol=1e-5)
        assert ours.high - ours.low < 0.5 * (one.high - one.low)


def assert_no_interval(interval, value=None):
    assert jnp.isnan(interval.low).all()
    assert jnp.isnan(interval.high).all()
    np.testing.assert_array_equal(interval.value, math.nan if value is None else value)


def test_nothing_counts():
    values = np.arange(5.0)
    assert_no_interval(small(values, np.zeros(5)))
    assert_no_interval(small(values, where=np.zeros(5, bool)))
    assert_no_interval(jitted(KEY, jnp.zeros(0)))


def test_one_cluster_has_a_value_and_no_interval():
    values = np.arange(5.0)
    assert_no_interval(small(values, clusters=np.full(5, 2)), 2)
    assert_no_interval(small(values, where=values == 3), 3)
    assert_no_interval(small(np.ones(1)), 1)
    two = small(values, clusters=np.array([0, 0, 1, 1, 1]))
    assert two.low <= two.value <= two.high


def test_constant_values_have_width_exactly_0():
    found = small(np.full(6, 0.7), np.random.RandomState(0).rand(6))
    assert found.low == found.value == found.high


def test_values_that_are_not_finite_have_no_interval():
    values = np.arange(5.0)
    infinite, nan = (np.where(values == 1, x, values) for x in (np.inf, np.nan))
    assert_no_interval(small(infinite), math.inf)
    assert_no_interval(small(nan))
    assert_no_interval(small(values, clusters=np.arange(5)), 2)  # one is outside
    clean = small(values, where=values != 1)
    assert_same(small(nan, where=values != 1), clean)
    assert jnp.isfinite(clean.low)
    sure_and_wrong = scores_of(KEY, jnp.eye(2), jnp.array([1, 1]))
    assert_no_interval(sure_and_wrong.negative_log_likelihood, math.inf)


def test_ends_beyond_the_pole_of_the_correction_are_the_farthest_replicates():
    found = jitted(KEY, jnp.array([4.0, -1, -1, -1, -1]), level=0.999)
    assert found.low <= found.value <= found.high
    assert found.high > found.value + 1


def test_transforms_agree():
    rng = np.random.RandomState(0)
    values = jnp.asarray(rng.randn(3, 20), jnp.float32)
    mapped = jax.jit(jax.vmap(lambda row: intervals.mean(KEY, row, num_replicates=100)))(values)
    for i in range(3):
        found = Interval(*(end[i] for end in mapped))
        assert_same(jitted(KEY, values[i], num_replicates=100), found)


@pytest.mark.exhaustive  # a hundred programs
def test_eager_agrees_with_jitted():
    values = jnp.asarray(np.random.RandomState(0).randn(20), jnp.float32)
    eager = intervals.mean(KEY, values, num_replicates=100)
    assert_same(eager, jitted(KEY, values, num_replicates=100))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_at_least_float32(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        found = jax.eval_shape(lambda x: intervals.mean(KEY, x), jnp.arange(9.0).astype(dtype))
    assert all(end.dtype == jnp.promote_types(dtype, jnp.float32) for end in found)


def statistic_of(statistic, weights, **options):
    return jax.jit(lambda w: intervals.statistic(KEY, statistic, w, **options))(weights)


def median(weights, values):
    order = jnp.argsort(values)
    above = jnp.cumsum(weights[order]) >= jnp.sum(weights) / 2
    return values[order][jnp.argmax(above)]


def test_a_statistic_of_examples_equals_a_loop():
    rng = np.random.RandomState(0)
    values = jnp.asarray(rng.randn(41), jnp.float32)
    weights = jnp.asarray(rng.randint(3, size=41), jnp.float32)
    clusters = jnp.asarray(rng.randint(12, size=41))
    found = statistic_of(
        lambda w: median(w, values), weights, clusters=clusters, num_clusters=12,
        num_replicates=150, chunk_size=7,
    )  # fmt: skip
    existing = [np.asarray(weights)[np.asarray(clusters) == c].sum() > 0 for c in range(12)]
    replicates = []
    draw = jax.jit(
        lambda key: bootstrap_counts(key, 12, where=jnp.array(existing), num_replicates=1)[0]
    )
    for counts in map(draw, jax.random.split(KEY, 150)):
        times = (np.asarray(weights) * np.asarray(counts)[np.asarray(clusters)]).astype(int)
        rows = np.sort(np.repeat(np.asarray(values), times))
        replicates.append(rows[(len(rows) + 1) // 2 - 1])
    value = np.sort(np.repeat(values, np.asarray(weights, int)))
    value = value[(len(value) + 1) // 2 - 1]
    below = np.mean(replicates < value) + np.mean(replicates == value) / 2
    count = sum(map(int, existing))
    z0 = scipy.stats.norm.ppf(below)
    z = scipy.stats.t.ppf([0.025, 0.975], count - 1) * math.sqrt(count / (count - 1))
    expected = np.quantile(replicates, scipy.stats.norm.cdf(2 * z0 + z))
    assert_same(found, (value, *expected), rtol=1e-3, atol=1e-3)


def test_chunks_do_not_matter():
    values = jnp.asarray(np.random.RandomState(0).randn(30), jnp.float32)

    def statistic(weights):
        return jnp.sum(weights * values) / jnp.sum(weights)

    one, other = (
        statistic_of(statistic, jnp.ones(30), num_replicates=90, chunk_size=size)
        for size in (32, 1000)
    )
    assert_same(one, other)


def test_negative_weights_of_a_statistic_make_nan():
    found = statistic_of(jnp.sum, jnp.ones(30).at[3].set(-1.0), num_replicates=20)
    assert_no_interval(found)


def test_a_value_outside_its_replicates_has_no_interval():
    """The largest value never grows, and a count of distinct values never stays."""
    values = jnp.arange(30.0)

    def distinct(weights):
        return jnp.sum(weights > 0).astype(jnp.float32)

    assert_no_interval(statistic_of(distinct, jnp.ones(30), num_replicates=50), 30)
    alone = jnp.zeros(30).at[3].set(1.0)
    mean = statistic_of(lambda w: w @ values / w.sum(), alone, num_replicates=50)
    assert_no_interval(mean, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 0.0}, r"level must be in \(0, 1\), got level=0.0"),
        ({"level": 1.0}, r"level must be in \(0, 1\), got level=1.0"),
        ({"num_replicates": 0}, "num_replicates must be at least 1"),
        ({"num_clusters": 3}, "must be given together, got num_clusters alone"),
        ({"clusters": jnp.arange(4)}, "must be given together, got clusters alone"),
        ({"clusters": jnp.arange(4), "num_clusters": 0}, "num_clusters must be at least 1"),
    ],
)
def test_bad_options(options, message):
    for of in (intervals.mean, lambda key, x, **more: intervals.statistic(key, jnp.sum, x, **more)):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(lambda x, of=of: of(KEY, x, **options), jnp.ones(4))
