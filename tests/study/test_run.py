"""Runs from task and methods to report: the same twice, resumed, or refused with a reason."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import jax
import pytest
from small import small_images, small_task

from calmoe_jax import study
from calmoe_jax.study import runner
from calmoe_jax.study.config import ModelConfig, TrainConfig
from calmoe_jax.study.evaluation import CALIBRATORS
from calmoe_jax.study.records import read_results

METHODS = ("vanilla", "mocae", "robust")
MODEL = ModelConfig(width=8, depth=1, experts=2, router_hidden=8)
TRAIN = TrainConfig(epochs=4, batch_size=16, checkpoint_every=2)


def run(out, methods=METHODS, task=None, **changes):
    given = {"model": MODEL, "train": TRAIN, "seeds": 2, "out": out} | changes
    return study.run(task or small_task(), methods, **given)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, run(out)


def test_the_folder_holds_what_is_promised(finished):
    out, results = finished
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "plots", "report.html", "results.json",
    ]  # fmt: skip
    assert read_results(out) == results
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["robust", "vanilla"]
    assert {p.name for p in (out / "plots").iterdir()} == {
        "tradeoff.png", "along_the_shift.png", "reliability.png",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["config"]["train"] == json.loads(json.dumps(dataclasses.asdict(TRAIN)))
    assert config["config"]["methods"] == list(METHODS)
    assert config["environment"]["versions"]["jax"] == jax.__version__
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2 * 2 * 4


def test_every_record_is_there(finished):
    _, results = finished
    assert len(results.records) == 3 * len(CALIBRATORS) * 4 * 2  # methods, splits, seeds
    assert {x.split for x in results.comparisons} == {
        "test", "early", "late", "ambiguous", "mean over shifts",
    }  # fmt: skip
    assert sum(results.reliability[0].weight) == 2 * 50
    assert {r.routing for r in results.records} == {"dense"}
    assert [m.training for m in results.methods] == ["vanilla", "vanilla", "robust"]


@pytest.mark.exhaustive
def test_the_same_seed_gives_the_same_bytes(finished, tmp_path):
    out, _ = finished
    run(tmp_path / "again")
    for name in ("results.json", "metrics.jsonl", "report.html", "plots/tradeoff.png"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_method_does_not_depend_on_the_other_methods(finished, tmp_path):
    _, results = finished
    alone = run(tmp_path / "alone", ("robust",))
    assert tuple(r for r in results.records if r.method == "robust") == alone.records
    assert alone.comparisons == ()


def test_an_interrupted_run_ends_bit_equal(finished, tmp_path, monkeypatch):
    out, _ = finished
    cut = tmp_path / "cut"
    original, calls = runner.tqdm.update, 0

    def update(bar, n=1):
        nonlocal calls
        calls += 1
        if calls in (3, 5):
            raise KeyboardInterrupt
        return original(bar, n)

    monkeypatch.setattr(runner.tqdm, "update", update)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(cut)
        assert not (cut / "results.json").exists()
    run(cut)
    for name in ("results.json", "metrics.jsonl", "report.html"):
        assert (out / name).read_bytes() == (cut / name).read_bytes(), name


def test_a_finished_run_is_not_run_again(finished, capsys):
    out, results = finished
    before = (out / "metrics.jsonl").stat().st_mtime_ns
    again = run(out)
    assert "is finished" in capsys.readouterr().out
    assert again == results
    assert (out / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_configuration_is_refused(finished):
    out, _ = finished
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(
        study.RunFolderError, match=r"another configuration: train.eta is 2.0 there and 3.0"
    ):
        run(out, train=dataclasses.replace(TRAIN, eta=3.0))
    with pytest.raises(study.RunFolderError, match=r"another configuration: data is"):
        run(out, task=small_task(size=99))
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_a_folder_from_before_a_setting_has_its_default(finished, tmp_path, capsys):
    out, results = finished
    old = shutil.copytree(out, tmp_path / "old")
    held = json.loads((old / "config.json").read_text())
    for part, name in (("model", "vit_size"), ("train", "parts"), ("train", "skip_non_finite")):
        del held["config"][part][name]
    (old / "config.json").write_text(json.dumps(held))
    assert run(old) == results
    assert "is finished" in capsys.readouterr().out
    with pytest.raises(
        study.RunFolderError, match=r"another configuration: train.parts is 1 there and 2 here"
    ):
        run(old, train=dataclasses.replace(TRAIN, parts=2))
    del held["config"]["train"]["epochs"]  # was not the default, and so may not be this run's
    (old / "config.json").write_text(json.dumps(held))
    with pytest.raises(study.RunFolderError, match=r"train.epochs is 50 there and \d+ here"):
        run(old)


def test_unusable_folders(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(study.RunFolderError, match="is not empty and holds no run"):
        run(tmp_path / "full")
    with pytest.raises(study.RunFolderError, match="cannot be used"):
        run(tmp_path / "full" / "thesis.tex")
    with pytest.raises(study.RunFolderError, match="cannot be used"):
        run(tmp_path / "full" / "thesis.tex" / "below")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(study.RunFolderError, match="cannot be used"):
        run(tmp_path / "broken")


def test_a_read_only_folder(tmp_path, monkeypatch):
    """Root may write anywhere, so the refusal is simulated."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(study.RunFolderError, match=r"cannot be used: .*Permission denied"):
        run(folder / "run")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelConfig(backbone="resnet18")}, "not images"),
        ({"model": ModelConfig(backbone="vit")}, "not images"),
        (
            {"task": small_images(), "model": ModelConfig(backbone="vit")},
            r"vit_size must have patches that divide .*\(8, 8, 1\), got vit_size='S/16', with",
        ),
        ({"methods": ()}, "methods must hold at least one"),
        ({"methods": ("robst",)}, r"got 'robst'\. Did you mean robust\?"),
        ({"methods": ("fgr", "fgr")}, "methods must have different names"),
        ({"seeds": 0}, "seeds must be at least 1, got seeds=0"),
        ({"task": "portl"}, r"Did you mean portal\?"),
    ],
)
def test_what_does_not_fit_writes_nothing(tmp_path, changes, message):
    with pytest.raises(study.RunInputError, match=message):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_a_vision_transformer_is_trained_by_name(tmp_path):
    model = dataclasses.replace(MODEL, backbone="vit", vit_size="tiny")
    results = run(tmp_path / "out", ("single", "vanilla"), small_images(), model=model, seeds=1)
    assert results.config["model"]["vit_size"] == "tiny"
    assert {record.method for record in results.records} == {"single", "vanilla"}
