"""Mixtures under exact reweightings: the exact premise by loops, directions, committed numbers."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.theory import demonstration, exact_premise
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
    # what fitted experts have: little of theory's advantage, and intervals that overlap
    learnt = {
        k: v["errors"]["calibrated experts"]["learnt direction in S"][-1] for k, v in found.items()
    }
    assert learnt["hard"]["error"] < learnt["top-2"]["error"]
    assert learnt["hard"]["high"] > learnt["dense"]["low"]


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_small_run():
    found = demonstration.compute(seeds=1, epochs=5, num_replicates=50)
    for name, lines in found["routings"].items():
        assert lines["accuracy"] > 0.6
        errors = [x["error"] for x in lines["exact_premise"]["errors"]]
        assert (max(errors) < 1e-5) == (name == "hard")
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
