"""One self-contained HTML page: verdicts, tables, plots."""

import re
from collections.abc import Sequence
from pathlib import Path

from calmoe_jax._files import write_whole
from calmoe_jax.study.records import Results
from calmoe_jax.study.report.elements import Html, escaped
from calmoe_jax.study.report.plots import draw_all
from calmoe_jax.study.report.sections import reading_aid, section
from calmoe_jax.study.report.summary import Summary

_CSS = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --back: #fff; --panel: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--back); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p, figcaption, .soft { color: var(--soft); } p { max-width: 46rem; }
.verdicts { list-style: none; padding: 0; margin: 0; }
.verdicts li { border-left: .4rem solid var(--line); background: var(--panel);
  padding: .55rem .8rem; margin: .5rem 0; }
.verdicts .better { border-color: #009e73; } .verdicts .worse { border-color: #d55e00; }
.verdicts .mixed { border-color: #e69f00; } .verdicts .reference { border-color: #0072b2; }
.verdicts b { color: var(--ink); } .verdicts .detail { display: block; color: var(--soft);
  font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums;
  min-width: 100%; }
th, td { padding: .3rem .4rem; border-bottom: 1px solid var(--line); text-align: right; }
td { white-space: nowrap; } th { font-weight: 600; max-width: 8rem; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--back); }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
td .std { color: var(--soft); font-size: .8rem; }
tr.marked td { background: var(--panel); }
.clear { font-weight: 700; }
figure { margin: 1rem 0; max-width: 68rem; }
img { max-width: 100%; min-width: 38rem; height: auto; }
details { margin: .6rem 0; } summary { cursor: pointer; font-weight: 600; }
.warning { border-left: .4rem solid #e69f00; padding-left: .8rem; }
code { font-size: .9em; }
"""


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
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escaped(title)}</title><style>{_CSS}</style></head><body>"
        + "<hr>".join(sections)
        + reading_aid([run.reference for run in runs])
        + "</body></html>\n"
    )
