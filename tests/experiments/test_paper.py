"""The paper's study: a run of a small task to its table, the published figures beside ours."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import trainings
from experimenting import tiny_task
from small import small_images, split

from calmoe_jax.data.local.civil_comments import Comments
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
    out = tmp_path / "out"
    words = ["x", "--dataset", "pacs", "--quick", "--seeds", "2", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", [*words, "--out", str(out)])
    paper.main()
    printed = capsys.readouterr().out
    assert asked == ["pacs_sketch"]
    assert "pacs_sketch, quick size: 60 training examples" in printed
    assert "| robust | 0.033 |" in printed
    found = json.loads((out / "pacs_sketch-quick.json").read_text())
    assert found["size"]["seeds"] == 2
    assert {r["method"] for r in found["rows"]} == {"vanilla", "robust"}
    assert {r["calibrator"] for r in found["rows"]} == set(paper.CALIBRATORS)
    assert paper.table(found) in printed
    assert paper.table(found) in (out / "README.md").read_text()
    paper.main()  # the finished run is read


def test_published_figures_are_of_the_methods():
    for published in paper.PUBLISHED.values():
        assert set(published) <= set(PAPER_METHODS)
        assert set(published) >= {"single", "vanilla", "robust"}


@pytest.mark.parametrize(
    ("dataset", "size", "expected"),
    [
        ("cifar10h", paper.PAPER, ("resnet18", "cifar", 64)),
        ("cifar10h", paper.QUICK, ("resnet18", "cifar", 8)),
        ("pacs", paper.PAPER, ("resnet18", "imagenet", 64)),
        ("office_home", paper.QUICK, ("resnet18", "cifar", 8)),
    ],
)
def test_the_backbone_is_the_papers(dataset, size, expected):
    model = paper.ModelConfig(**paper._model_of(small_images(), dataset, size))
    assert (model.backbone, model.stem, model.width) == expected
    assert paper._model_of(tiny_task(), "civil_comments", size)["backbone"] == "mlp"


def test_texts_become_tokens(tmp_path, monkeypatch):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "fine", "bad"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))

    def of_texts(name, kind):
        found = split(name, kind, 6, 0)
        texts = np.array(["fine", "bad fine", "", "bad", "other", "fine"], object)
        return paper.dataclasses.replace(found, inputs=texts, labels=found.labels % 2)

    comments = Comments(
        of_texts("train", "train"), of_texts("calibration", "calibration"),
        of_texts("test", "id"), np.eye(6, 8, dtype=bool), np.arange(6) < 2, tmp_path,
    )  # fmt: skip
    monkeypatch.setattr(paper.civil_comments, "load_texts", lambda folder: comments)
    task = paper._tokens(tmp_path, tmp_path / "vocab.txt")
    assert task.train.inputs["ids"][1, :4].tolist() == [2, 5, 4, 3]
    assert [s.kind for s in task.evaluation][-1] == "hard"
    assert paper._model_of(task, "civil_comments", paper.PAPER) == {"backbone": "distilbert"}


def test_the_committed_page_is_of_the_committed_results():
    folder = Path(paper.__file__).parent / "paper_study"
    assert (folder / "README.md").read_text() == paper.page(folder)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.2, -0.1, "smaller"), (-0.1, 0.1, "not clearly"), (0.1, 0.2, "larger")],
)
def test_words_follow_the_interval(tmp_path, low, high, words):
    rows = [
        {"method": m, "split": "hard", "calibrator": c, "ece": [e], "confidence_gap": [0.2]}
        for m, c, e in (
            ("vanilla", "none", 0.3), ("robust", "none", 0.2),
            ("vanilla", "temperature", 0.11), ("robust", "temperature", 0.12),
        )
    ]  # fmt: skip
    interval = {
        "method": "robust", "calibrator": "none", "split": "hard", "difference": -0.1,
        "low": low, "high": high,
    }  # fmt: skip
    splits = {"test": {"kind": "id", "n": 5}, "hard": {"kind": "hard", "n": 5}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"rows": rows, "intervals": [interval], "splits": splits}))
    said = paper.in_words(path)
    assert "over-confident there (gap +0.200)" in said
    assert f"Robust MoE is {words}" in said
    assert said.endswith("0.120 against 0.110.")
