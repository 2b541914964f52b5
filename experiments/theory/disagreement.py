"""(c) Experts calibrated on their views must agree, or the mixture is miscalibrated.

`E <F, e_Y - F> = E sum_k r_k |f_k - F|^2` if every expert is calibrated on its routing-weighted
view, and so the sum of the classwise calibration errors is at least `2 E[disagreement]`.

First exactly, on random finite populations: what each expert says is the frequency on its view.
Where the premise fails the identity does too: weights that do not sum to one; and where the
condition differs so does the bound: the error of the top label alone can be 0.

Then on trained mixtures, their experts calibrated on half of the held-out examples, by the library.
For any data the identity's residual is `sum_k E r_k <f_k, e_Y - f_k>`, how far experts are from
calibration on their views. On the half that was fitted it shows what the calibrator cannot reach;
on the other half, besides, that it was fitted to finitely many examples.
"""

import random
from fractions import Fraction as F
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from calmoe_jax.calibration import calibration_error, classwise_bins
from calmoe_jax.drawing.style import look
from experiments.theory.mixtures import (
    CALIBRATORS,
    EPOCHS,
    SEEDS,
    Pool,
    calibrated,
    mixed,
    trained_pool,
)

TITLE = "Calibrated experts that disagree make a miscalibrated mixture"
POPULATIONS = 60
TASKS = ("portal", "digits")
_SIGNALS = 3  # values of what each expert sees

# mass; routing weights; experts' predictions, one a class; chances of the classes
Row = tuple[F, tuple[F, ...], tuple[tuple[F, ...], ...], tuple[F, ...]]


def random_population(
    seed: int, *, experts: int, classes: int, agree: bool = False, total: F = F(1)
) -> list[Row]:
    """A random population whose experts are calibrated on their views, in the canonical sense.

    Args:
        seed: of the random numbers.
        experts: number of experts.
        classes: number of classes.
        agree: whether all experts see the same.
        total: of the routing weights of an example.
    """
    rng = random.Random(seed)

    def shares(number: int) -> tuple[F, ...]:
        sizes = [rng.randint(1, 9) for _ in range(number)]
        return tuple(F(size, sum(sizes)) for size in sizes)

    drawn = []
    for mass in shares(12):
        seen = [rng.randrange(_SIGNALS) for _ in range(experts)]
        seen = [seen[0]] * experts if agree else seen
        drawn.append((mass, tuple(total * r for r in shares(experts)), seen, shares(classes)))
    if agree:  # what all see decides the routing as well, so that all have one view
        first = {seen[0]: r for _, r, seen, _ in drawn}
        drawn = [(mass, first[seen[0]], seen, chances) for mass, _, seen, chances in drawn]

    def says(k: int, signal: int) -> tuple[F, ...]:
        view = [(mass * r[k], chances) for mass, r, seen, chances in drawn if seen[k] == signal]
        held = sum(v for v, _ in view)
        return tuple(sum(v * c[j] for v, c in view) / held for j in range(classes))

    return [
        (mass, r, tuple(says(k, signal) for k, signal in enumerate(seen)), chances)
        for mass, r, seen, chances in drawn
    ]


def aggregate(row: Row) -> tuple[F, ...]:
    """`F = sum_k r_k f_k`.

    Args:
        row: of a population.
    """
    _, routing, experts, chances = row
    return tuple(
        sum(r * f[c] for r, f in zip(routing, experts, strict=True)) for c in range(len(chances))
    )


def identity(rows: list[Row]) -> tuple[F, F]:
    """`E <F, e_Y - F>`, and `E sum_k r_k |f_k - F|^2`.

    Args:
        rows: a population.
    """
    left = right = F(0)
    for row in rows:
        mass, routing, experts, chances = row
        told = aggregate(row)
        left += mass * sum(f * (y - f) for f, y in zip(told, chances, strict=True))
        for r, expert in zip(routing, experts, strict=True):
            right += mass * r * sum((f - g) ** 2 for f, g in zip(expert, told, strict=True))
    return left, right


def _error_by_level(pairs: list[tuple[F, F, F]]) -> F:
    """`E |P(event | level) - level|` of masses, levels and chances."""
    gaps: dict[F, F] = {}
    for mass, level, chance in pairs:
        gaps[level] = gaps.get(level, F(0)) + mass * (chance - level)
    return sum((abs(gap) for gap in gaps.values()), F(0))


def classwise_error(rows: list[Row]) -> F:
    """The sum over the classes of each one's calibration error.

    Args:
        rows: a population.
    """
    classes = range(len(rows[0][3]))
    told = [aggregate(row) for row in rows]
    return sum(
        (_error_by_level([(row[0], f[c], row[3][c]) for row, f in zip(rows, told, strict=True)])
         for c in classes),
        F(0),
    )  # fmt: skip


def top_label_error(rows: list[Row]) -> F:
    """Calibration error of the confidence in the predicted class.

    Args:
        rows: a population.
    """
    pairs = []
    for row in rows:
        told = aggregate(row)
        best = told.index(max(told))
        pairs.append((row[0], told[best], row[3][best]))
    return _error_by_level(pairs)


def disagreeing_below_the_top() -> list[Row]:
    """Two calibrated experts of three classes, who differ about the less likely two alone."""
    half, quarter, eighth = F(1, 2), F(1, 4), F(1, 8)
    rows = []
    for first in (1, -1):
        for second in (1, -1):
            said = tuple(
                (half, quarter + side * eighth, quarter - side * eighth) for side in (first, second)
            )
            tilt = quarter * F(first + second, 2)
            rows.append((quarter, (half, half), said, (half, quarter + tilt, quarter - tilt)))
    return rows


def exact_part(populations: int = POPULATIONS) -> dict[str, Any]:
    """The identity and the bound on random populations, and where they do not apply.

    Args:
        populations: number of each kind.
    """
    points, held, bounded, agreeing = [], 0, 0, 0
    kinds = ((2, 2), (3, 2), (2, 3), (4, 4))
    for experts, classes in kinds:
        for seed in range(populations // len(kinds)):
            rows = random_population(seed, experts=experts, classes=classes)
            left, right = identity(rows)
            errors = classwise_error(rows)
            held += left == right
            bounded += errors >= 2 * right
            points.append([experts, classes, str(right), str(errors)])
            same = random_population(seed, experts=experts, classes=classes, agree=True)
            agreeing += identity(same)[1] == 0 == classwise_error(same)
    unnormalised = random_population(0, experts=2, classes=2, total=F(4, 5))
    below = disagreeing_below_the_top()
    return {
        "populations": len(points),
        "identity_holds": held,
        "bound_holds": bounded,
        "agreeing_without_error": agreeing,
        "points": points,
        "weights_of_sum_0.8": [str(x) for x in identity(unnormalised)],
        "top_label": {
            "error": str(top_label_error(below)),
            "disagreement": str(identity(below)[1]),
            "classwise": str(classwise_error(below)),
        },
    }


def clustered_mean(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """A mean and its standard error, of independent clusters.

    Args:
        values: of the examples.
        clusters: of the examples, numbered.
    """
    sums = np.bincount(clusters, values - values.mean())
    sums = sums[np.bincount(clusters) > 0]
    correction = len(sums) / (len(sums) - 1)
    return float(values.mean()), float(np.sqrt(correction * np.sum(sums**2)) / len(values))


def measured(pool: Pool, calibrator: str) -> list[dict[str, Any]]:
    """The identity of each seed, on the halves that were fitted and on the others.

    Args:
        pool: predictions of trained mixtures.
        calibrator: of the experts on their views.
    """
    probs = np.float64(calibrated(pool, calibrator))
    true = np.eye(probs.shape[-1])[pool.labels]
    rows = np.arange(len(pool.labels))
    lines = []
    for seed, routing in enumerate(np.float64(pool.routing)):
        line: dict[str, Any] = {"seed": seed}
        for where, half in (("fitted", pool.half), ("other", 1 - pool.half)):
            experts = probs[half, seed, rows]
            told = mixed(experts, routing)
            distance = np.sum((experts - told[:, None]) ** 2, axis=-1)
            left = np.sum(told * (true - told), axis=-1)
            right = np.sum(routing * distance, axis=-1)
            view = np.sum(routing * np.sum(experts * (true[:, None] - experts), axis=-1), axis=-1)
            residual, error = clustered_mean(left - right, pool.clusters)
            bins = classwise_bins(np.float32(told), pool.labels)
            line[where] = {
                "aggregate": float(left.mean()),
                "disagreement": float(right.mean()),
                "residual": residual,
                "standard_error": error,
                "views": float(view.mean()),
                "classwise_error": float(np.sum(np.float64(calibration_error(bins)))),
            }
        lines.append(line)
    return lines


def compute(
    *,
    tasks: tuple[str, ...] = TASKS,
    seeds: int = SEEDS,
    epochs: dict[str, int] = EPOCHS,
    populations: int = POPULATIONS,
) -> dict[str, Any]:
    """Exact populations, and trained mixtures.

    Args:
        tasks: embedded tasks.
        seeds: mixtures of each.
        epochs: passes over the training examples, by task.
        populations: number of random populations.
    """
    trained = {}
    for name in tqdm(tasks, unit="task", disable=None, leave=False, desc="(c)"):
        pool = trained_pool(name, "dense", epochs=epochs[name], seeds=seeds)
        trained[name] = {calibrator: measured(pool, calibrator) for calibrator in CALIBRATORS}
    return {"exact": exact_part(populations), "trained": trained}


def draw(found: dict[str, Any]) -> Figure:
    """Error against disagreement, exact and trained, and the identity's residuals.

    Args:
        found: as from `compute`.
    """
    figure = Figure(figsize=(12.4, 4.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    exact = found["exact"]
    kinds = dict.fromkeys((x[0], x[1]) for x in exact["points"])
    for i, kind in enumerate(kinds):
        some = [x for x in exact["points"] if (x[0], x[1]) == kind]
        left.plot(
            [2 * float(F(x[2])) for x in some], [float(F(x[3])) for x in some],
            label=f"{kind[0]} experts, {kind[1]} classes", ms=5, **(look(i) | {"ls": ""}),
        )  # fmt: skip
    reach = max(2 * float(F(x[2])) for x in exact["points"])
    left.plot([1e-3, reach], [1e-3, reach], color="#7F7F7F", lw=1)
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_ylim(1e-3, 1)
    counts = [exact[k] for k in ("identity_holds", "bound_holds", "populations")]
    left.set_title("Exact: identity in {}, bound in\n{} of {} random populations".format(*counts))
    left.set_xlabel("2 E[disagreement]")
    left.set_ylabel("sum of classwise calibration errors")
    left.legend(frameon=False, fontsize=8.5, loc="lower right")
    reach, place, names = 0.0, 0, []
    for i, (task, kinds_of) in enumerate(found["trained"].items()):
        for j, (calibrator, lines) in enumerate(kinds_of.items()):
            style = look(1 + j) | {"ls": "", "mfc": look(1 + j)["color"] if i == 0 else "none"}
            x = [2 * line["other"]["disagreement"] for line in lines]
            y = [line["other"]["classwise_error"] for line in lines]
            middle.plot(x, y, label=f"{task}, {calibrator}", ms=7, **style)
            reach = max(reach, *x)
            for line in lines:
                for shift, where, mark in ((-0.15, "fitted", "none"), (0.15, "other", None)):
                    one = line[where]
                    right.errorbar(
                        place + shift, one["residual"], 1.96 * one["standard_error"],
                        fmt=style["marker"], color=style["color"], mfc=mark or style["color"], ms=6,
                        capsize=2,
                    )  # fmt: skip
                place += 1
            names.append((place - 1 - (len(lines) - 1) / 2, f"{calibrator}\n{task}"))
            place += 1
    middle.plot([0, reach], [0, reach], color="#7F7F7F", lw=1)
    middle.set_title("Trained mixtures, examples that\nno calibrator has seen")
    middle.set_xlabel("2 E[disagreement]")
    middle.set_ylabel("sum of classwise calibration errors, binned")
    middle.set_ylim(0, 0.27)
    middle.legend(frameon=False, fontsize=8.5, ncol=2, loc="upper center")
    right.axhline(0, color="#7F7F7F", lw=1)
    right.set_xticks([x for x, _ in names], [name for _, name in names], fontsize=8, rotation=30)
    right.grid(axis="x", visible=False)
    right.set_title("Residual of the identity: hollow\nwhere fitted, full on other examples")
    right.set_ylabel("E⟨F, e_Y − F⟩ − E[disagreement], 95 %")
    figure.suptitle(TITLE)
    return figure
