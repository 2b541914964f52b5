"""What a repair rests on, and what it cannot know, in sentences."""

from collections.abc import Sequence
from typing import Any

from calmoe_jax.audit.answers import Drawn
from calmoe_jax.audit.evidence import MOST_COMPARED, HeldOut, Population, words_of_guess
from calmoe_jax.audit.findings import number
from calmoe_jax.audit.refitting import words_of_refit
from calmoe_jax.shift.repair import MODES

_RULES = {
    "safe": MODES["safe"].rests_on.removesuffix("."),
    "bold": MODES["bold"].rests_on.removesuffix("."),
    "certified": "The rule lowers mean confidence by the lower bound of the gap, never by more "
    "than the labels show",
    "combined": "The rule lowers mean confidence by the posterior median of the gap, under a prior "
    "from the label-free estimates, within the labels' bounds",
    "refit": "The rule fits a temperature of the aggregate, temperatures of the experts, and a "
    "temperature to held-out examples with the targets' configurations, each to half of the "
    "labels; it deploys the one that the other half confirms",
}


def rests_on(
    record: dict[str, Any],
    known: HeldOut,
    people: Population,
    drawn: Drawn,
    notes: Sequence[str],
) -> list[str]:
    """What a repair rests on.

    Args:
        record: the repair.
        known: the held-out examples.
        people: the targets.
        drawn: their labels.
        notes: what was changed in reading.
    """
    kind = record["kind"]
    lines = [f"{note}." for note in notes]
    lines.append(
        f"The temperature {known.temperature:.4g} was fitted on {len(known.rows):,} labelled "
        "held-out examples" + ("." if known.converged else "; no finite one is optimal there.")
    )
    lines.append(f"{_RULES[kind]}.")
    if kind in MODES and record["peers"]:
        lines.append(
            f"The model is compared with {record['peers']} of other seeds, whose predictions the "
            "logs have; that these were trained alike is assumed, and cannot be seen in them."
        )
    elif kind == "safe":
        lines.append(
            "Logs of a single model have no other seeds to compare with (peer_probs): the held-out "
            "temperature stays."
        )
    if kind in MODES:
        lines.append(MODES[kind].measured)
    if kind == "bold" and record["experts"] is None:
        stays = "bold is safe" if record["peers"] else "the held-out temperature stays"
        lines.append(
            "Neighbours are found by the experts' predictions, which these logs do not have: "
            f"{stays}."
        )
    if record["refit"] is not None:
        lines += words_of_refit(record["refit"], record["level"])
    lines += [f"{word[0].upper()}{word[1:]}." for word in drawn.words]
    if record["labels"]["used"]:
        lines.append(
            f"The bounds hold at level {record['level']:g} each, for these targets, whatever the "
            "shift and at whatever number of labels one stops."
        )
    if record["examples"]["left_out"]:
        lines.append(
            f"{record['examples']['left_out']:,} targets with labels that were not drawn are left "
            "out."
        )
    return lines + _compared(record, people)


def _compared(record: dict[str, Any], people: Population) -> list[str]:
    lines = []
    if 0 < people.compared < len(people.rows):
        lines.append(
            f"The label-free gap rests on {people.compared:,} targets, evenly spread over all."
        )
    if record["labels"]["used"] and "neighbours" not in people.guessed_by:
        why = (
            "the logs have no experts"
            if record["experts"] is None
            else f"there are more than {MOST_COMPARED:,} targets"
        )
        known = words_of_guess(people.guessed_by)
        lines.append(
            f"The guess at each target's correctness knows {known}, since {why}; the bounds hold "
            "all the same, and may be wider."
        )
    return lines


def cannot_know(record: dict[str, Any]) -> list[str]:
    """What a repair cannot know.

    Args:
        record: the repair.
    """
    lines = []
    if not record["labels"]["used"]:
        lines.append(f"{MODES[record['kind']].cannot_know} Nothing is certified.")
    lines.append(
        "It speaks of the mean over these targets. Later ones may differ, and so may parts: one "
        "temperature cannot lower confidence for some and raise it for others."
    )
    if record["refit"] is not None:
        return lines
    lines.append("It never raises confidence above that of the held-out temperature.")
    upper = record["gap"]["upper"]
    if upper is not None and upper < 0:
        lines[-1] += " The labels show that the model is under-confident; that stays."
    return lines


def describe_repair(record: dict[str, Any]) -> str:
    """A repair as text, for a terminal.

    Args:
        record: as from `repair`.
    """
    gap, confidence = record["gap"], record["confidence"]
    lines = [
        f"Repair {record['kind']}: temperature {record['temperature']:.4f} of the aggregate "
        f"(held out {record['held_out_temperature']:.4f}).",
        f"  mean confidence on {record['examples']['targets']:,} targets: "
        f"{confidence['before']:.3f} before, {confidence['after']:.3f} after",
    ]
    if record["expert_temperatures"] is not None:
        listed = ", ".join(f"{x:.3f}" for x in record["expert_temperatures"])
        lines.append(f"  temperatures of the experts, before they are mixed: {listed}")
    free = f"label-free: safe {gap['label_free']['safe']:.3f}, bold {gap['label_free']['bold']:.3f}"
    if record["labels"]["used"]:
        lines.append(
            f"  confidence minus accuracy by {record['labels']['used']:,} labels: "
            f"{number(gap['estimate'], '+.3f')} (standard error "
            f"{number(gap['standard_error'], '.3f')}), at least {number(gap['lower'], '+.3f')} and "
            f"at most {number(gap['upper'], '+.3f')}, each at level {record['level']:g}; {free}"
        )
    else:
        lines.append(f"  confidence minus accuracy, {free}; no label, so nothing is certified")
    lines += [f"  {line}" for line in record["rests_on"]]
    return "\n".join([*lines, "What it cannot know:", *(f"  {x}" for x in record["cannot_know"])])
