"""Peers in logs: models of other seeds, which the modes without labels compare the model with."""

import csv
import json

import jax.numpy as jnp
import numpy as np
import pytest
from audit_logs import SIZE, TARGETS, make, write
from deployed_logs import HELD_OUT, make_deployed

import calmoe_jax as cm
from calmoe_jax.audit import (
    LogError,
    as_logs,
    audit,
    evidence,
    log_batch,
    monitor,
    read_logs,
    repair,
)
from calmoe_jax.cli import main
from calmoe_jax.shift.agreement import SAFE_MARGIN
from calmoe_jax.shift.estimators import Evidence, seed_agreement

PEERS = 2
TOTAL = SIZE + TARGETS


def with_peers(arrays, *, alike=4.0, fading=0.0, seed=3):
    """Logs with peers that mostly agree with the model, on targets less so if it is fading."""
    rng = np.random.RandomState(seed)
    mixed = arrays.get("probs")
    if mixed is None:
        mixed = np.einsum("nk,nkc->nc", arrays["routing_weights"], arrays["expert_probs"])
    alike = alike * np.where(arrays["targets"], 1 - fading, 1.0)[:, None, None]
    logits = alike * np.log(mixed)[:, None] + rng.randn(len(mixed), PEERS, mixed.shape[1])
    probs = np.exp(logits - logits.max(axis=2, keepdims=True))
    probs /= probs.sum(axis=2, keepdims=True)
    return arrays | {"peer_probs": probs.astype(np.float32)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def fading():
    arrays, labels = make_deployed()
    return with_peers(arrays, fading=0.8), labels


def test_every_form_gives_the_same_peers(folder):
    arrays = with_peers(make())
    expected = as_logs(arrays)
    assert expected.peer_probs.shape == (TOTAL, PEERS, 4)
    np.testing.assert_allclose(expected.peer_probs, arrays["peer_probs"], atol=1e-6)
    assert read_logs(write(folder, make(), "without.npz")).peer_probs is None

    logits = {name: x for name, x in arrays.items() if name != "peer_probs"}
    logits["peer_logits"] = np.log(arrays["peer_probs"]) + 3.0
    for path in (write(folder, logits, "logits.npz"), write_wide(folder, arrays)):
        np.testing.assert_allclose(read_logs(path).peer_probs, expected.peer_probs, atol=1e-6)


def write_wide(folder, arrays):
    """A CSV file with a column for each number."""
    forms = {
        "expert_probs": "expert_{}_prob_{}", "peer_probs": "peer_{}_prob_{}",
        "routing_weights": "weight_{}",
    }  # fmt: skip
    columns = {name: x for name, x in arrays.items() if name not in forms}
    for name, form in forms.items():
        for at in np.ndindex(arrays[name].shape[1:]):
            columns[form.format(*at)] = arrays[name][(slice(None), *at)]
    path = folder / "wide.csv"
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))
    return path


def test_batches_carry_peers(folder):
    arrays = with_peers(make())
    paths = []
    for rows in (slice(0, 100), slice(100, None)):
        part = {name: x[rows] for name, x in arrays.items()}
        columns = log_batch(
            {name: part[name] for name in ("expert_probs", "routing_weights")}, part["labels"],
            targets=part["targets"], peer_probs=part["peer_probs"],
        )  # fmt: skip
        paths.append(write(folder, columns, f"part-{rows.start}.npz"))
    expected = as_logs(arrays).peer_probs
    np.testing.assert_allclose(read_logs(paths).peer_probs, expected, atol=1e-6)


def broken(edit):
    arrays = with_peers(make())
    arrays["peer_probs"] = edit(arrays["peer_probs"].copy())
    return arrays


def set_to(value, row=7):
    def edit(probs):
        probs[row, 1, 2] = value
        return probs

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x: x[:, :, :3], r"peer_probs must be \[examples, peers, classes\]"),
        (lambda x: x[:, 0], r"peer_probs must be \[examples, peers, classes\]"),
        (lambda x: x[:, :0], "at least one peer"),
        (lambda x: x[:-1], r"peer_probs must be \[examples, peers, classes\]"),
        (set_to(np.nan), "got nan at example 7, peer 1, class 2"),
        (set_to(-0.1), "got -0.1 at example 7, peer 1, class 2"),
        (set_to(3.0), "a sum of .* at example 7, peer 1"),
    ],
)
def test_peers_that_are_no_predictions_are_refused(folder, edit, message):
    path = write(folder, broken(edit), "broken.npz")
    with pytest.raises(LogError, match=message):
        read_logs(path)


@pytest.mark.exhaustive
def test_files_must_have_as_many_peers(folder):
    first = write(folder, with_peers(make()), "first.npz")
    second = write(folder, broken(lambda x: x[:, :1]), "second.npz")
    with pytest.raises(LogError, match=r"has 1 peers, .* has 2"):
        read_logs([first, second])
    with pytest.raises(LogError, match="lacks peer_probs"):
        read_logs([first, write(folder, make(), "third.npz")])
    both = with_peers(make())
    both["peer_logits"] = np.log(both["peer_probs"])
    with pytest.raises(LogError, match="has peer_probs and peer_logits"):
        read_logs(write(folder, both, "both.npz"))


@pytest.mark.exhaustive
def test_what_does_not_count_may_hold_anything(folder):
    arrays = broken(set_to(np.nan, row=-1))
    arrays["where"] = np.arange(TOTAL) < TOTAL - 1
    logs = read_logs(write(folder, arrays, "masked.npz"))
    assert np.isfinite(logs.peer_probs).all()


def by_hand(logs, known, margin):
    """The gap that the agreement says, by the estimator alone."""
    rows = np.flatnonzero(logs.targets)

    def seen(rows):
        mixed = np.log(np.einsum("nk,nkc->nc", logs.routing_weights, logs.expert_probs)[rows])
        peers = np.log(np.moveaxis(logs.peer_probs[rows], 1, 0))
        # agreement is of predicted classes, which no temperature changes
        return Evidence(jnp.asarray(mixed / known.temperature), jnp.asarray(peers))

    own, theirs = seen(known.rows), seen(rows)
    labels = jnp.asarray(logs.labels[known.rows], jnp.int32)
    estimate = seed_agreement(own, labels, theirs, margin=margin).accuracy
    return float(cm.shift.mean_confidence(theirs.log_probs, 1.0) - estimate)


def test_safe_lowers_the_confidence_as_the_agreement_says(fading):
    arrays, _ = fading
    logs = as_logs(arrays)
    found = repair(logs, mode="safe")
    known = evidence.held_out(logs)
    expected = by_hand(logs, known, SAFE_MARGIN)
    assert found["gap"]["label_free"]["safe"] == pytest.approx(expected, abs=1e-4)
    assert expected > 0.05
    lowered = found["confidence"]["before"] - found["confidence"]["after"]
    assert lowered == pytest.approx(expected, abs=1e-3)
    assert found["peers"] == PEERS
    words = " ".join(found["rests_on"])
    assert "compared with 2 of other seeds" in words
    assert "single model" not in words

    alone = {name: x for name, x in arrays.items() if name != "peer_probs"}
    without = repair(as_logs(alone), mode="safe")
    assert without["confidence"]["before"] == without["confidence"]["after"]
    assert without["peers"] == 0
    assert "single model" in " ".join(without["rests_on"])


@pytest.mark.exhaustive
def test_the_aggregate_alone_and_peers_are_enough_for_safe(fading):
    """Agreement needs no experts: the repair is that of the same logs with experts."""
    arrays, _ = fading
    whole = repair(as_logs(arrays), mode="safe")
    mixed = np.einsum("nk,nkc->nc", arrays["routing_weights"], arrays["expert_probs"])
    alone = {"probs": mixed} | {k: arrays[k] for k in ("labels", "targets", "peer_probs")}
    found = repair(as_logs(alone), mode="safe")
    assert found["temperature"] == pytest.approx(whole["temperature"], rel=1e-3)
    assert found["temperature"] > 1.1 * found["held_out_temperature"]
    bold = repair(as_logs(alone), mode="bold")
    assert bold["temperature"] == pytest.approx(found["temperature"], rel=1e-6)
    assert "bold is safe" in " ".join(bold["rests_on"])


@pytest.mark.exhaustive
def test_an_audit_says_what_safe_does(fading):
    arrays, _ = fading
    found = audit(as_logs(arrays))
    assert found.shift.decision == "lower_confidence"
    assert "safe lowers the mean confidence" in found.shift.reason
    temperatures = found.targets.temperatures
    assert temperatures["safe"] > 1.1 * temperatures["temperature"]
    logs = as_logs(arrays)
    of_repair = repair(logs, mode="safe")
    assert temperatures["safe"] == pytest.approx(of_repair["temperature"], rel=0.02)
    alike = audit(as_logs(with_peers(make_deployed()[0])))
    assert alike.targets.temperatures["safe"] == pytest.approx(
        alike.targets.temperatures["temperature"], rel=1e-5
    )


@pytest.mark.exhaustive
def test_of_many_targets_some_are_compared_with_peers(fading, monkeypatch):
    arrays, _ = fading
    logs = as_logs(arrays)
    known = evidence.held_out(logs)
    rows = np.arange(HELD_OUT, len(logs.labels))
    whole = evidence.population(logs, known, rows)
    assert whole.guessed_by == ("neighbours", "peers")
    monkeypatch.setattr(evidence, "MOST_COMPARED", 250)
    some = evidence.population(logs, known, rows)
    assert some.guessed_by == ()
    assert some.compared == 250
    assert float(some.label_free.safe) == pytest.approx(float(whole.label_free.safe), abs=0.05)
    padded = evidence.population(logs, known, rows[:200], padded=256)
    exact = evidence.population(logs, known, rows[:200])
    for a, b in zip(padded.label_free, exact.label_free, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(padded.correctness[:200], exact.correctness, atol=1e-5)


@pytest.mark.exhaustive
def test_a_monitor_uses_peers(fading):
    arrays, _ = fading
    days = np.datetime64("2026-01-01", "us") + (np.arange(900) // 300) * np.timedelta64(
        86400 * 10**6, "us"
    )
    found = monitor(as_logs(arrays | {"time": days}), every="day")
    of_last = found["periods"][-1]
    assert of_last["gap"]["label_free"]["safe"] > 0.05
    assert of_last["accuracy"]["high"] < of_last["mean_confidence"]
    assert "what the agreement with peers says" in " ".join(found["rests_on"])


def test_the_command_repairs_without_labels(fading, folder):
    arrays, labels = fading
    path, out = write(folder, arrays, "deployed.npz"), folder / "repair.json"
    assert main(["repair", str(path), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["kind"] == "safe"
    probs = np.einsum("nk,nkc->nc", arrays["routing_weights"], arrays["expert_probs"])[HELD_OUT:]

    def gap(temperature):
        scaled = probs ** (1 / temperature)
        scaled /= scaled.sum(axis=1, keepdims=True)
        return scaled.max(axis=1).mean() - (probs.argmax(axis=1) == labels[HELD_OUT:]).mean()

    assert abs(gap(found["temperature"])) < abs(gap(found["held_out_temperature"]))


@pytest.mark.exhaustive
def test_temperatures_of_peers_are_fitted_as_the_models_own():
    """To distributions where the labels are soft, not to a class drawn from them."""
    arrays = with_peers(make())
    held_out = ~arrays["targets"]
    soft = 0.6 * np.eye(4)[arrays.pop("labels")] + 0.1
    arrays["label_probs"] = np.where(held_out[:, None], soft, 0).astype(np.float32)
    known = evidence.held_out(as_logs(arrays))
    expected = [
        cm.calibration.calibrators.fit_temperature(
            jnp.log(arrays["peer_probs"][held_out, peer]), jnp.asarray(soft[held_out], jnp.float32)
        ).temperature
        for peer in range(PEERS)
    ]
    np.testing.assert_allclose(known.peer_temperatures, expected, rtol=1e-4)
