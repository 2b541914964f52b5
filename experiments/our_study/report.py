"""Tables and a picture of the study, from its committed results.

`python -m experiments.our_study.report [--results DIR]` writes `README.md` and `frontier.png` into
the folder of the results, from nothing else than the results in it.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from calmoe_jax._files import write_whole
from experiments.our_study.command import ROUTINGS, read

# Calibrators of the tables of a task; all are in the summary.
SHOWN = ("none", "temperature", "per_expert", "safe", "bold", "dirichlet")
REFERENCE = ("dense", "vanilla", "none")
_LEVEL = 0.95


class Row(NamedTuple):
    """A combination on the splits of one kind of a task; metrics by name, an array of seeds each.

    Attributes:
        task: name of the task.
        routing: dense, top_k or hard.
        method: name of the method.
        calibrator: name of the calibrator.
        kind: id, shift or hard.
        metrics: values of every seed.
    """

    task: str
    routing: str
    method: str
    calibrator: str
    kind: str
    metrics: dict[str, np.ndarray]

    @property
    def combination(self) -> tuple[str, str, str]:
        """Routing, method and calibrator."""
        return self.routing, self.method, self.calibrator


# A combination, its accuracy and its calibration error.
Point = tuple[tuple[str, ...], float, float]


class Compared(NamedTuple):
    """A combination against a reference, over tasks.

    Attributes:
        combination: routing, method and calibrator.
        ece: mean over tasks of the calibration error under shift.
        rank: mean over tasks of its rank among those compared, 1 for the least error.
        difference: mean over tasks of its error less that of the reference.
        low: lower end of the 95 % interval of the difference, by Student's t over tasks.
        high: upper end.
        accuracy: mean difference of accuracy under shift.
        nll: mean difference of the log loss under shift; NaN where there is none.
        id_ece: mean difference of the calibration error in distribution.
        worst: largest difference of a task, and its name.
    """

    combination: tuple[str, str, str]
    ece: float
    rank: float
    difference: float
    low: float
    high: float
    accuracy: float
    nll: float
    id_ece: float
    worst: tuple[float, str]


def read_rows(folder: Path) -> list[Row]:
    """All rows of all tasks of a folder."""
    rows = []
    for path in sorted(folder.glob("*.json.gz")):
        for cell in read(path)["cells"]:
            for row in cell["rows"]:
                metrics = {
                    name: np.asarray(value, float)
                    for name, value in row.items()
                    if isinstance(value, list)
                }
                where = cell["task"], cell["routing"], cell["method"]
                rows.append(Row(*where, row["calibrator"], row["kind"], metrics))
    return rows


def compare(
    rows: Iterable[Row],
    chosen: Callable[[tuple[str, str, str]], bool],
    reference: tuple[str, str, str] = REFERENCE,
) -> list[Compared]:
    """Compares combinations that every task has; the least error first.

    Args:
        rows: of the study.
        chosen: which combinations.
        reference: what they are compared with.
    """
    table: dict[str, dict[tuple[str, str, str], dict[str, Row]]] = {}
    for row in rows:
        if chosen(row.combination) or row.combination == reference:
            table.setdefault(row.task, {}).setdefault(row.combination, {})[row.kind] = row
    common = set.intersection(*(set(of_task) for of_task in table.values()))
    ordered = sorted(common)
    errors = np.array(
        [[_mean(of_task[c]["shift"], "ece") for c in ordered] for of_task in table.values()]
    )
    ranks = stats.rankdata(errors, axis=1)
    found = []
    for i, combination in enumerate(ordered):
        if not chosen(combination):
            continue

        def differences(kind: str, metric: str, at: tuple[str, str, str]) -> np.ndarray:
            pairs = ((t[at][kind], t[reference][kind]) for t in table.values())
            return np.array([_mean(a, metric) - _mean(b, metric) for a, b in pairs])

        of_shift = differences("shift", "ece", combination)
        low, high = _interval(of_shift)
        at_worst = int(of_shift.argmax())
        found.append(
            Compared(
                combination,
                float(errors[:, i].mean()),
                float(ranks[:, i].mean()),
                float(of_shift.mean()),
                low,
                high,
                float(differences("shift", "accuracy", combination).mean()),
                float(differences("shift", "nll", combination).mean()),
                float(differences("id", "ece", combination).mean()),
                (float(of_shift[at_worst]), list(table)[at_worst]),
            )
        )
    return sorted(found, key=lambda c: c.ece)


def _mean(row: Row, metric: str) -> float:
    return float(row.metrics[metric].mean()) if metric in row.metrics else float("nan")


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of a mean; NaN for a single value."""
    if len(values) < 2:
        return float("nan"), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * error)
    return float(values.mean()) - half, float(values.mean()) + half


def comparison_table(found: list[Compared], show: Callable[[tuple[str, str, str]], str]) -> str:
    """A table of comparisons in Markdown."""
    lines = [
        "| | ECE under shift | mean rank | difference | 95 % interval over tasks | accuracy | NLL "
        "| ECE in distribution | largest difference of a task |",
        "|---" * 9 + "|",
    ]
    for c in found:
        nll = "–" if np.isnan(c.nll) else f"{c.nll:+.3f}"
        interval = "–" if np.isnan(c.low) else f"{c.low:+.3f} to {c.high:+.3f}"
        lines.append(
            f"| {show(c.combination)} | {c.ece:.3f} | {c.rank:.1f} | {c.difference:+.3f} | "
            f"{interval} | {c.accuracy:+.3f} | {nll} | {c.id_ece:+.3f} | "
            f"{c.worst[0]:+.3f} ({c.worst[1]}) |"
        )
    return "\n".join(lines)


def task_table(rows: list[Row], task: str) -> str:
    """A row for each routing and method of a task: accuracy and errors by calibrator."""
    at = {(r.combination, r.kind): r for r in rows if r.task == task}
    methods = dict.fromkeys(r.combination[:2] for r in rows if r.task == task)
    lines = [
        "| routing | method | accuracy: in distribution, shift | NLL under shift | gap under shift "
        "| ECE in distribution | " + " | ".join(f"shift, {c}" for c in SHOWN) + " | hard |",
        "|---" * (7 + len(SHOWN)) + "|",
    ]
    for routing, method in methods:
        plain, inside = (at[(routing, method, "none"), kind] for kind in ("shift", "id"))
        errors = [_with_spread(at[(routing, method, c), "shift"].metrics["ece"]) for c in SHOWN]
        hard = at.get(((routing, method, "none"), "hard"))
        shown_hard = "–" if hard is None else f"{_mean(hard, 'ece'):.3f}"
        nll = _mean(plain, "nll")
        lines.append(
            f"| {routing} | {method} | {_mean(inside, 'accuracy'):.3f}, "
            f"{_mean(plain, 'accuracy'):.3f} | {'inf' if np.isnan(nll) else f'{nll:.3f}'} | "
            f"{_mean(plain, 'confidence_gap'):+.3f} | {_mean(inside, 'ece'):.3f} | "
            f"{' | '.join(errors)} | {shown_hard} |"
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
            point = _mean(r, "accuracy"), _mean(r, "ece")
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

    from calmoe_jax.drawing.style import COLOURS, MARKERS, STYLE, png

    names = ("none", "temperature", "safe", "bold")
    points = frontier(rows, names)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        ax = figure.subplots()
        for (i, calibrator), (j, routing) in itertools.product(
            enumerate(names), enumerate(ROUTINGS)
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
        ax.legend(fontsize=8, ncol=2)
        return png(figure)


def page(rows: list[Row]) -> str:
    """The whole page."""
    tasks = sorted({r.task for r in rows})
    seeds = max(len(r.metrics["ece"]) for r in rows)
    parts = [
        "# Every objective, routing and calibrator on every task\n",
        f"Written by `python -m experiments.our_study.report` from the results beside it; "
        f"{len(tasks)} tasks ({', '.join(tasks)}), {seeds} seeds, splits equal within a task and "
        "tasks equal. The reference is the plain mixture with dense routing as trained; intervals "
        f"are Student's over {len(tasks)} tasks, so they are wide. All figures are of targets "
        "whose labels were used for scoring only.\n",
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
    for title, chosen, show in sections:
        parts.append(f"## {title}\n\n{comparison_table(compare(rows, chosen), show)}\n")
    parts.append("![Accuracy against calibration error](frontier.png)\n")
    for task in tasks:
        parts.append(f"## {task}\n\n{task_table(rows, task)}\n")
    return "\n".join(parts)


def main() -> None:
    """Writes page and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent)
    folder = parser.parse_args().results
    rows = read_rows(folder)
    write_whole(folder / "README.md", page(rows))
    write_whole(folder / "frontier.png", draw(rows))


if __name__ == "__main__":
    main()
