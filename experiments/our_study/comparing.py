"""Combinations of routing, method and calibrator compared over tasks, from the study's rows."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.our_study.command import read

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
    """All rows of all tasks of a folder; of a task without shifts the hard subset counts as one.

    Args:
        folder: with a file for each task.
    """
    rows = []
    for path in sorted(folder.glob("*.json.gz")):
        cells = read(path)["cells"]
        shifted = any(row["kind"] == "shift" for cell in cells for row in cell["rows"])
        for cell in cells:
            for row in cell["rows"]:
                metrics = {
                    name: np.asarray(value, float)
                    for name, value in row.items()
                    if isinstance(value, list)
                }
                where = cell["task"], cell["routing"], cell["method"]
                kind = row["kind"] if shifted or row["kind"] != "hard" else "shift"
                rows.append(Row(*where, row["calibrator"], kind, metrics))
    return rows


def compare(
    rows: Iterable[Row],
    chosen: Callable[[tuple[str, str, str]], bool],
    reference: tuple[str, str, str] = REFERENCE,
) -> list[Compared]:
    """Compares combinations that every task has; the least error first; ranks are among them.

    Args:
        rows: of the study.
        chosen: which combinations.
        reference: what they are compared with.
    """
    table: dict[str, dict[tuple[str, str, str], dict[str, Row]]] = {}
    for row in rows:
        if chosen(row.combination) or row.combination == reference:
            table.setdefault(row.task, {}).setdefault(row.combination, {})[row.kind] = row
    common = set.intersection(*(set(of_task) for of_task in table.values())) if table else set()
    ordered = sorted(c for c in common if chosen(c))
    errors = np.array(
        [[mean_of(of_task[c]["shift"], "ece") for c in ordered] for of_task in table.values()]
    )
    ranks = stats.rankdata(errors, axis=1)
    found = []
    if reference not in common:
        return []
    for i, combination in enumerate(ordered):

        def differences(kind: str, metric: str, at: tuple[str, str, str]) -> np.ndarray:
            pairs = ((t[at][kind], t[reference][kind]) for t in table.values())
            return np.array([mean_of(a, metric) - mean_of(b, metric) for a, b in pairs])

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


def on_hard(
    rows: Iterable[Row], combination: tuple[str, str, str], reference: tuple[str, str, str]
) -> dict[str, float]:
    """A combination's error less that of another on the hard subset of each task that has one.

    Args:
        rows: of the study.
        combination: one.
        reference: the other.
    """
    errors = {
        (r.task, r.combination): mean_of(r, "ece")
        for r in rows
        if r.kind == "hard" and r.combination in (combination, reference)
    }
    return {
        task: errors[task, combination] - error
        for (task, which), error in errors.items()
        if which == reference and (task, combination) in errors
    }


def mean_of(row: Row, metric: str) -> float:
    """A metric's mean over seeds; NaN where the row has none.

    Args:
        row: of a combination.
        metric: name of the metric.
    """
    return float(row.metrics[metric].mean()) if metric in row.metrics else float("nan")


def _interval(values: np.ndarray) -> tuple[float, float]:
    """Student's interval of a mean; NaN for a single value."""
    if len(values) < 2:
        return float("nan"), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * error)
    return float(values.mean()) - half, float(values.mean()) + half
