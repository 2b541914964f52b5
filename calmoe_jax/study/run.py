"""A run from configuration to report: train, calibrate, evaluate, compare, write.

The folder holds `config.json`, `checkpoints/`, `metrics.jsonl`, `results.json`, `report.html` and
`plots/`. The same configuration on an existing folder continues it; another one is refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from calmoe_jax._environment import describe_environment
from calmoe_jax._files import to_json, write_whole
from calmoe_jax.data import Split, Task, load_task
from calmoe_jax.study._plain import from_plain
from calmoe_jax.study.comparison import REFERENCE, Comparator
from calmoe_jax.study.evaluation import Evaluation, evaluate
from calmoe_jax.study.networks import build_network
from calmoe_jax.study.records import (
    Environment,
    Fit,
    MethodInfo,
    Record,
    Reliability,
    Results,
    ShiftFinding,
    SplitInfo,
    read_results,
    write_results,
)
from calmoe_jax.study.report.page import write_report
from calmoe_jax.training import (
    METHODS,
    Checkpoints,
    MetricsLog,
    RunConfig,
    TrainedSeeds,
    recipes_of,
    train_recipe,
)


class RunInputError(Exception):
    """The configuration does not fit the task; the message says why."""


class RunFolderError(Exception):
    """The output folder cannot be used; the message says why."""


def run_experiment(
    config: RunConfig,
    out: Path,
    *,
    data_dir: Path | None = None,
    say: Callable[[str], None] = print,
) -> Results:
    """Runs a configuration in a folder, or continues it there.

    Args:
        config: task, methods, seeds, model and optimisation.
        out: the run's folder.
        data_dir: folder with the files of tasks that do not come with the package.
        say: prints a line of progress.

    Returns:
        The results, as `results.json` holds them.

    Raises:
        RunInputError: for an unknown task, or a model that does not fit it.
        DataError: where data is missing or corrupt.
        RunFolderError: where the folder holds another run, or cannot be written.
        NonFiniteLossError: where training broke down.
    """
    try:
        task = load_task(config.task, data_dir)
        _check_model(config, task)
    except ValueError as error:
        raise RunInputError(str(error)) from error
    environment = describe_environment()
    _claim_folder(out, config, environment, say)
    results_path = out / "results.json"
    if results_path.is_file():
        say(f"{out} is finished; rendering its report anew.")
        results = read_results(out)
    else:
        results = _train_and_evaluate(config, task, out, environment)
        write_results(results_path, results)
    write_report([results], out)
    return results


def _check_model(config: RunConfig, task: Task) -> None:
    """Builds the shapes of the networks, so that a misfit is found before anything is written."""
    for recipe in recipes_of(config.methods):
        network = build_network(
            config.model,
            single=recipe.single,
            input_shape=task.input_shape,
            num_classes=len(task.classes),
        )
        jax.eval_shape(network.init, jax.random.key(0))


def _claim_folder(
    out: Path, config: RunConfig, environment: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Makes the folder and writes `config.json`, or checks that it holds the same run."""
    path = out / "config.json"
    ours = json.loads(to_json(config.to_dict()))
    try:
        if path.is_file():
            held = json.loads(path.read_text())
            _refuse_other(out, held["config"], ours)
            if held["environment"] != environment:
                say("The environment differs from the one this run began in: see config.json.")
            return
        if out.exists() and any(out.iterdir()):
            raise RunFolderError(f"{out} is not empty and holds no run: give another --out.")
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_json({"config": ours, "environment": environment}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{out} cannot be used: {error}.") from error


def _refuse_other(out: Path, held: dict[str, Any], ours: dict[str, Any]) -> None:
    flat_held, flat_ours = _flatten(held), _flatten(ours)
    for name in sorted(flat_held.keys() | flat_ours.keys()):
        if flat_held.get(name) != flat_ours.get(name):
            raise RunFolderError(
                f"{out} holds a run of another configuration: {name} is {flat_held.get(name)!r} "
                f"there and {flat_ours.get(name)!r} here. Give another --out."
            )


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _train_and_evaluate(
    config: RunConfig, task: Task, out: Path, environment: dict[str, Any]
) -> Results:
    records: list[Record] = []
    fits: list[Fit] = []
    shifts: list[ShiftFinding] = []
    reliability: list[Reliability] = []
    warnings: list[str] = []
    comparator = Comparator(config.seeds)
    log = MetricsLog(out / "metrics.jsonl")
    recipes = recipes_of(config.methods)
    total = len(recipes) * config.train.epochs
    with tqdm(total=total, unit="epoch", disable=None, leave=False) as bar:
        for number, recipe in enumerate(recipes):
            bar.set_description(f"{recipe.name} ({number + 1} of {len(recipes)})")

            def on_epoch(loss: float) -> None:
                bar.set_postfix(loss=f"{loss:.4f}")
                bar.update()

            trained = train_recipe(
                recipe,
                task,
                config.model,
                config.train,
                config.seed_numbers,
                checkpoints=Checkpoints(out / "checkpoints" / recipe.name),
                log=log,
                on_epoch=on_epoch,
            )
            bar.n = (number + 1) * config.train.epochs  # epochs before a resumption count too
            bar.refresh()
            warnings += _collapse_warnings(recipe.name, trained, config)
            sharing = tuple(name for name in config.methods if METHODS[name].recipe == recipe)
            for evaluations, fitted, found in evaluate(
                task, trained, sharing, config.seed_numbers, routing=config.model.routing
            ):
                fits += fitted
                shifts += found
                for evaluation in evaluations:
                    comparator.add(evaluation)
                    records += evaluation.records
                    reliability.append(_reliability(evaluation))
    return Results(
        task=config.task,
        config=config.to_dict(),
        environment=from_plain(Environment, environment),
        source=task.source,
        splits=tuple(_split_info(split) for split in task.splits),
        methods=tuple(_method_info(name) for name in config.methods),
        reference=REFERENCE,
        records=tuple(records),
        fits=tuple(fits),
        shifts=tuple(shifts),
        comparisons=tuple(comparator.compare()),
        reliability=tuple(reliability),
        warnings=tuple(warnings),
    )


def _split_info(split: Split) -> SplitInfo:
    return SplitInfo(
        name=split.name,
        kind=split.kind,
        n=len(split),
        clusters=split.num_clusters,
        description=split.description,
        series=split.series,
        position=split.position,
    )


def _method_info(name: str) -> MethodInfo:
    method = METHODS[name]
    return MethodInfo(
        name=name,
        title=method.title,
        summary=method.summary,
        training=method.recipe.name,
        expert_temperatures=method.expert_temperatures,
    )


def _reliability(evaluation: Evaluation) -> Reliability:
    bins = evaluation.bins
    return Reliability(
        method=evaluation.method,
        calibrator=evaluation.calibrator,
        split=evaluation.split.name,
        kind=evaluation.split.kind,
        weight=tuple(bins.weight.tolist()),
        confidence=tuple(bins.confidence.tolist()),
        residual=tuple(bins.residual.tolist()),
    )


def _collapse_warnings(name: str, trained: TrainedSeeds, config: RunConfig) -> list[str]:
    return [
        f"{name}, seed {seed}: expert{'s' if len(dead) > 1 else ''} "
        f"{', '.join(map(str, dead))} of {trained.network.num_experts} got less than a twentieth "
        "of a fair share of the routing weights in the last epoch"
        for seed, dead in zip(config.seed_numbers, trained.dead_experts(), strict=True)
        if dead
    ]
