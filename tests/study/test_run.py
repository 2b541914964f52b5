"""Runs from configuration to report: the same twice, resumed, or refused with a reason."""

import json
import os
from pathlib import Path

import jax
import pytest
from small import small_task

from calmoe_jax import training
from calmoe_jax.study import records
from calmoe_jax.study import run as experiment

CONFIG = training.RunConfig(
    methods=("vanilla", "mocae", "robust"),
    seeds=2,
    model=training.ModelConfig(width=8, depth=1, experts=3, router_hidden=8),
    train=training.TrainConfig(epochs=4, batch_size=16, checkpoint_every=2),
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(experiment, "load_task", lambda name, data_dir: small_task())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "load_task", lambda name, data_dir: small_task())
        results = experiment.run_experiment(CONFIG, out)
    return out, results


def test_the_folder_holds_what_is_promised(finished):
    out, results = finished
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "plots", "report.html", "results.json",
    ]  # fmt: skip
    assert records.read_results(out) == results
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["robust", "vanilla"]
    assert {p.name for p in (out / "plots").iterdir()} == {
        "tradeoff.png", "along_the_shift.png", "reliability.png",
    }  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["config"] == json.loads(json.dumps(CONFIG.to_dict()))
    assert config["environment"]["versions"]["jax"] == jax.__version__
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2 * 2 * 4


def test_results_follow_the_schema(finished):
    _, results = finished
    assert results.reference == "vanilla"
    assert [(m.name, m.training) for m in results.methods] == [
        ("vanilla", "vanilla"), ("mocae", "vanilla"), ("robust", "robust"),
    ]  # fmt: skip
    assert [s.name for s in results.splits[2:]] == ["test", "early", "late", "ambiguous"]
    assert len(results.records) == 3 * 9 * 4 * 2  # methods, calibrators, splits, seeds
    numbers = [
        getattr(r, m) for r in results.records for m in ("accuracy", "nll", "ece", "smooth_ece")
    ]
    assert all(isinstance(x, float) for x in numbers)
    assert {x.split for x in results.comparisons} == {
        "test", "early", "late", "ambiguous", "mean over shifts",
    }  # fmt: skip
    assert sum(results.reliability[0].weight) == 2 * 50


def test_the_same_seed_gives_the_same_bytes(finished, tmp_path):
    out, _ = finished
    experiment.run_experiment(CONFIG, tmp_path / "again")
    for name in ("results.json", "metrics.jsonl", "report.html", "plots/tradeoff.png"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_method_does_not_depend_on_its_company(finished, tmp_path):
    _, results = finished
    import dataclasses

    alone = experiment.run_experiment(
        dataclasses.replace(CONFIG, methods=("robust",)), tmp_path / "alone"
    )
    assert tuple(r for r in results.records if r.method == "robust") == alone.records
    assert alone.comparisons == ()


def test_an_interrupted_run_ends_bit_equal(finished, tmp_path, monkeypatch):
    out, _ = finished
    cut = tmp_path / "cut"
    original, calls = experiment.tqdm.update, 0

    def update(bar, n=1):
        nonlocal calls
        calls += 1
        if calls in (3, 5):
            raise KeyboardInterrupt
        return original(bar, n)

    monkeypatch.setattr(experiment.tqdm, "update", update)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            experiment.run_experiment(CONFIG, cut)
        assert not (cut / "results.json").exists()
    experiment.run_experiment(CONFIG, cut)
    for name in ("results.json", "metrics.jsonl", "report.html"):
        assert (out / name).read_bytes() == (cut / name).read_bytes(), name


def test_a_finished_run_is_not_run_again(finished, capsys):
    out, results = finished
    before = (out / "metrics.jsonl").stat().st_mtime_ns
    again = experiment.run_experiment(CONFIG, out)
    assert "is finished" in capsys.readouterr().out
    assert again == results
    assert (out / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_configuration_is_refused(finished):
    import dataclasses

    out, _ = finished
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    other = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, eta=3.0))
    with pytest.raises(
        experiment.RunFolderError, match=r"another configuration: train.eta is 2.0 there and 3.0"
    ):
        experiment.run_experiment(other, out)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_unusable_folders(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(experiment.RunFolderError, match="is not empty and holds no run"):
        experiment.run_experiment(CONFIG, tmp_path / "full")
    with pytest.raises(experiment.RunFolderError, match="cannot be used"):
        experiment.run_experiment(CONFIG, tmp_path / "full" / "thesis.tex")
    with pytest.raises(experiment.RunFolderError, match="cannot be used"):
        experiment.run_experiment(CONFIG, tmp_path / "full" / "thesis.tex" / "below")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(experiment.RunFolderError, match="cannot be used"):
        experiment.run_experiment(CONFIG, tmp_path / "broken")


def test_a_read_only_folder(tmp_path, monkeypatch):
    """Root may write anywhere, so that the refusal is played back for it."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    if os.access(folder, os.W_OK):

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(experiment.RunFolderError, match=r"cannot be used: .*Permission denied"):
        experiment.run_experiment(CONFIG, folder / "run")
    assert list(folder.iterdir()) == []


def test_a_model_that_does_not_fit_writes_nothing(tmp_path):
    import dataclasses

    config = dataclasses.replace(CONFIG, model=training.ModelConfig(backbone="resnet18"))
    with pytest.raises(experiment.RunInputError, match="not images"):
        experiment.run_experiment(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
