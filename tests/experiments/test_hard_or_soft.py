"""Hard or soft: rows of a small task, their summary by hand, words that follow the figures."""

import sys

import numpy as np
import pytest
import trainings
from experimenting import tiny_task

from calmoe_jax import calibration
from experiments import hard_or_soft
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
    assert (out / "README.md").read_text() == hard_or_soft.page(found)
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


def rows_of(errors):
    """A row for each routing, calibrator and shift: the same error for all calibrators."""
    return [
        {
            "routing": routing, "calibrator": calibrator, "split": f"s{i}", "kind": kind,
            "series": "s", "severity": float(i), "ece": [error], "accuracy": [0.5],
            "confidence_gap": [error], "moved": [0.0], "changed": [error], "size": [error],
            "unseen": [0.0],
        }
        for routing, of_routing in errors.items()
        for calibrator in hard_or_soft.CALIBRATORS
        for i, (kind, error) in enumerate([("id", 0.01), *(("shift", e) for e in of_routing)])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("hard", "words"), [((0.01, 0.07), "the prediction holds"), ((0.02, 0.2), "does not hold")]
)
def test_the_verdict_follows_the_figures(hard, words):
    errors = {"dense": (0.1, 0.3), "top_k": (0.1, 0.1), "hard": hard}
    summary = hard_or_soft.summarise(rows_of(errors))
    at = {(r["routing"], r["calibrator"]): r for r in summary}
    of_dense, of_hard = at["dense", "none"], at["hard", "none"]
    np.testing.assert_allclose((of_dense["ece"], of_dense["lost"]), (0.2, 0.5))
    np.testing.assert_allclose((of_hard["ece"], of_hard["kept"]), (np.mean(hard), 0.5))
    assert of_hard["shifts"] == 2
    assert words in hard_or_soft.verdict({"a": summary})[0]
    assert f"| a | dense | none | 0.010 | {0.2:.3f} | 0% | 50% |" in hard_or_soft.table(
        {"a": summary}
    )


def test_the_committed_page_is_of_the_committed_results():
    found = command.read(hard_or_soft.FOLDER / hard_or_soft.RESULTS)
    assert found["summary"] == {n: hard_or_soft.summarise(r) for n, r in found["tasks"].items()}
    assert found["verdict"] == hard_or_soft.verdict(found["summary"])
    assert (hard_or_soft.FOLDER / "README.md").read_text() == hard_or_soft.page(found)
