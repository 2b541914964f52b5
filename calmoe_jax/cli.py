"""The command `calmoe`: parses, calls, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a run failed, 2 wrong usage or unusable input, 3 a gate of --fail-on fails,
130 and 143 ended by Ctrl-C and SIGTERM. The same command resumes a run that was ended.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

from calmoe_jax._audit_command import Audit
from calmoe_jax._data_command import Data
from calmoe_jax._errors import RunError, UserError
from calmoe_jax._label_command import Label
from calmoe_jax._monitor_command import Monitor
from calmoe_jax._plan_command import Plan
from calmoe_jax._repair_command import Repair
from calmoe_jax._signals import Stopped, ending_on_signals
from calmoe_jax._usage import UsageError, check_folder
from calmoe_jax.study.config import ModelConfig, RunConfig, TrainConfig

# The configuration as given: checked when the command runs, where errors can name its options.


class _GivenModel(ModelConfig):
    def __post_init__(self) -> None:
        pass


class _GivenTrain(TrainConfig):
    def __post_init__(self) -> None:
        pass


@dataclass(frozen=True)
class _GivenRun(RunConfig):
    model: _GivenModel = field(default_factory=_GivenModel)
    train: _GivenTrain = field(default_factory=_GivenTrain)

    def __post_init__(self) -> None:
        pass


def _checked(given: _GivenRun) -> RunConfig:
    """The configuration with its rules applied; `UsageError` for what breaks one."""
    try:
        return RunConfig(
            **vars(given)
            | {"model": ModelConfig(**vars(given.model)), "train": TrainConfig(**vars(given.train))}
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


@dataclass(frozen=True)
class Run:
    """Train, calibrate and evaluate methods on a task, and write a report.

    The task is one of `calmoe tasks`, an npz file, or `module:function` for a function that
    returns one. The same configuration on an existing folder continues it; another is refused.
    """

    config: Annotated[_GivenRun, tyro.conf.arg(name="")] = field(default_factory=_GivenRun)
    """What to run."""
    out: Path | None = None
    """The run's folder; runs/TASK by default."""
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
        config = _checked(self.config)
        self._join()
        import jax

        from calmoe_jax import _compilation_cache as compilation_cache
        from calmoe_jax.parallel import device_mesh
        from calmoe_jax.parallel.processes import is_writer
        from calmoe_jax.study.report import Summary, verdicts
        from calmoe_jax.study.runner import run

        if self.cache or os.environ.get(compilation_cache.VARIABLE):
            compilation_cache.keep_compiled_programs(compilation_cache.user_cache_dir())
        out = self.out or Path("runs") / _name_of(config.task)
        for name in ("tensorboard", "profile"):
            if (folder := vars(self)[name]) is not None:
                check_folder(name, folder)
        traced = nullcontext() if self.profile is None else jax.profiler.trace(str(self.profile))
        with traced:
            results = run(
                config.task, config.methods, out=out, model=config.model, train=config.train,
                seeds=config.seeds, first_seed=config.first_seed,
                data_dir=_data_dir(self.data_dir), tensorboard=self.tensorboard,
                mesh=device_mesh() if self.sharded or self.distributed else None,
            )  # fmt: skip
        if not is_writer():
            return 0
        summary = Summary(results)
        for verdict in verdicts(summary):
            print(f"\n{summary.title(verdict.method)}: {verdict.headline}.\n  {verdict.detail}")
        print(f"\nReport: {out / 'report.html'}")
        return 0

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


@dataclass(frozen=True)
class Report:
    """Render tables, plots and one self-contained page from finished runs."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs; several become sections of one page."""
    out: Path | None = None
    """Where to write; the run's folder by default, the current one for several runs."""

    def __call__(self) -> int:
        """Runs the command."""
        from calmoe_jax.study.records import read_results
        from calmoe_jax.study.report import write_report

        if not self.folders:
            raise UsageError("folders must name at least one run, got none.")
        runs = [read_results(folder) for folder in self.folders]
        out = self.out or (self.folders[0] if len(runs) == 1 else Path())
        check_folder("out", out)
        out.mkdir(parents=True, exist_ok=True)
        print(write_report(runs, out))
        return 0


@dataclass(frozen=True)
class Tasks:
    """List every task: its splits, the source of its data, and whether the data is present."""

    data_dir: Path | None = None
    """Folder with the data sets that do not come with the package; see calmoe data where."""

    def __call__(self) -> int:
        """Runs the command."""
        from calmoe_jax.data import TASKS

        folder = _data_dir(self.data_dir)
        for name, info in TASKS.items():
            missing = info.missing(folder)
            if not (info.files or info.data):
                here = "here: comes with the package"
            elif missing:
                here = f"not here: {', '.join(missing)} missing in {folder}"
                here += f"; calmoe data prepare {name} brings it" if info.data else ""
            else:
                here = f"here: {folder}"
            shifts = _abbreviated(info.shifts)
            print(f"{name}: {info.summary}")
            hard = f"; hard subset {info.hard}" if info.hard else ""
            print(f"  splits  train, calibration, test; shifts {shifts}{hard}")
            print(f"  source  {info.source}\n  {here}")
        return 0


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices, which kernels run here, and why the others do not."""

    def __call__(self) -> int:
        """Shows them."""
        from calmoe_jax._environment import describe_environment
        from calmoe_kernels import choices, implementations

        env = describe_environment()
        print(f"python {env['python']} on {env['platform']}, {env['cores']} cores")
        for package, number in env["versions"].items():
            print(f"{package} {number or 'not installed'}")
        print(f"devices: {', '.join(env['devices'])}")
        for implementation in implementations():
            state = "runs here" if implementation.runs else f"does not: {implementation.reason}"
            print(f"implementation {implementation.name}: {state}")
        for choice in choices():
            print(
                f"operation {choice.operation}: None means {choice.implementation}; "
                f"kernel {choice.status}: {choice.reason}"
            )
        return 0


def _abbreviated(names: Sequence[str]) -> str:
    """Abbreviates numbered names: `blur_1` to `blur_5` become `blur_1..5`."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, _, last = name.rpartition("_")
        stems.setdefault(stem if last.isdigit() and stem else name, []).append(last)
    return ", ".join(
        f"{stem}_{ends[0]}..{ends[-1]}" if len(ends) > 1 else stem for stem, ends in stems.items()
    )


def _data_dir(given: Path | None) -> Path:
    from calmoe_jax.data.sets.folder import data_folder

    if given is not None and not given.is_dir():
        raise UsageError(f"data_dir must be a folder, got data_dir={given}.")
    return data_folder(given).path


COMMANDS: dict[str, Callable[..., Any]] = {
    "run": Run,
    "report": Report,
    "tasks": Tasks,
    "data": Data,
    "audit": Audit,
    "label": Label,
    "repair": Repair,
    "monitor": Monitor,
    "plan": Plan,
    "doctor": Doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given in ([], ["-h"], ["--help"]):
        print(_overview())
        return 0 if given else 2
    if given == ["--version"]:
        print(f"calmoe_jax {version('calmoe_jax')}")
        return 0
    try:
        with ending_on_signals():
            code = _call(given)
        if code and arguments is None and "--distributed" in given:
            sys.stdout.flush()
            os._exit(code)  # at its end Python would wait for processes that are gone
        return code
    except KeyboardInterrupt as stop:
        stopped = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
        print(stopped.words, file=sys.stderr)
        if arguments is None:  # a process: at its end Python would wait for running computations
            sys.stdout.flush()
            os._exit(stopped.code)
        return stopped.code


def _overview() -> str:
    """The overview of all commands that `calmoe --help` prints."""
    lines = [
        "Calibrated mixture-of-experts classifiers under distribution shift.",
        "",
        "usage: calmoe COMMAND [OPTIONS]     calmoe COMMAND --help     calmoe --version",
        "",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<8}{(command.__doc__ or '').splitlines()[0]}")
    codes = "0 done, 1 a run failed, 2 wrong usage or unusable input, 3 a gate of --fail-on fails"
    return "\n".join([*lines, "", f"Exit codes: {codes},", "130 Ctrl-C, 143 SIGTERM."])


def _call(arguments: Sequence[str]) -> int:
    command: Callable[[], int] = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="calmoe",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    try:
        return command()
    except UserError as error:
        return _fail(_with_options(str(error), command), 2)
    except (RunError, OSError) as error:
        return _fail(str(error), 1)


def _with_options(message: str, command: Any) -> str:
    """An error's message with options in place of the names of their fields."""

    def replace(match: re.Match[str]) -> str:
        return "--" + match[0].replace("_", "-")

    names = "|".join(_options(command))
    return re.sub(rf"(?<![\w-])({names})(?= must |=)", replace, message) if names else message


def _options(command: Any) -> list[str]:
    """The fields of a command that are options, without its positional arguments."""
    names: list[str] = []
    for given in fields(command):
        value = getattr(command, given.name)
        if is_dataclass(value):
            names += _options(value)
        elif given.name not in ("task", "folders", "file"):
            names.append(given.name)
    return names


def _fail(message: str, code: int) -> int:
    print(f"calmoe: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
