"""A run from task and methods to report: train, calibrate, evaluate, compare, write.

The folder holds `config.json`, `checkpoints/`, `metrics.jsonl`, `results.json`, `report.html` and
`plots/`. The same run on an existing folder continues it; another one is refused.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from calmoe_jax._environment import describe_environment
from calmoe_jax.data import Split, Task, resolve_task
from calmoe_jax.nn.network import Network
from calmoe_jax.parallel import device_mesh, processes
from calmoe_jax.study._plain import from_plain
from calmoe_jax.study.checks import RunInputError, check_network, check_objective
from calmoe_jax.study.comparison import REFERENCE, Comparator
from calmoe_jax.study.config import (
    PAPER_METHODS,
    ModelConfig,
    RunConfig,
    TrainConfig,
    with_defaults,
)
from calmoe_jax.study.evaluation import Evaluation, evaluate
from calmoe_jax.study.folder import RunFolderError, Say, claim_folder
from calmoe_jax.study.identity import describe_run
from calmoe_jax.study.methods import Method, build_method, check_method_names, warm_up_objective
from calmoe_jax.study.networks import build_network, build_optimizer
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
from calmoe_jax.study.report import write_report
from calmoe_jax.training import (
    Checkpoints,
    MetricsLog,
    TrainedSeeds,
    Training,
    train,
    train_on_mesh,
)
from calmoe_jax.training.tensorboard import TensorBoardLog
from calmoe_jax.training.throughput import flops_of_example, peak_flops

# The routing kind in the records for a network that the user gave.
_GIVEN = "given"
_MODEL, _TRAIN = ModelConfig(), TrainConfig()


class _Plan(NamedTuple):
    """The plan of a run, with all networks and objectives built."""

    task: Task
    methods: tuple[Method, ...]
    trainings: tuple[Training, ...]
    seeds: tuple[int, ...]
    routing: str
    checkpoint_every: int
    reference: str
    config: dict[str, Any]


def run(
    task: Task | str = "portal",
    methods: Sequence[Method | str] = PAPER_METHODS,
    *,
    out: Path | str | None = None,
    network: Network | None = None,
    model: ModelConfig = _MODEL,
    train: TrainConfig = _TRAIN,
    seeds: int = 5,
    first_seed: int = 42,
    reference: str = REFERENCE,
    data_dir: Path | None = None,
    mesh: Mesh | None = None,
    tensorboard: Path | None = None,
    say: Say = print,
) -> Results:
    """Trains, calibrates and evaluates methods on a task, and writes records and a report.

    Args:
        task: a `Task`, or a string for `calmoe_jax.data.resolve_task`: a name from `calmoe tasks`,
            an npz file, or `module:function`.
        methods: rows of the results: names of this library's methods, or a `Method` with an
            objective of your choice.
        out: the run's folder; `runs/TASK` by default.
        network: your own classifier (see `calmoe_jax.nn.Network`); built from `model` by default.
        model: configuration of the classifier, if `network` is not given.
        train: the optimisation, and the hyper-parameters of this library's methods.
        seeds: number of seeds, at least 1.
        first_seed: the seeds are this one and the following.
        reference: name of the method that the others are compared with.
        data_dir: folder with the files of tasks that do not come with the package.
        mesh: devices to spread every batch over (see `calmoe_jax.parallel.device_mesh`), one seed
            after the other; by default all seeds train at once on one device, or, where several
            processes work together, on a mesh of all devices. All processes call this function;
            one evaluates and writes.
        tensorboard: folder for TensorBoard's events; none by default.
        say: prints a line of progress.

    Returns:
        The results, as `results.json` holds them.

    Raises:
        RunInputError: for an unknown task or method, or if task, network and objectives do not fit
            together; nothing is written then.
        DataError: if data is missing or cannot be used.
        RunFolderError: if the folder holds another run, or cannot be written.
        NonFiniteLossError: if a loss or a parameter is not finite.

    Example:
        >>> from calmoe_jax import study
        >>> results = study.run("portal", ["vanilla", "robust"], out="runs/mine")  # doctest: +SKIP
    """
    plan = _plan(
        task, methods, network, model, train, seeds, first_seed, reference, data_dir
    )  # fmt: skip
    folder = Path("runs") / plan.task.name if out is None else Path(out)
    processes.check_agreement(plan.config | {"out": str(folder)})
    if mesh is None and jax.process_count() > 1:
        mesh = device_mesh()
    environment = describe_environment()
    refused = None
    if processes.is_writer():
        try:
            claim_folder(folder, plan.config, environment, say, defaults=RunConfig().to_dict())
        except RunFolderError as error:
            refused = error
    processes.raise_everywhere(refused)
    results_path = folder / "results.json"
    if results_path.is_file():
        say(f"{folder} is finished; rendering its report again.")
        results = read_results(folder)
    else:
        log = MetricsLog(folder / "metrics.jsonl")
        if tensorboard is not None and processes.is_writer():
            log = TensorBoardLog(log.path, tensorboard)
        results = _train_and_evaluate(plan, folder, environment, mesh, log, say)
        if processes.is_writer():
            write_results(results_path, results)
    if processes.is_writer():
        write_report([results], folder)
    processes.wait_for_all("the report is written")
    return results


def _plan(
    task: Task | str,
    methods: Sequence[Method | str],
    network: Network | None,
    model: ModelConfig,
    train: TrainConfig,
    seeds: int,
    first_seed: int,
    reference: str,
    data_dir: Path | None,
) -> _Plan:
    """Loads, builds and checks everything, before anything is written."""
    try:
        # the configuration checks the numbers; names of `Method` objects are checked here
        config = RunConfig(
            task if isinstance(task, str) else task.name,
            tuple(m if isinstance(m, str) else m.name for m in methods),
            seeds, first_seed, model, train,
        )  # fmt: skip
        loaded = resolve_task(task, data_dir)
        train = with_defaults(model, train)
        size = min(train.batch_size, len(loaded.train))
        built = _build_methods(methods, loaded, network, model, train)
    except ValueError as error:
        raise RunInputError(str(error)) from error
    default = network or _default_network(built, loaded, model)
    optimizer = build_optimizer(train, len(loaded.train))
    trainings: dict[str, Training] = {}
    for method in built:
        of_method = method.network or default
        assert of_method is not None
        name = f"the network of method {method.name}" if method.network else "network"
        prediction = check_network(of_method, loaded, batch_size=size, name=name)
        check_objective(method, prediction, batch_size=size)
        training = Training(
            method.training, of_method, method.objective, optimizer, train.epochs,
            train.warmup_epochs or 0, size, warm_up_objective(train), train.parts,
        )  # fmt: skip
        if trainings.setdefault(method.training, training) != training:
            raise RunInputError(
                f"method {method.name} shares the training {method.training!r} with another "
                "method that has a different objective or network."
            )
    return _Plan(
        loaded, built, tuple(trainings.values()), config.seed_numbers,
        model.routing if network is None else _GIVEN, train.checkpoint_every, reference,
        describe_run(config, task, loaded, built, network),
    )  # fmt: skip


def _build_methods(
    methods: Sequence[Method | str],
    task: Task,
    network: Network | None,
    model: ModelConfig,
    train: TrainConfig,
) -> tuple[Method, ...]:
    if not methods:
        raise ValueError("methods must hold at least one method, got none.")
    check_method_names([m for m in methods if isinstance(m, str)])
    single = None
    if "single" in methods:
        if network is not None:
            raise ValueError(
                "methods must not hold 'single' if network is given: 'single' is this library's "
                "classifier; give Method('single', objective, network=...) or omit it."
            )
        single = build_network(model, task.train.inputs, single=True, num_classes=len(task.classes))
    built = tuple(
        build_method(m, train, single) if isinstance(m, str)
        else m._replace(title=m.title or m.name, training=m.training or m.name)
        for m in methods
    )  # fmt: skip
    names = [m.name for m in built]
    if len(set(names)) != len(names):
        raise ValueError(f"methods must have different names, got {' '.join(names)}.")
    for name in names:
        if not name or name != Path(name).name:
            raise ValueError(f"the name of a method must be a valid file name, got {name!r}.")
    return built


def _default_network(methods: tuple[Method, ...], task: Task, model: ModelConfig) -> Network | None:
    if all(method.network for method in methods):
        return None
    try:
        return build_network(model, task.train.inputs, single=False, num_classes=len(task.classes))
    except ValueError as error:
        raise RunInputError(str(error)) from error


def _train_and_evaluate(
    plan: _Plan,
    out: Path,
    environment: dict[str, Any],
    mesh: Mesh | None,
    log: MetricsLog,
    say: Say,
) -> Results:
    records: list[Record] = []
    fits: list[Fit] = []
    shifts: list[ShiftFinding] = []
    reliability: list[Reliability] = []
    warnings: list[str] = []
    comparator = Comparator(len(plan.seeds), reference=plan.reference)
    epochs = plan.trainings[0].epochs
    examples, clock = len(plan.task.train), [0.0]
    if mesh is None:
        examples *= len(plan.seeds)
    else:  # one seed after the other
        epochs *= len(plan.seeds)
    quiet = None if processes.is_writer() else True
    with tqdm(total=len(plan.trainings) * epochs, unit="epoch", disable=quiet, leave=False) as bar:
        for number, training in enumerate(plan.trainings):
            bar.set_description(f"{training.name} ({number + 1} of {len(plan.trainings)})")

            work = _share_of_peak(training, plan, mesh)

            def on_epoch(loss: float, work: float = work) -> None:
                seconds, clock[0] = time.perf_counter() - clock[0], time.perf_counter()
                speed = examples / seconds
                shown = {"loss": f"{loss:.4f}", "examples/s": f"{speed:.3g}"}
                if work:
                    shown["utilisation"] = f"{work * speed:.1%}"
                bar.set_postfix(shown)
                bar.update()

            clock[0] = time.perf_counter()

            trained = _trained(plan, training, out, log, on_epoch, mesh, say)
            bar.n = (number + 1) * epochs  # epochs before resuming count too
            bar.refresh()
            warnings += _collapse_warnings(training.name, trained, plan.seeds)
            if not processes.is_writer():
                continue
            sharing = tuple(m for m in plan.methods if m.training == training.name)
            for evaluations, fitted, found in evaluate(
                plan.task, trained, sharing, plan.seeds, routing=plan.routing
            ):
                fits += fitted
                shifts += found
                for evaluation in evaluations:
                    comparator.add(evaluation)
                    records += evaluation.records
                    reliability.append(_reliability(evaluation))
    return Results(
        task=plan.task.name,
        config=plan.config,
        environment=from_plain(Environment, environment),
        source=plan.task.source,
        splits=tuple(_split_info(split) for split in plan.task.splits),
        methods=tuple(_method_info(method) for method in plan.methods),
        reference=plan.reference,
        records=tuple(records),
        fits=tuple(fits),
        shifts=tuple(shifts),
        comparisons=tuple(comparator.compare()),
        reliability=tuple(reliability),
        warnings=tuple(warnings),
    )


def _share_of_peak(training: Training, plan: _Plan, mesh: Mesh | None) -> float:
    """The share of the devices' peak that an example a second takes; 0 if it is not known."""
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is None:
        return 0.0
    examples = plan.task.train
    size = min(training.batch_size, len(examples))
    flops = flops_of_example(training, examples.inputs, size)
    return flops / (peak * (1 if mesh is None else mesh.size))


def _trained(
    plan: _Plan,
    training: Training,
    out: Path,
    log: MetricsLog,
    on_epoch: Callable[[float], None],
    mesh: Mesh | None,
    say: Say,
) -> TrainedSeeds:
    """All seeds of a training: at once on one device, or one by one on a mesh."""
    examples, folder = plan.task.train, out / "checkpoints" / training.name
    if mesh is None:
        return train(
            training, examples.inputs, examples.labels, plan.seeds,
            checkpoints=Checkpoints(folder), log=log,
            checkpoint_every=plan.checkpoint_every, on_epoch=on_epoch, say=say,
        )  # fmt: skip
    return train_on_mesh(
        training, examples.inputs, examples.labels, plan.seeds, mesh,
        folder=folder, log=log,
        checkpoint_every=plan.checkpoint_every, on_epoch=on_epoch, say=say,
    )  # fmt: skip


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


def _method_info(method: Method) -> MethodInfo:
    names = [field.name for field in dataclasses.fields(MethodInfo)]
    return MethodInfo(**{name: getattr(method, name) for name in names})


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


def _collapse_warnings(name: str, trained: TrainedSeeds, seeds: tuple[int, ...]) -> list[str]:
    return [
        f"{name}, seed {seed}: expert{'s' if len(dead) > 1 else ''} "
        f"{', '.join(map(str, dead))} of {trained.num_experts} got less than a twentieth "
        "of a fair share of the routing weights in the last epoch"
        for seed, dead in zip(seeds, trained.dead_experts(), strict=True)
        if dead
    ]
