"""Methods against a reference: paired differences with bootstrap intervals.

A replicate draws whole clusters of every split, and seeds, with replacement, the same for all
methods. Intervals are percentiles of the replicated differences, moved so that their mean is the
measured difference: the bootstrap's own bias (binned calibration errors grow when examples repeat)
cancels only partly in a pair. Few seeds understate the noise of training (about 84 % coverage for
5 seeds if there is no other noise), and one seed leaves it out.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from calmoe_jax.calibration.intervals import bootstrap_counts
from calmoe_jax.calibration.metrics.binning import equal_width_index
from calmoe_jax.data import Split
from calmoe_jax.study.records import SHIFT_MEAN, Comparison

REFERENCE = "vanilla"
COMPARED = ("accuracy", "nll", "brier", "ece", "confidence_gap")

_REPLICATES = 1000
_NUM_BINS = 15
# Independent examples are drawn in groups: just as valid, and much faster to sum.
_MOST_CLUSTERS = 500


class ExampleScores(NamedTuple):
    """Per-example scores that the compared metrics are computed from.

    Attributes:
        correct: whether the most probable class is right, 0 or 1.
        confidence: probability of that class.
        nll: negative log-likelihood, nats.
        brier: Brier score.
    """

    correct: Shaped[Array | np.ndarray, "*seeds examples"]
    confidence: Shaped[Array | np.ndarray, "*seeds examples"]
    nll: Shaped[Array | np.ndarray, "*seeds examples"]
    brier: Shaped[Array | np.ndarray, "*seeds examples"]


@runtime_checkable
class Evaluated(Protocol):
    """One method and calibrator on one split, for all seeds."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def calibrator(self) -> str:
        """Name of the calibrator."""

    @property
    def split(self) -> Split:
        """The split."""

    @property
    def per_example(self) -> ExampleScores:
        """Scores, `[seeds, examples]`."""


class _Replicated(NamedTuple):
    """The compared metrics of one method, calibrator and split."""

    measured: Float[np.ndarray, " metrics"]
    replicated: Float[np.ndarray, "replicates metrics"]


class Comparator:
    """Collects the replicated values of evaluations, and compares them at the end."""

    def __init__(self, num_seeds: int, *, reference: str = REFERENCE) -> None:
        """Draws the seeds of every replicate; clusters are drawn as splits come.

        Args:
            num_seeds: number of seeds of every evaluation.
            reference: name of the method that the others are compared with.
        """
        key = jax.random.key(0)
        self._key = key
        self._num_seeds = num_seeds
        self._reference = reference
        self._seed_counts = np.asarray(
            bootstrap_counts(jax.random.fold_in(key, 0), num_seeds, num_replicates=_REPLICATES)
        )
        self._counts: dict[bytes, np.ndarray] = {}
        self._values: dict[tuple[str, str, str], _Replicated] = {}
        self._splits: dict[str, Split] = {}

    def add(self, evaluation: Evaluated) -> None:
        """Replicates the metrics of an evaluation.

        Args:
            evaluation: evaluation of all seeds.
        """
        split = evaluation.split
        self._splits[split.name] = split
        clusters = _cluster_numbers(split)
        # splits of the same examples (one corrupted in many ways, say) are drawn together
        drawn_for = split.clusters.tobytes()
        if drawn_for not in self._counts:
            key = jax.random.fold_in(self._key, len(self._counts) + 1)
            self._counts[drawn_for] = np.asarray(
                bootstrap_counts(key, int(clusters.max()) + 1, num_replicates=_REPLICATES)
            )
        sums = _cluster_sums(evaluation.per_example, clusters)
        with np.errstate(invalid="ignore"):  # 0 times an infinite log loss
            values = self._replicate(sums, self._counts[drawn_for])
        self._values[evaluation.method, evaluation.calibrator, split.name] = values

    def _replicate(self, sums: np.ndarray, counts: np.ndarray) -> _Replicated:
        measured = _metrics(sums.sum(axis=1)).mean(axis=0)
        drawn = np.einsum("rg,sgm->srm", counts, sums, optimize=True)
        weights = self._seed_counts / self._num_seeds
        replicated = np.einsum("rs,srm->rm", weights, _metrics(drawn))
        return _Replicated(measured, replicated)

    def compare(self) -> list[Comparison]:
        """Differences from the reference of every method, calibrator, split and metric.

        Returns:
            The comparisons, those of one method together. The split named `SHIFT_MEAN` is the
            mean of the metric over the shifts, with equal weights. There is none if the method or
            the reference was not evaluated, or for an infinite log loss.
        """
        comparisons: list[Comparison] = []
        shifts = [name for name, split in self._splits.items() if split.kind == "shift"]
        labelled = [(name, [name]) for name in self._splits] + [(SHIFT_MEAN, shifts)]
        for method, calibrator in dict.fromkeys(key[:2] for key in self._values):
            if method == self._reference:
                continue
            for label, splits in labelled:
                pairs = [
                    tuple(self._values.get((name, calibrator, split)) for split in splits)
                    for name in (method, self._reference)
                ]
                ours, reference = (tuple(x for x in pair if x is not None) for pair in pairs)
                if splits and len(ours) == len(reference) == len(splits):
                    comparisons += _compare(method, calibrator, label, ours, reference)
        return comparisons


def _compare(
    method: str,
    calibrator: str,
    label: str,
    ours: tuple[_Replicated, ...],
    reference: tuple[_Replicated, ...],
) -> Iterable[Comparison]:
    """Compares means over splits."""
    with np.errstate(invalid="ignore"):  # an infinite log loss minus another
        value, replicated = (np.mean(parts, axis=0) for parts in zip(*ours, strict=True))
        base, replicated_base = (np.mean(parts, axis=0) for parts in zip(*reference, strict=True))
        difference = value - base
        replicated = replicated - replicated_base
        centred = replicated - replicated.mean(axis=0) + difference
        low, high = np.percentile(centred, [2.5, 97.5], axis=0)
    for i, metric in enumerate(COMPARED):
        numbers = [float(x[i]) for x in (value, base, difference, low, high)]
        if np.isfinite(numbers).all():  # there is no interval for an infinite log loss
            yield Comparison(method, calibrator, label, metric, *numbers)


def _cluster_numbers(split: Split) -> np.ndarray:
    """Clusters numbered from 0; single examples are put into a few hundred groups."""
    numbers = np.unique(split.clusters, return_inverse=True)[1]
    if numbers.max() + 1 == len(split):
        return numbers % _MOST_CLUSTERS
    return numbers


def _cluster_sums(per_example: ExampleScores, clusters: np.ndarray) -> np.ndarray:
    """Sums over each cluster, `[seeds, clusters, 5 + bins]`: all that the metrics need."""
    num_clusters = int(clusters.max()) + 1
    result = []
    confidences = np.asarray(per_example.confidence)
    # all seeds at once: the overhead of a small call exceeds its computation
    index = np.asarray(equal_width_index(jnp.asarray(confidences.reshape(-1)), _NUM_BINS))
    every = zip(*(np.asarray(x) for x in per_example), strict=True)
    for scores, bins in zip(every, index.reshape(confidences.shape), strict=True):
        correct, confidence, nll, brier = (x.astype(np.float64) for x in scores)
        gap = confidence - correct
        columns = [np.ones_like(gap), correct, nll, brier, gap]
        sums = [np.bincount(clusters, column, num_clusters) for column in columns]
        cells = np.bincount(clusters * _NUM_BINS + bins, gap, num_clusters * _NUM_BINS)
        result.append(np.column_stack([*sums, cells.reshape(num_clusters, _NUM_BINS)]))
    return np.stack(result)


def _metrics(sums: np.ndarray) -> np.ndarray:
    """The compared metrics of sums over examples, along the last axis."""
    count, correct, nll, brier, gap = np.moveaxis(sums[..., :5], -1, 0)
    residual = np.abs(sums[..., 5:]).sum(axis=-1)
    return np.stack([correct, nll, brier, residual, gap], axis=-1) / count[..., None]
