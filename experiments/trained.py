"""The plain mixture of a task, as `calmoe run` trains it, for experiments on its predictions."""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calmoe_jax.data import Task
from calmoe_jax.shift import repair
from calmoe_jax.study.config import RunConfig, with_defaults
from calmoe_jax.study.evaluation import predict
from calmoe_jax.study.methods import build_method, warm_up_objective
from calmoe_jax.study.networks import build_network, build_optimizer
from calmoe_jax.training import Checkpoints, MetricsLog, TrainedSeeds, Training, train

_TASKS = ("portal", "newsgroups", "sentiment", "digits16")


def experiment_parser(description: str | None) -> argparse.ArgumentParser:
    """Options of all these experiments: data, tasks, checkpoints, where to write."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(_TASKS))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where checkpoints are")
    parser.add_argument("--out", type=Path)
    return parser


def train_vanilla(task: Task, config: RunConfig, folder: Path) -> TrainedSeeds:
    """Trains all seeds, or takes up the checkpoints in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    optimisation = with_defaults(config.model, config.train)
    training = Training(
        name="vanilla",
        network=build_network(
            config.model, task.train.inputs, single=False, num_classes=len(task.classes)
        ),
        objective=build_method("vanilla", optimisation, None).objective,
        optimizer=build_optimizer(optimisation, len(task.train)),
        epochs=optimisation.epochs,
        warmup_epochs=optimisation.warmup_epochs or 0,
        batch_size=optimisation.batch_size,
        warm_up=warm_up_objective(optimisation),
    )
    with tqdm(total=training.epochs, unit="epoch", disable=None, desc=task.name) as bar:
        return train(
            training, task.train.inputs, task.train.labels, config.seed_numbers,
            checkpoints=Checkpoints(folder / "checkpoints" / "vanilla"),
            log=MetricsLog(folder / "metrics.jsonl"),
            checkpoint_every=optimisation.checkpoint_every,
            on_epoch=lambda loss: bar.update(),
        )  # fmt: skip


def sample(trained: TrainedSeeds, inputs: np.ndarray) -> repair.Sample:
    """Predictions of all seeds, with all experts in their order."""
    outputs = predict(trained, inputs)
    return repair.dense_sample(*outputs, num_experts=trained.num_experts)
