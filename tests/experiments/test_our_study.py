"""Our study: cells are kept and alike, calibrators are the library's, tables are of the results."""

import gzip
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import trainings
from experimenting import tiny_task
from small import small_task

from calmoe_jax import calibration
from calmoe_jax.study.methods import METHODS
from experiments import trained
from experiments.our_study import (
    ablation,
    calibrators,
    cells,
    command,
    comparing,
    conclusions,
    report,
    runs,
)

pytestmark = pytest.mark.exhaustive


def setting(folder):
    return cells.Setting(small_task(), (7, 8), trainings.MODEL, trainings.TRAIN, folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, cells.cells(setting(folder), "dense", ("vanilla", "mocae"))


def test_a_cell_has_every_calibrator_on_every_kind(made):
    of_vanilla, of_mocae = made[1]
    found = {(r["calibrator"], r["kind"]) for r in of_vanilla["rows"]}
    names = {name for name, _ in found}
    assert names >= {"none", "temperature", "safe", "bold", *calibrators.FURTHER}
    assert found == {(name, kind) for name in names for kind in cells.GROUPS}
    assert {r["calibrator"] for r in of_mocae["rows"]} == names - set(calibrators.FURTHER)
    assert all(x["minutes"] >= 0 and "commit" in x for x in made[1])
    for row in of_vanilla["rows"]:
        of_confidence = row["calibrator"] in calibrators.OF_CONFIDENCE
        assert (row["nll"] is None) == (row["accuracy"] is None) == of_confidence
        assert len(row["ece"]) == 2


def test_the_mean_over_shifts_is_of_records(made):
    """The library's own report of the same run has the same numbers."""
    from calmoe_jax.study.evaluation import evaluate
    from calmoe_jax.study.methods import build_method

    one = setting(made[0])
    trained = cells.trained_mixture(one, "dense", "vanilla")
    method = build_method("vanilla", trainings.TRAIN, None)
    ((evaluations, *_),) = evaluate(one.task, trained, (method,), one.seeds, routing="dense")
    errors = [
        [r.ece for r in e.records]
        for e in evaluations
        if e.calibrator == "temperature" and e.split.kind == "shift"
    ]
    row = next(
        r for r in made[1][0]["rows"] if (r["calibrator"], r["kind"]) == ("temperature", "shift")
    )
    np.testing.assert_allclose(row["ece"], np.mean(errors, axis=0), atol=1e-6)
    np.testing.assert_allclose(row["worst_ece"], np.max(errors, axis=0), atol=1e-6)


def test_a_kept_cell_is_not_computed_again(made, monkeypatch):
    monkeypatch.setattr(cells, "_compute", None)
    assert cells.cells(setting(made[0]), "dense", ("vanilla", "mocae")) == made[1]


def test_trainings_at_once_give_the_same_cells(made, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "ROUTINGS", ("dense", "hard"))
    methods = ("vanilla", "mocae", "robust")
    found = [command.run_task(setting(tmp_path / str(n)), methods, at_once=n) for n in (1, 3)]
    assert [(c["routing"], c["method"]) for c in found[0]] == [
        (r, m) for r in ("dense", "hard") for m in methods
    ]
    rows = [[c["rows"] for c in of] for of in found]
    assert rows[0] == rows[1]
    assert rows[0][0] == made[1][0]["rows"]


def test_an_ensemble_is_the_mean_of_its_members(tmp_path):
    one = setting(tmp_path)
    options = cells.with_defaults(one.model, one.train)
    ensemble, _ = cells._ensemble(one, one.model, options)
    single = cells._method(one, one.model, options, "single")
    members = cells._trained(one, one.model, options, single, tuple(range(7, 15)), "dense")
    inputs = one.task.evaluation[0].inputs
    apart = np.exp(np.asarray(cells.predict(members, inputs).expert_log_probs))[:, :, 0]
    outputs = cells.predict(ensemble, inputs)
    together = calibrators.aggregate(outputs.expert_log_probs, outputs.routing_weights)
    expected = apart.reshape(2, 4, *apart.shape[1:]).mean(axis=1)
    np.testing.assert_allclose(np.exp(together), expected, atol=1e-5)
    assert [m[0] for m in cells.trainings(command.methods_of("dense"))][-1] == cells.ENSEMBLE


@pytest.mark.parametrize("name", list(calibrators.FURTHER))
def test_scores_of_a_calibrator_are_those_of_one_seed_alone(name):
    rng = np.random.RandomState(0)
    experts = jnp.log(jnp.asarray(rng.dirichlet(np.ones(3), (2, 90, 4)), jnp.float32))
    weights = jnp.asarray(rng.dirichlet(np.ones(4), (2, 90)), jnp.float32)
    labels, mixed = jnp.asarray(rng.randint(3, size=90)), calibrators.aggregate(experts, weights)
    where = jnp.arange(90) < 70
    fitted = calibrators.fit_further(mixed, experts, weights, labels)
    score = calibrators.Fitted({name: fitted.fits[name]}).score
    found = score(mixed, experts, weights, labels, where)[name]
    if name in calibrators.OF_CONFIDENCE:
        confidence, right = calibration.top_label(jnp.exp(mixed[1]), labels)
        kind = calibrators.OF_CONFIDENCE[name]
        changed = kind.apply(kind.fit(confidence, right.astype(jnp.float32)), confidence)
        expected = calibration.calibration_error(
            calibration.reliability_bins(changed[:70], right[:70])
        )
    else:
        if name == calibrators.GATE:
            fit = calibrators._fit_gate(weights[1], experts[1], labels)
            probs = jnp.exp(calibrators._through_gate(fit, weights[1], experts[1]))
        else:
            kind = calibrators.OF_CLASSES[name]
            probs = kind.apply(kind.fit(mixed[1], labels), mixed[1])
        expected = calibration.expected_calibration_error(probs[:70], labels[:70])
    # a bin's edge may be on the other side after rounding
    np.testing.assert_allclose(found["ece"][1], expected, atol=0.03)


def test_a_gate_is_scaled_where_weights_underflow():
    """A dense weight of 0 is as small as any: it changes nothing that is not near it."""
    rng = np.random.RandomState(0)
    experts = jnp.log(jnp.asarray(rng.dirichlet(np.ones(3), (1, 60, 4)), jnp.float32))
    weights = rng.dirichlet(np.ones(3), (1, 60))
    weights = jnp.asarray(np.concatenate([weights, np.zeros((1, 60, 1))], -1), jnp.float32)
    labels = jnp.asarray(rng.randint(3, size=60))
    mixed = calibrators.aggregate(experts, weights)
    fitted = calibrators.fit_further(mixed, experts, weights, labels)
    score = calibrators.Fitted({calibrators.GATE: fitted.fits[calibrators.GATE]}).score
    found = score(mixed, experts, weights, labels, jnp.ones(60, bool))[calibrators.GATE]
    without = calibrators.fit_further(mixed, experts[:, :, :3], weights[..., :3], labels)
    assert all(np.isfinite(x).all() for x in found.values())
    temperature = fitted.fits[calibrators.GATE].temperature
    np.testing.assert_allclose(temperature, without.fits[calibrators.GATE].temperature, rtol=0.05)
    sparse = calibrators.fit_further(mixed, experts, weights, labels, dense=False)
    assert calibrators.GATE not in sparse.fits


def row(task, method, calibrator, kind, ece, *, routing="dense", accuracy=0.7):
    metrics = {"ece": np.array(ece), "accuracy": np.array([accuracy]), "nll": np.array([1.0])}
    return comparing.Row(task, routing, method, calibrator, kind, metrics)


def test_comparison_by_hand():
    rows = []
    for task, errors in (("a", (0.1, 0.2)), ("b", (0.3, 0.2)), ("c", (0.2, 0.1))):
        for method, error in zip(("vanilla", "robust"), errors, strict=True):
            rows += [row(task, method, "none", k, [error]) for k in ("id", "shift")]
    found = comparing.compare(rows, lambda c: True)
    assert [c.combination[1] for c in found] == ["robust", "vanilla"]
    robust = found[0]
    # differences +.1, -.1, -.1: mean -.0333, standard error .0667, t of 2 degrees 4.303
    np.testing.assert_allclose(robust.difference, -1 / 30)
    np.testing.assert_allclose((robust.low, robust.high), (-0.3202, 0.2535), atol=1e-3)
    np.testing.assert_allclose((robust.ece, robust.rank), (1 / 6, 4 / 3))
    np.testing.assert_allclose(robust.worst[0], 0.1)
    assert robust.worst[1] == "a"


def test_undominated():
    points = [(("a",), 0.7, 0.1), (("b",), 0.8, 0.2), (("c",), 0.7, 0.2), (("d",), 0.8, 0.3)]
    assert [p[0][0] for p in report.undominated(points)] == ["a", "b"]


def test_the_command_on_a_small_task(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "resolve_task", lambda name, data_dir: tiny_task())
    monkeypatch.setattr(command, "ModelConfig", lambda: trainings.MODEL)
    monkeypatch.setattr(command, "ROUTINGS", ("dense", "hard"))
    monkeypatch.setattr(command, "METHODS", {n: METHODS[n] for n in ("single", "vanilla")})
    out = tmp_path / "results"
    words = ["x", "--tasks", "portal", "--runs", str(tmp_path / "runs"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "2", "--epochs", "2"])
    command.main()
    content = json.loads(gzip.decompress((out / "portal.json.gz").read_bytes()))
    where = {(c["routing"], c["method"]) for c in content["cells"]}
    dense = {("dense", name) for name in ("single", "vanilla", cells.ENSEMBLE)}
    assert where == dense | {("hard", "vanilla")}
    assert content["environment"]["versions"]["jax"]
    monkeypatch.setattr(sys, "argv", ["x", "--results", str(out)])
    report.main()
    page = (out / "README.md").read_text()
    assert "## portal" in page
    assert "| hard | vanilla |" in page
    assert (out / "frontier.png").read_bytes()[:4] == b"\x89PNG"


def test_kept_files_are_compressed_alike():
    assert trained.pack({"a": 1}) == trained.pack({"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        trained.pack({"a": float("nan")})


def test_an_ablation_changes_one_setting(tmp_path):
    one = setting(tmp_path)
    for change in ablation.CHANGES:
        found = ablation.changed(one, change)
        before = {**vars(one.model), **vars(one.train)}
        after = {**vars(found.model), **vars(found.train)}
        differ = {name for name in before if before[name] != after[name]}
        names = {"warm-up": "warmup_epochs", "experts": "experts", "k": "k", "eta": "eta"}
        assert differ <= {names[change.name]}
        of_epochs = round(change.value * one.train.epochs)
        value = of_epochs if change.name == "warm-up" else change.value
        assert after[names[change.name]] == value
        assert found.folder != one.folder
    folders = {(ablation.changed(one, c).folder, c.routing) for c in ablation.CHANGES}
    assert len(folders) == len(ablation.CHANGES)


def test_a_row_of_the_ablation_is_of_its_cell(made):
    change = ablation.Change("eta", 2.0, "dense", "vanilla")
    found = ablation.row_of(change, made[1][0])
    rows = {(r["calibrator"], r["kind"]): r for r in made[1][0]["rows"]}
    assert found["ece_safe"] == round(float(np.mean(rows["safe", "shift"]["ece"])), 4)
    assert found["accuracy"] == round(float(np.mean(rows["none", "shift"]["accuracy"])), 4)
    assert f"| eta | 2 | dense | vanilla | {found['accuracy']:.3f} |" in ablation.table([found])


def test_words_follow_the_figures():
    rows = []
    for number, task in enumerate("abc"):
        for method, calibrator, error in (
            ("vanilla", "none", 0.2),
            ("vanilla", "temperature", 0.1),
            ("robust", "temperature", 0.05 + 0.001 * number),
            ("fgr", "temperature", 0.15 + 0.001 * number),
            ("radius_robust", "temperature", 0.1 + 0.05 * (number - 1)),
            ("vanilla", "safe", 0.08),
            ("vanilla", "bold", 0.12),
        ):
            rows += [row(task, method, calibrator, k, [error]) for k in ("id", "shift")]
    said = conclusions.conclusions(rows)
    assert len(said) == 3  # no hard routing, no robust as trained, no ensemble
    assert "of 3 combinations" in said[0]
    better, worse = said[0].split("; and these a larger one: ")
    assert "robust (dense) -0.049 (" in better
    assert "fgr" not in better
    assert worse.startswith("fgr (dense) +0.051 (")
    assert "radius_robust" not in said[0]
    assert "none" in said[1]  # no calibrator of more parameters
    assert "safe -0.020 (-0.020 to -0.020)" in said[2]
    assert "hard subsets" not in said[2].split("safe -0.020")[1]


def test_words_on_repair_have_its_harm_on_hard_subsets():
    rows = []
    for task, shift, hard in (("a", 0.1, 0.05), ("b", 0.12, 0.25), ("c", 0.1, None)):
        rows += [row(task, "vanilla", "temperature", k, [0.2]) for k in ("id", "shift")]
        rows += [
            row(task, "vanilla", x, k, [shift]) for x in ("safe", "bold") for k in ("id", "shift")
        ]
        if hard is not None:
            rows.append(row(task, "vanilla", "temperature", "hard", [0.15]))
            rows += [row(task, "vanilla", "bold", "hard", [hard])]
    plain, bold = conclusions._PLAIN, ("dense", "vanilla", "bold")
    found = comparing.on_hard(rows, bold, plain)
    assert found == pytest.approx({"a": -0.1, "b": 0.1})
    said = conclusions.conclusions(rows)[-1]
    assert said.endswith("on hard subsets b +0.100, a -0.100.")
    assert comparing.on_hard(rows, ("dense", "vanilla", "safe"), plain) == {}
    # a task whose hard subset counts as its shift is left out beside the mean of all
    renamed = [r._replace(task="cifar10h" if r.task == "b" else r.task) for r in rows]
    others = [row("d", "vanilla", x, k, [e]) for x, e in (("temperature", 0.2), ("safe", 0.1),
              ("bold", 0.1)) for k in ("id", "shift")]  # fmt: skip
    said = conclusions.conclusions(renamed + others)[-1]
    assert "bold -0.095 (" in said
    assert "without cifar10h -0.100 (-0.100 to -0.100)" in said


def test_what_is_recommended_is_said_to_be_one_of_several():
    rows = []
    for number, task in enumerate("abc"):
        for routing, method, error in (
            ("dense", "vanilla", 0.1),
            ("dense", "fgr", 0.1 + 0.05 * (number - 1) - 0.001),
            ("top_k", "vanilla", 0.2 + 0.001 * number),
            ("hard", "robust", 0.05 + 0.001 * number),
        ):
            rows += [
                row(task, method, "safe", k, [error], routing=routing) for k in ("id", "shift")
            ]
    said = conclusions.conclusions(rows)[0]
    assert "of 3 other objectives" in said
    assert "2 have a smaller mean" in said
    assert "the least robust (hard) -0.049" in said
    assert "beyond their interval 1, and 1 a larger" in said


def test_ranks_are_among_those_compared():
    rows = []
    for task in "abc":
        for method, error in (("vanilla", 0.1), ("robust", 0.2), ("fgr", 0.3)):
            rows += [row(task, method, "none", k, [error]) for k in ("id", "shift")]
    found = comparing.compare(rows, lambda c: c[1] != "vanilla")
    assert [(c.combination[1], c.rank) for c in found] == [("robust", 1.0), ("fgr", 2.0)]
    assert [c.difference for c in found] == pytest.approx([0.1, 0.2])
    assert comparing.compare(rows, lambda c: True, ("hard", "vanilla", "none")) == []


def test_runs_are_of_the_cells(tmp_path):
    digits = "0123456789" * 4
    content = {
        "task": "a", "environment": {"commit": digits[::-1], "peak_gb": 2.5},
        "cells": [{"commit": digits, "minutes": 1.5}, {"commit": digits, "minutes": 2.0}],
    }  # fmt: skip
    (tmp_path / "a.json.gz").write_bytes(trained.pack(content))
    old = content | {"task": "b", "environment": {"commit": digits[::-1]}, "cells": [{}]}
    (tmp_path / "b.json.gz").write_bytes(trained.pack(old))
    assert runs.read_runs(tmp_path) == [
        runs.Run("a", 2, (digits,), 3.5, 2.5),
        runs.Run("b", 1, (digits[::-1],), None, None),
    ]
    mixed = content | {"task": "c", "cells": [*content["cells"], {"commit": digits}]}
    assert runs._run(mixed).minutes is None  # one of three cells does not say
    table = report.runs_table(runs.read_runs(tmp_path)).split("\n")
    assert table[2:] == ["| a | 2 | 0123456 | 4 | 2.5 |", "| b | 1 | 9876543 | – | – |"]


def test_the_default_tasks_are_those_of_the_committed_results():
    folder = Path(report.__file__).parent
    assert {run.task for run in runs.read_runs(folder)} == set(command.TASKS)


def test_the_committed_page_is_of_the_committed_results():
    folder = Path(report.__file__).parent
    assert (folder / "README.md").read_text() == report.page(
        comparing.read_rows(folder), runs.read_runs(folder), report.read_ablations(folder)
    )


@pytest.mark.parametrize(("kinds", "expected"), [("id hard", "id shift"), ("id shift hard",) * 2])
def test_of_a_task_without_shifts_the_hard_subset_counts_as_one(tmp_path, kinds, expected):
    rows = [
        {"calibrator": "none", "kind": kind, "ece": [0.1], "nll": None} for kind in kinds.split()
    ]
    found = {"cells": [{"task": "a", "routing": "dense", "method": "vanilla", "rows": rows}]}
    (tmp_path / "a.json.gz").write_bytes(trained.pack(found))
    read = comparing.read_rows(tmp_path)
    assert [r.kind for r in read] == expected.split()
    assert all("nll" not in r.metrics for r in read)


def test_another_number_of_epochs_or_seeds_has_its_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "resolve_task", lambda name, data_dir: tiny_task())
    folders = set()
    for options in ([], ["--epochs", "9"], ["--seeds", "2"]):
        given = ["--tasks", "portal", "--runs", str(tmp_path), *options]
        arguments = command.study_parser("", ()).parse_args(given)
        folders |= {one.folder for one in command.settings(arguments)}
    assert len(folders) == 3
