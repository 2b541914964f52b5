"""What was run for the study: commits, minutes and memory, from the files of its tasks."""

from pathlib import Path
from typing import Any, NamedTuple

from experiments.our_study.command import read


class Run(NamedTuple):
    """The run of a task.

    Attributes:
        task: name of the task.
        cells: number of combinations of routing and method.
        commits: that the cells were computed at, or for cells that do not say so the commit that
            they were gathered at, as they first come; with `+` where the checkout had changes,
            "none" outside one.
        minutes: of all cells together; `None` if some do not say so.
        peak_gb: most memory that the process held that gathered them; `None` if it is not said.
    """

    task: str
    cells: int
    commits: tuple[str, ...]
    minutes: float | None
    peak_gb: float | None


def read_runs(folder: Path) -> list[Run]:
    """The run of each task, by name.

    Args:
        folder: with a file for each task.
    """
    return [_run(read(path)) for path in sorted(folder.glob("*.json.gz"))]


def _run(found: dict[str, Any]) -> Run:
    made, cells = found["environment"], found["cells"]
    commits = dict.fromkeys(cell.get("commit", made["commit"]) or "none" for cell in cells)
    minutes = [cell["minutes"] for cell in cells if "minutes" in cell]
    total = float(sum(minutes)) if len(minutes) == len(cells) else None
    return Run(found["task"], len(cells), tuple(commits), total, made.get("peak_gb"))
