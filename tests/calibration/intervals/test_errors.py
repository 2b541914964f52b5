"""Intervals of calibration errors: the test that they invert, and what they cover."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm
from calmoe_jax.calibration import intervals
from calmoe_jax.calibration.intervals import bootstrap_bins, cluster_bins

pytestmark = pytest.mark.exhaustive

KEY = jax.random.key(3)
NORMS = ("l1", "l2")
OPTIONS = ("norm", "level", "num_replicates")
interval_of = jax.jit(intervals.calibration_error, static_argnames=OPTIONS)
cluster_interval_of = jax.jit(intervals.clustered_calibration_error, static_argnames=OPTIONS)
difference_of = jax.jit(intervals.squared_error_difference)
drawn_bins = jax.jit(bootstrap_bins)
error_of_bins = jax.jit(cm.calibration.calibration_error, static_argnames="norm")
binned = jax.jit(cm.calibration.reliability_bins, static_argnames="num_bins")
clustered = jax.jit(cluster_bins, static_argnames=("num_bins", "num_clusters"))


def sample(gaps, size, seed=0, problems=None):
    """Forecasts whose events are rarer by the gap of their bin, and the true errors."""
    rng = np.random.RandomState(seed)
    shape = (size,) if problems is None else (problems, size)
    bins = len(gaps)
    confidence = 0.15 + 0.7 * rng.rand(*shape)
    gap = np.asarray(gaps)[(confidence * bins).astype(int)]
    outcome = rng.rand(*shape) < confidence - gap
    edges = np.clip(np.arange(bins + 1) / bins, 0.15, 0.85)
    share = np.diff(edges) / 0.7
    truth = {"l1": share @ np.abs(gaps), "l2": math.sqrt(share @ np.square(gaps))}
    return jnp.asarray(confidence, jnp.float32), jnp.asarray(outcome), truth


def assert_same(found, expected, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    for name, ours, theirs in zip(found._fields, found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, err_msg=name, **tolerance)


def assert_nan(interval):
    assert all(jnp.isnan(end) for end in interval)


def error_of(share, gap, norm):
    return share @ abs(gap) if norm == "l1" else math.sqrt(share @ gap**2)


def observable(bins, replicates, norm):
    """What data would show, replicate by replicate and bin by bin, under any true gaps."""
    claims = jax.random.split(KEY)[1]
    normal = np.asarray(jax.random.normal(claims, replicates.weight.shape), np.float64)
    bins, replicates = (
        {name: np.asarray(x, np.float64) for name, x in sums._asdict().items()}
        for sums in (bins, replicates)
    )
    noise = np.zeros(normal.shape)
    for r, b in np.ndindex(*normal.shape):
        weight = bins["weight"][b]
        if weight == 0:
            continue
        gap, forecast = bins["residual"][b] / weight, bins["confidence"][b] / weight
        size = weight**2 / bins["weight_square"][b]
        seen = (replicates["residual"][r, b] - gap * replicates["weight"][r, b]) / weight
        noise[r, b] = seen * math.sqrt(size / (size + 2))
        # three examples of the variance that the forecast claims
        claim = 3 * forecast * (1 - forecast) / ((size + 2) * size)
        noise[r, b] += math.sqrt(claim) * normal[r, b]
    shares = replicates["weight"] / replicates["weight"].sum(axis=1, keepdims=True)

    def shown(gaps):
        size = np.abs(gaps + noise)
        return (shares * size).sum(1) if norm == "l1" else np.sqrt((shares * size**2).sum(1))

    return shown, noise


@pytest.mark.parametrize("norm", NORMS)
def test_inverts_the_test_of_every_error(norm):
    confidence, outcome, _ = sample([-0.25] * 7 + [0.0] * 8, 600)
    weights = jnp.asarray(np.random.RandomState(0).rand(600), jnp.float32)
    bins = binned(confidence, outcome, weights=weights)
    found = interval_of(KEY, bins, norm=norm)
    drawn = drawn_bins(jax.random.split(KEY)[0], bins)
    shown, noise = observable(bins, drawn, norm)
    weight, residual = np.asarray(bins.weight, np.float64), np.asarray(bins.residual, np.float64)
    share, gap = weight / weight.sum(), residual / np.where(weight == 0, 1, weight)
    observed = error_of(share, gap, norm)
    spread = noise.std(axis=0)
    clear = np.where(abs(gap) >= 2 * spread, gap, 0)
    assert 0 < (clear != 0).sum() < (gap != 0).sum()

    def smallest(shape, chance):
        errors = np.linspace(0, 0.4, 201)
        shape = shape / error_of(share, shape, norm)
        reached = [np.mean(shown(error * shape) >= observed) >= chance for error in errors]
        return errors[np.argmax(reached)]

    low = min(smallest(gap, 0.025), smallest(clear, 0.025))
    assert_same(found, (smallest(gap, 0.5), low, smallest(gap, 0.975)), rtol=0, atol=0.003)
    assert found.low > 0


PROBLEMS = 250


@jax.jit
def run(keys, confidence, outcome):
    """Both norms at once: what takes long is to compile."""

    def one(x):
        bins = cm.calibration.reliability_bins(x[1], x[2])
        return [
            intervals.calibration_error(x[0], bins, norm=norm, num_replicates=200) for norm in NORMS
        ]

    return jax.lax.map(one, (keys, confidence, outcome), batch_size=25)


@functools.cache
def intervals_of_problems(gaps, size=600):
    confidence, outcome, truth = sample(gaps, size, problems=PROBLEMS)
    found = run(jax.random.split(jax.random.key(0), PROBLEMS), confidence, outcome)
    return dict(zip(NORMS, found, strict=True)), truth


SPREADS = {
    "everywhere": (0.05,) * 15,
    "both ways": (0.04, -0.04) * 7 + (0.04,),
    "one bin": (0.0,) * 7 + (0.35,) + (0.0,) * 7,
}


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "spread",
    ["everywhere", pytest.param("both ways", marks=pytest.mark.exhaustive), "one bin"],
)
@pytest.mark.parametrize("norm", NORMS)
def test_covers_the_true_error(norm, spread):
    both, truths = intervals_of_problems(SPREADS[spread])
    found, truth = both[norm], truths[norm]
    assert truth > 0.02
    share = np.mean((found.low <= truth) & (truth <= found.high))
    # two points for what the spread of gaps costs, and four standard errors of a binomial share
    assert abs(share - 0.95) < 0.02 + 4 * math.sqrt(0.95 * 0.05 / PROBLEMS), share
    assert ((found.low <= found.value) & (found.value <= found.high)).all()
    assert (found.low >= 0).all()
    assert (found.high <= 1).all()
    if norm == "l2":
        assert abs(np.median(found.value) - truth) < 0.007


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [pytest.param(60, marks=pytest.mark.exhaustive), 600])
def test_holds_nothing_where_the_model_is_calibrated(norm, size):
    both, truths = intervals_of_problems((0.0,) * 15, size)
    assert truths[norm] == 0
    found = both[norm]
    assert np.mean(found.low == 0) >= 0.935 - 3 * math.sqrt(0.935 * 0.065 / PROBLEMS)
    assert np.median(found.value) < 0.1 / math.sqrt(size / 60)


@pytest.mark.parametrize("norm", NORMS)
def test_percentile_intervals_miss_the_true_error(norm):
    """Why the test is inverted: plain replicates leave out the truth nearly always."""
    confidence, outcome, _ = sample((0.0,) * 15, 1000)
    bins = binned(confidence, outcome)
    errors = error_of_bins(drawn_bins(KEY, bins), norm=norm)
    assert jnp.quantile(errors, 0.025) > 0.02
    assert interval_of(KEY, bins, norm=norm).low == 0


@pytest.mark.parametrize("norm", NORMS)
def test_the_unit_of_weights_does_not_matter(norm):
    confidence, outcome, _ = sample((0.05,) * 15, 200)
    expected = interval_of(KEY, binned(confidence, outcome), norm=norm)
    for unit in (0.25, 64.0):
        bins = binned(confidence, outcome, weights=jnp.full(200, unit))
        assert_same(interval_of(KEY, bins, norm=norm), expected)


@pytest.mark.parametrize("norm", ["l1", pytest.param("l2", marks=pytest.mark.exhaustive)])
def test_duplicated_rows_of_a_cluster_do_not_narrow_the_interval(norm):
    confidence, outcome, _ = sample((0.1,) * 15, 200)
    once = clustered(confidence, outcome, jnp.arange(200), num_clusters=200)
    thrice = clustered(
        *(jnp.repeat(x, 3) for x in (confidence, outcome, jnp.arange(200))), num_clusters=200
    )
    expected = cluster_interval_of(KEY, once, norm=norm)
    assert_same(cluster_interval_of(KEY, thrice, norm=norm), expected, atol=1e-5)
    # clusters of one are independent examples
    independent = interval_of(KEY, binned(confidence, outcome), norm=norm)
    assert_same(expected, independent, rtol=0, atol=0.02)
    total = type(thrice)(*(sums.sum(axis=0) for sums in thrice))
    fooled = interval_of(KEY, total, norm=norm)
    assert fooled.high - fooled.low < 0.75 * (expected.high - expected.low)


def test_clusters_without_weight_are_not_drawn():
    confidence, outcome, _ = sample((0.1,) * 15, 200)
    expected = clustered(confidence, outcome, jnp.arange(200), num_clusters=200)
    found = type(expected)(*(jnp.repeat(sums, 2, axis=0).at[::2].set(0) for sums in expected))
    interval, other = (cluster_interval_of(KEY, bins) for bins in (found, expected))
    assert_same(interval, other, rtol=0, atol=0.01)  # other draws of the same clusters


def test_a_lower_level_is_shorter():
    confidence, outcome, _ = sample((0.1,) * 15, 200)
    bins = binned(confidence, outcome)
    expected, found = interval_of(KEY, bins), interval_of(KEY, bins, level=0.5)
    assert expected.low < found.low < found.value == expected.value < found.high < expected.high


def test_equal_predictions_differ_by_exactly_0():
    confidence, outcome, _ = sample((0.1,) * 15, 200)
    bins = clustered(confidence, outcome, jnp.arange(200) // 4, num_clusters=200)
    assert all(end == 0 for end in difference_of(KEY, bins, bins))


@jax.jit
def differences(keys, first, second, outcome):
    numbers = jnp.arange(outcome.shape[1]) // 4

    def one(x):
        bins = [cluster_bins(c, x[3], numbers, num_clusters=100) for c in x[1:3]]
        return intervals.squared_error_difference(x[0], *bins, num_replicates=200)

    return jax.lax.map(one, (keys, first, second, outcome), batch_size=10)


@pytest.mark.parametrize("shift", [pytest.param(0.0, marks=pytest.mark.exhaustive), 0.1])
def test_differences_of_squared_errors_cover_theirs(shift):
    problems = 150
    confidence, outcome, _ = sample((0.0,) * 15, 400, problems=problems)
    keys = jax.random.split(jax.random.key(0), problems)
    # each model is off by as much on every example
    found = differences(keys, confidence + shift, confidence + 0.08, outcome)
    truth = shift**2 - 0.08**2
    share = np.mean((found.low <= truth) & (truth <= found.high))
    assert abs(share - 0.95) < 0.025 + 4 * math.sqrt(0.95 * 0.05 / problems), share
    assert abs(np.median(found.value) - truth) < 0.003
    assert ((found.low <= found.value) & (found.value <= found.high)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_without_data_the_interval_is_nan(norm):
    two = jnp.array([0.3, 0.7])
    for weights, known in (([0, 0], False), ([0, 1], False), ([1, 1], True)):
        bins = binned(two, two > 0.5, weights=jnp.array(weights, jnp.float32))
        assert bool(jnp.isfinite(interval_of(KEY, bins, norm=norm).high)) == known
        if not known:
            assert_nan(interval_of(KEY, bins, norm=norm))
    poisoned = binned(two.at[0].set(jnp.nan), two > 0.5, weights=jnp.ones(2))
    assert_nan(interval_of(KEY, poisoned, norm=norm))


def test_one_cluster_has_no_interval():
    confidence, outcome, _ = sample((0.1,) * 15, 50)
    one = clustered(confidence, outcome, jnp.full(50, 1), num_clusters=200)
    two = clustered(confidence, outcome, jnp.arange(50) % 2, num_clusters=200)
    for norm in NORMS:
        assert_nan(cluster_interval_of(KEY, one, norm=norm))
        assert jnp.isfinite(cluster_interval_of(KEY, two, norm=norm).high)
    assert_nan(difference_of(KEY, one, one))
    moved = clustered(confidence, outcome, jnp.arange(50) % 2 + 1, num_clusters=200)
    assert jnp.isfinite(difference_of(KEY, two, two).high)
    assert_nan(difference_of(KEY, two, moved))
    more = clustered(confidence, outcome, jnp.arange(50) % 3, num_clusters=200)
    assert_nan(difference_of(KEY, two, more))
    poisoned = clustered(confidence.at[0].set(jnp.nan), outcome, jnp.arange(50), num_clusters=200)
    assert_nan(cluster_interval_of(KEY, poisoned))
    assert_nan(difference_of(KEY, poisoned, poisoned))


def test_a_certain_model_that_is_always_right_has_no_error():
    bins = binned(jnp.ones(30), jnp.ones(30))
    assert all(end == 0 for end in interval_of(KEY, bins))


def test_batches_agree_with_single_problems():
    confidence, outcome, _ = sample((0.05,) * 15, 100, problems=3)
    bins = jax.jit(jax.vmap(cm.calibration.reliability_bins))(confidence, outcome)
    keys = jax.random.split(KEY, 3)
    mapped = jax.jit(jax.vmap(intervals.calibration_error))(keys, bins)
    for i in range(3):
        one = type(bins)(*(sums[i] for sums in bins))
        assert_same(interval_of(keys[i], one), [end[i] for end in mapped], atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_bad_options():
    bins = binned(jnp.array([0.5]), jnp.array([1.0]))
    many = clustered(jnp.array([0.5]), jnp.array([1.0]), jnp.array([0]), num_clusters=2)
    for function, sums in (
        (intervals.calibration_error, bins),
        (intervals.clustered_calibration_error, many),
    ):
        for message, options in (
            (r"no valid interval .* got norm='max'", {"norm": "max"}),
            (r"level must be in \(0, 1\), got level=2", {"level": 2}),
            ("num_replicates must be at least 1", {"num_replicates": 0}),
        ):
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(lambda s, f=function, o=options: f(KEY, s, **o), sums)
    few = type(many)(*(sums[:1] for sums in many))
    with pytest.raises(ValueError, match="the same clusters, got 2 and 1"):
        intervals.squared_error_difference(KEY, many, few)
