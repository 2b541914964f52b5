"""What tests of several benchmarks share."""

import runpy
import sys

import pytest

from benchmarks.harness import time_in_turns
from benchmarks.problems import Problem

SMALL = Problem("small", 40, 16, 8, 2)


def quick_turns(calls, *, rounds):
    """One turn of two runs each, without a rest."""
    del rounds
    return time_in_turns(calls, rounds=1, turn=0.0, rest=0.0)


def help_of(module, monkeypatch, capsys):
    """What `python -m module --help` prints."""
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(module, run_name="__main__")
    assert stopped.value.code == 0
    return capsys.readouterr().out
