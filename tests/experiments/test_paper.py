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
from calmoe_jax.study.methods import METHODS
from experiments import paper

pytestmark = pytest.mark.exhaustive


def test_a_small_run(tmp_path, monkeypatch, capsys):
    asked = []

    def resolve(name, data_dir):
        asked.append(name)
        return tiny_task()

    monkeypatch.setattr(paper, "resolve_task", resolve)
    monkeypatch.setattr(paper, "RUN_METHODS", ("vanilla", "robust", "robust_released"))
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
    assert "| robust | – |" in printed
    assert "| robust_released | 0.033 |" in printed
    found = json.loads((out / "pacs_sketch-quick.json").read_text())
    assert found["size"]["seeds"] == 2
    assert {r["method"] for r in found["rows"]} == {"vanilla", "robust", "robust_released"}
    assert all(0 < row["floor"] < 0.3 for row in found["rows"])
    assert found["environment"]["peak_gb"] > 0
    assert {r["calibrator"] for r in found["rows"]} == set(paper.CALIBRATORS)
    assert paper.table(found) in printed
    assert paper.table(found) in (out / "README.md").read_text()
    paper.main()  # the finished run is read


def test_published_figures_are_of_the_methods():
    for published in paper.PUBLISHED.values():
        assert set(published) <= {*PAPER_METHODS[:4], *paper.RELEASED}
        assert set(published) >= {"single", "vanilla", "robust_released"}
        assert set(paper.RUN_METHODS) == {*PAPER_METHODS, *paper.RELEASED} <= set(METHODS)


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
    model = paper.ModelConfig(**paper._model_of(small_images(), dataset, size, None))
    assert (model.backbone, model.stem, model.width) == expected
    assert paper._model_of(tiny_task(), "civil_comments", size, None)["backbone"] == "mlp"
    vit = paper.ModelConfig(**paper._model_of(small_images(), dataset, size, "vit"))
    large = size == paper.PAPER
    assert (vit.vit_size, vit.image_size) == (("B/16", 224) if large else ("tiny", None))


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
    model = paper.ModelConfig(**paper._model_of(task, "civil_comments", paper.PAPER, None))
    assert (model.backbone, model.text_size, model.dropout) == ("distilbert", "base", 0.1)
    quick = paper.ModelConfig(**paper._model_of(task, "civil_comments", paper.QUICK, None))
    assert (quick.text_size, quick.dropout) == ("tiny", 0)


def test_another_backbone_has_a_name_of_its_own():
    names = {paper.name_of("pacs_sketch", paper.QUICK, x) for x in (None, "vit", "mlp")}
    assert names == {"pacs_sketch-quick", "pacs_sketch-vit-quick", "pacs_sketch-mlp-quick"}
    model = {"backbone": "vit", "vit_size": "B/16", "width": 64}
    assert paper._backbone_in_words(model) == "vit B/16, not pretrained"
    given = {"backbone": "resnet18", "width": 8, "pretrained": "a.safetensors sha256:01"}
    said = "resnet18 of width 8, from a.safetensors sha256:01"
    assert paper._backbone_in_words(given) == said


def test_the_committed_page_is_of_the_committed_results():
    folder = Path(paper.__file__).parent / "paper_study"
    assert (folder / "README.md").read_text() == paper.page(folder)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.2, -0.1, "smaller"), (-0.1, 0.1, "not clearly different"), (0.1, 0.2, "larger")],
)
def test_words_follow_the_interval(tmp_path, low, high, words):
    rows, intervals = [], []
    for calibrator, plain, ours in (
        ("none", 0.3, 0.2), ("temperature", 0.11, 0.12), ("safe", 0.08, 0.07),
    ):  # fmt: skip
        for method, error in (("vanilla", plain), ("robust_released", ours), ("robust", plain)):
            rows.append(
                {"method": method, "split": "hard", "calibrator": calibrator, "ece": [error],
                 "confidence_gap": [0.2]}
            )  # fmt: skip
        where = {"calibrator": calibrator, "split": "hard"}
        of_released = {"difference": ours - plain, "low": low, "high": high}
        intervals.append({"method": "robust_released"} | of_released | where)
        of_ours = {"difference": 0.0, "low": -0.03, "high": 0.04}
        intervals.append({"method": "robust"} | of_ours | where)
    splits = {"test": {"kind": "id", "n": 5}, "hard": {"kind": "hard", "n": 5}}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"rows": rows, "intervals": intervals, "splits": splits}))
    said = paper.in_words(path)
    assert "over-confident there (gap +0.200)" in said
    first, second = said.split(" The error of ")[1:]
    assert f"robust_released is, as trained, {words} (0.200 against 0.300; -0.100" in first
    assert f"after one temperature each {words} (0.120 against 0.110" in first
    assert first.endswith(f"each {words} (0.070 against 0.080; -0.010, {low:+.3f} to {high:+.3f}).")
    assert "robust is, as trained, not clearly different (0.300 against 0.300; +0.000" in second
