"""The command `calmoe`: parses, calls, and turns errors into one line and an exit code.

Exit codes: 0 done, 1 a run failed, 2 wrong usage or unusable input, 3 a gate of --fail-on fails,
130 and 143 ended by Ctrl-C and SIGTERM. The same command resumes a run that was ended.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from calmoe_jax._audit_command import Audit
from calmoe_jax._data_command import Data
from calmoe_jax._data_dir import data_dir_of
from calmoe_jax._errors import RunError, UserError
from calmoe_jax._label_command import Label
from calmoe_jax._monitor_command import Monitor
from calmoe_jax._plan_command import Plan
from calmoe_jax._repair_command import Repair
from calmoe_jax._run_command import Run
from calmoe_jax._signals import Stopped, ending_on_signals
from calmoe_jax._usage import UsageError, check_folder


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

        folder = data_dir_of(self.data_dir)
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
        elif given.name not in ("task", "folders", "file", "names"):
            names.append(given.name)
    return names


def _fail(message: str, code: int) -> int:
    print(f"calmoe: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
