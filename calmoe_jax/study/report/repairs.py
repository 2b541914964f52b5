"""What the modes of repair without labels would do: sentences, and the tables behind them."""

import statistics

from calmoe_jax.drawing.elements import (
    Finding,
    Html,
    Row,
    element,
    findings,
    folded,
    joined,
    table,
)
from calmoe_jax.shift.repair import CALIBRATORS, DEFAULT_MODE, MODES
from calmoe_jax.study.records import ShiftFinding
from calmoe_jax.study.report.cells import spread_cell
from calmoe_jax.study.report.summary import Summary

# Also that of files of schema 2: neighbours and seeds, as `bold`, with the seeds' rule of then.
OF_TARGETS = (*CALIBRATORS, "agreement")

_TITLES = {
    "none": "as trained",
    "temperature": "temperature, in distribution",
    "per_expert": "per-expert temperatures",
    "safe": "safe (seeds)",
    "bold": "bold (seeds and neighbours)",
    "agreement": "agreement of neighbours and seeds (an earlier rule)",
    "neighbours": "agreement of neighbours",
    "configuration_balanced": "configuration-balanced",
    "separability": "PAD2",
    "difference_of_confidences": "difference of confidences",
    "average_threshold": "average threshold",
}
_P_VALUES = ("p_value", "load", "confidence", "disagreement")


def repairs(summary: Summary) -> Html:
    """What repair without labels would do, its evidence, and how it compares with other rules.

    Args:
        summary: summary of a run.

    Returns:
        Empty if there is no shifted split, or nothing was fitted on unlabelled examples.
    """
    shifts = summary.splits("shift")
    if not shifts or not summary.results.shifts:
        return Html()
    titles = [_TITLES.get(name, name.replace("_", " ")) for name in summary.calibrators]
    rows = {
        metric: [
            Row(
                summary.title(method),
                [
                    spread_cell(summary.spread(method, calibrator, shifts, metric), metric)
                    for calibrator in summary.calibrators
                ],
                method == summary.results.reference,
            )
            for method in summary.methods
        ]
        for metric in ("ece", "confidence")
    }
    words = (
        "One temperature for each split, from its examples without their labels; no rule makes a "
        "model more confident than the temperature fitted in distribution. Agreement of "
        "neighbours: the less often predicted classes are those of the nearest labelled examples, "
        "the lower the confidence."
    )
    return joined(
        [
            element("h2", "Repair without labels"),
            _advice(summary, shifts),
            *(element("p", line) for line in _limits()),
            element("h3", "ECE under shift"),
            table(titles, rows["ece"]),
            element("h3", "Mean confidence under shift"),
            table(titles, rows["confidence"]),
            element("p", words),
            _decisions(summary),
        ]
    )


def _limits() -> list[str]:
    """What the modes rest on and cannot know."""
    modes = [f"{x.rests_on} {x.cannot_know} {x.measured}" for x in MODES.values()]
    return [*modes, "A few labels of the split certify more than any rule without them."]


def _advice(summary: Summary, shifts: list[str]) -> Html:
    """A line for each method with what the default mode does to it, and what came of it."""
    lines = [_advice_of(summary, method, shifts) for method in summary.methods]
    known = [line for line in lines if line is not None]
    return findings(known) if known else Html()


def _advice_of(summary: Summary, method: str, shifts: list[str]) -> Finding | None:
    def mean(calibrator: str, metric: str) -> str | None:
        spread = summary.spread(method, calibrator, shifts, metric)
        return None if spread is None else f"{spread.mean:.3f}"

    before, after = mean("temperature", "confidence"), mean(DEFAULT_MODE, "confidence")
    if before is None or after is None:
        return None
    does = f"leaves the mean confidence under shift at {after}"
    if before != after:
        does = f"lowers the mean confidence under shift from {before} to {after}"
    said = [
        f"its ECE under shift is {mean(DEFAULT_MODE, 'ece')}, with the temperature in distribution "
        f"{mean('temperature', 'ece')}"
    ]
    if mean("bold", "confidence") is not None:
        said.append(
            f"bold would bring the mean confidence to {mean('bold', 'confidence')}, and the ECE "
            f"to {mean('bold', 'ece')}"
        )
    decided = [x for split in shifts for x in summary.findings(method, split)]
    said.append(f"decisions, by split and seed: {_counted([x.decision for x in decided])}")
    headline = f"{summary.title(method)}: {DEFAULT_MODE} {does}."
    return Finding(headline, f"{'; '.join(said)}.", "reference")


def _decisions(summary: Summary) -> Html:
    rows = [
        Row(f"{summary.title(method)}, {split}", _decision_cells(found))
        for method in summary.methods
        for split in summary.splits()
        if (found := summary.findings(method, split))
    ]
    columns = [
        "p, any difference",
        "p, load",
        "p, confidence",
        "p, disagreement",
        "mean confidence, in distribution's temperature",
        "safe",
        "bold",
        "configuration-balanced: effective share of the held-out examples",
        "decision (number of seeds)",
        "examples, or clusters of them, to label",
    ]
    words = (
        "Permutation test of held-out against unlabelled examples, whole clusters relabelled; "
        "medians over the seeds, of confidences means. Lower confidence: safe does. Label some: "
        "the configuration shifts, or that cannot be tested, and safe sees no reason to lower the "
        "confidence. Keep: neither. Labels: as many as show half of the gap that bold estimates, "
        "or half of .1. The configuration-balanced temperature rests on the share of held-out "
        "examples that look like the split's; below .1, or below 50 examples, on too few."
    )
    return folded(
        "Does the routing configuration shift, and what to do",
        element("p", words),
        table(columns, rows),
    )


def _decision_cells(found: list[ShiftFinding]) -> list[str]:
    confidences = [x.mean_confidence for x in found if x.mean_confidence is not None]
    labels = [x.labels for x in found if x.labels is not None]
    return [
        *(f"{statistics.median(getattr(x, name) for x in found):.3f}" for name in _P_VALUES),
        *(
            f"{statistics.fmean(x[name] for x in confidences):.3f}" if confidences else "–"
            for name in ("temperature", "safe", "bold")
        ),
        f"{statistics.median(x.effective_share for x in found):.2f}",
        _counted([finding.decision for finding in found]),
        f"{statistics.median(labels):.0f}" if labels else "–",
    ]


def _counted(decisions: list[str]) -> str:
    names = sorted(set(decisions), key=lambda name: (-decisions.count(name), name))
    return ", ".join(f"{name.replace('_', ' ')} ({decisions.count(name)})" for name in names)
