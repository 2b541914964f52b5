"""How far a shift changes the chance to be right given the routing configuration, P(right | S).

Cells of S: the expert with the largest weight, the predicted class, and a third of confidence (by
the held-out examples of that expert and class). With `P(s)` and `g_P(s)` the share of a cell among
held-out examples and its gap, mean confidence minus accuracy, and `Q(s)`, `g_Q(s)` among targets,
the change of the gap is exactly

    g_Q - g_P = sum_s (Q - P)(s) g_P(s)            the configurations move
              + sum_s Q(s) (g_Q(s) - g_P(s))       the gap given S changes

Theory keeps calibrated hard routing calibrated where P(right | S) stays: there the second is 0 but
for what a cell is too coarse for. Gaps are compared in cells, not accuracies: confidences that move
within a cell move accuracy with them.
"""

from typing import NamedTuple

import numpy as np

_THIRDS = 3


class Seen(NamedTuple):
    """Examples as a mixture sees them; arrays of one length.

    Attributes:
        expert: the expert with the largest weight.
        predicted: the predicted class.
        confidence: probability of that class.
        correct: whether it is right.
    """

    expert: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray


class Drift(NamedTuple):
    """A change of the gap and its parts.

    Attributes:
        gap_before: confidence minus accuracy of held-out examples in the cells that targets use.
        gap_after: the same of targets in cells that held-out examples use.
        moved: part of the difference because configurations move.
        changed: part because the gap given the configuration changes.
        size: root of the mean square of `g_Q(s) - g_P(s)` over targets, less what sampling adds; 0
            where sampling explains all.
        unseen: share of targets in cells without held-out examples, which are left out.
    """

    gap_before: float
    gap_after: float
    moved: float
    changed: float
    size: float
    unseen: float


def measure_drift(held_out: Seen, targets: Seen) -> Drift:
    """Measures the change from held-out examples to targets.

    Args:
        held_out: examples in distribution.
        targets: examples of a shift.

    Returns:
        The change; NaN if no target is in a cell of the held-out examples.
    """
    cells_p, cells_q = _cells(held_out, targets)
    number = int(max(cells_p.max(initial=0), cells_q.max(initial=0))) + 1
    count_p, count_q = (np.bincount(c, minlength=number) for c in (cells_p, cells_q))
    both = (count_p > 0) & (count_q > 0)
    unseen = float(np.mean(count_p[cells_q] == 0)) if len(cells_q) else float("nan")
    if not both.any():
        return Drift(*[float("nan")] * 5, unseen)
    share_p, share_q = (np.where(both, c, 0) / c[both].sum() for c in (count_p, count_q))
    gap_p, noise_p = _gaps(held_out, cells_p, count_p)
    gap_q, noise_q = _gaps(targets, cells_q, count_q)
    several = both & (count_p > 1) & (count_q > 1)
    square = np.sum(np.where(several, share_q * ((gap_q - gap_p) ** 2 - noise_p - noise_q), 0))
    return Drift(
        float(share_p @ gap_p),
        float(share_q @ gap_q),
        float((share_q - share_p) @ gap_p),
        float(share_q @ (gap_q - gap_p)),
        float(np.sqrt(max(square / share_q[several].sum(), 0))) if several.any() else float("nan"),
        unseen,
    )


def _gaps(seen: Seen, cells: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gap of each cell, and the variance of its mean."""
    gap = seen.confidence - seen.correct
    mean, square = (np.bincount(cells, x, len(count)) / np.maximum(count, 1) for x in (gap, gap**2))
    return mean, np.maximum(square - mean**2, 0) / np.maximum(count - 1, 1)


def _cells(held_out: Seen, targets: Seen) -> tuple[np.ndarray, np.ndarray]:
    """The number of each example's cell, of both sides."""
    classes = int(max(held_out.predicted.max(), targets.predicted.max())) + 1
    coarse = [s.expert.astype(int) * classes + s.predicted for s in (held_out, targets)]
    found = [np.zeros(len(c), int) for c in coarse]
    for cell in np.unique(coarse[0]):
        inside = coarse[0] == cell
        edges = np.quantile(held_out.confidence[inside], np.arange(1, _THIRDS) / _THIRDS)
        for side, seen in enumerate((held_out, targets)):
            rows = coarse[side] == cell
            found[side][rows] = np.searchsorted(edges, seen.confidence[rows])
    return tuple(_THIRDS * c + f for c, f in zip(coarse, found, strict=True))  # type: ignore[return-value]
