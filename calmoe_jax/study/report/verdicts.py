"""One line in plain words for each method, that may well say: worse than vanilla here."""

from typing import Any, Literal, NamedTuple

from calmoe_jax.study.comparison import REFERENCE, SHIFT_MEAN
from calmoe_jax.study.report.summary import Results, comparison, split_names, spread

# Calibration errors that a person would call a small change, and a large error.
_SMALL, _LARGE = 0.01, 0.05

Tone = Literal["reference", "better", "worse", "mixed", "same"]


class Verdict(NamedTuple):
    """What to think of a method on this task.

    Attributes:
        tone: for the colour of the line.
        headline: a few words.
        detail: the figures behind them.
    """

    method: str
    tone: Tone
    headline: str
    detail: str


def verdicts(results: Results) -> list[Verdict]:
    """A verdict for each method, vanilla (the reference) first."""
    methods = list(results["methods"])
    order = sorted(methods, key=lambda name: name != REFERENCE)
    return [_verdict(results, method) for method in order]


def _verdict(results: Results, method: str) -> Verdict:
    shifts = split_names(results, "shift")
    if not shifts:
        return Verdict(
            method, "reference", "No shift to judge by", "the task has no shifted split."
        )
    compared = comparison(results, method, "none", SHIFT_MEAN, "ece")
    if compared is None:
        return Verdict(method, "reference", _own_headline(results, method), _own(results, method))
    accuracy = comparison(results, method, "none", SHIFT_MEAN, "accuracy")
    scaled = comparison(results, method, "temperature", SHIFT_MEAN, "ece")
    assert accuracy is not None
    ece_sign, accuracy_sign = _sign(compared), _sign(accuracy)
    tone, headline = _headline(ece_sign, accuracy_sign)
    parts = [
        f"ECE under shift {compared['value']:.3f}, vanilla {compared['reference']:.3f} "
        f"({_interval(compared)})",
        f"accuracy {_interval(accuracy, percent=True)}",
        _gap_words(results, method, shifts),
    ]
    if scaled is not None:
        words = {-1: "still better", 0: "no clear difference", 1: "worse"}[_sign(scaled)]
        if ece_sign >= 0 and _sign(scaled) < 0:
            words = "better"
        elif ece_sign > 0 and _sign(scaled) > 0:
            words = "still worse"
        parts.append(
            f"once both have a temperature fitted in distribution: {words} "
            f"({scaled['value']:.3f} against {scaled['reference']:.3f}, {_interval(scaled)})"
        )
    return Verdict(method, tone, headline, "; ".join(parts) + ".")


def _headline(ece_sign: int, accuracy_sign: int) -> tuple[Tone, str]:
    if ece_sign < 0 and accuracy_sign < 0:
        return "mixed", "Better calibrated under shift than vanilla, but less accurate"
    if ece_sign < 0:
        return "better", "Better calibrated under shift than vanilla"
    if ece_sign > 0 and accuracy_sign > 0:
        return "mixed", "Worse calibrated under shift than vanilla, but more accurate"
    if ece_sign > 0:
        return "worse", "Worse than vanilla here"
    if accuracy_sign:
        better = accuracy_sign > 0
        return (
            ("better" if better else "worse"),
            f"{'More' if better else 'Less'} accurate than vanilla, calibrated alike under shift",
        )
    return "same", "No clear difference from vanilla under shift"


def _own_headline(results: Results, method: str) -> str:
    inside = spread(results, method, "none", split_names(results, "id"), "ece")
    outside = spread(results, method, "none", split_names(results, "shift"), "ece")
    assert inside is not None
    assert outside is not None
    role = "The reference" if method == REFERENCE else "Not compared: vanilla is not in this run"
    if inside.mean > _LARGE:
        return f"{role}. Its confidence is not true even in distribution"
    if outside.mean <= inside.mean + _SMALL:
        return f"{role}. Its confidence stays about as true under shift"
    if outside.mean <= _LARGE:
        return f"{role}. Its confidence grows somewhat less true under shift"
    return f"{role}. Its confidence stops being true under shift"


def _own(results: Results, method: str) -> str:
    shifts = split_names(results, "shift")
    words = []
    for name, splits in (("in distribution", split_names(results, "id")), ("under shift", shifts)):
        ece = spread(results, method, "none", splits, "ece")
        accuracy = spread(results, method, "none", splits, "accuracy")
        assert ece is not None
        assert accuracy is not None
        words.append(f"{name}: ECE {ece.mean:.3f}, accuracy {accuracy.mean:.1%}")
    scaled = spread(results, method, "temperature", shifts, "ece")
    assert scaled is not None
    words.append(_gap_words(results, method, shifts))
    words.append(f"a temperature fitted in distribution makes that ECE {scaled.mean:.3f}")
    return "; ".join(words) + "."


def _gap_words(results: Results, method: str, splits: list[str]) -> str:
    gap = spread(results, method, "none", splits, "confidence_gap")
    assert gap is not None
    points = 100 * gap.mean
    if abs(points) < 0.5:
        return "on average it claims what it keeps under shift"
    side = "over" if points > 0 else "under"
    return f"it is {side}-confident by {abs(points):.1f} points under shift"


def _sign(line: dict[str, Any]) -> int:
    """-1 or 1 where the whole interval lies on one side of 0."""
    return -1 if line["high"] < 0 else 1 if line["low"] > 0 else 0


def _interval(line: dict[str, Any], percent: bool = False) -> str:
    scale, digits = (100, 1) if percent else (1, 3)
    values = [scale * line[name] for name in ("difference", "low", "high")]
    difference, low, high = (f"{value:+.{digits}f}" for value in values)
    unit = " points" if percent else ""
    return f"{difference}{unit}, 95 % interval {low} to {high}"
