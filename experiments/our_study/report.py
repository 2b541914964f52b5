"""Tables and a picture of the study, from its committed results.

`python -m experiments.our_study.report [--results DIR]` writes `README.md` and `frontier.png` into
the folder of the results, from nothing else than the results in it.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from calmoe_jax._files import write_whole
from experiments.commits import short_commit
from experiments.our_study import ablation
from experiments.our_study.command import ROUTINGS
from experiments.our_study.comparing import Compared, Row, compare, mean_of, read_rows
from experiments.our_study.conclusions import conclusions
from experiments.our_study.runs import Run, read_runs

# Calibrators of the tables of a task, and on its hard subset; all are in the summary.
SHOWN = ("none", "temperature", "per_expert", "safe", "bold", "dirichlet")
SHOWN_ON_HARD = ("temperature", "safe", "bold")
# Those of the frontier.
_DRAWN = ("none", "temperature", "safe", "bold")
# A combination, its accuracy and its calibration error.
Point = tuple[tuple[str, ...], float, float]


def comparison_table(found: list[Compared], show: Callable[[tuple[str, str, str]], str]) -> str:
    """A table of comparisons in Markdown."""
    lines = [
        "| | ECE under shift | mean rank | difference | 95 % interval over tasks | accuracy | NLL "
        "| ECE in distribution | largest difference of a task |",
        "|---" * 9 + "|",
    ]
    for c in found:
        nll, accuracy = ("–" if np.isnan(x) else f"{x:+.3f}" for x in (c.nll, c.accuracy))
        interval = "–" if np.isnan(c.low) else f"{c.low:+.3f} to {c.high:+.3f}"
        lines.append(
            f"| {show(c.combination)} | {c.ece:.3f} | {c.rank:.1f} | {c.difference:+.3f} | "
            f"{interval} | {accuracy} | {nll} | {c.id_ece:+.3f} | "
            f"{c.worst[0]:+.3f} ({c.worst[1]}) |"
        )
    return "\n".join(lines)


def task_table(rows: list[Row], task: str) -> str:
    """A row for each routing and method of a task: accuracy and errors by calibrator."""
    at = {(r.combination, r.kind): r for r in rows if r.task == task}
    methods = dict.fromkeys(r.combination[:2] for r in rows if r.task == task)
    titles = [f"shift, {c}" for c in SHOWN] + [f"hard, {c}" for c in SHOWN_ON_HARD]
    lines = [
        "| routing | method | accuracy: in distribution, shift | NLL under shift | gap under shift "
        f"| ECE in distribution | {' | '.join(titles)} |",
        "|---" * (6 + len(titles)) + "|",
    ]
    for routing, method in methods:
        plain, inside = (at[(routing, method, "none"), kind] for kind in ("shift", "id"))
        errors = [
            _with_spread(found.metrics["ece"]) if found else "–"
            for found in (at.get(((routing, method, c), "shift")) for c in SHOWN)
        ]
        errors += [
            f"{mean_of(found, 'ece'):.3f}" if found else "–"
            for found in (at.get(((routing, method, c), "hard")) for c in SHOWN_ON_HARD)
        ]
        nll = mean_of(plain, "nll")
        lines.append(
            f"| {routing} | {method} | {mean_of(inside, 'accuracy'):.3f}, "
            f"{mean_of(plain, 'accuracy'):.3f} | {'inf' if np.isnan(nll) else f'{nll:.3f}'} | "
            f"{mean_of(plain, 'confidence_gap'):+.3f} | {mean_of(inside, 'ece'):.3f} | "
            f"{' | '.join(errors)} |"
        )
    return "\n".join(lines)


def _with_spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"


def frontier(
    rows: list[Row], calibrators: Iterable[str]
) -> list[tuple[tuple[str, ...], float, float]]:
    """Mean accuracy and ECE under shift of combinations that every task has."""
    tasks = sorted({r.task for r in rows})
    wanted = set(calibrators)
    sums: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for r in rows:
        if r.kind == "shift" and r.calibrator in wanted:
            point = mean_of(r, "accuracy"), mean_of(r, "ece")
            sums.setdefault(r.combination, []).append(point)
    return [
        (c, *(float(x) for x in np.mean(points, axis=0)))
        for c, points in sums.items()
        if len(points) == len(tasks)
    ]


def undominated(
    points: list[tuple[tuple[str, ...], float, float]],
) -> list[tuple[Any, float, float]]:
    """Those that no other beats in accuracy and error at once, by accuracy."""
    best = [
        p for p in points
        if not any(q[1] >= p[1] and q[2] <= p[2] and q[1:] != p[1:] for q in points)
    ]  # fmt: skip
    return sorted(best, key=lambda p: p[1])


def draw(rows: list[Row]) -> bytes:
    """Accuracy against calibration error under shift, means over tasks."""
    import matplotlib
    from matplotlib.figure import Figure

    from calmoe_jax.drawing.style import COLOURS, MARKERS, STYLE, legend_below, png

    points = frontier(rows, _DRAWN)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 4.6))
        ax = figure.subplots()
        for (i, calibrator), (j, routing) in itertools.product(
            enumerate(_DRAWN), enumerate(ROUTINGS)
        ):
            some = [p for p in points if p[0][0] == routing and p[0][2] == calibrator]
            ax.plot(
                [p[2] for p in some], [p[1] for p in some], MARKERS[j], ms=6,
                color=COLOURS[i], alpha=0.75, markeredgewidth=0,
                label=f"{calibrator}, {routing.replace('_', '-')}",
            )  # fmt: skip
        best = undominated(points)
        ax.plot([p[2] for p in best], [p[1] for p in best], color="#777777", lw=1, zorder=0)
        ax.set_xlabel("top-label ECE under shift, mean over tasks (lower is better)")
        ax.set_ylabel("accuracy under shift, mean over tasks")
        ax.set_title("A point is an objective; the line joins those that no other beats in both")
        legend_below(figure, [ax])
        return png(figure)


def runs_table(runs: list[Run]) -> str:
    """A row for each task: what its cells were computed with, and what that took, in Markdown.

    Args:
        runs: of the study.
    """
    lines = [
        "| task | trainings and evaluations | commit | minutes | most memory, GB |",
        "|---" * 5 + "|",
    ]
    for run in runs:
        minutes = "–" if run.minutes is None else f"{run.minutes:.0f}"
        memory = "–" if run.peak_gb is None else f"{run.peak_gb:.1f}"
        commits = ", ".join(x[:7] + "+" * x.endswith("+") for x in run.commits)
        lines.append(f"| {run.task} | {run.cells} | {commits} | {minutes} | {memory} |")
    return "\n".join(lines)


def page(rows: list[Row], runs: list[Run], ablations: dict[str, Any]) -> str:
    """The whole page.

    Args:
        rows: of the study.
        runs: what was run for them.
        ablations: the ablation's results, empty where it was not run.
    """
    tasks = sorted({r.task for r in rows})
    seeds = max(len(r.metrics["ece"]) for r in rows)
    parts = [
        "# Every objective, routing and calibrator on every task\n",
        f"Written by `python -m experiments.our_study.report` from the results beside it; "
        f"{len(tasks)} tasks ({', '.join(tasks)}), {seeds} seeds, splits equal within a task and "
        "tasks equal. The reference is the plain mixture with dense routing as trained; intervals "
        f"are Student's over {len(tasks)} tasks, so they are wide. All figures are of targets "
        "whose labels were used for scoring only. Of cifar10h, which has no shift, the disputed "
        "images count as one; it and pacs_sketch are features of small frozen ResNets. Methods "
        "that some task lacks stand in the tables of the other tasks only.\n",
    ]
    sections: tuple[tuple[str, Callable[[tuple[str, str, str]], bool], Any], ...] = (
        (
            "Calibrators, of the plain mixture with dense routing",
            lambda c: c[:2] == ("dense", "vanilla"),
            lambda c: c[2],
        ),
        (
            "Objectives with dense routing, as trained",
            lambda c: c[0] == "dense" and c[2] == "none",
            lambda c: c[1],
        ),
        (
            "Objectives with dense routing, after one temperature in distribution",
            lambda c: c[0] == "dense" and c[2] == "temperature",
            lambda c: c[1],
        ),
        (
            "Routings of the plain mixture",
            lambda c: c[1] == "vanilla" and c[2] in ("none", "temperature", "per_expert", "safe"),
            lambda c: f"{c[0]}, {c[2]}",
        ),
    )
    said = "\n".join(f"* {line}" for line in conclusions(rows))
    parts.append(f"## What it says, the unwelcome first\n\n{said}\n")
    for title, chosen, show in sections:
        parts.append(f"## {title}\n\n{comparison_table(compare(rows, chosen), show)}\n")
    best = "; ".join(
        f"{c[1]} ({c[0].replace('_', '-')}) with {c[2]}: accuracy {accuracy:.3f}, ECE {error:.3f}"
        for c, accuracy, error in undominated(frontier(rows, _DRAWN))
    )
    parts.append(
        "## Accuracy and calibration together\n\n"
        f"![Accuracy against calibration error](frontier.png)\n\nOn the frontier: {best}.\n"
    )
    for task in tasks:
        parts.append(f"## {task}\n\n{task_table(rows, task)}\n")
    for task, changes in ablations.get("tasks", {}).items():
        parts.append(
            f"## One setting changed at a time: {task}\n\n"
            f"{ablations['seeds']} seeds, {ablations['epochs']} epochs; computed at "
            f"{short_commit(ablations['made_with']['commit'])}.\n\n{ablation.table(changes)}\n"
        )
    parts.append(f"## What was run\n\n{runs_table(runs)}\n")
    return "\n".join(parts)


def read_ablations(folder: Path) -> dict[str, Any]:
    """The ablation's results; empty where it was not run.

    Args:
        folder: of the results.
    """
    path = folder / "ablation.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def main() -> None:
    """Writes page and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().results
    rows = read_rows(folder)
    write_whole(folder / "README.md", page(rows, read_runs(folder), read_ablations(folder)))
    write_whole(folder / "frontier.png", draw(rows))


if __name__ == "__main__":
    main()
