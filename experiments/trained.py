"""The plain mixture of a task, as `calmoe run` trains it, for experiments on its predictions."""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calmoe_jax.data import Task
from calmoe_jax.shift import repair
from calmoe_jax.study.evaluation import predict
from calmoe_jax.training import (
    METHODS,
    Checkpoints,
    MetricsLog,
    RunConfig,
    TrainedSeeds,
    train_recipe,
)

_TASKS = ("portal", "newsgroups", "sentiment", "digits16")


def experiment_parser(description: str | None) -> argparse.ArgumentParser:
    """What all of these experiments are told: data, tasks, checkpoints, where to write."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(_TASKS))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where checkpoints are")
    parser.add_argument("--out", type=Path)
    return parser


def train_vanilla(task: Task, config: RunConfig, folder: Path) -> TrainedSeeds:
    """Trains all seeds, or takes up the checkpoints in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=config.train.epochs, unit="epoch", disable=None, desc=task.name) as bar:
        return train_recipe(
            METHODS["vanilla"].recipe, task, config.model, config.train, config.seed_numbers,
            checkpoints=Checkpoints(folder / "checkpoints" / "vanilla"),
            log=MetricsLog(folder / "metrics.jsonl"), on_epoch=lambda loss: bar.update(),
        )  # fmt: skip


def sample(trained: TrainedSeeds, inputs: np.ndarray) -> repair.Sample:
    """Predictions of all seeds, with all experts in their order."""
    outputs = predict(trained, inputs)
    return repair.dense_sample(*outputs, num_experts=trained.network.num_experts)
