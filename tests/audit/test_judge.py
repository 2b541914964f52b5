"""`calmoe audit`: a deployed model's logs."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit_logs import CLASSES, EXPERTS, SIZE, TARGETS, make, write

import calmoe_jax as cm
from calmoe_jax.audit import Audit, audit, describe_audit, read_logs
from calmoe_jax.audit.logs import take
from calmoe_jax.audit.pictures import draw_audit
from calmoe_jax.audit.results import Estimate
from calmoe_jax.cli import main
from calmoe_jax.shift import repair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def found(folder):
    arrays = make(sharper=3.0)
    judged = audit(read_logs(write(folder, arrays)))
    return arrays, judged, judged.to_json()


def test_a_deep_ensemble_is_a_mixture_of_equal_weights(folder):
    """Its members' probabilities, as arrays: scores and temperature are those of their mean."""
    arrays = make(sharper=3.0, seed=1)
    members = arrays["expert_probs"]
    equal = np.full(members.shape[:2], 1 / EXPERTS, np.float32)
    path = write(folder, arrays | {"routing_weights": equal}, "ensemble.npz")
    result = audit(read_logs(path)).to_json()
    mean, labels = members.mean(axis=1), arrays["labels"]
    for rows, scores in (
        (slice(None, SIZE), result["held_out"]),
        (slice(SIZE, None), result["targets_scored"]["none"]),
    ):
        top = mean[rows].argmax(axis=1)
        accuracy = (top == labels[rows]).mean()
        of_labels = np.take_along_axis(mean[rows], labels[rows][:, None], axis=1)
        gap = mean[rows].max(axis=1).mean() - accuracy
        for name, expected in (
            ("accuracy", accuracy),
            ("negative_log_likelihood", -np.log(of_labels).mean()),
            ("confidence_gap", gap),
        ):
            np.testing.assert_allclose(scores[name]["value"], expected, atol=1e-5)


@pytest.mark.exhaustive
def test_scores_are_those_of_the_library(found):
    arrays, _, result = found
    for rows, scores in (
        (slice(None, SIZE), result["held_out"]),
        (slice(SIZE, None), result["targets_scored"]["none"]),
    ):
        probs = cm.mix(
            jnp.asarray(arrays["expert_probs"][rows]), jnp.asarray(arrays["routing_weights"][rows])
        )
        labels = jnp.asarray(arrays["labels"][rows], jnp.int32)
        for name, function in (
            ("accuracy", cm.calibration.accuracy),
            ("negative_log_likelihood", cm.calibration.negative_log_likelihood),
            ("brier_score", cm.calibration.brier_score),
            ("confidence_gap", cm.calibration.confidence_gap),
        ):
            interval = scores[name]
            np.testing.assert_allclose(interval["value"], function(probs, labels), atol=1e-5)
            assert interval["low"] < interval["value"] < interval["high"]
        np.testing.assert_allclose(
            scores["ece"], cm.calibration.expected_calibration_error(probs, labels), atol=1e-5
        )


def test_a_shift_of_confidence_is_seen_and_a_decision_made(found):
    _, judged, result = found
    shifted = result["shift"]
    assert shifted["p_value"] <= 0.01
    assert shifted["confidence"] <= 0.01
    assert shifted["load"] > 0.05
    # one model is logged: nothing agrees with it
    assert shifted["decision"] == "label_some"
    assert 0 < shifted["labels"] <= TARGETS
    inside = result["targets"]["temperatures"]["temperature"]
    assert all(t >= inside - 1e-6 for t in result["targets"]["temperatures"].values())
    words = describe_audit(judged)
    assert shifted["reason"] in words
    assert "nan" not in words.lower()
    json.dumps(result, allow_nan=False)


def test_the_verdicts_numbers_are_those_of_the_tables(found):
    """Also those of the scores: all targets have labels here."""
    _, judged, result = found
    confidence = result["targets"]["mean_confidence"]
    assert set(confidence) == {"none", *result["targets"]["temperatures"]}
    for name, scores in result["targets_scored"].items():
        expected = scores["accuracy"]["value"] + scores["confidence_gap"]["value"]
        np.testing.assert_allclose(confidence[name], expected, atol=1e-5, err_msg=name)
    assert confidence["safe"] == confidence["temperature"]
    words = describe_audit(judged)
    verdict = words[words.index("Verdict: label some") :]
    assert f"safe leaves the mean confidence at {confidence['safe']:.3f}" in verdict
    assert f"bold would lower it to {confidence['bold']:.3f}" in verdict
    table = words[words.index("mean confidence: ") :].splitlines()[0]
    for name in ("none", "temperature", "safe", "bold"):
        assert f"{name} {confidence[name]:.3f}" in table
    assert f"configuration balanced: {result['shift']['balance']}" in words
    for sentence in repair.MODES["safe"][1:]:
        assert sentence in words


def test_labels_of_the_targets_change_no_decision(folder, found):
    arrays, _, result = found
    blind = arrays | {"labels": np.where(arrays["targets"], -1, arrays["labels"])}
    del blind["targets"]
    again = audit(read_logs(write(folder, blind))).to_json()
    assert again["shift"] == result["shift"]
    assert again["targets"] == result["targets"] | {"labelled": 0}
    assert "targets_scored" not in again


def test_labels_of_some_targets_are_used_and_said(folder, found):
    arrays, _, result = found
    rows = np.arange(SIZE, SIZE + TARGETS, 3)
    labels = np.where(arrays["targets"], -1, arrays["labels"])
    labels[rows] = arrays["labels"][rows]
    judged = audit(read_logs(write(folder, arrays | {"labels": labels})))
    again = judged.to_json()
    assert again["shift"] == result["shift"]
    assert again["targets"] == result["targets"] | {"labelled": len(rows)}
    assert set(again["targets_scored"]) == set(result["targets_scored"])
    probs = cm.mix(*(jnp.asarray(arrays[x][rows]) for x in ("expert_probs", "routing_weights")))
    expected = cm.calibration.accuracy(probs, jnp.asarray(labels[rows]))
    accuracy = again["targets_scored"]["none"]["accuracy"]
    np.testing.assert_allclose(accuracy["value"], expected, rtol=1e-5)
    assert f"{TARGETS} examples; {len(rows)} of them have labels" in describe_audit(judged)


def test_dense_logs_and_the_same_as_slots_give_the_same(folder):
    """Also if the dense ones hold what the experts that were not chosen predict."""
    arrays = make(sharper=3.0)
    order = np.argsort(-arrays["routing_weights"], axis=1)
    kept = np.take_along_axis(arrays["routing_weights"], order, axis=1)
    kept[:, 2] = 0
    kept /= kept.sum(axis=1, keepdims=True)
    # of two slots in a row one is first for the larger weight, or the other
    order[::2, :2], kept[::2, :2] = order[::2, 1::-1], kept[::2, 1::-1]
    weights = np.zeros_like(kept)
    np.put_along_axis(weights, order, kept, axis=1)
    dense = arrays | {"routing_weights": weights}
    probs = np.take_along_axis(arrays["expert_probs"], order[..., None], axis=1)
    probs[:, 2] = np.nan
    order[:, 2] = -1
    slots = arrays | {
        "routing_weights": kept, "expert_probs": probs, "expert_indices": order,
    }  # fmt: skip
    two = slots | {x: slots[x][:, :2] for x in ("routing_weights", "expert_probs")}
    two["expert_indices"] = order[:, :2].astype(np.uint8)
    found = [audit(read_logs(write(folder, x))).to_json() for x in (dense, slots, two)]
    assert found[0]["shift"]["p_value"] <= 0.01
    assert found[0] == found[1] == found[2]


def test_what_does_not_count_has_no_effect(folder, found):
    """Rows masked in three ways, anything in them; and an expert of weight 0."""
    arrays, _, result = found
    result = result | {"left_out": 6}
    strange = {
        "routing_weights": np.full((6, EXPERTS), np.nan, np.float32),
        "expert_probs": np.full((6, EXPERTS, CLASSES), np.nan, np.float32),
        "labels": np.array([99, -7, 0, -1, 1, 2]),
        "targets": np.arange(6) % 2 == 0,
    }
    places = [0, 0, 5, 100, 240, SIZE + TARGETS]
    more = {name: np.insert(arrays[name], places, x, axis=0) for name, x in strange.items()}
    counts = np.insert(np.ones(SIZE + TARGETS, bool), places, False)
    nowhere = np.where(counts[:, None], more["routing_weights"], 0)
    for masked in (
        more | {"where": counts}, more | {"weights": counts.astype(float)},
        more | {"routing_weights": nowhere},
    ):  # fmt: skip
        judged = audit(read_logs(write(folder, masked)))
        assert judged.to_json() == result
        assert "Left out: 6 examples that do not count." in describe_audit(judged)


def test_an_impossible_label_does_not_end_the_fit(folder):
    arrays = make()
    plain = audit(read_logs(write(folder, arrays))).held_out
    assert (plain.impossible_labels, plain.impossible_as) == (0, None)
    # certain of another class than the first row's
    label = (arrays["labels"][0] + 1) % CLASSES
    arrays["expert_probs"][0] = np.arange(CLASSES) == label
    judged = audit(read_logs(write(folder, arrays)))
    held_out = judged.held_out
    assert held_out.temperature_converged
    assert plain.temperature < held_out.temperature < 2 * plain.temperature
    assert held_out.impossible_labels == 1
    aggregate = np.einsum("nk,nkc->nc", arrays["routing_weights"], arrays["expert_probs"])[:SIZE]
    least = min(aggregate[aggregate > 0].min(), 1e-3)
    np.testing.assert_allclose(held_out.impossible_as, least, rtol=1e-4)
    words = describe_audit(judged)
    assert "labels of probability 0: 1; where a temperature is fitted they count as" in words
    assert judged.targets.temperatures["configuration_balanced"] > plain.temperature


@pytest.mark.exhaustive  # programs of clusters
def test_the_verdict_counts_clusters(folder):
    arrays = make(sharper=1.4)
    alone = audit(read_logs(write(folder, arrays)))
    assert (alone.shift.decision, alone.targets.clusters) == ("label_some", TARGETS)
    arrays["clusters"] = np.arange(SIZE + TARGETS) // 6
    judged = audit(read_logs(write(folder, arrays)))
    assert judged.held_out.clusters == SIZE // 6
    assert judged.targets.clusters == TARGETS // 6
    assert judged.shift.p_value <= 0.05
    assert judged.shift.decision == "label_some"
    assert f"label all {TARGETS // 6} clusters of targets" in judged.shift.reason
    assert f"of {SIZE // 6} held-out clusters" in judged.shift.balance
    assert f"labelled examples in {SIZE // 6} clusters" in describe_audit(judged)


@pytest.mark.exhaustive
def test_the_command_writes_json_and_pictures(folder, capsys):
    arrays = make()
    arrays["labels"][SIZE:] = -1
    path = write(folder, arrays)
    out, plots = folder / "deep" / "audit.json", folder / "plots"
    assert main(["audit", str(path), "--out", str(out), "--plots", str(plots)]) == 0
    assert "Verdict: keep: no shift" in capsys.readouterr().out
    assert json.loads(out.read_text())["shift"]["decision"] == "keep"
    names = ("reliability", "experts", "gaps", "confidence")
    assert {p.name for p in plots.iterdir()} == {f"{name}.png" for name in names}


def test_what_is_not_known_is_said_in_words(found):
    _, judged, _ = found
    unknown = Estimate(0.5, None, None)
    scores = replace(
        judged.held_out.scores, accuracy=unknown,
        negative_log_likelihood=Estimate(None, None, None),
    )  # fmt: skip
    held_out = replace(judged.held_out, scores=scores, expert_ece=[None, 0.1, 0.2])
    shift = replace(judged.shift, p_value=None, separability=None)
    words = describe_audit(replace(judged, held_out=held_out, shift=shift))
    for part in ("NLL infinite", "accuracy 0.500;", "no load", "p = unknown", "separability unk"):
        assert part in words
    alone = describe_audit(Audit(judged.held_out))
    assert "No targets: no shift to test for." in alone
    assert list(Audit(judged.held_out).to_json()) == ["held_out", "left_out", "notes"]


@pytest.mark.exhaustive  # programs of sizes of its own
def test_logs_that_tell_little_are_described(folder):
    """One held-out example, in one cluster with everything else, and a certain, wrong expert."""
    arrays = make()
    arrays["targets"] = np.arange(SIZE + TARGETS) > 0
    arrays["clusters"] = np.zeros(SIZE + TARGETS, int)
    first = np.zeros((EXPERTS, CLASSES), np.float32)
    first[:, (arrays["labels"][0] + 1) % CLASSES] = 1
    arrays["expert_probs"][0] = first
    judged = audit(read_logs(write(folder, arrays)))
    assert judged.shift.decision == "label_some"
    words = describe_audit(judged)
    assert "NLL infinite" in words
    assert "unknown" in words
    assert "nan" not in words.lower()
    json.dumps(judged.to_json(), allow_nan=False)


@pytest.mark.exhaustive
def test_plots_show_held_out_examples(folder):
    logs = read_logs(write(folder, make(sharper=3.0)))
    held_out = take(logs, ~logs.targets)
    assert draw_audit(logs) == draw_audit(held_out)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_many_experts_and_classes_are_audited_in_a_minute(folder):
    """8,008 columns: a Newton step for all of them would take minutes, and a gigabyte."""
    rng = np.random.default_rng(0)
    size, experts, classes = 2000, 8, 1000
    logits = rng.standard_normal((size, experts, classes), np.float32)
    logits += 2 * rng.standard_normal((size, 1, classes), np.float32)
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    labels = np.where(np.arange(size) < size // 2, probs.mean(axis=1).argmax(axis=1), -1)
    weights = rng.dirichlet(np.ones(experts), size).astype(np.float32)
    path = write(
        folder, {"routing_weights": weights, "expert_probs": probs, "labels": labels}, "large.npz"
    )
    seconds, kilobytes = resources_of("audit", str(path))
    assert seconds < 90
    assert kilobytes < 4e6


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_million_examples_are_audited_in_a_minute_and_four_gigabytes(folder):
    rng = np.random.default_rng(0)
    size, experts, classes = 10**6, 8, 10
    probs = rng.standard_normal((size, experts, classes), np.float32)
    probs += 1.5 * rng.standard_normal((size, 1, classes), np.float32)
    np.exp(probs, out=probs)
    probs /= probs.sum(axis=-1, keepdims=True)
    labels = np.where(np.arange(size) < size // 2, probs.mean(axis=1).argmax(axis=1), -1)
    weights = rng.dirichlet(np.ones(experts), size).astype(np.float32)
    path = write(
        folder, {"routing_weights": weights, "expert_probs": probs, "labels": labels}, "long.npz"
    )
    del probs, weights
    seconds, kilobytes = resources_of("audit", str(path), "--report", str(folder / "long.html"))
    path.unlink()
    assert seconds < 120
    assert kilobytes < 4e6


def resources_of(*arguments):
    """Processor seconds and largest memory, in kB, of a command, compiled as users' are."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    code = (
        "import resource, sys; from calmoe_jax import cli; assert cli.main(sys.argv[1:]) == 0; "
        "used = resource.getrusage(resource.RUSAGE_SELF); "
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return tuple(map(float, done.stdout.splitlines()[-1].split()))


PROGRAM = """
import sys
from calmoe_jax import cli

file = sys.argv[1]
assert cli.main(["audit", file, "--out", file + ".json", "--plots", file + ".plots"]) == 0
print("heavy:", *{"flax", "optax", "orbax"} & set(sys.modules))
"""


@pytest.mark.exhaustive
def test_the_command_imports_neither_flax_nor_optax_nor_orbax(folder):
    # of the sizes and devices of this module, whose programs are compiled already
    count = str(len(jax.devices()))
    arrays = make()
    arrays["labels"][SIZE:] = -1
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(write(folder, arrays))],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": count},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Verdict" in done.stdout
    assert done.stdout.splitlines()[-1] == "heavy:"
