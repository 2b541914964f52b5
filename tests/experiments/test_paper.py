"""The paper's study: a run of a small task to its table, the published figures beside ours."""

import json
import sys

import pytest
import trainings
from experimenting import tiny_task

from calmoe_jax.study.config import PAPER_METHODS
from experiments import paper

pytestmark = pytest.mark.exhaustive


def test_a_small_run(tmp_path, monkeypatch, capsys):
    asked = []

    def resolve(name, data_dir):
        asked.append(name)
        return tiny_task()

    monkeypatch.setattr(paper, "resolve_task", resolve)
    monkeypatch.setattr(paper, "PAPER_METHODS", ("vanilla", "robust"))
    monkeypatch.setattr(paper, "ModelConfig", lambda **options: trainings.MODEL)
    small = paper.QUICK._replace(epochs=2, warmup=1, images=60)
    monkeypatch.setattr(paper, "QUICK", small)
    out = tmp_path / "out.json"
    words = ["x", "--dataset", "pacs", "--quick", "--seeds", "2", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(out)])
    paper.main()
    printed = capsys.readouterr().out
    assert asked == ["pacs_sketch"]
    assert "pacs_sketch, quick size: 60 training examples" in printed
    assert "| robust | 0.033 |" in printed
    found = json.loads(out.read_text())
    assert found["size"]["seeds"] == 2
    assert {r["method"] for r in found["rows"]} == {"vanilla", "robust"}
    assert {r["calibrator"] for r in found["rows"]} == set(paper.CALIBRATORS)
    assert paper.table(found) in printed
    paper.main()  # the finished run is read


def test_published_figures_are_of_the_methods():
    for published in paper.PUBLISHED.values():
        assert set(published) <= set(PAPER_METHODS)
        assert set(published) >= {"single", "vanilla", "robust"}
