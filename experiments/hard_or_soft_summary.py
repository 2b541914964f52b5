"""The figures of `experiments.hard_or_soft` over shifts and seeds, and what they say in words."""

from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.our_study.command import ROUTINGS

CALIBRATORS = ("none", "temperature", "per_expert")
KEPT, LOST = 0.05, 0.15
DIGITS = 4
_LEVEL = 0.95


class Difference(NamedTuple):
    """Hard routing's error less that of another, on the same shifts.

    Attributes:
        mean: over seeds, of means over shifts.
        low: lower end of the 95 % interval over seeds, by Student's t; NaN of one seed.
        high: upper end.
        seeds: number of seeds.
    """

    mean: float
    low: float
    high: float
    seeds: int


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each routing and calibrator: means over shifts and seeds, and shares of shifts.

    Of a share under an error the mean over seeds counts, of the share that is within the noise
    floor every shift of every seed, since the floor is that of one seed's confidences.

    Args:
        rows: of a task, by `hard_or_soft.rows_of`.
    """
    found = []
    for routing in ROUTINGS:
        for calibrator in CALIBRATORS:
            some = [r for r in rows if (r["routing"], r["calibrator"]) == (routing, calibrator)]
            shifts = [r for r in some if r["kind"] == "shift"]
            inside = [r for r in some if r["kind"] == "id"]
            errors = np.array([r["ece"] for r in shifts])
            floors = np.array([r["floor_high"] for r in shifts])
            means = {
                name: _mean(shifts, name)
                for name in (
                    "ece", "floor", "floor_high", "accuracy", "gap_before", "gap", "moved",
                    "changed", "remainder", "size", "unseen",
                )
            }  # fmt: skip
            found.append(
                {
                    "routing": routing,
                    "calibrator": calibrator,
                    "shifts": len(shifts),
                    "by_seed": np.round(errors.mean(axis=0), DIGITS).tolist(),
                    "kept": _share(errors.mean(axis=1) < KEPT),
                    "lost": _share(errors.mean(axis=1) > LOST),
                    "within_floor": _share(errors <= floors),
                    **means,
                    "id_ece": _mean(inside, "ece"),
                    "id_floor": _mean(inside, "floor"),
                    "id_size": _mean(inside, "size"),
                }
            )
    return found


def _mean(rows: list[dict[str, Any]], name: str) -> float:
    return round(float(np.mean([r[name] for r in rows])), DIGITS)


def _share(which: np.ndarray) -> float:
    return round(float(which.mean()), DIGITS)


def difference(summary: list[dict[str, Any]], calibrator: str, other: str = "dense") -> Difference:
    """Hard routing's mean error over shifts less that of another routing, seed by seed.

    The shifts, and the seeds' numbers, are the same; the interval is over seeds alone, the shifts
    are taken as they are.

    Args:
        summary: of a task.
        calibrator: of both.
        other: the other routing.
    """
    at = {(r["routing"], r["calibrator"]): np.array(r["by_seed"]) for r in summary}
    values = at["hard", calibrator] - at[other, calibrator]
    if len(values) < 2:
        return Difference(float(values[0]), float("nan"), float("nan"), 1)
    mean = float(values.mean())
    error = values.std(ddof=1) / np.sqrt(len(values))
    half = float(error * stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1))
    return Difference(mean, mean - half, mean + half, len(values))


def verdict(summary: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What the figures say of the prediction, in words, task by task.

    Args:
        summary: by task.
    """
    said = []
    for task, rows in summary.items():
        at = {(r["routing"], r["calibrator"]): r for r in rows}
        hard, dense = at["hard", "per_expert"], at["dense", "per_expert"]
        one, soft = at["hard", "temperature"], at["dense", "temperature"]
        holds = hard["ece"] < KEPT and dense["ece"] > LOST
        best = min(r["ece"] for r in rows)
        said.append(
            f"{task}: the prediction {'holds' if holds else 'does not hold'}. With calibrated "
            f"experts the mean ECE over {hard['shifts']} shifts is {hard['ece']:.3f} with hard "
            f"and {dense['ece']:.3f} with dense routing, {_compared(rows, 'per_expert')}; with one "
            f"temperature each, {one['ece']:.3f} and {soft['ece']:.3f}, "
            f"{_compared(rows, 'temperature')}; the least of all nine is {best:.3f}. Predictions "
            f"as sure as these but calibrated would have {hard['floor']:.3f} and "
            f"{dense['floor']:.3f}. Under {KEPT:.0%} with calibrated experts hard routing stays on "
            f"{hard['kept']:.0%} of the shifts, dense on {dense['kept']:.0%}; within what "
            f"calibrated predictions have in 95 of 100 cases on {hard['within_floor']:.0%} and "
            f"{dense['within_floor']:.0%}. Hard routing's gap goes from {hard['gap_before']:+.3f} "
            f"in distribution to {hard['gap']:+.3f}; of the change {hard['moved']:+.3f} is because "
            f"configurations move, which theory covers, {hard['changed']:+.3f} because "
            f"P(right | S) changes, which it does not, and {hard['remainder']:+.3f} in "
            "configurations not seen before."
        )
    return said


def _compared(rows: list[dict[str, Any]], calibrator: str) -> str:
    found = difference(rows, calibrator)
    which = "not beyond the interval"
    if found.low > 0:
        which = "hard is worse"
    if found.high < 0:
        which = "hard is better"
    return (
        f"hard less dense {interval(found)} (paired; 95 %, Student's t over {found.seeds} seeds: "
        f"{which})"
    )


def interval(found: Difference) -> str:
    """A difference and its interval: `+0.011 [-0.002, +0.024]`.

    Args:
        found: the difference.
    """
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
