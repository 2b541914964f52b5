"""A text summary of an audit, for a terminal."""

from calmoe_jax.audit.results import Audit, Estimate, Number, Scores, TargetsAudit


def describe_audit(found: Audit) -> str:
    """Formats an audit as text, for a terminal.

    Args:
        found: as from `audit`.
    """
    held_out = found.held_out
    lines = [
        f"Held out: {_examples(held_out.n, 'labelled', held_out.clusters)}, {held_out.experts} "
        f"experts, {held_out.classes} classes.",
        _score_words(held_out.scores),
    ]
    experts = ", ".join(
        "no load" if ece is None else f"{ece:.3f} (load {_number(load, '.2f')})"
        for ece, load in zip(held_out.expert_ece, held_out.load, strict=True)
    )
    parts = ("aggregate", "disagreement", "difference", "standard_error")
    identity = {name: _number(getattr(held_out.disagreement, name), "+.4f") for name in parts}
    lines += [
        f"  experts' ECE on their views: {experts}",
        f"  disagreement {identity['disagreement'].lstrip('+')}; the aggregate is off by "
        f"{identity['aggregate']}, of which the experts' own errors {identity['difference']} "
        f"(standard error {identity['standard_error'].lstrip('+')})",
        f"  temperature {_number(held_out.temperature, '.3f')}"
        + ("" if held_out.temperature_converged else " (no finite optimum)"),
    ]
    if held_out.impossible_labels:
        lines.append(
            f"  labels of probability 0: {held_out.impossible_labels:,}; where a temperature is "
            f"fitted they count as {_number(held_out.impossible_as, '.1e')}"
        )
    if found.left_out:
        lines.append(f"Left out: {found.left_out:,} examples that do not count.")
    shifted, targets = found.shift, found.targets
    if shifted is None or targets is None:
        return "\n".join([*lines, "No targets: no shift to test for."])
    temperatures = ", ".join(
        f"{name.replace('_', ' ')} {value:.3f}" for name, value in targets.temperatures.items()
    )
    p_values = ("p_value", "load", "confidence", "disagreement")
    overall, load, confidence, disagreement = (
        _number(getattr(shifted, x), ".3f") for x in p_values
    )
    lines += [
        f"Targets: {_examples(targets.n, '', targets.clusters)}; {_labelled(targets)}.",
        f"  shift of the configuration: p = {overall} (load {load}, confidence {confidence}, "
        f"disagreement {disagreement}); separability {_number(shifted.separability, '.2f')}; "
        f"effective share of the held-out examples {_number(shifted.effective_share, '.2f')}",
        f"  temperatures: {temperatures}",
    ]
    for name, scores in (found.targets_scored or {}).items():
        lines.append(f"  with {name.replace('_', ' ')}:\n  {_score_words(scores)}")
    decision = shifted.decision.replace("_", " ")
    return "\n".join([*lines, f"Verdict: {decision}: {shifted.reason}."])


def _examples(number: int, kind: str, clusters: int) -> str:
    kinds = f"{number:,} {kind} examples".replace("  ", " ")
    return kinds if clusters == number else f"{kinds} in {clusters:,} clusters"


def _labelled(targets: TargetsAudit) -> str:
    """How many targets have labels, and what these are used for."""
    if not targets.labelled:
        return "none has a label"
    have = "all have" if targets.labelled == targets.n else f"{targets.labelled:,} of them have"
    return f"{have} labels, which are used for the scores below and for no decision"


def _number(value: Number, form: str) -> str:
    return "unknown" if value is None else format(value, form)


def _score_words(scores: Scores) -> str:
    def words(estimate: Estimate, sign: str = "") -> str:
        form = f"{sign}.3f"
        value, low, high = (_number(x, form) for x in (estimate.value, estimate.low, estimate.high))
        return value if "unknown" in (low, high) else f"{value} ({low} to {high})"

    infinite = scores.negative_log_likelihood.value is None
    parts = [
        f"accuracy {words(scores.accuracy)}",
        f"ECE {_number(scores.ece, '.3f')}, without its bias {words(scores.debiased_ece)}",
        f"confidence minus accuracy {words(scores.confidence_gap, '+')}",
        f"NLL {'infinite' if infinite else words(scores.negative_log_likelihood)}",
    ]
    return "  " + "; ".join(parts)
