"""Methods against vanilla: paired differences with bootstrap intervals.

A replicate draws whole clusters of every split, and seeds, with replacement, the same for all
methods. Intervals are percentiles of the replicated differences, moved so that their mean is the
difference that was measured: the bootstrap's own bias (binned calibration errors grow when
examples repeat) cancels in a pair only in part. Few seeds understate the noise of training (about
84 % coverage for 5 seeds where it is all there is), and one seed leaves it out.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax.calibration.intervals import bootstrap_counts
from calmoe_jax.calibration.metrics.binning import equal_width_index
from calmoe_jax.data import Split
from calmoe_jax.study.evaluation import Evaluation

REFERENCE = "vanilla"
SHIFT_MEAN = "mean over shifts"
COMPARED = ("accuracy", "nll", "brier", "ece", "confidence_gap")

_REPLICATES = 1000
_NUM_BINS = 15
# Independent examples are drawn in groups of several: as valid, and far less to sum.
_MOST_CLUSTERS = 500

# Values of one method, calibrator and split: as measured, and in every replicate.
_Replicated = tuple[np.ndarray, np.ndarray]


class Comparator:
    """Collects the replicated values of evaluations, and compares them at the end."""

    def __init__(self, num_seeds: int) -> None:
        """Draws the seeds of every replicate; clusters are drawn as splits come."""
        key = jax.random.key(0)
        self._key = key
        self._num_seeds = num_seeds
        self._seed_counts = np.asarray(
            bootstrap_counts(jax.random.fold_in(key, 0), num_seeds, num_replicates=_REPLICATES)
        )
        self._counts: dict[bytes, np.ndarray] = {}
        self._values: dict[tuple[str, str, str], _Replicated] = {}
        self._splits: dict[str, Split] = {}

    def add(self, evaluation: Evaluation) -> None:
        """Replicates the metrics of an evaluation."""
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
            self._add(evaluation, split, sums, drawn_for)

    def _add(
        self, evaluation: Evaluation, split: Split, sums: np.ndarray, drawn_for: bytes
    ) -> None:
        measured = _metrics(sums.sum(axis=1)).mean(axis=0)
        drawn = np.einsum("rg,sgm->srm", self._counts[drawn_for], sums, optimize=True)
        weights = self._seed_counts / self._num_seeds
        replicated = np.einsum("rs,srm->rm", weights, _metrics(drawn))
        self._values[evaluation.method, evaluation.calibrator, split.name] = measured, replicated

    def compare(self) -> list[dict[str, Any]]:
        """Differences from vanilla of every method, calibrator, split and metric.

        The split named `mean over shifts` is the mean of the metric over the shifts, each
        counting alike. Nothing where vanilla was not evaluated.
        """
        lines: list[dict[str, Any]] = []
        for method, calibrator in dict.fromkeys(key[:2] for key in self._values):
            if method == REFERENCE or (REFERENCE, calibrator) not in {k[:2] for k in self._values}:
                continue
            shifts = [name for name, split in self._splits.items() if split.kind == "shift"]
            for names, label in [([name], name) for name in self._splits] + [(shifts, SHIFT_MEAN)]:
                if names:
                    lines += self._lines(method, calibrator, names, label)
        return lines

    def _lines(
        self, method: str, calibrator: str, splits: list[str], label: str
    ) -> Iterable[dict[str, Any]]:
        with np.errstate(invalid="ignore"):  # an infinite log loss minus another
            ours, reference = (
                [np.mean(parts, axis=0) for parts in zip(
                    *(self._values[name, calibrator, split] for split in splits), strict=True
                )]
                for name in (method, REFERENCE)
            )  # fmt: skip
            difference = ours[0] - reference[0]
            replicated = ours[1] - reference[1]
            centred = replicated - replicated.mean(axis=0) + difference
            low, high = np.percentile(centred, [2.5, 97.5], axis=0)
        for i, metric in enumerate(COMPARED):
            numbers = {
                "value": float(ours[0][i]),
                "reference": float(reference[0][i]),
                "difference": float(difference[i]),
                "low": float(low[i]),
                "high": float(high[i]),
            }
            if np.isfinite(list(numbers.values())).all():  # an infinite log loss has no interval
                named = {"method": method, "calibrator": calibrator, "split": label}
                yield {**named, "metric": metric, **numbers}


def _cluster_numbers(split: Split) -> np.ndarray:
    """Clusters numbered from 0; single examples are dealt into a few hundred groups."""
    numbers = np.unique(split.clusters, return_inverse=True)[1]
    if numbers.max() + 1 == len(split):
        return numbers % _MOST_CLUSTERS
    return numbers


def _cluster_sums(per_example: dict[str, np.ndarray], clusters: np.ndarray) -> np.ndarray:
    """Sums over each cluster, `[seeds, clusters, 5 + bins]`: all that the metrics need."""
    num_clusters = int(clusters.max()) + 1
    result = []
    for i in range(len(per_example["correct"])):
        correct, nll, brier, confidence = (
            per_example[name][i].astype(np.float64)
            for name in ("correct", "nll", "brier", "confidence")
        )
        gap = confidence - correct
        columns = [np.ones_like(gap), correct, nll, brier, gap]
        sums = [np.bincount(clusters, column, num_clusters) for column in columns]
        bins = np.asarray(equal_width_index(jnp.asarray(per_example["confidence"][i]), _NUM_BINS))
        cells = np.bincount(clusters * _NUM_BINS + bins, gap, num_clusters * _NUM_BINS)
        result.append(np.column_stack([*sums, cells.reshape(num_clusters, _NUM_BINS)]))
    return np.stack(result)


def _metrics(sums: np.ndarray) -> np.ndarray:
    """The compared metrics of sums over examples, along the last axis."""
    count, correct, nll, brier, gap = np.moveaxis(sums[..., :5], -1, 0)
    residual = np.abs(sums[..., 5:]).sum(axis=-1)
    return np.stack([correct, nll, brier, residual, gap], axis=-1) / count[..., None]
