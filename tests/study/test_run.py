"""Runs from configuration to report: the same twice, resumed, or refused with a reason."""

import json
import os
from pathlib import Path

import jax
import pytest
from small import small_task

from calmoe_jax import training
from calmoe_jax.study import report
from calmoe_jax.study import run as experiment
from calmoe_jax.study.report import page, plots, summary

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
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
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
    assert results["schema"] == 1
    assert list(results)[:5] == ["schema", "task", "config", "environment", "source"]
    assert len(results["records"]) == 3 * 9 * 4 * 2  # methods, calibrators, splits, seeds
    numbers = [r[m] for r in results["records"] for m in ("accuracy", "nll", "ece", "smooth_ece")]
    assert all(isinstance(x, float) for x in numbers)
    assert {x["split"] for x in results["comparisons"]} == {
        "test", "early", "late", "ambiguous", "mean over shifts",
    }  # fmt: skip
    reliability = results["reliability"][0]
    assert sum(reliability["weight"]) == 2 * 50


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
    ours = [r for r in results["records"] if r["method"] == "robust"]
    assert ours == alone["records"]
    assert alone["comparisons"] == []


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
    assert again == json.loads(json.dumps(results))
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


def test_spreads_are_means_over_splits_then_over_seeds(finished):
    _, results = finished
    import numpy as np

    values = [
        np.mean([
            r["ece"] for r in results["records"]
            if (r["method"], r["calibrator"], r["kind"], r["seed"])
            == ("robust", "none", "shift", seed)
        ])
        for seed in (42, 43)
    ]  # fmt: skip
    found = summary.spread(results, "robust", "none", ["early", "late"], "ece")
    assert abs(found.mean - np.mean(values)) < 1e-12
    assert abs(found.std - np.std(values, ddof=1)) < 1e-12
    assert summary.spread(results, "robust", "none", ["nowhere"], "ece") is None


def compared(metric, difference, low, high, calibrator="none"):
    return {
        "method": "robust", "calibrator": calibrator, "split": "mean over shifts",
        "metric": metric, "value": 0.1 + difference, "reference": 0.1,
        "difference": difference, "low": low, "high": high,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ece", "accuracy", "tone", "words"),
    [
        ((-0.05, -0.06, -0.04), (0.0, -0.01, 0.01), "better", "Better calibrated under shift"),
        ((-0.05, -0.06, -0.04), (-0.05, -0.06, -0.01), "mixed", "but less accurate"),
        ((0.05, 0.01, 0.06), (0.0, -0.01, 0.01), "worse", "Worse than vanilla here"),
        ((0.05, 0.01, 0.06), (0.02, 0.01, 0.03), "mixed", "but more accurate"),
        ((0.05, -0.01, 0.06), (0.0, -0.01, 0.01), "same", "No clear difference"),
        ((0.05, -0.01, 0.06), (-0.1, -0.2, -0.01), "worse", "Less accurate"),
    ],
)
def test_verdicts_say_what_the_intervals_say(finished, ece, accuracy, tone, words):
    results = dict(finished[1])
    results["comparisons"] = [
        compared("ece", *ece),
        compared("accuracy", *accuracy),
        compared("ece", 0.0, -0.1, 0.1, calibrator="temperature"),
    ]
    (verdict,) = (v for v in report.verdicts(results) if v.method == "robust")
    assert verdict.tone == tone
    assert words in verdict.headline
    assert "no clear difference" in verdict.detail


def test_the_page_is_self_contained(finished):
    out, results = finished
    text = (out / "report.html").read_text()
    for forbidden in ("http://", "https://", "<script", "<link", "url("):
        assert forbidden not in text
    assert text.count("data:image/png;base64,") == 3
    for method in results["methods"].values():
        assert method["title"] in text
    assert text.index("Verdicts") < text.index("At a glance") < text.index("Every figure")


def test_the_page_escapes_what_it_is_given(finished, tmp_path):
    results = json.loads(json.dumps(finished[1]))
    results["source"] = "<b>bold</b> & co"
    page.write_report([results], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;bold&lt;/b&gt; &amp; co" in text


def test_several_runs_make_one_page(finished, tmp_path):
    out, _ = finished
    results = report.read_results(out)
    report.write_report([results, results | {"task": "digits"}], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<h2>Verdicts</h2>") == 2
    assert (tmp_path / "plots" / "2_digits_tradeoff.png").is_file()


def test_a_task_without_order_has_no_picture_of_it(finished):
    results = json.loads(json.dumps(finished[1]))
    for part in results["splits"]:
        part["series"] = None
    assert set(plots.draw_all(results)) == {"tradeoff", "reliability"}


def test_results_that_cannot_be_read(tmp_path, finished):
    with pytest.raises(report.ResultsError, match="there is no"):
        report.read_results(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(report.ResultsError, match="same `calmoe run` continues it"):
        report.read_results(tmp_path)
    for content, message in (
        ("{", "is no JSON"),
        ("[]", "schema 1"),
        ('{"schema": 2}', "schema=2"),
    ):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(report.ResultsError, match=message):
            report.read_results(tmp_path)
