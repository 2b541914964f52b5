"""A cell of the study: a task, a routing and a method, trained, calibrated in every way, scored.

A cell is a file, written whole: what was done is not done again. It names the commit that it was
computed at, and the minutes that this took: its share of those of the cells of one training, and of
those of the trainings that ran at once. Of the splits the means that are reported are kept: of the
shifts, of the in-distribution and of the hard splits, for every seed, and the largest error of a
shift.
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import mixture
from calmoe_jax._environment import describe_environment
from calmoe_jax._files import write_whole
from calmoe_jax.data import Task
from calmoe_jax.nn import Network
from calmoe_jax.study.config import ModelConfig, TrainConfig, with_defaults
from calmoe_jax.study.evaluation import evaluate, predict
from calmoe_jax.study.methods import METHODS, Method, build_method, warm_up_objective
from calmoe_jax.study.networks import build_network, build_optimizer
from calmoe_jax.training import Checkpoints, MetricsLog, TrainedSeeds, Training, train
from experiments.our_study.calibrators import aggregate, fit_further

# Metrics of a row.
KEPT = ("accuracy", "nll", "brier", "ece", "smooth_ece", "confidence_gap")
# A deep ensemble: networks trained on their own, whose probabilities are averaged.
ENSEMBLE = "deep_ensemble"
MEMBERS = 4
GROUPS = ("id", "shift", "hard")
_DIGITS = 6


class Setting(NamedTuple):
    """What the cells of a task share.

    Attributes:
        task: the task.
        seeds: seed numbers.
        model: the classifier, but for its routing.
        train: the optimisation.
        folder: where trainings and cells are.
    """

    task: Task
    seeds: tuple[int, ...]
    model: ModelConfig
    train: TrainConfig
    folder: Path


def cell(setting: Setting, routing: str, method: str, *, at_once: int = 1) -> dict[str, Any]:
    """The rows of a cell, from its file or computed and written.

    Args:
        setting: of the task.
        routing: dense, top_k or hard.
        method: one of `METHODS`, or `ENSEMBLE`.
        at_once: trainings that run at a time.
    """
    return cells(setting, routing, (method,), at_once=at_once)[0]


def cells(
    setting: Setting, routing: str, methods: Sequence[str], *, at_once: int = 1
) -> list[dict[str, Any]]:
    """The cells of methods that share a training.

    Args:
        setting: of the task.
        routing: dense, top_k or hard.
        methods: of `METHODS`, or `ENSEMBLE` alone.
        at_once: trainings that run at a time, which share the minutes.
    """
    paths = {name: setting.folder / "cells" / routing / f"{name}.json" for name in methods}
    if not all(path.is_file() for path in paths.values()):
        began = time.monotonic()
        computed = _compute(setting, routing, methods)
        made = {
            "commit": describe_environment()["commit"],
            "minutes": round((time.monotonic() - began) / 60 / len(methods) / at_once, 2),
        }
        for name, content in zip(methods, computed, strict=True):
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            write_whole(paths[name], (json.dumps(content | made, allow_nan=False) + "\n").encode())
    return [json.loads(path.read_text()) for path in paths.values()]


def trainings(methods: Iterable[str]) -> list[tuple[str, ...]]:
    """The methods grouped by the training that they share."""
    groups: dict[str, list[str]] = {}
    for name in methods:
        shared = name if name == ENSEMBLE else METHODS[name].training or name
        groups.setdefault(shared, []).append(name)
    return [tuple(group) for group in groups.values()]


def _compute(setting: Setting, routing: str, methods: Sequence[str]) -> list[dict[str, Any]]:
    model = dataclasses.replace(setting.model, routing=routing)
    options = with_defaults(model, setting.train)
    if tuple(methods) == (ENSEMBLE,):
        trained, built = _ensemble(setting, model, options)
    else:
        built = [_method(setting, model, options, name) for name in methods]
        trained = _trained(setting, model, options, built[0], setting.seeds, routing)
    further = _further(setting, trained, dense=routing == "dense")
    found = []
    for method, (evaluations, *_) in zip(
        built,
        evaluate(setting.task, trained, tuple(built), setting.seeds, routing=routing),
        strict=True,
    ):
        by_split: dict[str, dict[str, Any]] = {}
        for evaluation in evaluations:
            rows = by_split.setdefault(evaluation.calibrator, {})
            rows[evaluation.split.name] = {
                name: [getattr(record, name) for record in evaluation.records] for name in KEPT
            }
        if not method.expert_temperatures:  # the further ones are of the trained mixture
            by_split |= further
        found.append(
            {
                "task": setting.task.name,
                "routing": routing,
                "method": method.name,
                "seeds": list(setting.seeds),
                "rows": _grouped(setting.task, by_split),
            }
        )
    return found


def _method(setting: Setting, model: ModelConfig, options: TrainConfig, name: str) -> Method:
    single = build_network(
        model, setting.task.train.inputs, single=True, num_classes=len(setting.task.classes)
    )
    return build_method(name, options, single)


def _trained(
    setting: Setting,
    model: ModelConfig,
    options: TrainConfig,
    method: Method,
    seeds: tuple[int, ...],
    routing: str,
) -> TrainedSeeds:
    task, folder = setting.task, setting.folder / "trainings" / routing
    network = method.network or build_network(
        model, task.train.inputs, single=False, num_classes=len(task.classes)
    )
    training = Training(
        method.training, network, method.objective, build_optimizer(options, len(task.train)),
        options.epochs, options.warmup_epochs or 0, min(options.batch_size, len(task.train)),
        warm_up_objective(options),
    )  # fmt: skip
    name = f"{method.training}-{len(seeds)}"
    folder.mkdir(parents=True, exist_ok=True)
    return train(
        training, task.train.inputs, task.train.labels, seeds,
        checkpoints=Checkpoints(folder / name), log=MetricsLog(folder / f"{name}.jsonl"),
        checkpoint_every=options.checkpoint_every,
    )  # fmt: skip


def trained_mixture(setting: Setting, routing: str, name: str) -> TrainedSeeds:
    """The trained seeds of a method with a routing; trained now if they are not kept.

    Args:
        setting: of the task.
        routing: dense, top_k or hard.
        name: one of `METHODS`.
    """
    model = dataclasses.replace(setting.model, routing=routing)
    options = with_defaults(model, setting.train)
    method = _method(setting, model, options, name)
    return _trained(setting, model, options, method, setting.seeds, routing)


def _ensemble(
    setting: Setting, model: ModelConfig, options: TrainConfig
) -> tuple[TrainedSeeds, list[Method]]:
    """As many single classifiers as a mixture has experts, for each seed, as one mixture."""
    count = len(setting.seeds)
    seeds = tuple(range(setting.seeds[0], setting.seeds[0] + count * MEMBERS))
    single = _method(setting, model, options, "single")
    members = _trained(setting, model, options, single, seeds, "dense")
    state = jax.tree.map(lambda x: x.reshape(count, MEMBERS, *x.shape[1:]), members.state)
    apply = members.network.apply

    def together(params: Any, network_state: Any, x: Any, *, train: bool, sparse: bool) -> Any:
        del sparse
        predicted, _ = jax.vmap(lambda p, s: apply(p, s, x, train=train, sparse=False))(
            params, network_state
        )
        log_probs = jnp.moveaxis(predicted.expert_log_probs[:, :, 0], 0, 1)
        return mixture.predict(log_probs, jnp.zeros(log_probs.shape[:2])), network_state

    network = Network(members.network.init, together)
    importance = np.full((count, MEMBERS), 1 / MEMBERS)
    return (
        TrainedSeeds(network, state, importance),
        [single._replace(name=ENSEMBLE, network=network)],
    )


def _further(setting: Setting, trained: TrainedSeeds, *, dense: bool) -> dict[str, dict[str, Any]]:
    """Metrics by further calibrator and split."""
    task = setting.task
    held_out = predict(trained, task.calibration.inputs)
    fitted = fit_further(
        aggregate(held_out.expert_log_probs, held_out.routing_weights),
        held_out.expert_log_probs,
        held_out.routing_weights,
        jnp.asarray(task.calibration.labels),
        dense=dense,
    )
    longest = max(len(split) for split in task.evaluation)
    found: dict[str, dict[str, Any]] = {}
    for split in task.evaluation:
        outputs = predict(trained, split.inputs)
        experts, weights = (
            _padded(x, longest) for x in (outputs.expert_log_probs, outputs.routing_weights)
        )
        labels = jnp.zeros(longest, jnp.int32).at[: len(split)].set(split.labels)
        scores = fitted.score(
            aggregate(experts, weights), experts, weights, labels, jnp.arange(longest) < len(split)
        )
        for name, of_split in scores.items():
            found.setdefault(name, {})[split.name] = {
                metric: of_split[metric].tolist() if metric in of_split else None for metric in KEPT
            }
    return found


def _padded(x: jax.Array, length: int) -> jax.Array:
    """The same rows and copies of the last."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)], mode="edge")


def _grouped(task: Task, by_split: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """For each calibrator and kind of split the means over its splits, seed by seed."""
    rows = []
    for calibrator, splits in by_split.items():
        for kind in GROUPS:
            names = [split.name for split in task.evaluation if split.kind == kind]
            if not names:
                continue
            row: dict[str, Any] = {"calibrator": calibrator, "kind": kind}
            for metric in KEPT:
                values = [splits[name][metric] for name in names]
                known = all(v is not None and None not in v for v in values)
                row[metric] = np.round(np.mean(values, axis=0), _DIGITS).tolist() if known else None
            worst = np.max([splits[name]["ece"] for name in names], axis=0)
            row["worst_ece"] = np.round(worst, _DIGITS).tolist()
            rows.append(row)
    return rows
