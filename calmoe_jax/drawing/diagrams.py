"""Plots of calibration, from arrays: reliability, experts, gaps, methods, confidences.

Every plot is a separate `matplotlib.figure.Figure`: no pyplot state, no window. Series differ in
marker and line style as well as in colour.
"""

from collections.abc import Mapping
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from calmoe_jax.calibration.diagrams import ReliabilityCurve, StatisticGap
from calmoe_jax.drawing.style import COLOURS, STYLE, legend_below, look

_DIAGONAL: Any = {"color": "#7F7F7F", "lw": 1, "zorder": 1}
# half the width of a 95 % interval, in standard errors
_NORMAL_95 = 1.96


def draw_reliability_diagram(curve: ReliabilityCurve, *, title: str = "") -> Figure:
    """Accuracy against confidence with 95 % bands, over a histogram of confidence.

    Args:
        curve: as from `reliability_curve`, of one model.
        title: title of the plot.

    Returns:
        The figure, with a point for each bin that holds examples. A bar that crosses the diagonal
        is no evidence of miscalibration at that confidence. The histogram's bars are placed at the
        bins' mean confidences.

    Raises:
        ValueError: if the curve is a batch.

    Example:
        >>> bins = reliability_bins(jnp.array([0.3, 0.8]), jnp.array([0.0, 1.0]))
        >>> len(draw_reliability_diagram(reliability_curve(bins)).axes)
        2
    """
    curve = _one_curve(curve)
    with matplotlib.rc_context(STYLE):
        figure, [(ax, foot)] = _panels(1, columns=1, side=3.6)
        _draw_curve(ax, curve, 0)
        _draw_shares(foot, curve, 0)
        ax.set_title(_with_error(title, curve))
        _legend_at_the_foot(figure, ax)
    return figure


def draw_expert_diagrams(
    curves: ReliabilityCurve, load: Any, *, names: list[str] | None = None, title: str = ""
) -> Figure:
    """A reliability diagram for every expert, on common axes, with its load in its title.

    Args:
        curves: as from `reliability_curve(expert_bins(...))`: a leading axis of experts.
        load: share of the data that each expert gets, in [0, 1].
        names: names of the experts; their numbers by default.
        title: title of the plot.

    Returns:
        The figure, at most four experts in a row. The panel of an expert without load says so.

    Raises:
        ValueError: if `curves`, `load` and `names` differ in the number of experts.

    Example:
        >>> bins = reliability_bins(jnp.array([0.3, 0.8]), jnp.array([0.0, 1.0]))
        >>> curves = jax.tree.map(lambda x: x[None], reliability_curve(bins))
        >>> len(draw_expert_diagrams(curves, [1.0]).axes)
        2
    """
    each = jax.tree.map(np.asarray, curves)
    load = np.asarray(load)
    if each.share.ndim != 2 or len(each.share) == 0:
        raise ValueError(
            f"curves must have the axes (experts, bins), got share.shape={each.share.shape}."
        )
    number = len(each.share)
    names = [f"expert {k}" for k in range(number)] if names is None else names
    for name, size in (("load", load.shape), ("names", (len(names),))):
        if size != (number,):
            raise ValueError(f"{name} must have the {number} experts of curves, got shape {size}.")
    rows = -(-number // 4)
    top = np.max(each.share, initial=0, where=each.share > 0)
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(number, columns=-(-number // rows), side=2.0)
        for k, (ax, foot) in enumerate(panels):
            curve = jax.tree.map(lambda x, k=k: x[k], each)
            _draw_curve(ax, curve, 0)
            _draw_shares(foot, curve, 0)
            foot.set_ylim(0, 1.05 * top if top > 0 else 1)
            heading = f"{names[k]}: load {100 * load[k]:.1f} %"
            ax.set_title(_with_error(heading, curve), fontsize=10)
            if not np.any(curve.share > 0):
                ax.text(0.5, 0.5, "no load", ha="center", va="center", backgroundcolor="white")
        if title:
            figure.suptitle(title, y=1, va="bottom")
        _legend_at_the_foot(figure, panels[0][0])
    return figure


def draw_gaps(gaps: Mapping[str, Mapping[str, StatisticGap]]) -> Figure:
    """Confidence minus accuracy along statistics of the routing, a panel for each.

    Args:
        gaps: results of `gap_by_statistic`, by the statistic's name (`"routing entropy, nats"`,
            say) and then by the model's.

    Returns:
        The figure. Bars are 95 % intervals, 1.96 standard errors each way; a group of a single
        example has none. Models are set side by side by a few points. A statistic with a long tail
        reads better as its root; the groups are the same.

    Raises:
        ValueError: if there is no statistic, or one of them has no model.

    Example:
        >>> gap = gap_by_statistic(jnp.arange(4.0), jnp.full(4, 0.8), jnp.ones(4), num_groups=2)
        >>> len(draw_gaps({"routing entropy, nats": {"mine": gap}}).axes)
        1
    """
    if not gaps or not all(gaps.values()):
        raise ValueError(f"gaps must hold a statistic, and a model for each, got {gaps!r}.")
    models = list(dict.fromkeys(name for lines in gaps.values() for name in lines))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6 * len(gaps), 3.8))
        axes = figure.subplots(1, len(gaps), squeeze=False, sharey=True)[0]
        reach = 0.0
        for ax, (statistic, lines) in zip(axes, gaps.items(), strict=True):
            ax.axhline(0, **_DIAGONAL)
            for name, line in lines.items():
                reach = max(reach, _draw_gap(ax, line, models.index(name), name, len(models)))
            ax.set_xlabel(statistic)
            # lines that are set aside do not count for the automatic limits
            _limit_to(ax, np.concatenate([np.asarray(x.statistic) for x in lines.values()]))
        limit = 1.3 * reach if reach > 0 else 1.0  # leaves space for the text
        for ax in axes:
            ax.set_ylim(-limit, limit)
        axes[0].set_ylabel("confidence − accuracy, 95 % intervals")
        for word, place, side in (
            ("over-confident", 0.98, "top"),
            ("under-confident", 0.02, "bottom"),
        ):
            axes[0].text(
                0.02, place, word, va=side, transform=axes[0].transAxes, color="#555555", fontsize=9
            )
        legend_below(figure, axes)
    return figure


def draw_method_comparison(curves: Mapping[str, ReliabilityCurve]) -> Figure:
    """Several models in one reliability diagram, and histograms of their confidence.

    Args:
        curves: results of `reliability_curve` by the model's name; at most five stay readable.

    Returns:
        The figure: curves with 95 % bands on the left, and on the right the histograms of
        confidence on a common scale. The legend gives each model's expected calibration error.

    Raises:
        ValueError: if there is no curve, or one is a batch.

    Example:
        >>> bins = reliability_bins(jnp.array([0.3, 0.8]), jnp.array([0.0, 1.0]))
        >>> len(draw_method_comparison({"mine": reliability_curve(bins)}).axes)
        2
    """
    if not curves:
        raise ValueError(f"curves must hold at least one model, got {curves!r}.")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.6))
        left, right = figure.subplots(1, 2)
        _square(left, label=None)
        for i, (name, batch) in enumerate(curves.items()):
            curve = _one_curve(batch)
            _draw_curve(left, curve, i, label=_with_error(name, curve), thin=len(curves) > 1)
            series = look(i)
            held = curve.share > 0
            right.plot(curve.confidence[held], curve.share[held], ms=5, lw=1.3, **series)
        left.set_xlabel("confidence")
        left.set_ylabel("accuracy, 95 % bands")
        right.set_xlim(0, 1)
        right.set_ylim(bottom=0)
        right.set_box_aspect(1)
        right.set_xlabel("confidence")
        right.set_ylabel("share of the data in the bin")
        legend_below(figure, [left])
    return figure


def draw_confidences(shares: Mapping[str, Any]) -> Figure:
    """Histograms of confidence of several data sets, on common bins.

    Args:
        shares: for each data set the share of its examples in bins of equal width over [0, 1].

    Returns:
        The figure, with a line of steps for each data set.

    Raises:
        ValueError: if there is no data set, or they differ in the number of bins.

    Example:
        >>> len(draw_confidences({"mine": [0.25, 0.75]}).axes)
        1
    """
    lines = {name: np.asarray(values) for name, values in shares.items()}
    if not lines or len({values.shape for values in lines.values()}) > 1:
        raise ValueError(f"shares must hold data sets with the same bins, got {shares!r}.")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 3.2))
        ax = figure.subplots()
        for i, (name, values) in enumerate(lines.items()):
            edges = np.linspace(0, 1, len(values) + 1)
            series = look(i)
            ax.stairs(values, edges, color=series["color"], ls=series["ls"], lw=1.8, label=name)
        ax.set_xlim(0, 1)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("confidence of the aggregate")
        ax.set_ylabel("share of the examples")
        legend_below(figure, [ax])
    return figure


def _one_curve(curve: ReliabilityCurve) -> ReliabilityCurve:
    curve = jax.tree.map(np.asarray, curve)
    if curve.share.ndim != 1:
        raise ValueError(
            f"curve must have the one axis (bins), got share.shape={curve.share.shape}."
        )
    return curve


def _with_error(title: str, curve: ReliabilityCurve) -> str:
    """The title with the expected calibration error of the curve."""
    held = curve.share > 0
    if not held.any():
        return title
    error = np.sum(curve.share[held] * np.abs(curve.confidence - curve.accuracy)[held])
    separator = "\n" if title else ""
    return f"{title}{separator}ECE {error:.3f}"


def _square(ax: Axes, *, label: str | None = "calibrated") -> None:
    ax.plot([0, 1], [0, 1], label=label, **_DIAGONAL)
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_aspect("equal")
    ticks = np.linspace(0, 1, 6)
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)


def _panels(number: int, *, columns: int, side: float) -> tuple[Figure, list[tuple[Axes, Axes]]]:
    """Square panels, each above a low one of the same width; `side` in inches.

    Placed manually: no layout engine keeps square panels, the ones below and common axes aligned.
    """
    rows = -(-number // columns)
    left, right, apart, above, foot, below = 0.75, 0.2, 0.36, 0.55, 0.24 * side, 0.2
    height = above + side + 0.1 + foot + below
    width = left + columns * (side + apart) - apart + right
    narrow = width < 4  # the legend then takes a line for each name
    total = rows * height + (1.25 if narrow else 0.75)  # with the names of the last axes
    figure = Figure(figsize=(width, total))
    panels: list[tuple[Axes, Axes]] = []
    for k in range(number):
        row, column = divmod(k, columns)
        x, y = left + column * (side + apart), total - row * height - above - side
        box = (x / width, y / total, side / width, side / total)
        ax = figure.add_axes(box)
        _square(ax)
        under = (x / width, (y - 0.1 - foot) / total, side / width, foot / total)
        beneath = figure.add_axes(under, sharex=ax)
        ax.tick_params(labelbottom=False)
        if column == 0:
            ax.set_ylabel("accuracy")
            beneath.set_ylabel("share")
        else:
            ax.tick_params(labelleft=False)
            beneath.tick_params(labelleft=False)
        if k + columns >= number:
            beneath.set_xlabel("confidence")
        else:
            beneath.tick_params(labelbottom=False)
        panels.append((ax, beneath))
    return figure, panels


def _legend_at_the_foot(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    columns = 1 if figure.get_figwidth() < 4 else len(labels)
    figure.legend(handles, labels, loc="lower center", ncol=columns, frameon=False)


def _draw_curve(
    ax: Axes, curve: ReliabilityCurve, i: int, *, label: str = "observed", thin: bool = False
) -> None:
    held = curve.share > 0
    confidence, low, high = curve.confidence[held], curve.low[held], curve.high[held]
    series = look(i)
    ax.vlines(
        confidence,
        low,
        high,
        color=series["color"],
        lw=1.2 if thin else 5,
        alpha=0.6 if thin else 0.3,
        label="" if thin else "95 % band",
    )
    ax.plot(confidence, curve.accuracy[held], lw=1.3, ms=5, label=label, clip_on=False, **series)


def _draw_shares(ax: Axes, curve: ReliabilityCurve, i: int) -> None:
    held = curve.share > 0
    width = 0.8 / len(curve.share)
    ax.bar(curve.confidence[held], curve.share[held], width=width, color=COLOURS[i], alpha=0.6)
    ax.set_ylim(bottom=0)


def _draw_gap(ax: Axes, gap: StatisticGap, i: int, name: str, number: int) -> float:
    """Draws the i-th of several lines with intervals; returns its largest distance from 0."""
    line = jax.tree.map(np.asarray, gap)
    held = np.isfinite(line.gap)
    half = _NORMAL_95 * np.nan_to_num(line.standard_error[held])
    aside = 3 * (i - (number - 1) / 2) / 72
    ax.errorbar(
        line.statistic[held],
        line.gap[held],
        yerr=half,
        lw=1.3,
        ms=5.5,
        capsize=2.5,
        label=name,
        transform=ax.transData + ScaledTranslation(aside, 0, ax.figure.dpi_scale_trans),
        **look(i),
    )
    return float(np.max(np.abs(line.gap[held]) + half, initial=0))


def _limit_to(ax: Axes, values: np.ndarray) -> None:
    held = values[np.isfinite(values)]
    if held.size:
        low, high = float(held.min()), float(held.max())
        margin = 0.06 * (high - low) or 0.5
        ax.set_xlim(low - margin, high + margin)
