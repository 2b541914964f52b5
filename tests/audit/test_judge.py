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

import calmoe_jax as cm
from calmoe_jax.audit import Audit, LogError, audit, describe_audit, read_logs
from calmoe_jax.audit.logs import take
from calmoe_jax.audit.pictures import draw_audit
from calmoe_jax.audit.results import Estimate
from calmoe_jax.cli import main

SIZE, TARGETS, EXPERTS, CLASSES = 240, 180, 3, 4


def make(*, sharper=1.0, seed=0):
    """Held-out logs whose labels follow the aggregate, and targets that are sharper or not."""
    rng = np.random.RandomState(seed)
    total = SIZE + TARGETS
    scale = np.where(np.arange(total) < SIZE, 1.0, sharper)[:, None, None]
    logits = 1.5 * scale * rng.randn(total, EXPERTS, CLASSES)
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    weights = rng.dirichlet(np.ones(EXPERTS), total)
    mixed = np.einsum("nk,nkc->nc", weights, probs)
    labels = (rng.rand(total)[:, None] > mixed.cumsum(axis=1)).sum(axis=1)
    return {
        "routing_weights": weights.astype(np.float32),
        "expert_probs": probs.astype(np.float32),
        "labels": labels.astype(np.int64),
        "targets": np.arange(total) >= SIZE,
    }


def write(folder, arrays):
    path = folder / "logs.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def found(folder):
    arrays = make(sharper=3.0)
    judged = audit(read_logs(write(folder, arrays)))
    return arrays, judged, judged.to_json()


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
    assert shifted["decision"] in ("rebalance", "cannot_repair")
    inside = result["targets"]["temperatures"]["temperature"]
    assert all(t >= inside - 1e-6 for t in result["targets"]["temperatures"].values())
    words = describe_audit(judged)
    assert shifted["reason"] in words
    assert "nan" not in words.lower()
    json.dumps(result, allow_nan=False)


def test_labels_of_the_targets_change_no_decision(folder, found):
    arrays, _, result = found
    blind = arrays | {"labels": np.where(arrays["targets"], -1, arrays["labels"])}
    del blind["targets"]
    again = audit(read_logs(write(folder, blind))).to_json()
    assert again["shift"] == result["shift"]
    assert again["targets"] == result["targets"]
    assert "targets_scored" not in again


def test_the_command_writes_json_and_pictures(folder, capsys):
    arrays = make()
    arrays["labels"][SIZE:] = -1
    path = write(folder, arrays)
    out, plots = folder / "deep" / "audit.json", folder / "plots"
    assert main(["audit", str(path), "--out", str(out), "--plots", str(plots)]) == 0
    assert "Verdict: keep: no shift" in capsys.readouterr().out
    assert json.loads(out.read_text())["shift"]["decision"] == "keep"
    assert {p.name for p in plots.iterdir()} == {"reliability.png", "experts.png", "gaps.png"}


def change(**arrays):
    return lambda logs: logs | {k: f(logs[k]) for k, f in arrays.items()}


def spoil(values, index, value):
    values = values.copy()
    values[index] = value
    return values


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda logs: {k: v for k, v in logs.items() if k != "labels"}, "lacks labels"),
        (change(labels=lambda x: x.astype(np.float32)), "labels must be whole numbers"),
        (change(labels=lambda x: spoil(x, 3, CLASSES)), r"labels must be in \[-1, 3\]"),
        (change(labels=lambda x: np.full_like(x, -1)), "known for at least one"),
        (change(labels=lambda x: spoil(x, 3, -1)), "every non-target example"),
        (change(labels=lambda x: x[:-1]), "labels must be of shape"),
        (change(expert_probs=lambda x: x[:, 0]), "expert_probs must be"),
        (change(expert_probs=lambda x: spoil(x, (0, 0, 0), np.nan)), "probs"),
        (change(expert_probs=lambda x: 2 * x), "probs"),
        (change(routing_weights=lambda x: -x), "probs|weights"),
        (change(targets=lambda x: x.astype(int)), "targets must be true or false"),
        (change(targets=lambda x: x[1:]), "targets must be of shape"),
        (lambda x: x | {"clusters": np.full(SIZE + TARGETS, np.nan)}, "clusters must be whole"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(folder, edit, message):
    with pytest.raises(LogError, match=message):
        read_logs(write(folder, edit(make())))


def test_invalid_log_files_are_refused(folder, capsys):
    whole = write(folder, make()).read_bytes()
    contents = {"empty": b"", "text": b"no archive", "half": whole[: len(whole) // 2]}
    middle = len(whole) // 3
    contents["spoilt"] = whole[:middle] + bytes(64) + whole[middle + 64 :]
    for name, content in contents.items():
        (folder / f"{name}.npz").write_bytes(content)
    np.save(folder / "array.npz.npy", np.zeros(3))
    (folder / "array.npz.npy").rename(folder / "array.npz")
    for name in (*contents, "array", "missing"):
        assert main(["audit", str(folder / f"{name}.npz")]) == 2
        assert "cannot be read" in capsys.readouterr().err, name


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
    assert list(Audit(judged.held_out).to_json()) == ["held_out"]


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
    assert judged.shift.decision == "cannot_repair"
    words = describe_audit(judged)
    assert "NLL infinite" in words
    assert "unknown" in words
    assert "nan" not in words.lower()
    json.dumps(judged.to_json(), allow_nan=False)


def test_plots_show_held_out_examples(folder):
    logs = read_logs(write(folder, make(sharper=3.0)))
    held_out = take(logs, ~logs.targets)
    assert draw_audit(logs) == draw_audit(held_out)


def test_a_parquet_file_gives_the_same_result(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    arrays = make()
    table = pyarrow.table(
        {
            "routing_weights": arrays["routing_weights"].tolist(),
            "expert_probs": arrays["expert_probs"].tolist(),
            "labels": [
                None if target else int(label)
                for label, target in zip(arrays["labels"], arrays["targets"], strict=True)
            ],
        }
    )
    parquet.write_table(table, folder / "logs.parquet")
    logs = read_logs(folder / "logs.parquet")
    gaps = np.where(arrays["targets"], np.nan, arrays["labels"])  # as pandas keeps them
    as_floats = table.set_column(2, "labels", pyarrow.array(gaps))
    parquet.write_table(as_floats, folder / "floats.parquet")
    np.testing.assert_array_equal(read_logs(folder / "floats.parquet").labels, logs.labels)
    gaps[0] = np.inf
    parquet.write_table(
        table.set_column(2, "labels", pyarrow.array(gaps)), folder / "infinite.parquet"
    )
    with pytest.raises(LogError, match="labels"):
        read_logs(folder / "infinite.parquet")
    np.testing.assert_allclose(logs.expert_probs, arrays["expert_probs"], rtol=1e-6)
    np.testing.assert_array_equal(logs.targets, arrays["targets"])


PROGRAM = """
import sys
from calmoe_jax import cli

file = sys.argv[1]
assert cli.main(["audit", file, "--out", file + ".json", "--plots", file + ".plots"]) == 0
print("heavy:", *{"flax", "optax", "orbax"} & set(sys.modules))
"""


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
