"""The benchmark of dispatch: a disagreement fails it, and everything else is measured."""

import json
import re

import jax.numpy as jnp
import pytest

from benchmarks import dispatch, parts
from benchmarks.rivals import FAIR

BROKEN = FAIR._replace(
    name="xla", permute=lambda x, plan: jnp.roll(FAIR.permute(x, plan), 1, axis=0)
)


def arguments(*words):
    return dispatch.parse(["--problems", "tiny", *words])


def decline(*_):
    raise NotImplementedError("no such kernel")


def test_a_disagreement_fails_the_command_and_is_not_timed(capsys):
    declining = FAIR._replace(name="other", route=decline)
    assert dispatch.run(arguments("--agree"), [FAIR, BROKEN, declining]) == 1
    declined, disagrees, agree, failed = capsys.readouterr().out.splitlines()
    assert declined == "other does not run: no such kernel"
    assert re.fullmatch("xla DISAGREES on tiny: d_x differs, .* tolerance; rows differs", disagrees)
    assert agree == "tiny: fair agree with the naive formulation"
    assert failed == "FAILED: xla on tiny: not as the naive formulation"


def test_none_may_not_decline():
    with pytest.raises(NotImplementedError, match="no such kernel"):
        dispatch.run(arguments("--agree"), [FAIR._replace(name="None", route=decline)])


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_a_loop_that_leaves_work_out_is_refused(monkeypatch, share):
    # as XLA does on a CPU, where it ignores the barriers
    monkeypatch.setattr(dispatch.clocks, "compile_timers", lambda programs, device: {})
    monkeypatch.setattr(dispatch.clocks, "wall_seconds", lambda timers, target: {"copy": [1.0]})
    monkeypatch.setattr(dispatch.clocks, "device_seconds", lambda t, target: {"copy": [share]})
    benchmark = dispatch.Benchmark([], on_device=True, seconds=1)
    if share < 0.5:
        with pytest.raises(RuntimeError, match="left it out of the loop"):
            benchmark.measure_copy()
    else:
        benchmark.measure_copy()
        assert benchmark.measured.bandwidth == pytest.approx(2 * 2**27 / share)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_everything_is_measured_reported_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dispatch.roofline, "copied_array", lambda platform: jnp.ones(2**12))
    wall_seconds = dispatch.clocks.wall_seconds
    monkeypatch.setattr(
        dispatch.clocks, "wall_seconds", lambda timers, target: wall_seconds(timers, target=0)
    )
    out, picture = tmp_path / "tiny.json", tmp_path / "tiny.png"
    code = dispatch.run(
        arguments("--check", "--out", str(out), "--plot", str(picture), "--commit", "abc")
    )
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.match("ok: |FAILED ", last)
    assert code == (0 if last.startswith("ok") else 1)
    assert "problems not fully measured 0" in last
    assert picture.stat().st_size > 10_000
    written = json.loads(out.read_text())
    assert written["complete"]
    assert written["environment"]["commit"] == "abc"
    assert written["disagreements"]["tiny"] == {n: [] for n in ("xla", "None", "fair", "naive")}
    rows = written["measurements"]
    assert {(row["part"], row["variant"]) for row in rows} == {
        (part, name) for part in parts.PARTS for name in ("xla", "None", "fair", "naive")
    }
    assert all(row["seconds"] > 0 for row in rows)
    by_variant = {r["variant"]: r["seconds"] for r in rows if r["part"] == "forward_backward"}
    assert by_variant["None"] == by_variant["xla"]  # one program, timed once
