"""`calmoe repair`: a calibrator with its certificate, from logs and a few labels."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit_logs import write
from deployed_logs import (
    CLASSES,
    EXPERTS,
    HELD_OUT,
    TARGETS,
    aggregate,
    fill,
    gap_at,
    make_deployed,
    rows_of,
)
from dispatching import exhaustive
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

import calmoe_jax as cm
from calmoe_jax.audit import (
    RepairError,
    apply_repair,
    ask_for_labels,
    evidence,
    load_repair,
    read_answers,
    read_logs,
    repair,
)
from calmoe_jax.audit.answers import at_random
from calmoe_jax.audit.repairing import with_labels
from calmoe_jax.cli import main
from calmoe_jax.shift import few_labels
from calmoe_jax.shift.estimators import Evidence
from calmoe_jax.shift.repair import MODES

BUDGET = 60
TARGET_ROWS = np.arange(HELD_OUT, HELD_OUT + TARGETS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("repair")


@pytest.fixture(scope="module")
def asked(folder):
    """Logs, the labels, the logs' file, the list that was drawn, and the repair by it."""
    arrays, labels = make_deployed()
    path = write(folder, arrays)
    ask = folder / "ask.csv"
    assert main(["label", str(path), "--budget", str(BUDGET), "--out", str(ask)]) == 0
    done = fill(ask, labels, folder / "done.csv")
    out = folder / "repair.json"
    assert main(["repair", str(path), "--labels", str(done), "--out", str(out)]) == 0
    return arrays, labels, path, ask, json.loads(out.read_text())


def again(asked, folder, *options, edit=None):
    """Another repair by an edited list."""
    _, labels, path, ask, _ = asked
    done = fill(ask, labels, folder / "again.csv", edit=edit)
    out = folder / "again.json"
    code = main(["repair", str(path), "--labels", str(done), "--out", str(out), *options])
    return json.loads(out.read_text()) if code == 0 else code


def test_the_certificate_holds_and_the_repair_lowers_the_confidence(asked):
    arrays, labels, _, _, found = asked
    assert found["kind"] == "combined"
    inside = found["held_out_temperature"]
    truth = gap_at(arrays, labels, inside, TARGET_ROWS)
    gap = found["gap"]
    assert 0 < gap["lower"] < truth < gap["upper"]
    assert abs(gap["estimate"] - truth) < 3 * gap["standard_error"]
    after = gap_at(arrays, labels, found["temperature"], TARGET_ROWS)
    assert abs(after) < abs(truth) / 2
    confidence = found["confidence"]
    assert confidence["after"] < confidence["before"]
    np.testing.assert_allclose(truth - after, confidence["before"] - confidence["after"], atol=1e-5)
    np.testing.assert_allclose(confidence["before"] - gap["posterior"], confidence["after"], 1e-4)
    assert found["labels"] == {"used": BUDGET, "planned": BUDGET}
    digest = hashlib.sha256(asked[2].read_bytes()).hexdigest()
    assert found["inputs"][0]["sha256"] == digest
    assert found["inputs"][0]["examples"] == HELD_OUT + TARGETS


def test_the_gap_is_that_of_the_library_at_the_held_out_temperature(asked, folder):
    """Computed from the arrays and the list; the temperature is fitted by SciPy."""
    arrays, labels, _, ask, found = asked
    logs = np.log(aggregate(arrays))

    def scaled(temperature, rows):
        return logs[rows] / temperature - logsumexp(logs[rows] / temperature, axis=1, keepdims=True)

    def loss(log_temperature):
        rows = np.arange(HELD_OUT)
        return -scaled(np.exp(log_temperature), rows)[rows, labels[rows]].mean()

    temperature = np.exp(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x)
    assert temperature > 1.15
    np.testing.assert_allclose(found["held_out_temperature"], temperature, rtol=1e-3)
    temperature = found["held_out_temperature"]
    coordinates = cm.shift.configuration_coordinates(
        jnp.log(arrays["expert_probs"]), arrays["routing_weights"]
    )
    own, other = (
        Evidence(jnp.asarray(scaled(temperature, rows)), coordinates=coordinates[rows])
        for rows in (np.arange(HELD_OUT), TARGET_ROWS)
    )
    guess = few_labels.correctness_model(own, labels[:HELD_OUT], other)
    drawn = np.array([int(row["row"]) for row in rows_of(ask)]) - HELD_OUT
    probs = np.exp(scaled(temperature, TARGET_ROWS))
    expected = few_labels.confidence_gap_sequence(
        probs.max(axis=1), (probs.argmax(axis=1) == labels[TARGET_ROWS]).astype(float), drawn,
        correctness=guess, chances=few_labels.label_chances(guess), level=0.9, planned=BUDGET,
    )  # fmt: skip
    for name in ("estimate", "standard_error", "lower", "upper"):
        np.testing.assert_allclose(found["gap"][name], getattr(expected, name)[-1], atol=2e-5)
    free = cm.shift.label_free_gaps(own, labels[:HELD_OUT], other)
    np.testing.assert_allclose(found["gap"]["label_free"]["bold"], free.bold, atol=3e-3)


def test_certified_lowers_by_the_lower_bound(asked, folder):
    found = again(asked, folder, "--mode", "certified")
    lowered = found["confidence"]["before"] - found["confidence"]["after"]
    np.testing.assert_allclose(lowered, found["gap"]["lower"], atol=1e-4)
    assert found["gap"] == asked[4]["gap"]


@pytest.mark.parametrize("seed", [0, *exhaustive(1, 2, 3)])
def test_the_lower_bound_is_below_the_truth_over_draws(folder, seed):
    """Of targets whose gap is known, at every number of labels."""
    arrays, labels = make_deployed(seed=seed + 1, flatter=0.7)
    logs = read_logs(write(folder, arrays, "draws.npz"))
    known = evidence.held_out(logs)
    people = evidence.population(logs, known, TARGET_ROWS)
    truth = gap_at(arrays, labels, known.temperature, TARGET_ROWS)
    missed, times = 0, 20
    for draw in range(times):
        ask = folder / "draws.csv"
        ask.write_text(ask_for_labels(logs, budget=40, seed=draw).table)
        answers = read_answers(fill(ask, labels, ask), logs)
        found = with_labels(logs, known, people, (ask, answers), level=0.9).found
        missed += float(found.lower) > truth
    assert missed <= 5  # 2 are expected at most; 6 or more have probability .011


def test_labels_after_a_gap_are_not_used_and_that_is_said(asked, folder, capsys):
    def edit(rows):
        rows[20]["label"] = ""
        return rows

    found = again(asked, folder, edit=edit)
    assert found["labels"] == {"used": 20, "planned": BUDGET}
    words = "Draw 21 lacks a label, so that 39 labels after it are not used"
    assert words in capsys.readouterr().out
    assert any(words in line for line in found["rests_on"])
    short = again(
        asked, folder, edit=lambda rows: [r | {"label": ""} for r in rows[20:]] + rows[:20]
    )
    assert short["gap"] == found["gap"]
    lost = again(asked, folder, edit=lambda rows: rows[:20] + rows[21:])
    assert lost["gap"] == found["gap"]


def test_the_order_of_the_rows_and_of_their_digits_do_not_matter(asked, folder):
    def edit(rows):
        return [row | {"label": f"{row['label']}.0", "row": f" {row['row']}"} for row in rows[::-1]]

    assert again(asked, folder, edit=edit)["gap"] == asked[4]["gap"]


def test_labels_may_be_in_the_logs(asked, folder):
    """Of drawn targets; the population stays that of the draw."""
    arrays, labels, _, ask, first = asked
    rows = [int(line.split(",")[1]) for line in ask.read_text().splitlines()[1:]]
    known = arrays["labels"].copy()
    known[rows] = labels[rows]
    path = write(folder, arrays | {"labels": known}, "known.npz")
    out = folder / "known.json"
    assert main(["repair", str(path), "--labels", str(ask), "--out", str(out)]) == 0
    assert json.loads(out.read_text())["gap"] == first["gap"]


def test_whole_clusters(folder):
    arrays, labels = make_deployed(seed=1, clusters=5)
    path = write(folder, arrays, "clusters.npz")
    ask, out = folder / "clusters.csv", folder / "clusters.json"
    options = ["--budget", "30", "--whole-clusters", "--out", str(ask)]
    assert main(["label", str(path), *options]) == 0
    done = fill(ask, labels, folder / "done_clusters.csv")
    assert main(["repair", str(path), "--labels", str(done), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    truth = gap_at(arrays, labels, found["held_out_temperature"], TARGET_ROWS)
    assert found["gap"]["lower"] < truth < found["gap"]["upper"]
    assert found["labels"]["used"] == 30

    def edit(rows):
        return rows[1:]

    done = fill(ask, labels, done, edit=edit)
    assert main(["repair", str(path), "--labels", str(done), "--out", str(out)]) == 2


def test_several_files(asked, folder):
    arrays, labels, _, _, first = asked
    parts = [
        write(folder, {name: x[part] for name, x in arrays.items()}, name)
        for name, part in (("one.npz", slice(0, 600)), ("two.npz", slice(600, None)))
    ]
    ask, out = folder / "both.csv", folder / "both.json"
    files = [str(path) for path in parts]
    assert main(["label", *files, "--budget", str(BUDGET), "--out", str(ask)]) == 0
    starts = dict(zip(files, (0, 600), strict=True))
    done = fill(ask, labels, folder / "done_both.csv", starts=starts)
    assert main(["repair", *files, "--labels", str(done), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["gap"] == first["gap"]
    assert [one["examples"] for one in found["inputs"]] == [600, 300, BUDGET]


def test_the_logs_own_labels_count_as_drawn_at_random(folder, capsys):
    arrays, labels = make_deployed()
    rows = np.random.RandomState(0).choice(TARGET_ROWS, 80, replace=False)
    arrays["labels"][rows] = labels[rows]
    path, out = write(folder, arrays, "own.npz"), folder / "own.json"
    assert main(["repair", str(path), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert "uniformly at random among the targets is assumed" in capsys.readouterr().out
    assert found["labels"]["used"] == 80
    truth = gap_at(arrays, labels, found["held_out_temperature"], TARGET_ROWS)
    assert found["gap"]["lower"] < truth < found["gap"]["upper"]
    plain = np.mean(
        [gap_at(arrays, labels, found["held_out_temperature"], rows[i : i + 1]) for i in range(80)]
    )
    assert abs(found["gap"]["estimate"] - plain) < 0.05
    order = at_random(read_logs(path), TARGET_ROWS).units
    assert sorted(order + HELD_OUT) == sorted(rows)
    assert 0 < np.mean(np.diff(order) > 0) < 0.7
    arrays["drawn_probability"] = np.where(np.arange(len(labels)) % 2, 0.1, 0.2)
    path = write(folder, arrays, "own.npz")
    assert main(["repair", str(path), "--out", str(out)]) == 2
    assert "drawn_probability must be one number" in capsys.readouterr().err


@pytest.mark.parametrize("alone", [False, True])
def test_without_labels(folder, capsys, alone):
    arrays, _ = make_deployed(alone=alone)
    path, out = write(folder, arrays, "blind.npz"), folder / "blind.json"
    found = {}
    for mode in ("safe", "bold"):
        options = [] if mode == "safe" else ["--mode", mode]
        assert main(["repair", str(path), "--out", str(out), *options]) == 0
        found[mode] = json.loads(out.read_text())
    safe, bold = found["safe"], found["bold"]
    assert safe["kind"] == "safe"
    np.testing.assert_allclose(safe["temperature"], safe["held_out_temperature"], rtol=1e-6)
    assert safe["gap"]["lower"] is None
    assert safe["gap"]["estimate"] == 0
    assert any("not identified" in line for line in safe["cannot_know"])
    assert any("single model" in line for line in safe["rests_on"])
    for name, repaired in found.items():
        mode = MODES[name]
        assert {mode.rests_on, mode.measured} <= set(repaired["rests_on"])
        assert repaired["cannot_know"][0].startswith(mode.cannot_know)
    lowered = bold["confidence"]["before"] - bold["confidence"]["after"]
    np.testing.assert_allclose(lowered, bold["gap"]["label_free"]["bold"], atol=1e-4)
    assert safe["experts"] == (None if alone else EXPERTS)
    capsys.readouterr()
    assert main(["repair", str(path), "--out", str(out), "--mode", "certified"]) == 2
    assert "--mode must be safe or bold without labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows: [r | {"label": "9"} for r in rows], "line 2: label must be in [0, 3]"),
        (lambda rows: [r | {"label": "cat"} for r in rows], "label must be a whole number"),
        (lambda rows: [r | {"row": "3"} for r in rows], "no target that counts"),
        (lambda rows: [r | {"row": "9999"} for r in rows], "row must be in [0, 899]"),
        (lambda rows: [*rows, rows[4]], "lines 6 and 62 are about one target"),
        (lambda rows: [r | {"order": "1"} for r in rows], "two rows have order 1"),
        (lambda rows: [r | {"order": "0"} for r in rows], "order must be at least 1"),
        (lambda rows: [r | {"probability": "2"} for r in rows], "probability must be in (0, 1]"),
        (lambda rows: [r | {"probability": "0.5"} for r in rows], "draw 1 has probability 0.5"),
        (lambda rows: [{"order": "1"}], "lacks row, probability, label"),
    ],
)
def test_broken_lists_end_with_2(asked, folder, capsys, edit, message):
    assert again(asked, folder, edit=edit) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_other_logs_than_those_of_the_draw_are_refused(asked, folder, capsys):
    arrays, labels, _, ask, _ = asked
    done = fill(ask, labels, folder / "other.csv")
    fewer = {name: x[:-50] for name, x in arrays.items()}
    code = main(
        ["repair", str(write(folder, fewer, "fewer.npz")), "--labels", str(done), "--out", "x.json"]
    )
    assert code == 2
    assert main(["repair", str(asked[2]), "--labels", "nowhere.csv", "--out", "x.json"]) == 2
    assert not Path("x.json").exists()
    (folder / "no_targets.npz").write_bytes(b"")
    nothing = {name: x[:HELD_OUT] for name, x in arrays.items()}
    capsys.readouterr()
    assert main(["repair", str(write(folder, nothing, "n.npz")), "--out", "x.json"]) == 2
    assert "no targets" in capsys.readouterr().err


def test_what_is_loaded_applies_as_numpy_does(asked, folder):
    arrays, _, _, _, record = asked
    found = load_repair(folder / "repair.json")
    assert found.kind == "combined"
    assert found.num_labels == BUDGET
    assert (found.num_classes, found.num_experts) == (CLASSES, EXPERTS)
    for name in ("lower", "upper", "standard_error"):
        np.testing.assert_allclose(getattr(found, name), record["gap"][name], rtol=1e-6)
    scaled = np.log(aggregate(arrays)) / record["temperature"]
    expected = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    experts, weights = jnp.log(arrays["expert_probs"]), jnp.asarray(arrays["routing_weights"])
    applied = jnp.exp(apply_repair(found, experts, weights))
    np.testing.assert_allclose(applied, expected, atol=1e-6)
    mixed = cm.mix_log_probs(experts, weights)
    of_aggregate = jnp.exp(apply_repair(found, mixed))
    np.testing.assert_allclose(of_aggregate, expected, atol=1e-6)
    np.testing.assert_array_equal(applied.argmax(axis=1), expected.argmax(axis=1))


def test_applied_under_jit_and_vmap(asked, folder):
    found = load_repair(folder / "repair.json")
    experts = jnp.log(jnp.asarray(asked[0]["expert_probs"]))
    weights = jnp.asarray(asked[0]["routing_weights"])
    plain = apply_repair(found, experts, weights)
    np.testing.assert_allclose(jax.jit(apply_repair)(found, experts, weights), plain, rtol=1e-5)
    each = jax.vmap(apply_repair, in_axes=(None, 0, 0))(found, experts, weights)
    np.testing.assert_allclose(each, plain, rtol=1e-5, atol=1e-6)
    batches = apply_repair(found, experts.reshape(9, 100, 3, 4), weights.reshape(9, 100, 3))
    np.testing.assert_allclose(batches.reshape(-1, 4), plain, rtol=1e-5, atol=1e-6)
    two = jax.tree.map(
        lambda *x: jnp.stack(x), found, replace(found, temperature=2 * found.temperature)
    )
    both = jax.vmap(apply_repair, in_axes=(0, None, None))(two, experts, weights)
    np.testing.assert_allclose(both[0], plain, rtol=1e-5, atol=1e-6)
    assert float(jnp.exp(both[1]).max(axis=1).mean()) < float(jnp.exp(plain).max(axis=1).mean())


def test_impossible_classes_stay_so(asked, folder):
    found = load_repair(folder / "repair.json")
    applied = jnp.exp(apply_repair(found, jnp.log(jnp.array([[0.75, 0.25, 0.0, 0.0]]))))
    assert applied[0, 2:].tolist() == [0, 0]
    np.testing.assert_allclose(applied.sum(), 1, rtol=1e-6)


def test_other_models_are_refused(asked, folder):
    found = load_repair(folder / "repair.json")
    with pytest.raises(ValueError, match="log_probs must have the 4 classes"):
        apply_repair(found, jnp.zeros((5, 3)))
    with pytest.raises(ValueError, match="routing_weights must have the 3 experts"):
        apply_repair(found, jnp.zeros((5, 2, 4)), jnp.ones((5, 2)) / 2)
    with pytest.raises(ValueError, match="routing_weights must have the axes"):
        apply_repair(found, jnp.zeros((5, 3, 4)), jnp.ones((4, 3)) / 3)


def test_files_that_are_no_repair_are_refused(asked, folder):
    record = asked[4]
    text = json.dumps(record)
    for content, message in (
        (text[:-20], "cannot be read"),
        ("[]", "is no repair"),
        (json.dumps({"format": "other"}), "is no repair"),
        (json.dumps(record | {"schema": 3}), "later version"),
        (json.dumps(record | {"schema": "1"}), "schema must be at most 2, got '1'"),
        (json.dumps(record | {"temperature": -1}), "temperature must be a positive number"),
        (json.dumps(record | {"temperature": True}), "temperature must be a positive number"),
        (json.dumps(record | {"kind": "magic"}), "kind must be one of"),
        (json.dumps(record | {"classes": 1}), "classes must be at least 2"),
        (json.dumps({k: v for k, v in record.items() if k != "gap"}), "it lacks 'gap'"),
        (json.dumps(record | {"gap": 3}), "is broken"),
    ):
        path = folder / "broken.json"
        path.write_text(content)
        with pytest.raises(RepairError, match=message):
            load_repair(path)
    with pytest.raises(RepairError, match="cannot be read"):
        load_repair(folder / "nowhere.json")


def test_of_more_targets_than_are_compared_confidence_alone_is_used(asked, folder, monkeypatch):
    """The bounds still hold, and both are said."""
    arrays, labels, path, _, _ = asked
    monkeypatch.setattr(evidence, "MOST_COMPARED", 200)
    monkeypatch.setattr("calmoe_jax.audit.limits_of_repair.MOST_COMPARED", 200)
    logs = read_logs(path)
    known = evidence.held_out(logs)
    people = evidence.population(logs, known, TARGET_ROWS)
    assert "neighbours" not in people.guessed_by
    assert people.compared == 200
    arrays = {name: x.copy() for name, x in arrays.items()}
    rows = TARGET_ROWS[::6]
    arrays["labels"][rows] = labels[rows]
    found = repair(read_logs(write(folder, arrays, "many.npz")))
    words = " ".join(found["rests_on"])
    assert "rests on 200 targets" in words
    assert "more than 200 targets" in words
    truth = gap_at(arrays, labels, found["held_out_temperature"], TARGET_ROWS)
    assert found["gap"]["lower"] < truth < found["gap"]["upper"]


@pytest.mark.exhaustive
def test_a_padded_population_gives_the_same(asked):
    arrays, labels, path, _, _ = asked
    arrays = {name: x.copy() for name, x in arrays.items()}
    arrays["labels"][TARGET_ROWS[::5]] = labels[TARGET_ROWS[::5]]
    logs = read_logs(write(path.parent, arrays, "padded.npz"))
    known = evidence.held_out(logs)
    plain, padded = (
        with_labels(
            logs, known, evidence.population(logs, known, TARGET_ROWS, padded=size), None, level=0.9
        ).found
        for size in (None, 700)
    )
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
