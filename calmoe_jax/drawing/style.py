"""The style of all plots: series differ in colour, shade, marker and line."""

import io
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers; ordered by lightness.
COLOURS = (
    "#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00",
    "#7F7F7F", "#A6761D", "#B2DF8A",
)  # fmt: skip
MARKERS = "osD^vP*X<>"
LINES = ("-", "--", "-.", ":")
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.dpi": 110,
}


def look(i: int) -> dict[str, Any]:
    """Colour, marker and line of one of several series.

    Args:
        i: number of the series, from 0.

    Returns:
        Keyword arguments of `Axes.plot`. Colour and marker together differ among the first 100.
    """
    shift = i // len(COLOURS)
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[(i + shift) % len(MARKERS)],
        "ls": LINES[i % len(LINES)],
    }


def literal(text: str) -> str:
    """Escapes text so that matplotlib shows it literally, in legends too.

    Args:
        text: a name that a user chose.
    """
    # matplotlib leaves labels that begin with an underscore out of legends
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """The PNG file of a figure.

    Args:
        figure: the figure.
    """
    buffer = io.BytesIO()
    # no metadata: the same numbers give the same file
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def legend_below(figure: Figure, axes: Iterable[Axes]) -> None:
    """Puts a legend under the whole figure.

    Args:
        figure: the figure.
        axes: its panels; the legend is that of the panel with the most labels, if any.
    """
    handles, labels = max(
        (ax.get_legend_handles_labels() for ax in axes), key=lambda found: len(found[1])
    )
    figure.tight_layout()
    if labels:
        figure.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncol=min(4, len(labels)),
            frameon=False,
        )
