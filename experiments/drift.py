"""How far a shift changes the chance to be right given the routing configuration, P(right | S).

Cells of S: the expert with the largest weight, the predicted class, and a third of confidence (by
the held-out examples of that expert and class). With `P(s)` and `g_P(s)` the share of a cell among
held-out examples and its gap, mean confidence minus accuracy, and `Q(s)`, `g_Q(s)` among targets,
the change of the gap is exactly

    g_Q - g_P = sum_{s seen} Q(s) g_P(s) - sum_s P(s) g_P(s)    the configurations move
              + sum_{s seen} Q(s) (g_Q(s) - g_P(s))             the gap given S changes
              + sum_{s unseen} Q(s) g_Q(s)                      the remainder

where a cell is seen if it has held-out examples: of the others nothing is known of the gap before.
Shares are of all examples, so that what leaves a cell is missed there whether or not the cell that
it goes to is seen. These are parts of the change, not of the gap, which may not be 0 before.

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
    """A change of the gap and its parts: `gap_after - gap_before = moved + changed + remainder`.

    Attributes:
        gap_before: confidence minus accuracy of the held-out examples.
        gap_after: the same of the targets.
        moved: part of the change because configurations move.
        changed: part because the gap given the configuration changes.
        remainder: part of targets in cells without held-out examples: their share times their gap.
        size: root of the mean square of `g_Q(s) - g_P(s)` over targets, less what sampling adds; 0
            where sampling explains all; NaN where no cell has two examples of either side.
        unseen: share of targets in cells without held-out examples.
    """

    gap_before: float
    gap_after: float
    moved: float
    changed: float
    remainder: float
    size: float
    unseen: float


def measure_drift(held_out: Seen, targets: Seen) -> Drift:
    """Measures the change from held-out examples to targets.

    Args:
        held_out: examples in distribution, at least one.
        targets: examples of a shift, at least one.

    Returns:
        The change and its parts.
    """
    cells_p, cells_q = _cells(held_out, targets)
    number = int(max(cells_p.max(), cells_q.max())) + 1
    count_p, count_q = (np.bincount(c, minlength=number) for c in (cells_p, cells_q))
    share_p, share_q = (count / count.sum() for count in (count_p, count_q))
    gap_p, noise_p = _gaps(held_out, cells_p, count_p)
    gap_q, noise_q = _gaps(targets, cells_q, count_q)
    seen = np.where(count_p > 0, share_q, 0)
    unseen = share_q - seen
    several = (count_p > 1) & (count_q > 1)
    square = np.sum(np.where(several, share_q * ((gap_q - gap_p) ** 2 - noise_p - noise_q), 0))
    return Drift(
        gap_before=float(share_p @ gap_p),
        gap_after=float(share_q @ gap_q),
        moved=float(seen @ gap_p - share_p @ gap_p),
        changed=float(seen @ (gap_q - gap_p)),
        remainder=float(unseen @ gap_q),
        size=float(np.sqrt(max(square / share_q[several].sum(), 0))) if several.any() else np.nan,
        unseen=float(unseen.sum()),
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
