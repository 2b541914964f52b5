"""`calmoe repair --mode refit`: temperatures of experts, deployed if labels confirm them."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit_logs import write
from deployed_logs import HELD_OUT, SHARPNESS, make_deployed, make_sharpened

import calmoe_jax as cm
from calmoe_jax.audit import (
    apply_repair,
    as_logs,
    evidence,
    load_repair,
    read_logs,
    refitting,
    repair,
)
from calmoe_jax.audit.asking import units_of
from calmoe_jax.cli import main


@pytest.fixture(scope="module")
def refitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refit")
    arrays, labels = make_sharpened()
    path, out = write(folder, arrays), folder / "repair.json"
    assert main(["repair", str(path), "--mode", "refit", "--out", str(out)]) == 0
    return arrays, labels, out, json.loads(out.read_text())


def by_hand(arrays, found):
    """The repaired probabilities of the targets, by plain NumPy in float64."""
    experts = arrays["expert_probs"][HELD_OUT:].astype(float)
    if found["expert_temperatures"] is not None:
        experts = experts ** (1 / np.array(found["expert_temperatures"])[:, None])
        experts /= experts.sum(axis=2, keepdims=True)
    mixed = np.einsum("nk,nkc->nc", arrays["routing_weights"][HELD_OUT:].astype(float), experts)
    mixed = mixed ** (1 / found["temperature"])
    return mixed / mixed.sum(axis=1, keepdims=True)


def brier(probs, labels):
    return np.square(probs - np.eye(probs.shape[1])[labels]).sum(axis=1).mean()


def test_temperatures_of_the_experts_are_found_and_confirmed(refitted):
    arrays, labels, _, found = refitted
    assert found["kind"] == "refit"
    assert found["refit"]["chosen"] == "expert_temperatures"
    assert found["refit"]["lower"]["expert_temperatures"] > -0.01
    np.testing.assert_allclose(found["expert_temperatures"], SHARPNESS, rtol=0.25)
    before = found | {"expert_temperatures": None, "temperature": found["held_out_temperature"]}
    own = labels[HELD_OUT:]
    gained = brier(by_hand(arrays, before), own) - brier(by_hand(arrays, found), own)
    assert gained == pytest.approx(found["refit"]["improvement"]["expert_temperatures"], abs=0.01)
    assert gained > 0.002
    after = by_hand(arrays, found).max(axis=1).mean()
    assert found["confidence"]["after"] == pytest.approx(after, abs=1e-5)
    words = " ".join(found["rests_on"] + found["cannot_know"])
    assert "Deployed is expert temperatures." in words
    assert "never raises confidence" not in words


def test_the_file_is_applied_as_by_hand(refitted):
    arrays, _, out, found = refitted
    deployed = load_repair(out)
    rows = slice(HELD_OUT, None)
    log_probs = jnp.log(jnp.asarray(arrays["expert_probs"][rows]))
    weights = jnp.asarray(arrays["routing_weights"][rows])
    expected = by_hand(arrays, found)
    for apply in (apply_repair, jax.jit(apply_repair)):
        repaired = jnp.exp(apply(deployed, log_probs, weights))
        np.testing.assert_allclose(repaired, expected, atol=1e-6)
    batched = jax.vmap(apply_repair, in_axes=(None, 0, 0))(deployed, log_probs, weights)
    np.testing.assert_allclose(jnp.exp(batched), expected, atol=1e-6)
    with pytest.raises(ValueError, match="routing_weights must be given"):
        apply_repair(deployed, log_probs[:, 0])


@pytest.mark.exhaustive
def test_what_labels_do_not_confirm_is_not_deployed():
    """Few labels, or labels that the held-out temperature fits: it stays."""
    arrays, labels = make_deployed(flatter=0.7)
    arrays["labels"][HELD_OUT : HELD_OUT + 30] = labels[HELD_OUT : HELD_OUT + 30]
    found = repair(as_logs(arrays), mode="refit")
    assert found["refit"]["chosen"] is None
    assert found["expert_temperatures"] is None
    assert found["temperature"] == pytest.approx(found["held_out_temperature"])
    assert found["confidence"]["after"] == pytest.approx(found["confidence"]["before"], abs=1e-5)
    assert "the held-out temperature stays" in " ".join(found["rests_on"])


@pytest.mark.exhaustive
def test_of_many_targets_some_are_balanced_and_all_labels_are_used(refitted, monkeypatch):
    arrays, _, _, found = refitted
    monkeypatch.setattr(refitting, "_MOST_BALANCED", 300)
    some = repair(as_logs(arrays), mode="refit")
    assert some["labels"]["used"] == found["labels"]["used"] == len(arrays["labels"]) - HELD_OUT
    np.testing.assert_allclose(some["expert_temperatures"], found["expert_temperatures"], rtol=1e-4)
    sparse = {name: x.copy() for name, x in arrays.items()}
    sparse["labels"][HELD_OUT + 1 :: 2] = -1  # half of the targets have no label
    few = repair(as_logs(sparse), mode="refit")
    np.testing.assert_allclose(few["expert_temperatures"][0], SHARPNESS[0], rtol=0.35)


@pytest.mark.exhaustive
def test_the_draws_are_those_of_the_library(refitted):
    """The very refit of the library on the labels in the order that the logs' labels are given."""
    arrays, _, _, found = refitted
    from calmoe_jax.audit.answers import at_random

    logs = as_logs(arrays)
    rows = np.flatnonzero(logs.targets)
    drawn = at_random(logs, rows)
    samples = [
        cm.shift.repair.Sample(
            jnp.log(jnp.asarray(arrays["expert_probs"][x])),
            jnp.asarray(arrays["routing_weights"][x]),
        )
        for x in (~logs.targets, rows)
    ]
    expected = cm.shift.repair.refit_with_labels(
        samples[0], jnp.asarray(logs.labels[~logs.targets], jnp.int32), samples[1],
        jnp.asarray(logs.labels[rows], jnp.int32), jnp.asarray(drawn.units, jnp.int32),
        temperature=jnp.float32(found["held_out_temperature"]),
    )  # fmt: skip
    np.testing.assert_allclose(
        found["expert_temperatures"], expected.expert_temperatures, rtol=1e-3
    )


def filled(path, ask, labels, budget, *options):
    """A list of `calmoe label`, with the classes filled in."""
    asked = ["label", str(path), "--budget", str(budget), "--out", str(ask), *options]
    assert main(asked) == 0
    lines = list(csv.DictReader(ask.read_text().splitlines()))
    for line in lines:
        line["label"] = labels[int(line["row"])]
    with ask.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def test_a_list_with_unequal_chances_is_counted_by_them(tmp_path):
    arrays, labels = make_sharpened()
    arrays["labels"] = np.where(arrays["targets"], -1, labels)
    path, ask, out = write(tmp_path, arrays), tmp_path / "ask.csv", tmp_path / "repair.json"
    filled(path, ask, labels, 1500)
    arguments = ["repair", str(path), "--mode", "refit", "--out", str(out)]
    assert main([*arguments, "--labels", str(ask)]) == 0
    found = json.loads(out.read_text())
    assert found["labels"]["used"] == 1500
    logs = read_logs(path)
    rows = np.flatnonzero(logs.targets)
    known = evidence.held_out(logs)
    chances = units_of(logs, evidence.population(logs, known, rows), whole_clusters=False).chances
    assert np.ptp(chances) > 0.1 * chances.mean()
    draws = sorted(csv.DictReader(ask.read_text().splitlines()), key=lambda x: int(x["order"]))
    drawn = np.searchsorted(rows, [int(line["row"]) for line in draws])
    own, targets = (
        cm.shift.repair.Sample(
            jnp.log(jnp.asarray(arrays["expert_probs"][x])),
            jnp.asarray(arrays["routing_weights"][x]),
        )
        for x in (known.rows, rows)
    )
    expected = cm.shift.repair.refit_with_labels(
        own, jnp.asarray(labels[known.rows], jnp.int32), targets,
        jnp.asarray(labels[rows], jnp.int32), jnp.asarray(drawn, jnp.int32),
        temperature=jnp.float32(found["held_out_temperature"]), chances=jnp.asarray(chances),
    )  # fmt: skip
    for name, value in zip(cm.shift.repair.REFITS, expected.lower.tolist(), strict=True):
        assert found["refit"]["lower"][name] == pytest.approx(value, abs=1e-4)
    assert found["refit"]["chosen"] == cm.shift.repair.REFITS[int(expected.chosen)]
    assert found["refit"]["chosen"] == "expert_temperatures"


def test_a_list_of_clusters_is_refused(tmp_path, capsys):
    arrays, labels = make_deployed(clusters=4)
    path, ask = write(tmp_path, arrays), tmp_path / "ask.csv"
    filled(path, ask, labels, 20, "--whole-clusters")
    out = tmp_path / "repair.json"
    arguments = ["repair", str(path), "--mode", "refit", "--out", str(out)]
    assert main([*arguments, "--labels", str(ask)]) == 2
    assert "not of clusters" in capsys.readouterr().err
    assert main(arguments) == 2  # no label at all
    assert not out.exists()


@pytest.mark.exhaustive
def test_of_the_aggregate_alone_its_temperature_is_fitted():
    arrays, labels = make_deployed(flatter=0.25, targets=2000, alone=True)
    arrays["labels"] = labels
    found = repair(as_logs(arrays), mode="refit")
    assert found["refit"]["chosen"] is not None
    assert found["experts"] is None
    assert found["expert_temperatures"] is None
    assert found["confidence"]["after"] < found["confidence"]["before"] - 0.05
    scaled = arrays["probs"][HELD_OUT:].astype(float) ** (1 / found["temperature"])
    after = (scaled / scaled.sum(axis=1, keepdims=True)).max(axis=1).mean()
    assert found["confidence"]["after"] == pytest.approx(after, abs=1e-5)


def test_of_the_aggregate_alone_both_temperatures_are_one(monkeypatch):
    """A file of such logs has no expert to scale: the one stands for the aggregate."""
    arrays, labels = make_deployed(alone=True)
    arrays["labels"] = labels
    of_expert = cm.shift.repair.Refit(
        jnp.array([2.0]), jnp.array(1.5), jnp.array(1), jnp.zeros(3), jnp.zeros(3)
    )
    monkeypatch.setattr(refitting, "_refit", lambda *args, **options: of_expert)
    found = repair(as_logs(arrays), mode="refit")
    assert found["temperature"] == pytest.approx(3.0)
    assert found["expert_temperatures"] is None
    scaled = arrays["probs"][HELD_OUT:].astype(float) ** (1 / 3)
    after = (scaled / scaled.sum(axis=1, keepdims=True)).max(axis=1).mean()
    assert found["confidence"]["after"] == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize("value", [[1.0, -1.0, 2.0], [1.0, 2.0], [1.0, "a", 2.0]])
def test_broken_temperatures_are_refused(refitted, tmp_path, value):
    *_, found = refitted
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(found | {"expert_temperatures": value}))
    with pytest.raises(cm.audit.RepairError, match="expert_temperatures must be"):
        load_repair(path)


def test_a_file_of_the_first_schema_is_read(refitted, tmp_path):
    *_, found = refitted
    old = {k: x for k, x in found.items() if k not in ("expert_temperatures", "refit", "peers")}
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old | {"schema": 1, "kind": "combined"}))
    assert load_repair(path).expert_temperatures is None
