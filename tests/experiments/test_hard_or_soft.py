"""Hard or soft: rows of a small task, their summary by hand, words that follow the figures."""

import sys

import numpy as np
import pytest
import trainings
from experimenting import tiny_task
from scipy import stats

from calmoe_jax import calibration
from experiments import hard_or_soft
from experiments import hard_or_soft_page as routing_page
from experiments import hard_or_soft_summary as summary
from experiments.noise_floor import noise_floor
from experiments.our_study import command
from experiments.our_study.cells import Setting, predict, trained_mixture

pytestmark = pytest.mark.exhaustive


def test_a_small_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "resolve_task", lambda name, data_dir: tiny_task())
    monkeypatch.setattr(command, "ModelConfig", lambda: trainings.MODEL)
    out = tmp_path / "out"
    words = ["x", "--tasks", "portal", "--runs", str(tmp_path / "runs"), "--seeds", "2"]
    words += ["--epochs", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    hard_or_soft.main()
    found = command.read(out / hard_or_soft.RESULTS)
    rows = found["tasks"]["portal"]
    assert len(rows) == 3 * 3 * 2  # routings, calibrators, splits
    assert (out / "severity.png").read_bytes()[:4] == b"\x89PNG"
    assert (out / "README.md").read_text() == routing_page.page(found)
    assert found["made_with"]["versions"]["jax"]
    assert "portal: the prediction" in capsys.readouterr().out

    setting = Setting(
        tiny_task(),
        (42, 43),
        trainings.MODEL,
        command.TrainConfig(epochs=2),
        tmp_path / "runs" / "portal" / "2-seeds-2-epochs",
    )
    split = tiny_task().evaluation[1]
    trained = trained_mixture(setting, "dense", "vanilla")
    experts, weights, _ = predict(trained, split.inputs)
    probs = np.einsum("snkc,snk->snc", np.exp(experts), weights)
    expected = [calibration.expected_calibration_error(p, split.labels) for p in probs]
    plain = next(
        r for r in rows if (r["routing"], r["calibrator"], r["split"]) == ("dense", "none", "late")
    )
    np.testing.assert_allclose(plain["ece"], expected, atol=1e-4)
    gaps = probs.max(-1).mean(-1) - (probs.argmax(-1) == split.labels).mean(-1)
    np.testing.assert_allclose(plain["gap"], gaps, atol=1e-4)
    floors = [noise_floor(p.max(-1)) for p in probs]
    np.testing.assert_allclose(plain["floor"], [x.mean for x in floors], atol=1e-4)
    np.testing.assert_allclose(plain["floor_high"], [x.high for x in floors], atol=1e-4)
    for row in rows:
        parts = np.sum([row[x] for x in ("gap_before", "moved", "changed", "remainder")], axis=0)
        np.testing.assert_allclose(parts, row["gap"], atol=3e-4)


def rows_of(errors):
    """A row for each routing, calibrator and shift of two seeds: the same for all calibrators.

    The error of the second seed is .02 above that of the first; of a calibrated mixture it were .03
    on average and .05 at most.
    """
    return [
        {
            "routing": routing, "calibrator": calibrator, "split": f"s{i}", "kind": kind,
            "series": "s", "severity": float(i), "ece": [error - 0.01, error + 0.01],
            "floor": [0.03] * 2, "floor_high": [0.05] * 2, "accuracy": [0.5] * 2,
            "gap_before": [0.01] * 2, "gap": [error] * 2, "moved": [-0.03] * 2,
            "changed": [error] * 2, "remainder": [0.02] * 2, "size": [error] * 2,
            "unseen": [0.125] * 2,
        }
        for routing, of_routing in errors.items()
        for calibrator in summary.CALIBRATORS
        for i, (kind, error) in enumerate([("id", 0.01), *(("shift", e) for e in of_routing)])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("hard", "words"), [((0.01, 0.07), "the prediction holds"), ((0.02, 0.2), "does not hold")]
)
def test_the_verdict_follows_the_figures(hard, words):
    errors = {"dense": (0.1, 0.3), "top_k": (0.1, 0.1), "hard": hard}
    found = summary.summarise(rows_of(errors))
    at = {(r["routing"], r["calibrator"]): r for r in found}
    of_dense, of_hard = at["dense", "none"], at["hard", "none"]
    np.testing.assert_allclose((of_dense["ece"], of_dense["lost"]), (0.2, 0.5))
    np.testing.assert_allclose((of_hard["ece"], of_hard["kept"]), (np.mean(hard), 0.5))
    np.testing.assert_allclose((of_hard["within_floor"], of_dense["within_floor"]), (0.5, 0))
    assert of_hard["shifts"] == 2
    (said,) = summary.verdict({"a": found})
    assert words in said
    assert "would have 0.030 and 0.030" in said
    assert "95 of 100 cases on 50% and 0%" in said
    # the same difference of both seeds
    assert "Student's t over 2 seeds: hard is better)" in said
    assert f"gap goes from +0.010 in distribution to {np.mean(hard):+.3f}; of the change" in said
    assert (
        "| a | dense | none | 0.010 | 0.030 | 0.200 | 0.030 | 0% | 50% | 0.500 | 0% |"
        in routing_page.table({"a": found})
    )
    assert (
        "| a | dense | none | +0.010 | +0.200 | -0.030 | +0.200 | +0.020 | 12.5% |"
        in routing_page.changes({"a": found})
    )


def test_one_seeds_error_may_be_within_its_floor_and_the_others_not():
    found = summary.summarise(rows_of({x: (0.045, 0.2) for x in ("dense", "top_k", "hard")}))
    assert {(r["within_floor"], r["kept"]) for r in found} == {(0.25, 0.5)}


@pytest.mark.parametrize(
    ("of_hard", "of_dense", "which"),
    [
        ([0.10, 0.11, 0.12], [0.05, 0.055, 0.06], "hard is worse"),
        ([0.05, 0.055, 0.06], [0.10, 0.11, 0.12], "hard is better"),
        # each is far from the other on average, but not in every pair
        ([0.10, 0.11, 0.12], [0.05, 0.09, 0.13], "not beyond the interval"),
    ],
)
def test_differences_in_pairs_of_seeds(of_hard, of_dense, which):
    rows = rows_of({x: (0.1,) for x in ("dense", "top_k", "hard")})
    found = summary.summarise(rows)
    for row in found:
        row["by_seed"] = of_hard if row["routing"] == "hard" else of_dense
    test = stats.ttest_rel(of_hard, of_dense)
    for other in ("dense", "top_k"):
        one = summary.difference(found, "none", other)
        expected = np.mean(of_hard) - np.mean(of_dense), *test.confidence_interval(0.95), 3
        np.testing.assert_allclose(one, expected)
    text = f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
    assert (
        f"hard less dense {text} (paired; 95 %, Student's t over 3 seeds: {which})"
        in (summary.verdict({"a": found})[0])
    )
    assert f"| a | none | {text} | {text} |" in routing_page.pairs({"a": found})
    alone = [row | {"by_seed": row["by_seed"][:1]} for row in found]
    one = summary.difference(alone, "none")
    assert np.isnan(one.low)
    assert one.seeds == 1


def test_every_corruption_and_severity_is_on_the_page():
    rows = rows_of({"dense": (0.1, 0.3), "top_k": (0.2, 0.05), "hard": (0.125, 0.07)})
    for row in rows:
        if row["split"] == "s2":
            row |= {"split": "usps", "series": None, "severity": None}
    for row in rows:  # those of another calibrator are not shown
        if row["calibrator"] != "temperature":
            row |= {"ece": [0.9, 0.9]}
    assert routing_page.corruptions(rows) == (
        "| corruption | – | severity 1 |\n| --- | --- | --- |\n"
        "| s |  | .100 / .200 / .125 |\n| usps | .300 / .050 / .070 |  |"
    )


def test_errors_by_severity():
    rows = rows_of({"dense": (0.1, 0.3), "top_k": (0.2, 0.05), "hard": (0.125, 0.07)})
    for row in rows:
        if row["split"] == "s2":
            row["severity"] = 1.0
    some = routing_page.of_combination(rows, "dense", "temperature")
    xs, ys = routing_page.by_severity(some, "ece")
    np.testing.assert_allclose((xs, ys), ([0, 1], [0.01, 0.2]))


def test_the_noise_floor_is_the_error_of_redrawn_labels():
    rng = np.random.RandomState(0)
    confidence = np.float32(rng.uniform(0.3, 1, 1000))
    errors = []
    for _ in range(400):
        bins = calibration.reliability_bins(confidence, rng.rand(1000) < confidence)
        errors.append(float(calibration.calibration_error(bins)))
    found = noise_floor(confidence, num_draws=2000)
    np.testing.assert_allclose(found.mean, np.mean(errors), rtol=0.03)
    np.testing.assert_allclose(found.high, np.quantile(errors, 0.95), rtol=0.05)
    assert noise_floor(confidence) == noise_floor(confidence[::-1])


def test_the_noise_floor_by_hand():
    # of one bin it is the mean absolute deviation of a share
    found = noise_floor(np.full(400, 0.5), num_draws=20_000)
    exact = stats.binom(400, 0.5).expect(lambda x: np.abs(x / 400 - 0.5))
    np.testing.assert_allclose(found.mean, exact, rtol=0.02)
    assert noise_floor(np.ones(7)) == (0, 0)
    # four times the examples, half of the noise
    finer = noise_floor(np.full(1600, 0.5), num_draws=20_000)
    np.testing.assert_allclose(found.mean / finer.mean, 2, rtol=0.03)


def test_the_committed_page_is_of_the_committed_results():
    found = command.read(hard_or_soft.FOLDER / hard_or_soft.RESULTS)
    assert found["summary"] == {n: summary.summarise(r) for n, r in found["tasks"].items()}
    assert found["verdict"] == summary.verdict(found["summary"])
    assert (hard_or_soft.FOLDER / "README.md").read_text() == routing_page.page(found)
