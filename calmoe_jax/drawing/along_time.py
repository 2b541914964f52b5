"""A deployed model along time: confidence and accuracy, the gap by labels, tests for a shift."""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calmoe_jax.drawing.style import COLOURS, STYLE, literal

# Names of periods along the axis, at most.
_MOST_NAMES = 16
_LEAST_P = 1e-6


class Moment(NamedTuple):
    """A period; what is not known is NaN.

    Attributes:
        name: its name.
        confidence: mean confidence.
        accuracy: estimated accuracy.
        low: lower end of its band.
        high: upper end.
        labels: number of labels.
        lower: lower bound of the gap by labels.
        upper: upper bound.
        pooled: the gap by the labels of all periods.
        p_value: of the test for a shift.
        level: the level that it is held against.
    """

    name: str
    confidence: float
    accuracy: float
    low: float
    high: float
    labels: int
    lower: float
    upper: float
    pooled: float
    p_value: float
    level: float


class _Columns(NamedTuple):
    """The fields of all periods, as arrays."""

    name: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    low: np.ndarray
    high: np.ndarray
    labels: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    pooled: np.ndarray
    p_value: np.ndarray
    level: np.ndarray


def draw_along_time(
    moments: Sequence[Moment], *, held_out_confidence: float, held_out_accuracy: float
) -> Figure:
    """Draws periods from left to right, in three panels.

    Args:
        moments: at least one period, in the order of time.
        held_out_confidence: mean confidence on held-out examples.
        held_out_accuracy: accuracy on them.

    Returns:
        The figure: confidence and accuracy with its band; confidence minus accuracy between the
        bounds by labels, and pooled; p-values of the tests and their levels. A panel of which
        nothing is known says so.

    Raises:
        ValueError: if there is no period.

    Example:
        >>> moment = Moment("May", 0.9, 0.8, 0.75, 0.85, 50, 0.0, 0.2, 0.1, 0.4, 0.01)
        >>> figure = draw_along_time([moment], held_out_confidence=0.9, held_out_accuracy=0.9)
        >>> len(figure.axes)
        3
    """
    if not moments:
        raise ValueError("moments must hold at least one period, got none.")
    columns = _Columns(*map(np.asarray, zip(*moments, strict=True)))
    at = np.arange(len(moments))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.0, min(14.0, 3.5 + 0.4 * len(moments))), 8.0))
        top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
        _draw_accuracy(top, at, columns, held_out_confidence, held_out_accuracy)
        _draw_gap(middle, at, columns)
        _draw_shift(bottom, at, columns)
        step = -(-len(moments) // _MOST_NAMES)
        names = [literal(moment.name) for moment in moments[::step]]
        bottom.set_xticks(at[::step], names, rotation=30, ha="right")
        bottom.set_xlim(-0.5, len(moments) - 0.5)
        for axes in (top, middle, bottom):
            if axes.get_legend_handles_labels()[1]:
                axes.legend(
                    loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9
                )
        figure.align_ylabels()
        figure.tight_layout()
    return figure


def _draw_accuracy(
    axes: Axes, at: np.ndarray, of: _Columns, held_out_confidence: float, held_out_accuracy: float
) -> None:
    axes.axhline(held_out_confidence, color=COLOURS[1], lw=1, ls=":", label="confidence, held out")
    axes.axhline(held_out_accuracy, color=COLOURS[2], lw=1, ls=":", label="accuracy, held out")
    axes.plot(at, of.confidence, color=COLOURS[1], marker="o", ms=4, label="mean confidence")
    labelled = of.labels > 0
    value, low, high = of.accuracy, of.low, of.high
    for chosen, marker, words in (
        (~labelled, "s", "accuracy, label-free, between rules"),
        (labelled, "D", "accuracy by labels, with bounds"),
    ):
        if chosen.any():
            axes.errorbar(
                at[chosen], value[chosen],
                yerr=[
                    np.maximum(value - low, 0)[chosen], np.maximum(high - value, 0)[chosen],
                ],
                color=COLOURS[2], marker=marker, ms=5, ls="none", capsize=2, lw=1,
                mfc="white" if marker == "s" else COLOURS[2], label=words,
            )  # fmt: skip
    axes.set_ylabel("confidence, accuracy")


def _draw_gap(axes: Axes, at: np.ndarray, of: _Columns) -> None:
    axes.set_ylabel("confidence − accuracy")
    axes.axhline(0, color="#777777", lw=1)
    known = np.isfinite(of.lower)
    if not known.any():
        _say(axes, "no labels: the gap is not known")
        return
    axes.vlines(
        at[known], of.lower[known], of.upper[known], color=COLOURS[2],
        lw=5, alpha=0.35, label="bounds by labels",
    )  # fmt: skip
    axes.plot(
        at[known], of.lower[known], color=COLOURS[2], marker="^", ls="none", ms=5,
        label="certified: at least",
    )  # fmt: skip
    axes.plot(at, of.pooled, color=COLOURS[0], marker="_", lw=1, label="pooled over periods")


def _draw_shift(axes: Axes, at: np.ndarray, of: _Columns) -> None:
    axes.set_ylabel("p-value of a shift")
    known = np.isfinite(of.p_value)
    if not known.any():
        _say(axes, "no routing in the logs: not tested")
        return
    p_values, levels = (np.maximum(x, _LEAST_P) for x in (of.p_value, of.level))
    shifted = known & (p_values <= levels)
    axes.set_yscale("log")
    axes.plot(at, levels, color="#777777", lw=1, ls="--", label="level spent")
    rest = known & ~shifted
    axes.plot(at[rest], p_values[rest], color=COLOURS[3], marker="o", ls="none", ms=5, label="p")
    if shifted.any():
        axes.plot(
            at[shifted], p_values[shifted], color=COLOURS[2], marker="X", ls="none", ms=8,
            label="shift",
        )  # fmt: skip
    axes.set_ylim(min(p_values[known].min(), levels.min()) / 3, 2)


def _say(axes: Axes, words: str) -> None:
    axes.text(0.5, 0.5, words, ha="center", va="center", transform=axes.transAxes, color="#555555")
    axes.set_yticks([])
