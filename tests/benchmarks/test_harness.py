"""What the benchmarks share: figures, reports, turns."""

import json
import time

import jax
import numpy as np

from benchmarks.harness import Figure, report, time_in_turns


def test_figures_hold_above_and_below():
    assert Figure("a", 1.0, 1.0).holds
    assert not Figure("a", 1.1, 1.0).holds
    assert Figure("a", 1.1, least=1.0).holds
    assert not Figure("a", 0.9, least=1.0).holds
    assert not Figure("a", float("nan"), least=1.0).holds


def test_check_ends_with_one_line_and_an_exit_code(capsys, tmp_path):
    good, bad = Figure("speed", 1.5, least=1.3), Figure("memory", 1.2, 1.1, "x")
    assert report("some", [good], None, check=True) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ok: speed 1.5"
    assert report("some", [good, bad], tmp_path / "new" / "a.json", check=True) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "FAILED memory: speed 1.5, memory 1.2x"
    assert report("some", [bad], None, check=False) == 0
    written = json.loads((tmp_path / "new" / "a.json").read_text())
    assert written["figures"][1]["bound"] == 1.1
    assert written["environment"]["versions"]["jax"] == jax.__version__


def test_a_turn_begins_rested_and_its_first_run_is_not_timed():
    starts = []

    def slow_at_first():
        cold = not starts or time.perf_counter() - starts[-1] > 0.08
        starts.append(time.perf_counter())
        time.sleep(0.05 if cold else 0.001)

    calls = {"a": slow_at_first, "b": lambda: None}
    # two runs, however short the turn
    seconds = time_in_turns(calls, rounds=3, turn=0.0, rest=0.1)
    assert [len(seconds[name]) for name in "ab"] == [3, 3]
    assert len(starts) == 6
    assert max(seconds["a"]) < 0.02
    assert min(np.diff(starts)[1::2]) >= 0.2  # b rests too
    # and at most 20, however fast
    starts.clear()
    time_in_turns(calls, rounds=1, turn=10.0, rest=0.0)
    assert len(starts) == 20
