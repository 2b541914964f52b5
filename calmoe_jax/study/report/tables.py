"""The tables of a report."""

from calmoe_jax.drawing.elements import Html, Row, element, folded, joined, table
from calmoe_jax.study.records import METRICS
from calmoe_jax.study.report.cells import scaled, spread_cell
from calmoe_jax.study.report.repairs import OF_TARGETS
from calmoe_jax.study.report.summary import Summary

_METRIC_TITLES = {
    "accuracy": "accuracy, %",
    "nll": "NLL, nats",
    "brier": "Brier",
    "ece": "ECE",
    "classwise_ece": "classwise ECE",
    "smooth_ece": "smooth ECE",
    "confidence_gap": "confidence − accuracy, points",
    "disagreement": "disagreement",
    "routing_entropy": "routing entropy, nats",
}
# These are only where people's votes are, and have a table of their own.
_OF_VOTES = {"human_nll": "NLL, nats", "human_brier": "Brier", "human_ece": "ECE"}


def overview(summary: Summary) -> Html:
    """A row for each method, with the main metrics.

    Args:
        summary: summary of a run.
    """
    inside, shifts, hard = (summary.splits(kind) for kind in ("id", "shift", "hard"))
    columns = [
        ("accuracy in distribution, %", inside, "none", "accuracy"),
        ("accuracy under shift, %", shifts, "none", "accuracy"),
        ("ECE in distribution", inside, "none", "ece"),
        ("ECE under shift", shifts, "none", "ece"),
        ("confidence − accuracy under shift, points", shifts, "none", "confidence_gap"),
        ("ECE under shift, with temperature", shifts, "temperature", "ece"),
        ("ECE under shift, per-expert temperatures", shifts, "per_expert", "ece"),
        ("NLL under shift", shifts, "none", "nll"),
        ("ECE on the hard subset", hard, "none", "ece"),
    ]
    columns = [c for c in columns if c[1] and c[2] in summary.calibrators]
    rows = [
        Row(
            summary.title(method),
            [
                spread_cell(summary.spread(method, calibrator, splits, metric), metric)
                for _, splits, calibrator, metric in columns
            ],
            method == summary.results.reference,
        )
        for method in summary.methods
    ]
    over = "Mean ± standard deviation over seeds" if summary.num_seeds > 1 else "One seed"
    return joined(
        [
            table([title for title, *_ in columns], rows),
            element("p", f"{over}; shifted splits count alike."),
        ]
    )


def metrics(summary: Summary) -> Html:
    """A table for each metric: every method, calibrator and split.

    Args:
        summary: summary of a run.
    """
    splits = summary.splits()
    # calibrators that use unlabelled examples have a separate table
    calibrators = [name for name in summary.calibrators if name not in OF_TARGETS]
    tables = []
    for metric in (name for name in METRICS if name not in _OF_VOTES):
        rows = [
            Row(
                _with_calibrator(summary.title(method), calibrator),
                [
                    spread_cell(summary.spread(method, calibrator, [split], metric), metric)
                    for split in splits
                ],
            )
            for method in summary.methods
            for calibrator in calibrators
        ]
        tables.append(folded(_METRIC_TITLES[metric], table(splits, rows)))
    return joined(tables)


def votes(summary: Summary) -> Html:
    """Predictions against the votes of the people who labelled the examples.

    Args:
        summary: summary of a run.

    Returns:
        Empty if no split has votes.
    """
    scored = {r.split for r in summary.results.records if r.human_ece is not None}
    columns = [(x, metric) for x in summary.splits() if x in scored for metric in _OF_VOTES]
    if not columns:
        return Html()
    rows = [
        Row(
            _with_calibrator(summary.title(method), calibrator),
            [
                spread_cell(summary.spread(method, calibrator, [split], metric), metric)
                for split, metric in columns
            ],
            method == summary.results.reference and calibrator == "none",
        )
        for method in summary.methods
        for calibrator in summary.calibrators
        if calibrator not in OF_TARGETS
    ]
    words = (
        "Several people labelled each of these examples. NLL and Brier score are those of a label "
        "drawn from their votes; the ECE compares the confidence of the predicted class with the "
        "share of the people who chose it, in the same 15 bins."
    )
    return joined(
        [
            element("h2", "Against people's votes"),
            element("p", words),
            table([f"{split}: {_OF_VOTES[metric]}" for split, metric in columns], rows),
        ]
    )


def differences(summary: Summary) -> Html:
    """Paired differences from the reference, with intervals.

    Args:
        summary: summary of a run.

    Returns:
        Empty if nothing was compared.
    """
    lines = summary.results.comparisons
    if not lines:
        return Html()
    labels = list(dict.fromkeys(line.split for line in lines))
    pairs = dict.fromkeys((line.method, line.calibrator) for line in lines)
    shown = [(m, c) for m, c in pairs if c in ("none", "temperature")]
    words = (
        "Paired bootstrap over clusters of examples and seeds, 95 % intervals; bold where they "
        "exclude 0. Few seeds understate the noise of training, and one seed leaves it out."
    )
    return joined(
        folded(
            f"Difference from {summary.results.reference}: {_METRIC_TITLES[metric]}",
            element("p", words),
            table(
                labels,
                [
                    Row(
                        _with_calibrator(summary.title(method), calibrator),
                        [_difference(summary, method, calibrator, x, metric) for x in labels],
                    )
                    for method, calibrator in shown
                ],
            ),
        )
        for metric in ("ece", "accuracy")
    )


def _difference(summary: Summary, method: str, calibrator: str, label: str, metric: str) -> str:
    line = summary.comparison(method, calibrator, label, metric)
    if line is None:
        return "–"
    scale, digits = scaled(metric)
    difference, low, high = (
        f"{scale * value:+.{digits}f}" for value in (line.difference, line.low, line.high)
    )
    clear = line.low > 0 or line.high < 0
    return joined(
        [
            element("span", difference, class_="clear" if clear else ""),
            " ",
            element("span", f"{low} to {high}", class_="std"),
        ]
    )


def temperatures(summary: Summary) -> Html:
    """All fitted temperatures.

    Args:
        summary: summary of a run.

    Returns:
        Empty if none was fitted.
    """
    rows = []
    for fit in summary.results.fits:
        values = fit.temperature if isinstance(fit.temperature, tuple) else (fit.temperature,)
        flags = fit.converged if isinstance(fit.converged, tuple) else (fit.converged,)
        text = ", ".join(
            f"{value:.3g}" + ("" if converged else " (no finite optimum)")
            for value, converged in zip(values, flags, strict=True)
        )
        label = f"{summary.title(fit.method)}, {fit.calibrator.replace('_', ' ')}"
        rows.append(Row(label, [str(fit.seed), text]))
    return folded("Fitted temperatures", table(["seed", "temperature"], rows)) if rows else Html()


def _with_calibrator(title: str, calibrator: str) -> str:
    return title if calibrator == "none" else f"{title}, {calibrator.replace('_', ' ')}"
