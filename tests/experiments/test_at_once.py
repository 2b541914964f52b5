"""Trainings at once: results in order, nothing starts after a failure, the option is checked."""

import sys
import time

import pytest

from experiments.our_study import ablation, at_once, command


@pytest.mark.parametrize("module", [command, ablation])
@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_how_many_run_at_once_is_a_whole_number(module, given, monkeypatch, capsys):
    monkeypatch.setattr(module, "settings", None)  # nothing is loaded before the options are right
    monkeypatch.setattr(sys, "argv", ["x", "--at-once", given])
    with pytest.raises(SystemExit):
        module.main()
    assert f"must be a whole number of at least 1, got '{given}'" in capsys.readouterr().err


def test_results_at_once_are_in_order():
    calls = [lambda wait=wait: (time.sleep(wait / 50), wait)[1] for wait in (3, 0, 2, 1)]
    assert at_once.run_at_once(calls, 4, unit="call", title="") == [3, 0, 2, 1]
    assert at_once.run_at_once([], 2, unit="call", title="") == []


def test_after_a_failure_no_other_call_starts():
    done = []

    def fail():
        raise ValueError("no")

    calls = [fail, *(lambda n=n: (time.sleep(0.1), done.append(n)) for n in range(9))]
    with pytest.raises(ValueError, match="no"):
        at_once.run_at_once(calls, 2, unit="call", title="")
    assert len(done) < 5
