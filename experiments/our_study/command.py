"""The command of the study: runs cells, resumes, gathers them into a file a task."""

import argparse
import dataclasses
import gzip
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from calmoe_jax._environment import describe_environment
from calmoe_jax._signals import ending_on_signals
from calmoe_jax.data import resolve_task
from calmoe_jax.study.config import ModelConfig, TrainConfig
from calmoe_jax.study.methods import METHODS
from experiments.features import without_colour_images
from experiments.our_study.at_once import add_option, run_at_once
from experiments.our_study.cells import ENSEMBLE, Setting, cells, trainings
from experiments.trained import used, write_json

ROUTINGS = ("dense", "top_k", "hard")
TASKS = (
    "portal", "newsgroups", "sentiment", "digits16", "fashion_c", "cifar10h", "pacs_sketch",
)  # fmt: skip
# One network has no routing.
_DENSE_ONLY = ("single", ENSEMBLE)
SEEDS, EPOCHS = 3, 30


def methods_of(routing: str, chosen: Sequence[str] = ()) -> list[str]:
    """The methods that are run with a routing: all, or those chosen."""
    every = chosen or [*METHODS, ENSEMBLE]
    return [name for name in every if routing == "dense" or name not in _DENSE_ONLY]


def run_task(
    setting: Setting, methods: Sequence[str] = (), *, at_once: int = 1
) -> list[dict[str, Any]]:
    """Runs the cells of a task that are not kept, and returns all that are, of any method.

    Args:
        setting: of the task.
        methods: all by default.
        at_once: trainings at a time; the results do not depend on it.
    """
    work = [(r, group) for r in ROUTINGS for group in trainings(methods_of(r, methods))]
    run_at_once(
        [partial(cells, setting, *one, at_once=at_once) for one in work],
        at_once, unit="training", title=setting.task.name,
    )  # fmt: skip
    return kept(setting)


def kept(setting: Setting) -> list[dict[str, Any]]:
    """The cells of a task that are kept, in the order of routings and methods."""
    found = []
    for routing in ROUTINGS:
        for method in methods_of(routing):
            path = setting.folder / "cells" / routing / f"{method}.json"
            if path.is_file():
                found.append(json.loads(path.read_text()))
    return found


def read(path: Path) -> dict[str, Any]:
    """A compressed results file."""
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def study_parser(description: str | None, tasks: Sequence[str]) -> argparse.ArgumentParser:
    """The options of everything that trains mixtures as the study does.

    Args:
        description: the module's docstring, of which the first line is shown.
        tasks: the default tasks.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=list(tasks), metavar="TASK")
    parser.add_argument("--data-dir", type=Path, help="files of tasks that are not in the package")
    parser.add_argument("--runs", type=Path, default=Path("runs/our_study"), help="what is kept")
    parser.add_argument("--out", type=Path, help="where to write the results")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds, from 42")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="passes over the training data")
    return parser


def settings(arguments: argparse.Namespace) -> Iterator[Setting]:
    """The settings of the tasks that were asked for, colour images as features.

    What is kept lies in a folder for each number of seeds and epochs, so that a cell of another
    setting is never taken for one of this.

    Args:
        arguments: of `study_parser`.
    """
    for name in arguments.tasks:
        task = resolve_task(name, arguments.data_dir)
        task = without_colour_images(task, arguments.runs / "features")
        yield Setting(
            task,
            tuple(range(42, 42 + arguments.seeds)),
            ModelConfig(),
            TrainConfig(epochs=arguments.epochs),
            arguments.runs / task.name / f"{arguments.seeds}-seeds-{arguments.epochs}-epochs",
        )


def main() -> None:
    """Runs the study, task by task."""
    parser = study_parser(__doc__, TASKS)
    parser.prog = "python -m experiments.our_study"
    parser.add_argument("--methods", nargs="+", default=(), help="all by default")
    add_option(parser)
    arguments = parser.parse_args()
    with ending_on_signals():
        _run(arguments)


def _run(arguments: argparse.Namespace) -> None:
    for setting in settings(arguments):
        found = run_task(setting, arguments.methods, at_once=arguments.at_once)
        if arguments.out:
            content = {
                "task": setting.task.name,
                "epochs": arguments.epochs,
                "model": dataclasses.asdict(setting.model),
                "environment": describe_environment() | used(),
                "cells": found,
            }
            write_json(arguments.out / f"{setting.task.name}.json.gz", content)
