"""The plots of a report, from records only."""

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calmoe_jax.drawing.style import STYLE, legend_below, literal, look, png
from calmoe_jax.study.report.summary import Summary

# Reliability diagrams are shown for this many methods, of these kinds first.
_MOST_DIAGRAMS = 4
_PREFERRED = ("robust", "robust_filtered", "fgr", "mocae", "single")
# Bins with a smaller share of the examples are noisy, and are drawn faintly.
_LEAST_SHARE = 0.005


def draw_all(summary: Summary) -> dict[str, bytes]:
    """Draws every plot that the results allow.

    Args:
        summary: summary of a run.

    Returns:
        PNG files by name.
    """
    pictures: dict[str, Callable[[Summary], Figure | None]] = {
        "tradeoff": draw_tradeoff,
        "along_the_shift": draw_along_the_shift,
        "reliability": draw_reliability,
    }
    files = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in pictures.items():
            figure = draw(summary)
            if figure is not None:
                files[name] = png(figure)
    return files


def draw_tradeoff(summary: Summary) -> Figure | None:
    """Accuracy against calibration error, in distribution and under shift; up and left is good.

    Args:
        summary: summary of a run.

    Returns:
        The figure; `None` if no split of either kind was evaluated.
    """
    panels = [("id", "in distribution"), ("shift", "under shift, mean over shifts")]
    panels = [(kind, title) for kind, title in panels if summary.splits(kind)]
    if not panels or not summary.methods:
        return None
    figure = Figure(figsize=(5.2 * len(panels), 4.2))
    axes = figure.subplots(1, len(panels), squeeze=False)
    for ax, (kind, title) in zip(axes[0], panels, strict=True):
        for i, method in enumerate(summary.methods):
            _tradeoff_of(ax, summary, method, kind, i)
        ax.set_xlabel("top-label ECE")
        ax.set_ylabel("accuracy, %")
        ax.set_xlim(left=0)
        ax.set_title(title)
    legend_below(figure, axes.flat)
    return figure


def _tradeoff_of(ax: Axes, summary: Summary, method: str, kind: str, i: int) -> None:
    """A method's points: filled as trained, hollow with a temperature."""
    splits = summary.splits(kind)
    points = []
    for calibrator in ("none", "temperature"):
        ece = summary.spread(method, calibrator, splits, "ece")
        accuracy = summary.spread(method, calibrator, splits, "accuracy")
        if ece is not None and accuracy is not None:
            points.append((calibrator, ece, accuracy))
    style = look(i)
    xs, ys = [ece.mean for _, ece, _ in points], [100 * accuracy.mean for *_, accuracy in points]
    ax.plot(xs, ys, color=style["color"], lw=0.8, alpha=0.6)
    for j, (calibrator, ece, accuracy) in enumerate(points):
        ax.errorbar(
            ece.mean,
            100 * accuracy.mean,
            xerr=ece.std,
            yerr=None if accuracy.std is None else 100 * accuracy.std,
            color=style["color"],
            marker=style["marker"],
            ms=8,
            mfc=style["color"] if calibrator == "none" else "white",
            lw=0.8,
            label=literal(summary.title(method)) if j == 0 else None,
        )


def draw_along_the_shift(summary: Summary) -> Figure | None:
    """Calibration error along the order of the shift: years, severities.

    Args:
        summary: summary of a run.

    Returns:
        The figure; `None` if the splits have no order.
    """
    evaluated = set(summary.splits())
    series: dict[str, list[tuple[float, str]]] = {}
    for split in summary.results.splits:
        if split.series is not None and split.position is not None and split.name in evaluated:
            series.setdefault(split.series, []).append((split.position, split.name))
    if not series or not summary.methods:
        return None
    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(10.4 if columns > 1 else 7.0, 3.4 * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax, (name, points) in zip(axes.flat, series.items(), strict=False):
        _along(ax, summary, name, sorted(points))
    for ax in axes.flat[len(series) :]:
        ax.set_visible(False)
    for row in axes:
        row[0].set_ylabel("top-label ECE")
        row[0].set_ylim(bottom=0)
    legend_below(figure, axes.flat)
    return figure


def _along(ax: Axes, summary: Summary, name: str, points: list[tuple[float, str]]) -> None:
    named = name == "year"  # spans of years are shown by their names, severities by numbers
    columns = [("in distribution" if named else "0", summary.splits("id"))]
    columns += [(literal(split) if named else f"{at:g}", [split]) for at, split in points]
    for i, method in enumerate(summary.methods):
        values = [summary.spread(method, "none", splits, "ece") for _, splits in columns]
        means = np.array([np.nan if v is None else v.mean for v in values])
        ax.plot(
            range(len(means)), means, lw=1.4, ms=6, label=literal(summary.title(method)), **look(i)
        )
    ax.set_xticks(range(len(columns)), [label for label, _ in columns])
    ax.set_title("later years" if named else literal(name.replace("_", " ")))
    if not named:
        ax.set_xlabel("severity (0: in distribution)")


def draw_reliability(summary: Summary) -> Figure | None:
    """Reliability diagrams: accuracy against confidence, before and after temperature.

    A column for the reference and up to three other methods; rows: in distribution, under shift.
    The bars below show the distribution of the confidences.

    Args:
        summary: summary of a run.

    Returns:
        The figure; `None` if there is nothing to show.
    """
    kinds = [("id", "in distribution"), ("shift", "under shift")]
    kinds = [(kind, title) for kind, title in kinds if summary.splits(kind)]
    methods = _methods_to_show(summary)
    if not kinds or not methods:
        return None
    figure = Figure(figsize=(2.9 * len(methods), 3.0 * len(kinds)))
    axes = figure.subplots(len(kinds), len(methods), squeeze=False, sharex=True, sharey=True)
    for row, (kind, title) in zip(axes, kinds, strict=True):
        for ax, method in zip(row, methods, strict=True):
            _reliability(ax, summary, method, kind)
        row[0].set_ylabel(f"{title}\naccuracy")
    for ax, method in zip(axes[0], methods, strict=True):
        ax.set_title(literal(summary.title(method)))
    for ax in axes[-1]:
        ax.set_xlabel("confidence")
    legend_below(figure, axes.flat)
    return figure


def _reliability(ax: Axes, summary: Summary, method: str, kind: str) -> None:
    ax.plot([0, 1], [0, 1], color="#999999", lw=1)
    styles = {"none": ("#0072B2", "o", "as it is"), "temperature": ("#D55E00", "s", "temperature")}
    for calibrator, (colour, marker, label) in styles.items():
        bins = summary.bins(method, calibrator, kind)
        if bins is None:
            continue
        held = bins.weight > 0
        weight = bins.weight[held]
        confidence = bins.confidence[held] / weight
        accuracy = confidence - bins.residual[held] / weight
        share = bins.weight / bins.weight.sum()
        solid = share[held] >= _LEAST_SHARE
        ax.plot(confidence[solid], accuracy[solid], color=colour, lw=1.2)
        ax.scatter(
            confidence[solid], accuracy[solid], color=colour, marker=marker, s=22, label=label
        )
        ax.scatter(
            confidence[~solid], accuracy[~solid], color=colour, marker=marker, s=14, alpha=0.3
        )
        if calibrator == "none":
            centres = (np.arange(len(share)) + 0.5) / len(share)
            ax.bar(centres, 0.3 * share, width=0.9 / len(share), color=colour, alpha=0.25)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_aspect("equal")


def _methods_to_show(summary: Summary) -> list[str]:
    """The reference first, then a method of each other kind, then the rest."""
    preferred = [summary.results.reference, *_PREFERRED]
    present = [name for name in preferred if name in summary.methods]
    present += [name for name in summary.methods if name not in present]
    return present[:_MOST_DIAGRAMS]
