"""The command `calmoe run`."""

import os
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from calmoe_jax._data_dir import data_dir_of
from calmoe_jax._usage import UsageError, check_folder
from calmoe_jax.study.config import ModelConfig, RunConfig, TrainConfig
from calmoe_jax.study.recommended import RECOMMENDED

# What is run without a task, all of it in the package and quick: a shift where confidence holds,
# and many where it breaks and is repaired.
FIRST_TASKS = {
    "portal": "25 years of captures of desert rodents, where confidence holds under shift",
    "digits": "handwritten digits and their corruptions, where it breaks, and what repairs it",
}
# Methods of all of them but the first, unless methods are given.
_FEWER_METHODS = ("vanilla", "robust")


# The configuration as given: checked when the command runs, where errors can name its options.


class _GivenModel(ModelConfig):
    def __post_init__(self) -> None:
        pass


class _GivenTrain(TrainConfig):
    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class _GivenRun(RunConfig):
    task: tyro.conf.Positional[str] = ""
    """One of calmoe tasks, an npz file, or module:function; without it portal, then digits."""
    model: _GivenModel = field(default_factory=_GivenModel)
    train: _GivenTrain = field(default_factory=_GivenTrain)

    def __post_init__(self) -> None:
        pass


def _checked(given: _GivenRun, *, recommended: bool) -> list[RunConfig]:
    """A configuration for each task, with its rules applied; `UsageError` for what breaks one."""
    model = given.model
    methods = given.methods
    if recommended:
        for name, value, default in (
            ("methods", methods, _GivenRun().methods),
            ("routing", model.routing, _GivenModel().routing),
        ):
            if value != default:
                raise UsageError(f"{name} must not be given with --recommended, got {value!r}.")
        methods = (RECOMMENDED.method,)
        model = replace(model, routing=RECOMMENDED.routing)
    try:
        checked = ModelConfig(**vars(model)), TrainConfig(**vars(given.train))
        return [
            RunConfig(task, of_task, given.seeds, given.first_seed, *checked)
            for task, of_task in _asked(given.task, methods).items()
        ]
    except ValueError as error:
        raise UsageError(str(error)) from error


def _asked(task: str, methods: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The methods of each task to run."""
    if task:
        return {task: methods}
    first, *others = FIRST_TASKS
    fewer = _FEWER_METHODS if methods == _GivenRun().methods else methods
    return {first: methods, **dict.fromkeys(others, fewer)}


@dataclass(frozen=True)
class Run:
    """Train, calibrate and evaluate methods on a task, and write a report.

    The task is one of `calmoe tasks`, an npz file, or `module:function` for a function that
    returns one; without a task, two of the package are run, one where confidence holds under shift
    and, with two methods unless others are given, one where it breaks. The same configuration on an
    existing folder continues it; another is refused.
    """

    config: Annotated[_GivenRun, tyro.conf.arg(name="")] = field(default_factory=_GivenRun)
    """What to run."""
    recommended: bool = False
    """Train what we recommend alone, instead of the methods of the paper."""
    out: Path | None = None
    """The run's folder; runs/TASK by default. Without a task, the folder of both runs' folders."""
    data_dir: Path | None = None
    """Folder with the data sets that do not come with the package; see calmoe data where."""
    cache: bool = False
    """Keep compiled programs in the user's cache folder, or in CALMOE_CACHE_DIR, so that the next
    run starts sooner. On by default if CALMOE_CACHE_DIR is set."""
    sharded: bool = False
    """Spread every batch over all devices, one seed after the other."""
    distributed: bool = False
    """As sharded, over the devices of several processes: start the same command in each. Slurm, GKE
    and TPU pods say who the others are; elsewhere give the next three options."""
    coordinator: str | None = None
    """Host and port of process 0, such as 10.0.0.1:8476."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    timeout: float = 300.0
    """Seconds to wait for the other processes."""
    heartbeat: float = 20.0
    """Seconds without a sign of life after which another process counts as lost."""
    tensorboard: Path | None = None
    """Folder for TensorBoard's events (needs tensorboardX)."""
    profile: Path | None = None
    """Folder for a trace of the whole run by JAX's profiler; make it a short one."""

    def __call__(self) -> int:
        """Runs the command."""
        configs = _checked(self.config, recommended=self.recommended)
        self._join()
        import jax

        from calmoe_jax import _compilation_cache as compilation_cache

        if self.cache or os.environ.get(compilation_cache.VARIABLE):
            compilation_cache.keep_compiled_programs(compilation_cache.user_cache_dir())
        for name in ("tensorboard", "profile"):
            if (folder := vars(self)[name]) is not None:
                check_folder(name, folder)
        traced = nullcontext() if self.profile is None else jax.profiler.trace(str(self.profile))
        with traced:
            for config in configs:
                self._run(config, several=len(configs) > 1)
        return 0

    def _run(self, config: RunConfig, *, several: bool) -> None:
        """Runs one task, and prints what was found."""
        from calmoe_jax.parallel import device_mesh
        from calmoe_jax.parallel.processes import is_writer
        from calmoe_jax.study.report import Summary, in_words
        from calmoe_jax.study.runner import run

        name = _name_of(config.task)
        out = self.out or Path("runs") / name
        events = self.tensorboard
        if several:
            out = self.out / name if self.out else out
            events = events / name if events else None
            if is_writer():
                print(f"{name}: {FIRST_TASKS[name]}\n")
        results = run(
            config.task, config.methods, out=out, model=config.model, train=config.train,
            seeds=config.seeds, first_seed=config.first_seed,
            data_dir=data_dir_of(self.data_dir), tensorboard=events,
            mesh=device_mesh() if self.sharded or self.distributed else None,
        )  # fmt: skip
        if not is_writer():
            return
        print(in_words(Summary(results)))
        print(f"\nReport: {out / 'report.html'}" + ("\n" if several else ""))

    def _join(self) -> None:
        """Joins the other processes, if there are others."""
        given = [
            n for n in ("coordinator", "num_processes", "process_id") if vars(self)[n] is not None
        ]
        if not self.distributed:
            if given:
                raise UsageError(f"{given[0]} must be given with --distributed only.")
            return
        from calmoe_jax.parallel.processes import join_processes

        join_processes(
            coordinator=self.coordinator, num_processes=self.num_processes,
            process_id=self.process_id, timeout=self.timeout, heartbeat=self.heartbeat,
        )  # fmt: skip


def _name_of(task: str) -> str:
    """The name of a task's run folder; for a file or a function, the last part of its name."""
    return Path(task).stem if task.endswith(".npz") else task.rpartition(":")[2]
