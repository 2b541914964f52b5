"""The command `calmoe monitor`."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from calmoe_jax._logs_arguments import check_files, check_level, renamed
from calmoe_jax._usage import check_folder


@dataclass(frozen=True)
class Monitor:
    """Follow a deployed model along time: confidence, shift, accuracy, the gap as labels arrive.

    The logs are as for `calmoe audit`, with a column time, or a file for each period, in order. The
    examples that are not targets are the held-out ones, of all files together.
    """

    file: tyro.conf.Positional[tuple[Path, ...]]
    """Files with the logs, or folders of parts."""
    out: Path
    """Folder to write monitor.json and monitor.png to."""
    labels: tuple[Path, ...] = ()
    """Lists of calmoe label, filled in, each drawn from the targets of one period. Other labels of
    targets count as drawn uniformly at random."""
    every: str = "auto"
    """Length of a period: day, week or month of dates; a number of a numeric time; file. By default
    a day, or a file where there is no time."""
    level: float = 0.9
    """Level of each bound from labels."""
    alarm: float = 0.05
    """Level of the tests for a shift, of all periods together."""
    columns: tuple[str, ...] = ()
    """The files' names for some of ours, as labels=y or prob_{}=p{}."""

    def __call__(self) -> int:
        """Runs the command."""
        from calmoe_jax._files import to_json, write_whole
        from calmoe_jax.audit import describe_monitor, monitor, read_answers, read_logs
        from calmoe_jax.drawing.style import png

        check_files(self.file)
        check_folder("out", self.out)
        check_level("level", self.level)
        check_level("alarm", self.alarm)
        logs = read_logs(self.file, columns=renamed(self.columns))
        found = monitor(
            logs, every=self.every, level=self.level, alarm=self.alarm,
            lists=[(path, read_answers(path, logs)) for path in self.labels], told=_progress,
        )  # fmt: skip
        picture = png(_drawn(found))
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / "monitor.png", picture)
        write_whole(self.out / "monitor.json", to_json(found))
        print(describe_monitor(found))
        return 0


def _progress(period: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{period}\033[K", end="", file=sys.stderr, flush=True)


def _drawn(found: dict[str, Any]) -> Any:
    from calmoe_jax.drawing.along_time import Moment, draw_along_time

    def known(value: float | None) -> float:
        return math.nan if value is None else value

    moments = []
    for one in found["periods"]:
        accuracy, gap, shift = one["accuracy"], one["gap"], one["shift"]
        moments.append(
            Moment(
                name=Path(one["period"]).name,
                confidence=one["mean_confidence"],
                accuracy=accuracy["value"],
                low=accuracy["low"],
                high=accuracy["high"],
                labels=one["labels"],
                lower=known(gap["lower"]),
                upper=known(gap["upper"]),
                pooled=known(gap["pooled"]["mean"]),
                p_value=known(shift["p_value"]),
                level=shift["level"],
            )
        )
    held_out = found["held_out"]
    return draw_along_time(
        moments, held_out_confidence=held_out["mean_confidence"],
        held_out_accuracy=held_out["accuracy"],
    )  # fmt: skip
