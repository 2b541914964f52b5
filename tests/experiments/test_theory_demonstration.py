"""Mixtures under exact reweightings: the exact premise by loops, directions, committed numbers."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from calmoe_jax.calibration import intervals
from experiments.theory import demonstration, exact_premise, paired
from experiments.theory.mixtures import Pool, calibrated, mixed

COMMITTED = json.loads((Path(demonstration.__file__).parent / "results.json").read_text())["parts"]
NUMBERS = COMMITTED["f"]["numbers"]


def made_up_pool(kind, *, seeds=1, size=400, experts=3, classes=3):
    rng = np.random.RandomState(0)
    scores = rng.randn(seeds, size, experts, classes)
    log_probs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    gate = rng.randn(seeds, size, experts)
    routing = np.exp(gate) / np.exp(gate).sum(-1, keepdims=True)
    if kind == "hard":
        routing = np.eye(experts)[gate.argmax(-1)]
    chances = mixed(np.exp(log_probs[0]), routing[0])
    labels = (rng.rand(size, 1) > chances.cumsum(1)[:, :-1]).sum(1)
    clusters = np.arange(size) // 4
    return Pool(
        np.float32(log_probs), np.float32(routing), np.int32(labels), clusters, clusters % 2
    )


@pytest.mark.parametrize("kind", ["dense", "hard"])
def test_exact_premise(kind):
    pool = made_up_pool(kind)
    told = exact_premise.exact_experts(pool, 0)
    probs = np.exp(pool.log_probs[0])
    for k, c in ((0, 0), (2, 1)):
        bins = np.minimum(np.floor(probs[:, k, c] * exact_premise.NUM_BINS), 14)
        for b in np.unique(bins):
            some = bins == b
            view = pool.routing[0, some, k]
            if view.sum() > 0:
                expected = view @ (pool.labels[some] == c) / view.sum()
                np.testing.assert_allclose(told[some, k, c], expected, atol=1e-6)
    assert exact_premise.view_error(pool, told, 0) < 1e-6
    # any other probabilities are not calibrated
    assert exact_premise.view_error(pool, np.float64(probs), 0) > 1e-3
    found = exact_premise.errors(pool, (0.0, 1.0))["errors"]
    assert found[0]["radius"] == pytest.approx(0, abs=1e-12)
    assert found[1]["radius"] > 0.3
    for line in found:
        assert (line["error"] < 1e-5) == (kind == "hard")


def test_halves_are_calibrated_apart():
    pool = made_up_pool("dense", seeds=2)
    raw = calibrated(pool, "none")
    np.testing.assert_allclose(raw[0], np.exp(pool.log_probs), rtol=1e-6)
    np.testing.assert_array_equal(raw[0], raw[1])
    fitted = calibrated(pool, "temperature")
    assert fitted.shape == (2, *pool.log_probs.shape)
    # labels of the other half have no say
    other = pool._replace(labels=np.where(pool.half == 1, 0, pool.labels).astype(np.int32))
    again = calibrated(other, "temperature")
    np.testing.assert_array_equal(again[0], fitted[0])
    assert np.abs(again[1] - fitted[1]).max() > 0.01


def test_learnt_direction_is_a_ridge_regression():
    from sklearn.linear_model import Ridge

    rng = np.random.RandomState(0)
    columns = np.c_[rng.randn(300, 4) * [1, 10, 0.1, 3] + 5, np.ones(300)]
    outcome = columns[:, 0] - 5 + 0.1 * rng.randn(300)
    fitted = np.arange(300) % 2 == 0
    found = demonstration.learnt_direction(columns, outcome, fitted)
    x = (columns[:, :4] - columns[fitted, :4].mean(0)) / columns[fitted, :4].std(0)
    ridge = Ridge(alpha=10.0).fit(x[fitted], outcome[fitted])
    np.testing.assert_allclose(found, ridge.predict(x) - outcome[fitted].mean(), atol=1e-8)


def test_hard_features_know_only_what_the_chosen_expert_says():
    pool = made_up_pool("hard")
    probs = np.exp(pool.log_probs[0])
    found = demonstration.features(probs, pool.routing[0])
    idle = pool.routing[0][:, :, None] == 0
    uniform = np.where(idle, 1 / 3, probs)
    np.testing.assert_allclose(demonstration.features(uniform, pool.routing[0]), found, atol=1e-6)


def test_standardised():
    values = exact_premise.standardised(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=1e-12)
    assert not exact_premise.standardised(np.full(4, 0.3)).any()
    assert exact_premise.standardised(np.r_[np.zeros(99), 1.0]).max() == 3


def test_committed_numbers():
    found = NUMBERS["routings"]
    assert list(found) == ["dense", "top-2", "hard"]
    for name, lines in found.items():
        exact = lines["exact_premise"]
        assert exact["largest_view_error"] < 1e-6
        errors = [x["error"] for x in exact["errors"]]
        if name == "hard":
            assert max(errors) < 1e-6
        else:
            assert 0.03 < errors[0] < errors[1] < errors[2] < errors[3]
        for treatment in demonstration.TREATMENTS:
            for shift in demonstration.SHIFTS:
                points = lines["errors"][treatment][shift]
                assert [x["strength"] for x in points] == list(demonstration.STRENGTHS)
                assert all(0 <= x["low"] <= x["error"] + 1e-6 <= x["high"] + 2e-6 for x in points)
            # no routing survives a shift that depends on the label
            assert lines["errors"][treatment]["being wrong"][-1]["low"] > 0.4
    # what fitted experts have, at one size of the shift and in pairs: nothing beyond the interval
    for name in demonstration.TREATMENTS:
        lines = NUMBERS["differences"][name]
        assert [line["radius"] for line in lines] == list(paired.RADII)
        for line in lines:
            assert list(line["less"]) == ["dense", "top-2"]
            for less in line["less"].values():
                assert less["low"] <= less["difference"] <= less["high"]
    assert paired.beyond(NUMBERS["differences"]["calibrated experts"]) == (0, 0, 6)


@pytest.mark.parametrize("radius", [0.0, 0.3, 1.0, 4.0])
def test_strength_of_a_radius(radius):
    z = exact_premise.standardised(np.random.RandomState(0).randn(500))
    for sign in (1, -1):
        strength = paired.strength_of(sign * z, radius)
        weights = np.exp(sign * strength * z)
        share = weights / weights.sum()
        # the chi-square divergence of the weighted examples from the others
        np.testing.assert_allclose(np.sum((share - 1 / 500) ** 2) * 500, radius, rtol=1e-6)
        assert (strength == 0) == (radius == 0)


def test_a_radius_beyond_reach():
    # of two equal halves all weight on one has radius 1
    with pytest.raises(ValueError, match=r"radius must be one that z reaches, 1, got 1.5"):
        paired.strength_of(np.repeat([-1.0, 1.0], 5), 1.5)


def told(confidences, frequency=0.5, size=4000):
    """Mixtures of one confidence each on the same examples, right with one frequency."""
    correct = np.float64(np.random.RandomState(0).rand(size) < frequency)
    return (
        np.full((len(confidences), size), np.array(confidences)[:, None]),
        np.tile(correct, (len(confidences), 1)),
        # a mixture's weights count among themselves alone
        np.tile(np.arange(1.0, 1 + len(confidences))[:, None], (1, size)),
    )


CLUSTERS = np.arange(4000) // 20


def test_a_difference_is_that_of_the_means_of_squares():
    first, second = told([0.9, 0.7]), told([0.6, 0.5])
    right = first[1].mean()
    expected = [np.mean((np.array(c) - right) ** 2) for c in ([0.9, 0.7], [0.6, 0.5])]
    found = paired.difference(first, second, CLUSTERS)
    np.testing.assert_allclose(found["difference"], expected[0] - expected[1], atol=0.003)
    assert found["low"] < found["difference"] < found["high"]
    other_way = paired.difference(second, first, CLUSTERS)
    np.testing.assert_allclose(other_way["difference"], -found["difference"], atol=0.003)


def test_pairs_see_what_overlapping_intervals_do_not():
    first, second = told([0.55]), told([0.56])
    alone = []
    for confidence, correct, weights in (first, second):
        bins = intervals.cluster_bins(
            np.float32(confidence[0]), np.float32(correct[0]), CLUSTERS, num_clusters=200,
            weights=np.float32(weights[0]),
        )  # fmt: skip
        alone.append(intervals.clustered_calibration_error(jax.random.key(0), bins, norm="l2"))
    assert alone[0].high > alone[1].low
    found = paired.difference(first, second, CLUSTERS)
    assert found["high"] < 0
    lines = paired.against({"hard": {1.0: first}, "dense": {1.0: second}}, CLUSTERS)
    assert lines == [{"radius": 1.0, "less": {"dense": found}}]
    assert paired.beyond(lines) == (1, 0, 1)
    lines = paired.against({"hard": {1.0: second}, "dense": {1.0: first}}, CLUSTERS)
    assert paired.beyond(lines) == (0, 1, 1)


def test_examples_of_one_size_of_shift():
    pool = made_up_pool("hard", seeds=2)
    found = demonstration.directions(pool)
    # a direction each way for every seed
    rows = demonstration.of_one_size(pool, found, "calibrated experts")
    assert list(rows) == list(paired.RADII)
    for radius, (confidence, correct, weights) in rows.items():
        assert confidence.shape == correct.shape == weights.shape == (4, 400)
        for w in weights:
            for half in (0, 1):
                some = w[pool.half == half]
                np.testing.assert_allclose(some.mean(), 1, rtol=1e-9)
                np.testing.assert_allclose(some.var(), radius, atol=1e-6)
    # by the fit of the other half, every seed's
    probs = np.float64(calibrated(pool, "vector"))
    for seed in range(2):
        aggregate = mixed(probs[1, seed], pool.routing[seed]).max(-1)
        for sign in range(2):
            np.testing.assert_allclose(
                rows[1.0][0][2 * seed + sign][pool.half == 0], aggregate[pool.half == 0]
            )


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_small_run():
    found = demonstration.compute(seeds=1, epochs=5, num_replicates=50)
    for name, lines in found["routings"].items():
        assert lines["accuracy"] > 0.6
        errors = [x["error"] for x in lines["exact_premise"]["errors"]]
        assert (max(errors) < 1e-5) == (name == "hard")
    assert [len(lines) for lines in found["differences"].values()] == [3, 3]
    assert demonstration.draw(found).axes


def test_binned_error_by_loops():
    rng = np.random.RandomState(0)
    told, weights = rng.rand(200), rng.rand(200)
    event = np.float64(rng.rand(200) < 0.5)
    expected = 0.0
    for b in range(15):
        some = [i for i in range(200) if b / 15 <= told[i] < (b + 1) / 15]
        expected += abs(sum(weights[i] * (told[i] - event[i]) for i in some))
    found = exact_premise.binned_error(told, event, weights)
    np.testing.assert_allclose(found, expected / weights.sum(), rtol=1e-9)
