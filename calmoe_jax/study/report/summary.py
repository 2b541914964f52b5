"""Results indexed for tables and plots: means and deviations over the seeds."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from calmoe_jax.study.records import Comparison, Record, Reliability, Results, ShiftFinding

_EVALUATED = ("id", "shift", "hard", "part")


class Spread(NamedTuple):
    """Mean and standard deviation over the seeds; one seed has no deviation."""

    mean: float
    std: float | None


class BinSums(NamedTuple):
    """Sums over examples in bins of confidence.

    Attributes:
        weight: number of examples.
        confidence: sum of their confidences.
        residual: sum of confidence minus correctness.
    """

    weight: np.ndarray
    confidence: np.ndarray
    residual: np.ndarray


class Summary:
    """Looks up the values that tables and plots of one run show; indexes every list once."""

    def __init__(self, results: Results) -> None:
        """Indexes the results.

        Args:
            results: results of one run.
        """
        self.results = results
        self.methods = tuple(method.name for method in results.methods)
        self.calibrators = tuple(dict.fromkeys(record.calibrator for record in results.records))
        self._titles = {method.name: method.title for method in results.methods}
        self._records: dict[tuple[str, str, str], list[Record]] = {}
        for record in results.records:
            key = record.method, record.calibrator, record.split
            self._records.setdefault(key, []).append(record)
        self._comparisons = {
            (line.method, line.calibrator, line.split, line.metric): line
            for line in results.comparisons
        }
        self._bins: dict[tuple[str, str, str], list[Reliability]] = {}
        for bins in results.reliability:
            self._bins.setdefault((bins.method, bins.calibrator, bins.kind), []).append(bins)
        self._findings: dict[tuple[str, str], list[ShiftFinding]] = {}
        for finding in results.shifts:
            self._findings.setdefault((finding.method, finding.split), []).append(finding)

    @property
    def num_seeds(self) -> int:
        """Number of distinct seeds among the records."""
        return len({record.seed for record in self.results.records})

    def title(self, method: str) -> str:
        """The method's title; its name if it has none.

        Args:
            method: name of a method.
        """
        return self._titles.get(method) or method

    def splits(self, kind: str | None = None) -> list[str]:
        """Names of the evaluated splits, in order.

        Args:
            kind: `id`, `shift`, `hard` or `part`; all four by default.
        """
        kinds = _EVALUATED if kind is None else (kind,)
        return [split.name for split in self.results.splits if split.kind in kinds]

    def spread(
        self, method: str, calibrator: str, splits: Iterable[str], metric: str
    ) -> Spread | None:
        """A metric's mean and deviation over the seeds, averaged over splits first.

        Args:
            method: name of a method.
            calibrator: name of a calibrator.
            splits: names of splits, with equal weights.
            metric: name of a metric, or `confidence` for the mean confidence.

        Returns:
            `None` if the metric does not exist for one of the records, or there is no record.
        """
        by_seed: dict[int, list[float]] = {}
        for split in dict.fromkeys(splits):
            for record in self._records.get((method, calibrator, split), ()):
                value = _value(record, metric)
                if value is None:
                    return None
                by_seed.setdefault(record.seed, []).append(value)
        if not by_seed:
            return None
        means = [float(np.mean(values)) for values in by_seed.values()]
        std = float(np.std(means, ddof=1)) if len(means) > 1 else None
        return Spread(float(np.mean(means)), std)

    def comparison(
        self, method: str, calibrator: str, split: str, metric: str
    ) -> Comparison | None:
        """The paired difference from the reference, if there is one.

        Args:
            method: name of a method.
            calibrator: name of a calibrator.
            split: name of a split, or `SHIFT_MEAN`.
            metric: name of a metric.
        """
        return self._comparisons.get((method, calibrator, split, metric))

    def bins(self, method: str, calibrator: str, kind: str) -> BinSums | None:
        """Reliability sums over all seeds and all splits of a kind; `None` without examples.

        Args:
            method: name of a method.
            calibrator: name of a calibrator.
            kind: `id`, `shift`, `hard` or `part`.
        """
        chosen = self._bins.get((method, calibrator, kind), [])
        sums = BinSums(
            *(np.sum([getattr(line, name) for line in chosen], axis=0) for name in BinSums._fields)
        )
        return sums if chosen and sums.weight.sum() > 0 else None

    def findings(self, method: str, split: str) -> list[ShiftFinding]:
        """Findings of the shift test, one for each seed.

        Args:
            method: name of a method.
            split: name of a split.
        """
        return self._findings.get((method, split), [])


def _value(record: Record, metric: str) -> float | None:
    """A metric of a record, or the mean confidence: what the two others of it give together."""
    if metric != "confidence":
        value: float | None = getattr(record, metric)
        return value
    if record.accuracy is None or record.confidence_gap is None:
        return None
    return record.accuracy + record.confidence_gap
