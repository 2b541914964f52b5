"""The pictures of a report, from records alone."""

from collections.abc import Callable

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calmoe_jax.drawing.style import COLOURS, LINES, MARKERS, STYLE, legend_below, png
from calmoe_jax.study.comparison import REFERENCE
from calmoe_jax.study.report.summary import Results, pooled_bins, split_names, spread, title_of


def draw_all(results: Results) -> dict[str, bytes]:
    """Draws every picture that the results allow; returns PNG files by name."""
    pictures: dict[str, Callable[[Results], Figure | None]] = {
        "tradeoff": draw_tradeoff,
        "along_the_shift": draw_along_the_shift,
        "reliability": draw_reliability,
    }
    files = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in pictures.items():
            figure = draw(results)
            if figure is not None:
                files[name] = png(figure)
    return files


def draw_tradeoff(results: Results) -> Figure | None:
    """Accuracy against calibration error, in distribution and under shift; up and left is good."""
    panels = [("id", "in distribution"), ("shift", "under shift, mean over shifts")]
    panels = [(kind, title) for kind, title in panels if split_names(results, kind)]
    figure = Figure(figsize=(5.2 * len(panels), 4.2))
    axes = figure.subplots(1, len(panels), squeeze=False)
    for ax, (kind, title) in zip(axes[0], panels, strict=True):
        splits = split_names(results, kind)
        for i, method in enumerate(results["methods"]):
            points = []
            for calibrator in ("none", "temperature"):
                ece = spread(results, method, calibrator, splits, "ece")
                accuracy = spread(results, method, calibrator, splits, "accuracy")
                if ece and accuracy:
                    points.append((ece, accuracy))
            colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            xs, ys = [p[0].mean for p in points], [100 * p[1].mean for p in points]
            ax.plot(xs, ys, color=colour, lw=0.8, alpha=0.6)
            for j, (ece, accuracy) in enumerate(points):
                ax.errorbar(
                    ece.mean,
                    100 * accuracy.mean,
                    xerr=ece.std,
                    yerr=None if accuracy.std is None else 100 * accuracy.std,
                    color=colour,
                    marker=marker,
                    ms=8,
                    mfc=colour if j == 0 else "white",
                    lw=0.8,
                    label=title_of(results, method) if j == 0 else None,
                )
        ax.set_xlabel("top-label ECE")
        ax.set_ylabel("accuracy, %")
        ax.set_xlim(left=0)
        ax.set_title(title)
    legend_below(figure, axes[0][0])
    return figure


def draw_along_the_shift(results: Results) -> Figure | None:
    """Calibration error along the order of the shift: years, severities."""
    series: dict[str, list[tuple[float, str]]] = {}
    for split in results["splits"]:
        if split["series"] is not None:
            point = (split["position"], split["name"])
            series.setdefault(split["series"], []).append(point)
    if not series:
        return None
    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    figure = Figure(figsize=(10.4 if columns > 1 else 7.0, 3.4 * rows))
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for ax, (name, points) in zip(axes.flat, series.items(), strict=False):
        points.sort()
        _along(ax, results, name, points)
    for ax in axes.flat[len(series) :]:
        ax.set_visible(False)
    for row in axes:
        row[0].set_ylabel("top-label ECE")
        row[0].set_ylim(bottom=0)
    legend_below(figure, axes.flat[0])
    return figure


def _along(ax: Axes, results: Results, name: str, points: list[tuple[float, str]]) -> None:
    inside = split_names(results, "id")
    named = name == "year"  # spans of years are shown by their names, severities by numbers
    labels = ["in distribution" if named else "0"]
    labels += [split if named else f"{position:g}" for position, split in points]
    for i, method in enumerate(results["methods"]):
        values = [
            spread(results, method, "none", splits, "ece")
            for splits in (inside, *([split] for _, split in points))
        ]
        means = np.array([np.nan if v is None else v.mean for v in values])
        ax.plot(
            range(len(means)),
            means,
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[i % len(MARKERS)],
            ls=LINES[i % len(LINES)],
            lw=1.4,
            ms=6,
            label=title_of(results, method),
        )
    ax.set_xticks(range(len(labels)), labels)
    ax.set_title("later years" if named else name.replace("_", " "))
    if not named:
        ax.set_xlabel("severity (0: in distribution)")


def draw_reliability(results: Results) -> Figure | None:
    """Reliability diagrams: accuracy against confidence, before and after temperature.

    A column for vanilla and each robust or otherwise chosen method; rows: in distribution, under
    shift. The bars at the foot show where the examples are.
    """
    methods = _methods_to_show(results)
    kinds = [("id", "in distribution"), ("shift", "under shift")]
    kinds = [(kind, title) for kind, title in kinds if split_names(results, kind)]
    figure = Figure(figsize=(2.9 * len(methods), 3.0 * len(kinds)))
    axes = figure.subplots(len(kinds), len(methods), squeeze=False, sharex=True, sharey=True)
    for row, (kind, title) in zip(axes, kinds, strict=True):
        for ax, method in zip(row, methods, strict=True):
            _reliability(ax, results, method, kind)
        row[0].set_ylabel(f"{title}\naccuracy")
    for ax, method in zip(axes[0], methods, strict=True):
        ax.set_title(title_of(results, method))
    for ax in axes[-1]:
        ax.set_xlabel("confidence")
    legend_below(figure, axes[0][0])
    return figure


def _reliability(ax: Axes, results: Results, method: str, kind: str) -> None:
    ax.plot([0, 1], [0, 1], color="#999999", lw=1)
    styles = {"none": ("#0072B2", "o", "as it is"), "temperature": ("#D55E00", "s", "temperature")}
    for calibrator, (colour, marker, label) in styles.items():
        bins = pooled_bins(results, method, calibrator, kind)
        if bins is None:
            continue
        held = bins["weight"] > 0
        weight = bins["weight"][held]
        confidence = bins["confidence"][held] / weight
        accuracy = confidence - bins["residual"][held] / weight
        share = bins["weight"] / bins["weight"].sum()
        # a bin with next to nothing in it is noise: drawn faintly
        solid = share[held] >= 0.005
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


def _methods_to_show(results: Results) -> list[str]:
    """At most four methods: vanilla, then what differs most from it in kind."""
    preferred = [REFERENCE, "robust", "robust_filtered", "fgr", "mocae", "single"]
    present = [name for name in preferred if name in results["methods"]]
    present += [name for name in results["methods"] if name not in present]
    return present[:4]
