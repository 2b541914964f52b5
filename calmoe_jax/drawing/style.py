"""How every picture looks: colours, markers and lines that differ in shade and shape too."""

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind people tell apart; ordered by lightness.
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


def png(figure: Figure) -> bytes:
    """The PNG file of a figure."""
    buffer = io.BytesIO()
    # no metadata: the same numbers give the same file
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def legend_below(figure: Figure, ax: Axes) -> None:
    """Puts the legend of a panel under the whole figure."""
    handles, labels = ax.get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncol=min(4, len(labels)),
        frameon=False,
    )
