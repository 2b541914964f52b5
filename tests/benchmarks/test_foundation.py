"""The benchmark of the foundation: each of its parts runs, at the smallest size."""

import sys
from types import SimpleNamespace

import pytest
from small import small_task

from benchmarks import foundation
from calmoe_jax import data


@pytest.fixture(autouse=True)
def once(monkeypatch):
    for name in ("SEED_ROUNDS", "STEP_ROUNDS", "PROCESSES"):
        monkeypatch.setattr(foundation, name, 1)
    monkeypatch.setattr(foundation, "BATCH_SIZE", 8)


def bounds(figures):
    assert all(figure.value > 0 for figure in figures)
    return {figure.name: figure.bound for figure in figures}


def test_steps_keep_their_bounds():
    titles = {name: bound for name, bound in foundation.STEPS.values()}
    assert titles == {
        "Robust": 1.05, "Robust (released)": 1.05, "Robust Filtered": 1.10, "FGR": 2.2,
    }  # fmt: skip


@pytest.mark.exhaustive
def test_steps_are_measured(monkeypatch):
    monkeypatch.setattr(foundation, "STEPS", {"fgr": foundation.STEPS["fgr"]})
    found = bounds(foundation.measure_steps(size=4, backbone="mlp"))
    assert found == {"ERM step": None, "FGR step / ERM step": 2.2}


@pytest.mark.exhaustive
def test_seeds_are_measured(monkeypatch):
    monkeypatch.setattr(data, "load_task", lambda name: small_task())
    found = bounds(foundation.measure_seeds())
    assert found == {"five seeds / one seed": 5.5, "five seeds by vmap / one seed": None}


def test_the_run_and_the_import_are_measured(monkeypatch):
    run = foundation.subprocess.run
    commands = []

    def watched(command, **options):
        commands.append(command)
        if "run" not in command:
            return SimpleNamespace(stdout=b"0.5\n")
        return run([*command, "--help"], **options)  # parsed, and not run

    monkeypatch.setattr(foundation.subprocess, "run", watched)
    found = bounds(foundation.measure_run() + foundation.measure_import())
    assert found == {
        "calmoe run, wall time": 150,
        "calmoe run, peak memory": 3,
        "import calmoe_jax after import jax": 0.1,
    }
    compile(commands[1][-1], "code", "exec")
    assert [command[0] for command in commands] == [sys.executable] * 2
