"""A text summary of an audit, for a terminal."""

from calmoe_jax.audit.findings import interval, number
from calmoe_jax.audit.results import Audit, HeldOutAudit, Scores, TargetsAudit
from calmoe_jax.shift.repair import DEFAULT_MODE, MODES


def describe_audit(found: Audit) -> str:
    """Formats an audit as text, for a terminal.

    Args:
        found: as from `audit`.
    """
    held_out = found.held_out
    experts = "" if held_out.experts is None else f" {held_out.experts} experts,"
    lines = [f"Warning: {note}." for note in found.notes]
    lines += [
        f"Held out: {_examples(held_out.n, 'labelled', held_out.clusters)},{experts} "
        f"{held_out.classes} classes.",
        _score_words(held_out.scores),
        *_experts(held_out),
        f"  temperature {number(held_out.temperature, '.3f')}"
        + ("" if held_out.temperature_converged else " (no finite optimum)"),
    ]
    if held_out.impossible_labels:
        lines.append(
            f"  labels of probability 0: {held_out.impossible_labels:,}; where a temperature is "
            f"fitted they count as {number(held_out.impossible_as, '.1e')}"
        )
    if found.left_out:
        lines.append(f"Left out: {found.left_out:,} examples that do not count.")
    shifted, targets = found.shift, found.targets
    if targets is None:
        return "\n".join([*lines, "No targets: no shift to test for."])
    lines.append(f"Targets: {_examples(targets.n, '', targets.clusters)}; {_labelled(targets)}.")
    if shifted is not None:
        p_values = ("p_value", "load", "confidence", "disagreement")
        overall, load, confidence, disagreement = (
            number(getattr(shifted, x), ".3f") for x in p_values
        )
        lines.append(
            f"  shift of the configuration: p = {overall} (load {load}, confidence {confidence}, "
            f"disagreement {disagreement}); separability {number(shifted.separability, '.2f')}"
        )
    lines.append(f"  temperatures: {_by_name(targets.temperatures)}")
    lines.append(f"  mean confidence: {_by_name(targets.mean_confidence)}")
    if shifted is not None:
        lines.append(f"  configuration balanced: {shifted.balance}")
    for name, scores in (found.targets_scored or {}).items():
        lines.append(f"  with {name.replace('_', ' ')}:\n  {_score_words(scores)}")
    if shifted is None:
        last = (
            "Verdict: none: with the aggregate alone neither a shift of the configuration nor the "
            "experts can be judged."
        )
    else:
        last = f"Verdict: {shifted.decision.replace('_', ' ')}: {shifted.reason}."
    mode = MODES[DEFAULT_MODE]
    return "\n".join([*lines, last, mode.rests_on, mode.cannot_know, mode.measured])


def _experts(held_out: HeldOutAudit) -> list[str]:
    """What is known of the experts; nothing if the logs have the aggregate alone."""
    if held_out.expert_ece is None or held_out.load is None or held_out.disagreement is None:
        return []
    experts = ", ".join(
        "no load" if ece is None else f"{ece:.3f} (load {number(load, '.2f')})"
        for ece, load in zip(held_out.expert_ece, held_out.load, strict=True)
    )
    parts = ("aggregate", "disagreement", "difference", "standard_error")
    identity = {name: number(getattr(held_out.disagreement, name), "+.4f") for name in parts}
    return [
        f"  experts' ECE on their views: {experts}",
        f"  disagreement {identity['disagreement'].lstrip('+')}; the aggregate is off by "
        f"{identity['aggregate']}, of which the experts' own errors {identity['difference']} "
        f"(standard error {identity['standard_error'].lstrip('+')})",
    ]


def _by_name(values: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())


def _examples(size: int, kind: str, clusters: int) -> str:
    kinds = f"{size:,} {kind} examples".replace("  ", " ")
    return kinds if clusters == size else f"{kinds} in {clusters:,} clusters"


def _labelled(targets: TargetsAudit) -> str:
    """How many targets have labels, and what these are used for."""
    if not targets.labelled:
        return "none has a label"
    have = "all have" if targets.labelled == targets.n else f"{targets.labelled:,} of them have"
    return f"{have} labels, which are used for the scores below and for no decision"


def _score_words(scores: Scores) -> str:
    infinite = scores.negative_log_likelihood.value is None
    parts = [
        f"accuracy {interval(scores.accuracy)}",
        f"ECE {number(scores.ece, '.3f')}, without its bias {interval(scores.debiased_ece)}",
        f"confidence minus accuracy {interval(scores.confidence_gap, '+')}",
        f"NLL {'infinite' if infinite else interval(scores.negative_log_likelihood)}",
    ]
    return "  " + "; ".join(parts)
