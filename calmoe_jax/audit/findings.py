"""What an audit shows, in sentences: findings with their numbers, gates, and what is not known."""

from collections.abc import Sequence
from typing import NamedTuple

from calmoe_jax._errors import UserError
from calmoe_jax.audit.results import Audit, Change, Estimate, Number, Scores, ShiftAudit
from calmoe_jax.drawing.elements import Finding
from calmoe_jax.shift.repair import DEFAULT_MODE, MODES

GATES = ("shift", "uncalibrated", "harm")


class Limits(NamedTuple):
    """What counts as a finding.

    Attributes:
        level: level of the test for a shift.
        tolerance: calibration error that does not matter. By default .02: of a hundred decisions at
            a stated confidence two more or fewer are right than it says, about what is lost by
            quoting confidences in whole per cents.
        repair: the calibrator that would be deployed for the targets; by default the recommended
            mode (see `shift.repair.MODES`).
    """

    level: float = 0.05
    tolerance: float = 0.02
    repair: str = DEFAULT_MODE


class Gate(NamedTuple):
    """Whether logs pass a gate.

    Attributes:
        name: one of `GATES`.
        fails: whether they do not; `None` if these logs cannot tell, which must not pass unnoticed.
        reason: why, in a sentence with the numbers.
    """

    name: str
    fails: bool | None
    reason: str


def gates(found: Audit, names: Sequence[str], limits: Limits) -> list[Gate]:
    """Judges logs by gates.

    Args:
        found: as from `audit`.
        names: the gates.
        limits: what counts.

    Raises:
        UserError: if `limits.repair` is needed and is not one of the calibrators.
    """
    judge = {"shift": _shift_gate, "uncalibrated": _calibration_gate, "harm": _harm_gate}
    return [judge[name](found, limits) for name in dict.fromkeys(names)]


def findings(found: Audit, limits: Limits) -> list[Finding]:
    """The findings that a page begins with.

    Args:
        found: as from `audit`.
        limits: what counts.
    """
    items = [_calibration(found, limits), _shift(found, limits)]
    if found.shift is not None:
        items.append(_advice(found.shift))
    if found.targets is not None:
        items.append(_targets(found))
        if found.targets_changed is not None:
            items.append(_repair(found.targets_changed, limits.repair))
    return items


def unknowns(found: Audit) -> list[str]:
    """What the logs cannot show, in sentences.

    Args:
        found: as from `audit`.
    """
    held_out, targets = found.held_out, found.targets
    lines = []
    if held_out.experts is None:
        lines.append(
            "The logs hold the aggregate alone. Whether the routing configuration shifts, how "
            "calibrated each expert is, and how far the experts disagree cannot be known without "
            "routing_weights and expert_probs."
        )
    if targets is None:
        lines.append("There are no targets: nothing is known of data other than the held-out ones.")
    elif targets.labelled == 0:
        lines.append(
            f"No target has a label. {MODES[DEFAULT_MODE].cannot_know} The temperatures for the "
            "targets are estimates; a few labels would show more."
        )
    elif targets.labelled < targets.n:
        lines.append(
            f"{targets.n - targets.labelled:,} of {targets.n:,} targets have no label. Those with "
            "labels stand for all of them only if they were drawn at random, with the "
            "probabilities in drawn_probability or with equal ones."
        )
    if targets is not None:
        lines.append(
            "Whether the labels still depend on the predictions as they did on the held-out "
            "examples cannot be tested without labels of targets."
        )
    if held_out.clusters == held_out.n:
        lines.append(
            "Every example counts as independent of the others. If several come from one user or "
            "one place, the intervals are too short: log clusters."
        )
    if not held_out.temperature_converged:
        lines.append("No finite temperature is optimal on the held-out examples.")
    if held_out.impossible_labels:
        lines.append(
            f"{held_out.impossible_labels:,} labels had probability 0; where a temperature is "
            f"fitted they count as {number(held_out.impossible_as, '.1e')}."
        )
    if targets is not None and targets.rests_on != [held_out.n, targets.n]:
        a, b = targets.rests_on
        lines.append(
            f"The temperatures for the targets rest on {a:,} held-out examples and {b:,} targets, "
            "evenly spread over all."
        )
    return lines


def _calibration_gate(found: Audit, limits: Limits) -> Gate:
    error = found.held_out.scores.debiased_ece
    if error.low is None:
        return Gate("uncalibrated", None, "the held-out examples are too few to judge")
    fails = error.low > limits.tolerance
    side = "above" if fails else "at most"
    return Gate(
        "uncalibrated",
        fails,
        f"the calibration error on held-out examples is {interval(error)}, whose lower end is "
        f"{side} the tolerance of {limits.tolerance:g}",
    )


def _shift_gate(found: Audit, limits: Limits) -> Gate:
    if found.shift is None:
        alone = "the logs hold the aggregate alone"
        return Gate("shift", None, "there are no targets" if found.targets is None else alone)
    p_value = found.shift.p_value
    if p_value is None:
        return Gate("shift", None, "the p-value is not a number")
    fails = p_value < limits.level
    return Gate(
        "shift",
        fails,
        f"the test for a shift of the routing configuration gives p = {p_value:.3f}, "
        f"{'below' if fails else 'not below'} {limits.level:g}",
    )


def _harm_gate(found: Audit, limits: Limits) -> Gate:
    if found.targets_changed is None:
        none = "there are no targets" if found.targets is None else "no target has a label"
        return Gate("harm", None, none)
    change = found.targets_changed.get(limits.repair)
    if change is None:
        known = ", ".join(found.targets_changed)
        raise UserError(f"repair must be one of {known}, got repair={limits.repair}.")
    title = limits.repair.replace("_", " ")
    words = f"on labelled targets {title} changes the Brier score by {_change_words(change)}"
    judged = None not in (change.from_none.low, change.from_temperature.low)
    return Gate("harm", bool(_worse_than(change)) if judged else None, words)


def _worse_than(change: Change) -> list[str]:
    """What a repair is clearly worse than."""
    names = {
        "the model as it is": change.from_none,
        "the held-out temperature": change.from_temperature,
    }
    return [name for name, x in names.items() if x.low is not None and x.low > 0]


def _change_words(change: Change) -> str:
    return (
        f"{interval(change.from_none, '+')} from the model as it is, and by "
        f"{interval(change.from_temperature, '+')} from the held-out temperature (above 0 is worse)"
    )


def _calibration(found: Audit, limits: Limits) -> Finding:
    scores = found.held_out.scores
    error = scores.debiased_ece
    within = f"a calibration error of {limits.tolerance:g}"
    if error.low is None or error.high is None:
        tone, words = "reference", "Too few held-out examples to judge the calibration"
    elif error.low > limits.tolerance:
        tone, words = "worse", f"Not calibrated on held-out examples{_direction(scores)}"
    elif error.high <= limits.tolerance:
        tone, words = "better", f"Calibrated on held-out examples, up to {within}"
    else:
        tone, words = "mixed", f"Held-out examples neither show nor exclude {within}"
    return Finding(f"{words}.", f"{_scores(scores)}.", tone)


def _direction(scores: Scores) -> str:
    gap = scores.confidence_gap
    if gap.low is not None and gap.low > 0:
        return ": over-confident"
    return ": under-confident" if gap.high is not None and gap.high < 0 else ""


def _scores(scores: Scores) -> str:
    return (
        f"calibration error {interval(scores.debiased_ece)}, confidence minus accuracy "
        f"{interval(scores.confidence_gap, '+')}, accuracy {interval(scores.accuracy)}"
    )


def _shift(found: Audit, limits: Limits) -> Finding:
    shift = found.shift
    if shift is None and found.targets is None:
        return Finding(
            "No targets, so no shift to test for.",
            "Targets are examples without label, or those that the logs mark as targets.",
            "reference",
        )
    if shift is None:
        return Finding(
            "Whether the routing configuration shifts cannot be known.",
            "The logs hold the aggregate alone.",
            "reference",
        )
    parts = ", ".join(
        f"{name} {number(getattr(shift, name), '.3f')}"
        for name in ("load", "confidence", "disagreement")
    )
    detail = f"test for a shift: p = {number(shift.p_value, '.3f')} ({parts})."
    if shift.p_value is None:
        return Finding("The test for a shift gives no number.", detail, "mixed")
    if shift.p_value < limits.level:
        return Finding("The routing configuration of the targets shifts.", detail, "worse")
    return Finding("No shift of the routing configuration is seen.", detail, "same")


def _advice(shift: ShiftAudit) -> Finding:
    headline = {
        "keep": "Without labels: keep the temperature of the held-out examples.",
        "lower_confidence": "Without labels: lower the confidence on the targets.",
        "label_some": "Label some targets: without labels nothing is shown.",
    }[shift.decision]
    tone = "same" if shift.decision == "keep" else "mixed"
    return Finding(headline, f"{shift.reason}. {MODES[DEFAULT_MODE].measured}", tone)


def _targets(found: Audit) -> Finding:
    if found.targets_scored is None:
        return Finding(
            "How accurate the model is on the targets is not known: none has a label.",
            "See below for what the label-free rules estimate, and what they rest on.",
            "reference",
        )
    scores = found.targets_scored["none"]
    direction = _direction(scores).removeprefix(": ")
    tone = "worse" if direction else "same"
    words = direction or "neither over- nor under-confident, as far as they show"
    return Finding(f"On labelled targets the model is {words}.", f"{_scores(scores)}.", tone)


def _repair(changed: dict[str, Change], name: str) -> Finding:
    title = name.replace("_", " ")
    change = changed.get(name)
    if change is None:
        return Finding(f"There is no repair {title} for these logs.", "", "reference")
    worse = _worse_than(change)
    gain = change.from_none.high is not None and change.from_none.high < 0
    tone, words = ("better", "improves") if gain else ("same", "does not clearly change")
    headline = f"The repair {title} {words} the predictions on labelled targets."
    if worse:
        tone = "worse"
        headline = (
            f"The repair {title} does harm on labelled targets: worse than {' and '.join(worse)}."
        )
    return Finding(headline, f"it changes the Brier score by {_change_words(change)}.", tone)


def interval(estimate: Estimate, sign: str = "", digits: int = 3) -> str:
    """An estimate with its interval, in words.

    Args:
        estimate: a score.
        sign: `+` to show the sign.
        digits: decimals.
    """
    form = f"{sign}.{digits}f"
    value, low, high = (number(x, form) for x in (estimate.value, estimate.low, estimate.high))
    return value if "unknown" in (low, high) else f"{value} ({low} to {high})"


def number(value: Number, form: str) -> str:
    """A number, or that it is unknown.

    Args:
        value: the number.
        form: its format.
    """
    if value is None:
        return "unknown"
    text = format(value, form)
    # rounded to 0 it has no sign
    return format(0.0, form) if text.startswith("-") and float(text) == 0 else text
