"""The command of the study: runs cells, resumes, gathers them into a file a task."""

import argparse
import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calmoe_jax._environment import describe_environment
from calmoe_jax._files import write_whole
from calmoe_jax.data import resolve_task
from calmoe_jax.study.config import ModelConfig, TrainConfig
from calmoe_jax.study.methods import METHODS
from experiments.features import family, of_images
from experiments.our_study.cells import ENSEMBLE, Setting, cells, trainings

ROUTINGS = ("dense", "top_k", "hard")
TASKS = ("portal", "newsgroups", "sentiment", "digits16", "fashion_c")
# One network has no routing.
_DENSE_ONLY = ("single", ENSEMBLE)
SEEDS, EPOCHS = 3, 30


def methods_of(routing: str, chosen: Sequence[str] = ()) -> list[str]:
    """The methods that are run with a routing: all, or those chosen."""
    every = chosen or [*METHODS, ENSEMBLE]
    return [name for name in every if routing == "dense" or name not in _DENSE_ONLY]


def run_task(setting: Setting, methods: Sequence[str] = ()) -> list[dict[str, Any]]:
    """All cells of a task, those on disk as they are."""
    work = [(r, group) for r in ROUTINGS for group in trainings(methods_of(r, methods))]
    found = []
    for routing, group in (bar := tqdm(work, unit="training", disable=None)):
        bar.set_description(f"{setting.task.name}, {routing}, {group[0]}")
        found += cells(setting, routing, group)
    return found


def pack(content: Any) -> bytes:
    """Compressed JSON; the same bytes for the same content."""
    return gzip.compress(json.dumps(content, allow_nan=False).encode(), mtime=0)


def read(path: Path) -> dict[str, Any]:
    """What `pack` wrote."""
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def main() -> None:
    """Runs the study, task by task."""
    parser = argparse.ArgumentParser(prog="python -m experiments.our_study")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), metavar="TASK")
    parser.add_argument("--data-dir", type=Path, help="files of tasks that are not in the package")
    parser.add_argument("--runs", type=Path, default=Path("runs/our_study"), help="kept cells")
    parser.add_argument("--out", type=Path, help="folder of the gathered results")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--methods", nargs="+", default=(), help="all by default")
    arguments = parser.parse_args()
    for name in arguments.tasks:
        task = resolve_task(name, arguments.data_dir)
        if task.holds_images and task.train.inputs.shape[-1] == 3:
            task = of_images(task, arguments.runs / "features" / family(name))
        setting = Setting(
            task,
            tuple(range(42, 42 + arguments.seeds)),
            ModelConfig(),
            TrainConfig(epochs=arguments.epochs),
            arguments.runs / task.name,
        )
        found = run_task(setting, arguments.methods)
        if arguments.out:
            content = {
                "task": task.name,
                "epochs": arguments.epochs,
                "model": dataclasses.asdict(setting.model),
                "environment": describe_environment(),
                "cells": found,
            }
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_whole(arguments.out / f"{task.name}.json.gz", pack(content))
