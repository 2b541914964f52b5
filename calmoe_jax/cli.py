"""The command `calmoe`: parses, calls, and turns errors into a line and an exit code.

Exit codes: 0 done, 1 a run failed, 2 wrong usage or unusable input; an interrupt (Ctrl-C, or a
SIGTERM) ends with 130 and leaves a run that the same command continues.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import tyro

from calmoe_jax.study.config import RunConfig

_DATA_DIR = "CALMOE_DATA_DIR"


class UsageError(Exception):
    """Arguments that make no sense; the message says which."""


@dataclass(frozen=True)
class Run:
    """Train, calibrate and evaluate methods on a task, and write a report.

    The same configuration on an existing folder continues it; another one is refused.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")] = field(default_factory=RunConfig)
    """What to run."""
    out: Path | None = None
    """The run's folder; runs/TASK by default."""
    data_dir: Path | None = None
    """Folder with the data sets that do not come with the package; CALMOE_DATA_DIR by default."""

    def __call__(self) -> int:
        """Runs it."""
        from calmoe_jax.study.report import verdicts
        from calmoe_jax.study.report.summary import title_of
        from calmoe_jax.study.run import run_experiment

        out = self.out or Path("runs") / self.config.task
        results = run_experiment(self.config, out, data_dir=_data_dir(self.data_dir))
        for verdict in verdicts(results):
            print(f"\n{title_of(results, verdict.method)}: {verdict.headline}.\n  {verdict.detail}")
        print(f"\nReport: {out / 'report.html'}")
        return 0


@dataclass(frozen=True)
class Report:
    """Render tables, plots and one self-contained page from finished runs."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs; several become sections of one page."""
    out: Path | None = None
    """Where to write; the run's folder by default, the current one for several runs."""

    def __call__(self) -> int:
        """Renders it."""
        from calmoe_jax.study.report import read_results, write_report

        if not self.folders:
            raise UsageError("folders must name at least one run, got none.")
        runs = [read_results(folder) for folder in self.folders]
        out = self.out or (self.folders[0] if len(runs) == 1 else Path())
        out.mkdir(parents=True, exist_ok=True)
        print(write_report(runs, out))
        return 0


@dataclass(frozen=True)
class Tasks:
    """List every task: its splits, where its data comes from, whether it is here."""

    data_dir: Path | None = None
    """Folder with the data sets that do not come with the package; CALMOE_DATA_DIR by default."""

    def __call__(self) -> int:
        """Lists them."""
        from calmoe_jax.data import TASKS

        folder = _data_dir(self.data_dir)
        for name, info in TASKS.items():
            missing = info.missing(folder)
            if not info.files:
                here = "here: comes with the package"
            elif missing:
                place = f"in {folder}" if folder else f"without --data-dir or {_DATA_DIR}"
                here = f"not here: {', '.join(missing)} missing {place}"
            else:
                here = f"here: {folder}"
            shifts = _abbreviated(info.shifts)
            print(f"{name}: {info.summary}")
            print(f"  splits  train, calibration, test; shifts {shifts}; hard subset ambiguous")
            print(f"  source  {info.source}\n  {here}")
        return 0


@dataclass(frozen=True)
class Audit:
    """Judge a deployed model's logs: calibration, shift, and what can be repaired without labels.

    The file holds, for each example, the router's weights, the experts' probabilities and the
    label where it is known: an npz file with arrays routing_weights [n, experts], expert_probs
    [n, experts, classes], labels [n] (-1: unknown) and, if need be, targets [n] and clusters [n];
    or a parquet file with these columns.
    """

    file: tyro.conf.Positional[Path]
    """The logs."""
    out: Path | None = None
    """Where to write everything as JSON."""
    plots: Path | None = None
    """Folder for pictures of the labelled examples: reliability, experts, gaps."""

    def __call__(self) -> int:
        """Judges them."""
        from calmoe_jax._files import to_json, write_whole
        from calmoe_jax.audit import audit, describe_audit, read_logs
        from calmoe_jax.audit.pictures import draw_audit

        logs = read_logs(self.file)
        found = audit(logs)
        if self.out is not None:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.out, to_json(found.to_json()))
        if self.plots is not None:
            self.plots.mkdir(parents=True, exist_ok=True)
            for name, content in draw_audit(logs).items():
                write_whole(self.plots / f"{name}.png", content)
        print(describe_audit(found))
        return 0


@dataclass(frozen=True)
class Doctor:
    """Tell versions, devices, and which kernel implementations run here and why others do not."""

    def __call__(self) -> int:
        """Tells."""
        from calmoe_jax._environment import describe_environment
        from calmoe_kernels import implementations

        env = describe_environment()
        print(f"python {env['python']} on {env['platform']}, {env['cores']} cores")
        for package, version in env["versions"].items():
            print(f"{package} {version or 'not installed'}")
        print(f"devices: {', '.join(env['devices'])}")
        for implementation in implementations():
            state = "runs here" if implementation.runs else f"does not: {implementation.reason}"
            print(f"implementation {implementation.name}: {state}")
        return 0


def _abbreviated(names: Sequence[str]) -> str:
    """Names one by one; `blur_1` to `blur_5` as `blur_1..5`."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stem, _, last = name.rpartition("_")
        stems.setdefault(stem if last.isdigit() and stem else name, []).append(last)
    return ", ".join(
        f"{stem}_{ends[0]}..{ends[-1]}" if len(ends) > 1 else stem for stem, ends in stems.items()
    )


def _data_dir(given: Path | None) -> Path | None:
    if given is not None:
        if not given.is_dir():
            raise UsageError(f"data_dir must be a folder, got data_dir={given}.")
        return given
    return Path(os.environ[_DATA_DIR]) if os.environ.get(_DATA_DIR) else None


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    del signum, frame
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the command; returns the exit code."""
    commands: dict[str, Callable[..., Any]] = {
        "run": Run,
        "report": Report,
        "tasks": Tasks,
        "audit": Audit,
        "doctor": Doctor,
    }
    try:
        command: Run | Report | Tasks | Audit | Doctor = tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="calmoe",
            description="Calibrated mixture-of-experts classifiers under distribution shift.",
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
        )
    except ValueError as error:  # a rule of the configuration
        return _fail(error, 2)
    return _call(command)


def _call(command: Callable[[], int]) -> int:
    from calmoe_jax.audit.logs import LogError
    from calmoe_jax.data import DataError
    from calmoe_jax.study.report import ResultsError
    from calmoe_jax.study.run import RunFolderError, RunInputError
    from calmoe_jax.training import NonFiniteLossError

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command()
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    except (DataError, LogError, RunInputError, RunFolderError, ResultsError, UsageError) as error:
        return _fail(error, 2)
    except (NonFiniteLossError, OSError) as error:
        return _fail(error, 1)


def _fail(error: Exception, code: int) -> int:
    print(f"calmoe: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
