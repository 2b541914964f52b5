"""One self-contained HTML page of an audit: findings, scores, diagrams, what is not known."""

from collections.abc import Mapping, Sequence

from calmoe_jax._environment import describe_environment
from calmoe_jax.audit.findings import Gate, Limits, findings, interval, number, unknowns
from calmoe_jax.audit.results import Audit, Scores
from calmoe_jax.drawing.elements import (
    Html,
    Row,
    counted,
    element,
    figure,
    folded,
    joined,
    table,
)
from calmoe_jax.drawing.elements import (
    findings as finding_list,
)
from calmoe_jax.drawing.page import whole_page
from calmoe_jax.shift.repair import MODES

_CAPTIONS = {
    "reliability": "Held-out examples, as the model is: accuracy by confidence with 95 % bands, "
    "over the distribution of the confidences. Below the diagonal the model is over-confident.",
    "targets": "Targets with labels: accuracy by confidence as the model is, with the temperature "
    "of the held-out examples, and with the repair for the targets.",
    "confidence": "Where the confidences of the held-out examples and of the targets lie. A "
    "difference is a sign of a shift; none is no proof that there is none.",
    "experts": "Each expert on the held-out examples, which count by its routing weight.",
    "gaps": "Confidence minus accuracy on held-out examples, along the uncertainty of the router "
    "and the disagreement of the experts.",
}
_SCORES = ("accuracy", "debiased_ece", "confidence_gap", "negative_log_likelihood", "brier_score")
_GATE_WORDS = {True: "fails", False: "passes", None: "cannot be judged"}
_BASES = {
    "temperature": "labels of the held-out examples",
    "neighbours": "how often the nearest held-out examples have the predicted class",
    "separability": "how well held-out examples and targets are told apart",
    "difference_of_confidences": "by how much the mean confidence differs",
    "average_threshold": "how many targets are above the confidence that errors stay below",
}
_TITLES = (
    "accuracy", "ECE without its bias", "confidence − accuracy", "NLL, nats", "Brier score",
)  # fmt: skip


def audit_page(
    found: Audit,
    pictures: Mapping[str, bytes],
    *,
    files: Sequence[str],
    command: str,
    limits: Limits,
    judged: Sequence[Gate] = (),
) -> str:
    """The page, an HTML file that needs no other.

    Args:
        found: as from `audit`.
        pictures: PNG files by name, as from `pictures`.
        files: names of the files of logs.
        command: what repeats the audit.
        limits: what counts as a finding.
        judged: gates that were judged.
    """
    name = ", ".join(files) if len(files) < 4 else f"{files[0]} and {len(files) - 1} more"
    return whole_page(
        f"calmoe audit: {name}",
        element("h1", "Can the confidence of this model be trusted? ", element("code", name)),
        element("p", _introduction(found)),
        element("h2", "Findings"),
        finding_list(findings(found, limits)),
        _gate_list(judged),
        _note_list(found),
        element("h2", "Scores"),
        _score_table(found),
        *_figures(pictures, ("reliability", "targets", "confidence")),
        *_expert_part(found, pictures),
        *_shift_part(found, limits),
        *_temperature_part(found, limits),
        element("h2", "What is not known"),
        element("ul", *(element("li", line) for line in unknowns(found))),
        element("h2", "To repeat this"),
        element("pre", element("code", command)),
        _environment(),
        _reading_aid(limits),
    )


def _introduction(found: Audit) -> str:
    held_out, targets = found.held_out, found.targets
    sizes = [
        counted(held_out.n, "labelled held-out example"),
        *([] if held_out.clusters == held_out.n else [counted(held_out.clusters, "cluster")]),
        *([] if held_out.experts is None else [counted(held_out.experts, "expert")]),
        f"{held_out.classes:,} classes",
    ]
    said = f"{', '.join(sizes)}."
    if targets is not None:
        clusters = (
            "" if targets.clusters == targets.n else f" in {counted(targets.clusters, 'cluster')}"
        )
        have = f"{targets.labelled:,} of them have" if targets.labelled else "none of them has"
        said += f" {counted(targets.n, 'target')}{clusters}; {have} a label."
    if found.left_out:
        said += f" {counted(found.left_out, 'example')} left out, since they do not count."
    return said


def _figures(pictures: Mapping[str, bytes], names: Sequence[str]) -> list[Html]:
    return [figure(pictures[name], _CAPTIONS[name]) for name in names if name in pictures]


def _gate_list(judged: Sequence[Gate]) -> Html:
    if not judged:
        return Html()
    rows = [
        Row(gate.name, [_GATE_WORDS[gate.fails], gate.reason], gate.fails is not False)
        for gate in judged
    ]
    return joined([element("h2", "Gates"), table(["", "why"], rows)])


def _note_list(found: Audit) -> Html:
    if not found.notes:
        return Html()
    items = [element("li", f"{note}.") for note in found.notes]
    return element("div", element("b", "Warnings"), element("ul", *items), class_="warning")


def _cells(scores: Scores) -> list[str]:
    def cell(name: str) -> str:
        estimate = getattr(scores, name)
        if name == "negative_log_likelihood" and estimate.value is None:
            return "infinite"
        return interval(estimate, "+" if name == "confidence_gap" else "")

    return [*map(cell, _SCORES), number(scores.ece, ".3f")]


def _score_table(found: Audit) -> Html:
    rows = [Row("held out, as it is", _cells(found.held_out.scores))]
    for name, scores in (found.targets_scored or {}).items():
        words = "as it is" if name == "none" else name.replace("_", " ")
        rows.append(Row(f"targets with labels, {words}", _cells(scores)))
    return joined(
        [
            table([*_TITLES, "ECE, plain"], rows),
            element("p", "In brackets 95 % intervals. No temperature changes the accuracy."),
        ]
    )


def _expert_part(found: Audit, pictures: Mapping[str, bytes]) -> list[Html]:
    held_out = found.held_out
    split = held_out.disagreement
    if held_out.expert_ece is None or held_out.load is None or split is None:
        return []
    rows = [
        Row(
            f"expert {k}",
            [
                number(held_out.load[k], ".3f"),
                "no load" if ece is None else f"{ece:.3f}",
                number(split.view[k], "+.4f"),
                number(split.view_error[k], ".4f"),
            ],
        )
        for k, ece in enumerate(held_out.expert_ece)
    ]
    mean = number(held_out.expert_mean_ece, ".3f")
    rows.append(Row("all", [number(1.0, ".3f"), mean, number(split.difference, "+.4f"), ""], True))
    words = (
        f"The aggregate is off by {number(split.aggregate, '+.4f')} (above 0: under-confident), of "
        f"which the experts' disagreement is {number(split.disagreement, '.4f')} and their own "
        f"errors are {number(split.difference, '+.4f')} (standard error "
        f"{number(split.standard_error, '.4f')}). The router's mean largest weight is "
        f"{number(held_out.router_confidence, '.3f')}."
    )
    columns = ["load", "ECE on its view", "own error", "standard error"]
    return [
        element("h2", "Experts"),
        table(columns, rows),
        element("p", words),
        *_figures(pictures, ("experts", "gaps")),
    ]


def _shift_part(found: Audit, limits: Limits) -> list[Html]:
    shift = found.shift
    if shift is None:
        return []
    rows = [
        Row(words, [number(value, ".3f")], value is not None and value < limits.level)
        for words, value in (
            ("any shift of the routing configuration", shift.p_value),
            ("load of the experts", shift.load),
            ("confidence", shift.confidence),
            ("disagreement of the experts", shift.disagreement),
        )
    ]
    words = (
        f"Separability of held-out examples and targets {number(shift.separability, '.2f')} (0: "
        "alike, 1: told apart without error)."
    )
    return [
        element("h2", "Does the routing configuration shift?"),
        table(["p-value"], rows),
        element("p", words),
    ]


def _temperature_part(found: Audit, limits: Limits) -> list[Html]:
    targets, changed = found.targets, found.targets_changed
    rows = []
    inside = found.held_out.temperature
    for name, value in ({} if targets is None else targets.temperatures).items():
        change = None if changed is None else changed[name]
        cells = [f"{value:.3f}"]
        if targets is not None:
            cells.append(f"{targets.mean_confidence[name]:.3f}")
        if changed is not None and change is not None:
            cells += [interval(change.from_none, "+", 4), interval(change.from_temperature, "+", 4)]
        words = "held-out labels" if name == "temperature" else name.replace("_", " ")
        rows.append(Row(words, [*cells, _basis(found, name)], name == limits.repair))
    if not rows:
        rows = [Row("held-out labels", [f"{inside:.3f}", _BASES["temperature"]])]
    columns = ["temperature"]
    if targets is not None:
        columns.append("mean confidence of the targets")
    if changed is not None:
        columns += ["Brier score against as it is", "against held-out labels"]
    lines = [] if targets is None else [f"{x.cannot_know} {x.measured}" for x in MODES.values()]
    return [
        element("h2", "Temperatures, by rule"),
        table([*columns, "rests on"], rows),
        element(
            "p",
            "A temperature above 1 lowers all confidences. Rules for targets see no label of a "
            "target, and never go below the temperature of the held-out examples. Where targets "
            "have labels, the changes of the Brier score show what each does: below 0 is better.",
        ),
        *(element("p", line) for line in lines),
    ]


def _basis(found: Audit, name: str) -> str:
    """What a temperature rests on."""
    if name in MODES:
        return MODES[name].rests_on
    if name == "configuration_balanced" and found.shift is not None:
        return found.shift.balance
    return _BASES.get(name, "")


def _environment() -> Html:
    env = describe_environment()
    versions = [f"{name} {version}" for name, version in env["versions"].items() if version]
    facts = [
        ", ".join([f"Python {env['python']}", *versions]),
        ", ".join([env["platform"], *env["devices"], f"{env['cores']} cores"]),
        f"commit {env['commit'] or 'unknown'}",
    ]
    return folded("Environment", element("p", "; ".join(facts) + "."))


def _reading_aid(limits: Limits) -> Html:
    b = {
        name: element("b", name)
        for name in ("ECE", "Confidence − accuracy", "Temperature", "Brier score", "Own error")
    }
    return joined(
        [
            element("h2", "How to read this"),
            element(
                "p",
                b["ECE"],
                " (expected calibration error, top label, 15 bins): by how much confidence and "
                "accuracy differ, on average. The plain one is above 0 for a calibrated model too; "
                "the one without its bias is judged, against a tolerance of "
                f"{limits.tolerance:g}. ",
                b["Confidence − accuracy"],
                " says in which direction: above 0 is over-confident. ",
                b["Temperature"],
                ": one number that sharpens or softens all predictions. ",
                b["Brier score"],
                ": squared distance of the predicted probabilities from the label; lower is "
                "better. ",
                b["Own error"],
                ": 0 for an expert that is calibrated where it is used, below 0 if it is "
                "over-confident there.",
            ),
        ]
    )
