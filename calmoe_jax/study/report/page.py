"""One self-contained HTML page: verdicts, tables, plots."""

import re
from collections.abc import Sequence
from pathlib import Path

from calmoe_jax._files import write_whole
from calmoe_jax.drawing.elements import Html
from calmoe_jax.drawing.page import whole_page
from calmoe_jax.study.records import Results
from calmoe_jax.study.report.plots import draw_all
from calmoe_jax.study.report.sections import reading_aid, section
from calmoe_jax.study.report.summary import Summary


def write_report(runs: Sequence[Results], out: Path) -> Path:
    """Writes `report.html` into a folder, and each run's plots into its `plots/`.

    Args:
        runs: results of one or more runs; each is a section of the page.
        out: the folder.

    Returns:
        The path of the page.
    """
    plots = out / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    sections = []
    for number, run in enumerate(runs, start=1):
        summary = Summary(run)
        pictures = draw_all(summary)
        task = re.sub(r"[^\w.-]+", "_", run.task)  # a task may be named by a path
        prefix = "" if len(runs) == 1 else f"{number}_{task}_"
        for name, content in pictures.items():
            write_whole(plots / f"{prefix}{name}.png", content)
        sections.append(section(summary, pictures))
    path = out / "report.html"
    write_whole(path, _page(runs, sections))
    return path


def _page(runs: Sequence[Results], sections: list[Html]) -> str:
    title = "calmoe: " + ", ".join(run.task for run in runs)
    aid = reading_aid([run.reference for run in runs])
    return whole_page(title, Html("<hr>".join(sections)), aid)
