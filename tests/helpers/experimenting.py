"""Runs of an experiment's command at the smallest size."""

import dataclasses
import json
import sys

import trainings
from small import small_task, split

from calmoe_jax.study import RunConfig


def tiny_task():
    """The small task with one shift, and as many examples in each split to calibrate or evaluate.

    Splits of one size share programs.
    """
    evaluation = (
        split("test", "id", 60, 2),
        split("late", "shift", 60, 4, noise=1.5, series="year", position=2.0),
    )
    return dataclasses.replace(small_task(), evaluation=evaluation)


def tiny_config(**options):
    """Two seeds of the small model, whatever the options of the experiment."""
    del options
    return RunConfig(seeds=2, first_seed=7, model=trainings.MODEL, train=trainings.TRAIN)


def run_small(module, folder, monkeypatch, *options):
    """The JSON of `python -m module` on the tiny task."""
    monkeypatch.setattr(module, "resolve_task", lambda name, data_dir: tiny_task())
    monkeypatch.setattr(module, "RunConfig", tiny_config)
    out = folder / "out.json"
    words = [module.__name__, "--tasks", "portal", "--runs", str(folder), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*words, *options])
    module.main()
    return json.loads(out.read_text())
