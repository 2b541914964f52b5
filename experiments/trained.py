"""The plain mixture of a task, as `calmoe run` trains it, for experiments on its predictions."""

import argparse
import gzip
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from jaxtyping import PyTree
from tqdm import tqdm

from calmoe_jax._environment import describe_environment
from calmoe_jax._files import write_whole
from calmoe_jax.data import Task
from calmoe_jax.shift import repair
from calmoe_jax.study import RunConfig
from calmoe_jax.study.config import with_defaults
from calmoe_jax.study.evaluation import predict
from calmoe_jax.study.methods import build_method, warm_up_objective
from calmoe_jax.study.networks import build_network, build_optimizer
from calmoe_jax.training import Checkpoints, MetricsLog, TrainedSeeds, Training, train

_STARTED = time.monotonic()
_TASKS = ("portal", "newsgroups", "sentiment", "digits16")


def experiment_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of all experiments on trained mixtures.

    Args:
        description: the module's docstring, of which the first line is shown.
    """
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="files of tasks that are not in the package")
    parser.add_argument(
        "--tasks",
        nargs="+",
        default=list(_TASKS),
        metavar="TASK",
        help="as `calmoe run` takes them",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where checkpoints are")
    parser.add_argument("--out", type=Path, help="where to write everything as JSON")
    return parser


def train_vanilla(task: Task, config: RunConfig, folder: Path) -> TrainedSeeds:
    """Trains all seeds, or goes on from the checkpoints in the folder.

    Args:
        task: what to train on.
        config: of which seeds, model and optimisation are used.
        folder: of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = with_defaults(config.model, config.train)
    method = build_method("vanilla", options, None)
    network = build_network(
        config.model, task.train.inputs, single=False, num_classes=len(task.classes)
    )
    training = Training(
        method.training, network, method.objective, build_optimizer(options, len(task.train)),
        options.epochs, options.warmup_epochs or 0, options.batch_size, warm_up_objective(options),
    )  # fmt: skip
    with tqdm(total=options.epochs, unit="epoch", disable=None, desc=task.name) as bar:
        return train(
            training, task.train.inputs, task.train.labels, config.seed_numbers,
            checkpoints=Checkpoints(folder / "checkpoints" / method.training),
            log=MetricsLog(folder / "metrics.jsonl"),
            checkpoint_every=options.checkpoint_every, on_epoch=lambda loss: bar.update(),
        )  # fmt: skip


def sample(trained: TrainedSeeds, inputs: PyTree) -> repair.Sample:
    """Predictions of all seeds, with all experts in their order."""
    outputs = predict(trained, inputs)
    return repair.dense_sample(*outputs, num_experts=trained.num_experts)


def used() -> dict[str, float]:
    """Minutes that this process has taken so far, and the most memory that it held, in GB.

    What an earlier process had done, of a study that goes on, is not among the minutes.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    minutes = (time.monotonic() - _STARTED) / 60
    return {"minutes": round(minutes, 1), "peak_gb": round(peak / 1e9, 2)}


def pack(content: Any) -> bytes:
    """Compressed JSON; the same bytes for the same content."""
    return gzip.compress(json.dumps(content, allow_nan=False).encode(), mtime=0)


def write_json(out: Path, content: Any) -> None:
    """Writes a JSON file, whole, and its folder where there is none; NaN is an error.

    Args:
        out: the file; compressed if its name ends with `.gz`.
        content: of it.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".gz":
        write_whole(out, pack(content))
        return
    write_whole(out, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def write_results(out: Path, **content: Any) -> None:
    """The same, and beside the content with what it was made, in how long, with how much memory.

    Args:
        out: the file.
        content: its other entries.
    """
    write_json(out, {"made_with": describe_environment() | used(), **content})
