"""The page of `experiments.hard_or_soft`: words, tables, a picture by severity."""

from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.hard_or_soft_summary import CALIBRATORS, KEPT, LOST, difference, interval
from experiments.our_study.command import ROUTINGS

WORDS = {
    "none": "as trained",
    "temperature": "one temperature",
    "per_expert": "experts calibrated",
}
_ONE = "temperature"


def page(found: dict[str, Any]) -> str:
    """The page in Markdown.

    Args:
        found: the results.
    """
    said = "\n".join(f"* {line}" for line in found["verdict"])
    by_corruption = "\n\n".join(
        f"{task}:\n\n{corruptions(rows)}" for task, rows in found["tasks"].items()
    )
    return (
        "# Hard or soft routing under corruptions\n\n"
        "Written by `python -m experiments.hard_or_soft --render` from the results beside it; "
        f"{found['epochs']} epochs, means over {len(found['summary'])} tasks' shifts and the "
        "seeds. cifar10c: features of a small frozen ResNet, pixels re-encoded as JPEG.\n\n"
        f"{said}\n\n![Calibration error by severity](severity.png)\n\n"
        "The noise floor is the mean ECE that predictions of the same confidences would have if "
        "they were calibrated, by drawing their labels anew. The last share is that of shifts and "
        "seeds whose ECE is at most the 95th percentile of its own floor: 95 % if all were "
        "calibrated. The shares under and over a number are of shifts, by the mean over seeds.\n\n"
        f"{table(found['summary'])}\n\n"
        "## What of the gap's change is what\n\n"
        "Gap: mean confidence less accuracy, before on the examples that temperatures are fitted "
        "to. Three columns are parts of the change, after less before, and add up to it: "
        "configurations S move; the gap given S changes; the share of targets in configurations "
        "not seen before, times their gap (see `experiments.drift`).\n\n"
        f"{changes(found['summary'])}\n\n"
        "## Hard routing less the others\n\n"
        "ECE under shift, mean over the same shifts, in pairs of one seed number; 95 % intervals "
        f"by Student's t over the seeds' means (n = {_seeds(found)}), the shifts taken as they "
        "are.\n\n"
        f"{pairs(found['summary'])}\n\n"
        "## By corruption and severity\n\n"
        "ECE of dense / top-2 / hard routing with one temperature each, mean over seeds. A shift "
        "without a severity is in the first column.\n\n"
        f"{by_corruption}\n"
    )


def _seeds(found: dict[str, Any]) -> int:
    return len(next(iter(found["summary"].values()))[0]["by_seed"])


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _by_combination(
    head: list[str],
    summary: dict[str, list[dict[str, Any]]],
    cells: Callable[[dict[str, Any]], list[str]],
) -> str:
    """A table with a line for each task, routing and calibrator."""
    lines = [
        [task, r["routing"], r["calibrator"], *cells(r)]
        for task, rows in summary.items()
        for r in rows
    ]
    return _markdown(["task", "routing", "calibrator", *head], lines)


def table(summary: dict[str, list[dict[str, Any]]]) -> str:
    """Errors and shares of shifts.

    Args:
        summary: by task.
    """
    head = ["ECE in distribution", "its noise floor"]
    head += ["ECE under shift", "its noise floor", f"shifts under {KEPT:.2f}"]
    head += [f"over {LOST:.2f}", "accuracy", "within the noise floor"]
    return _by_combination(
        head,
        summary,
        lambda r: [
            f"{r['id_ece']:.3f}", f"{r['id_floor']:.3f}", f"{r['ece']:.3f}", f"{r['floor']:.3f}",
            f"{r['kept']:.0%}", f"{r['lost']:.0%}", f"{r['accuracy']:.3f}",
            f"{r['within_floor']:.0%}",
        ],
    )  # fmt: skip


def changes(summary: dict[str, list[dict[str, Any]]]) -> str:
    """Gaps before and after, and the parts of their change.

    Args:
        summary: by task.
    """
    names = ("gap_before", "gap", "moved", "changed", "remainder")
    head = ["gap in distribution", "under shift"]
    head += ["of the change: S moves", "gap given S changes", "S unseen", "unseen"]
    return _by_combination(
        head, summary, lambda r: [*(f"{r[x]:+.3f}" for x in names), f"{r['unseen']:.1%}"]
    )


def pairs(summary: dict[str, list[dict[str, Any]]]) -> str:
    """Hard routing's error less that of dense and top-2 routing.

    Args:
        summary: by task.
    """
    others = [name for name in ROUTINGS if name != "hard"]
    lines = [
        [task, calibrator, *(interval(difference(rows, calibrator, x)) for x in others)]
        for task, rows in summary.items()
        for calibrator in CALIBRATORS
    ]
    return _markdown(["task", "calibrator", *(f"hard less {x}" for x in others)], lines)


def corruptions(rows: list[dict[str, Any]], calibrator: str = _ONE) -> str:
    """A row for each corruption, a column for each severity, in each cell all routings.

    Args:
        rows: of a task.
        calibrator: the only one that is shown.
    """
    cells: dict[str, dict[float | None, list[str]]] = {}
    for routing in ROUTINGS:
        for row in rows:
            if (row["routing"], row["calibrator"]) != (routing, calibrator):
                continue
            if row["kind"] == "shift":
                severity = row["severity"]
                name = row["split"] if severity is None else row["series"]
                errors = cells.setdefault(name, {}).setdefault(severity, [])
                errors.append(f"{np.mean(row['ece']):.3f}".removeprefix("0"))
    found = {severity for of_name in cells.values() for severity in of_name}
    severities: list[float | None] = [None] if None in found else []
    severities += sorted(x for x in found if x is not None)
    head = ["corruption", *("–" if x is None else f"severity {x:g}" for x in severities)]
    lines = [
        [name, *(" / ".join(of_name.get(x, [])) for x in severities)]
        for name, of_name in sorted(cells.items())
    ]
    return _markdown(head, lines)


def draw(found: dict[str, Any]) -> bytes:
    """Mean error by severity: a column of panels for each task, a row for each calibrator.

    Args:
        found: the results.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from calmoe_jax.drawing.style import STYLE, legend_below, look, png

    with matplotlib.rc_context(STYLE):
        tasks = found["tasks"]
        figure = Figure(figsize=(3.8 * len(tasks), 2.6 * len(CALIBRATORS)))
        axes = figure.subplots(
            len(CALIBRATORS), len(tasks), squeeze=False, sharex="col", sharey=True
        )
        for line, calibrator in zip(axes, CALIBRATORS, strict=True):
            for ax, (task, rows) in zip(line, tasks.items(), strict=True):
                for i, routing in enumerate(ROUTINGS):
                    some = of_combination(rows, routing, calibrator)
                    label = routing.replace("_", "-")
                    ax.plot(*by_severity(some, "ece"), label=label, **look(i + 1))
                for i, routing in enumerate(ROUTINGS):
                    some = of_combination(rows, routing, calibrator)
                    label = None if i else "noise floor of each"
                    ax.plot(*by_severity(some, "floor"), color="#999999", lw=0.8, label=label)
                for level in (KEPT, LOST):
                    ax.axhline(level, color="#999999", lw=0.8, ls=":")
                ax.set_title(f"{task}, {WORDS[calibrator]}", fontsize=10)
            line[0].set_ylabel("top-label ECE")
        for ax in axes[-1]:
            ax.set_xlabel("severity (0: no shift)")
        axes[0, 0].set_ylim(bottom=0)  # of all panels
        figure.suptitle("Calibration under corruptions by routing, mean over corruptions", y=0.99)
        legend_below(figure, axes.ravel())
        return png(figure)


def of_combination(
    rows: list[dict[str, Any]], routing: str, calibrator: str
) -> list[dict[str, Any]]:
    """The rows of one routing and calibrator.

    Args:
        rows: of a task.
        routing: dense, top_k or hard.
        calibrator: one of `CALIBRATORS`.
    """
    return [r for r in rows if (r["routing"], r["calibrator"]) == (routing, calibrator)]


def by_severity(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Severities, 0 in distribution, and the means of a figure over corruptions and seeds.

    Args:
        rows: of one routing and calibrator.
        name: of the figure.
    """
    points: dict[float, list[float]] = {}
    for row in rows:
        if row["kind"] == "id" or row["severity"] is not None:
            severity = 0.0 if row["kind"] == "id" else row["severity"]
            points.setdefault(severity, []).append(float(np.mean(row[name])))
    xs = sorted(points)
    return xs, [float(np.mean(points[x])) for x in xs]
