"""A one-line verdict in plain words for each method."""

from typing import Literal, NamedTuple

from calmoe_jax.study.records import SHIFT_MEAN, Comparison
from calmoe_jax.study.report.summary import Summary

# Calibration errors that count as a small change, and as a large error.
_SMALL, _LARGE = 0.01, 0.05

Tone = Literal["reference", "better", "worse", "mixed", "same"]


class Verdict(NamedTuple):
    """The verdict on a method for this task.

    Attributes:
        method: name of the method.
        tone: kind of verdict, which sets the colour of the line.
        headline: a few words.
        detail: the numbers behind it.
    """

    method: str
    tone: Tone
    headline: str
    detail: str


def verdicts(summary: Summary) -> list[Verdict]:
    """A verdict for each method, the reference first.

    Args:
        summary: summary of a run.
    """
    order = sorted(summary.methods, key=lambda name: name != summary.results.reference)
    return [_verdict(summary, method) for method in order]


def _verdict(summary: Summary, method: str) -> Verdict:
    if not summary.splits("shift"):
        return Verdict(
            method, "reference", "No shift to judge by", "the task has no shifted split."
        )
    ece = summary.comparison(method, "none", SHIFT_MEAN, "ece")
    accuracy = summary.comparison(method, "none", SHIFT_MEAN, "accuracy")
    if ece is None or accuracy is None:
        return Verdict(method, "reference", _own_headline(summary, method), _own(summary, method))
    return _compared(summary, ece, accuracy)


def _compared(summary: Summary, ece: Comparison, accuracy: Comparison) -> Verdict:
    method, reference = ece.method, summary.results.reference
    tone, headline = _headline(reference, _sign(ece), _sign(accuracy))
    words = [
        f"ECE under shift {ece.value:.3f}, {reference} {ece.reference:.3f} ({_interval(ece)})",
        f"accuracy {_interval(accuracy, percent=True)}",
        *_gap_words(summary, method),
    ]
    scaled = summary.comparison(method, "temperature", SHIFT_MEAN, "ece")
    if scaled is not None:
        words.append(
            "once both have a temperature fitted in distribution: "
            f"{_scaled_words(_sign(ece), _sign(scaled))} "
            f"({scaled.value:.3f} against {scaled.reference:.3f}, {_interval(scaled)})"
        )
    return Verdict(method, tone, headline, "; ".join(words) + ".")


def _scaled_words(before: int, after: int) -> str:
    """How a method compares after scaling, given how it compared before."""
    still = "still " if before == after else ""
    return {-1: f"{still}better", 0: "no clear difference", 1: f"{still}worse"}[after]


def _headline(reference: str, ece_sign: int, accuracy_sign: int) -> tuple[Tone, str]:
    calibrated = f"calibrated under shift than {reference}"
    alike = f"accurate than {reference}, calibrated alike under shift"
    cases: dict[tuple[int, int], tuple[Tone, str]] = {
        (-1, -1): ("mixed", f"Better {calibrated}, but less accurate"),
        (-1, 0): ("better", f"Better {calibrated}"),
        (-1, 1): ("better", f"Better {calibrated}"),
        (0, -1): ("worse", f"Less {alike}"),
        (0, 0): ("same", f"No clear difference from {reference} under shift"),
        (0, 1): ("better", f"More {alike}"),
        (1, -1): ("worse", f"Worse than {reference} here"),
        (1, 0): ("worse", f"Worse than {reference} here"),
        (1, 1): ("mixed", f"Worse {calibrated}, but more accurate"),
    }
    return cases[ece_sign, accuracy_sign]


def _own_headline(summary: Summary, method: str) -> str:
    reference = summary.results.reference
    if method == reference:
        role = "The reference"
    elif reference in summary.methods:
        role = f"Not compared with {reference}"
    else:
        role = f"Not compared: {reference} is not in this run"
    inside = summary.spread(method, "none", summary.splits("id"), "ece")
    outside = summary.spread(method, "none", summary.splits("shift"), "ece")
    if outside is None:
        return f"{role}. Its calibration under shift was not measured"
    if inside is None:
        well = "well" if outside.mean <= _LARGE else "poorly"
        return f"{role}. It is {well} calibrated under shift"
    if inside.mean > _LARGE:
        return f"{role}. It is poorly calibrated even in distribution"
    if outside.mean <= inside.mean + _SMALL:
        return f"{role}. It stays about as well calibrated under shift"
    if outside.mean <= _LARGE:
        return f"{role}. It is somewhat less well calibrated under shift"
    return f"{role}. It is poorly calibrated under shift"


def _own(summary: Summary, method: str) -> str:
    shifts = summary.splits("shift")
    words = []
    for name, splits in (("in distribution", summary.splits("id")), ("under shift", shifts)):
        ece = summary.spread(method, "none", splits, "ece")
        accuracy = summary.spread(method, "none", splits, "accuracy")
        if ece is not None and accuracy is not None:
            words.append(f"{name}: ECE {ece.mean:.3f}, accuracy {accuracy.mean:.1%}")
    words += _gap_words(summary, method)
    scaled = summary.spread(method, "temperature", shifts, "ece")
    if scaled is not None:
        words.append(
            f"with a temperature fitted in distribution, ECE under shift is {scaled.mean:.3f}"
        )
    return "; ".join(words) + "." if words else "nothing was measured without a calibrator."


def _gap_words(summary: Summary, method: str) -> list[str]:
    gap = summary.spread(method, "none", summary.splits("shift"), "confidence_gap")
    if gap is None:
        return []
    points = 100 * gap.mean
    if abs(points) < 0.5:
        return ["on average its confidence equals its accuracy under shift"]
    side = "over" if points > 0 else "under"
    return [f"it is {side}-confident by {abs(points):.1f} points under shift"]


def _sign(line: Comparison) -> int:
    """-1 or 1 if the whole interval is on one side of 0, otherwise 0."""
    return -1 if line.high < 0 else 1 if line.low > 0 else 0


def _interval(line: Comparison, percent: bool = False) -> str:
    scale, digits = (100, 1) if percent else (1, 3)
    difference, low, high = (
        f"{scale * value:+.{digits}f}" for value in (line.difference, line.low, line.high)
    )
    unit = " points" if percent else ""
    return f"{difference}{unit}, 95 % interval {low} to {high}"
