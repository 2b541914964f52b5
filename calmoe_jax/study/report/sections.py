"""The sections of a report, in order."""

from calmoe_jax.drawing.elements import (
    Finding,
    Html,
    capitalised,
    counted,
    element,
    figure,
    findings,
    folded,
    joined,
)
from calmoe_jax.study.records import Results
from calmoe_jax.study.report import tables
from calmoe_jax.study.report.repairs import repairs
from calmoe_jax.study.report.summary import Summary
from calmoe_jax.study.report.verdicts import verdicts

_CAPTIONS = {
    "tradeoff": "Accuracy against top-label ECE; up and to the left is good. Filled: as trained. "
    "Hollow, joined to it: with a temperature fitted on held-out in-distribution data. Bars: one "
    "standard deviation over seeds.",
    "along_the_shift": "Top-label ECE along the order of the shift, as trained, mean over seeds.",
    "reliability": "Accuracy by confidence, 15 bins, all seeds together. On the diagonal the two "
    "are equal; below it, the model is over-confident. Faint points hold under 0.5 % of the "
    "examples; bars show where the examples are.",
}


def section(summary: Summary, pictures: dict[str, bytes]) -> Html:
    """The section of one run.

    Args:
        summary: summary of the run.
        pictures: PNG files, as from `draw_all`.
    """
    results = summary.results
    return joined(
        [
            element(
                "h1",
                "When does the confidence of a mixture of experts stop being true? ",
                element("code", results.task),
            ),
            element("p", _introduction(summary)),
            element("h2", "Verdicts"),
            _verdict_list(summary),
            element("h2", "At a glance"),
            tables.overview(summary),
            tables.votes(summary),
            repairs(summary),
            *(figure(content, _CAPTIONS[name]) for name, content in pictures.items()),
            _warnings(results),
            element("h2", "Every figure"),
            tables.metrics(summary),
            tables.differences(summary),
            tables.temperatures(summary),
            _environment(results),
        ]
    )


def reading_aid(references: list[str]) -> Html:
    """Explains the terms and numbers of the page.

    Args:
        references: the methods that others are compared with.
    """
    b = {
        name: element("b", name)
        for name in ("ECE", "Confidence − accuracy", "Temperature", "Per expert")
    }
    return joined(
        [
            element("h2", "How to read this"),
            element(
                "p",
                b["ECE"],
                " (expected calibration error, top label, 15 bins): by how much confidence and "
                "accuracy differ, on average; 0 is perfect, and few examples push it up. ",
                b["Confidence − accuracy"],
                " says in which direction: above 0 is over-confident. ",
                b["Temperature"],
                ": one number fitted on held-out in-distribution data that sharpens or softens "
                "all predictions; it never changes accuracy. ",
                b["Per expert"],
                ": one such number for every expert, before mixing. A method is called better or "
                "worse only where the 95 % interval of its difference from "
                f"{' or '.join(dict.fromkeys(references))} excludes 0.",
            ),
        ]
    )


def _introduction(summary: Summary) -> str:
    results = summary.results
    experts = _configured(results, "model", "experts")
    epochs = _configured(results, "train", "epochs")
    routings = dict.fromkeys(record.routing for record in results.records)
    said = [counted(summary.num_seeds, "seed")]
    said += [counted(epochs, "epoch")] if isinstance(epochs, int) else []
    said += [counted(experts, "expert")] if isinstance(experts, int) else []
    said += [f"{' and '.join(routings)} routing"] if routings else []
    words = {
        "train": "trained on {}",
        "calibration": "temperatures fitted on {} held out from training",
        "id": "tested on {} of the same distribution",
        "shift": "on {} shifted ones",
        "hard": "on {} hard ones",
        "part": "on {} in other parts of the test split",
    }
    counts = dict.fromkeys(words, 0)
    for split in results.splits:
        counts[split.kind] += split.n
    data = [
        text.format(f"{counts[kind]:,}" + (" examples" if kind == "train" else ""))
        for kind, text in words.items()
        if counts[kind]
    ]
    sentences = [", ".join(said), capitalised(", ".join(data)), f"Data: {results.source}"]
    return " ".join(f"{sentence.removesuffix('.')}." for sentence in sentences if sentence)


def _configured(results: Results, *names: str) -> object:
    """A value of the configuration; `None` if the configuration has no such value."""
    value: object = results.config
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _verdict_list(summary: Summary) -> Html:
    return findings(
        Finding(
            f"{summary.title(verdict.method)}: {verdict.headline}.", verdict.detail, verdict.tone
        )
        for verdict in verdicts(summary)
    )


def _warnings(results: Results) -> Html:
    if not results.warnings:
        return Html()
    items = [element("li", line) for line in results.warnings]
    return folded(f"Warnings: {len(items)}", element("ul", *items), class_="warning")


def _environment(results: Results) -> Html:
    env = results.environment
    versions = [f"{name} {version}" for name, version in env.versions.items() if version]
    facts = [
        ", ".join([f"Python {env.python}", *versions]),
        ", ".join([env.platform, *env.devices, *([f"{env.cores} cores"] if env.cores else [])]),
        f"commit {env.commit or 'unknown'}",
    ]
    return folded("Environment", element("p", "; ".join(facts) + "."))
