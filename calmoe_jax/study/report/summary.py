"""Records to the numbers that tables and plots show: means and deviations over the seeds."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SCHEMA = 1
Results = dict[str, Any]


class ResultsError(Exception):
    """A results file cannot be shown; the message says why."""


class Spread(NamedTuple):
    """Mean and standard deviation over the seeds; one seed has no deviation."""

    mean: float
    std: float | None


def read_results(folder: Path) -> Results:
    """Reads `results.json` of a run's folder.

    Raises:
        ResultsError: where it is missing, no JSON, or of another schema.
    """
    path = folder / "results.json"
    if not path.is_file():
        unfinished = (folder / "config.json").is_file()
        hint = " The run is not finished: the same `calmoe run` continues it." if unfinished else ""
        raise ResultsError(f"there is no {path}.{hint}")
    try:
        results: Results = json.loads(path.read_text())
    except ValueError as error:
        raise ResultsError(f"{path} is no JSON: {error}.") from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        found = results.get("schema") if isinstance(results, dict) else None
        raise ResultsError(f"{path} must be of schema {SCHEMA}, got schema={found}.")
    return results


def split_names(results: Results, kind: str | None = None) -> list[str]:
    """Names of the splits that were evaluated, in order; of one kind only where it is given."""
    return [
        split["name"]
        for split in results["splits"]
        if split["kind"] in (("id", "shift", "hard") if kind is None else (kind,))
    ]


def spread(
    results: Results, method: str, calibrator: str, splits: Iterable[str], metric: str
) -> Spread | None:
    """A metric's mean and deviation over the seeds, averaged over splits first.

    `None` where the metric does not exist for one of the records, or there is no record.
    """
    wanted = set(splits)
    by_seed: dict[int, list[float]] = {}
    for record in results["records"]:
        if (
            record["method"] == method
            and record["calibrator"] == calibrator
            and record["split"] in wanted
        ):
            if record[metric] is None:
                return None
            by_seed.setdefault(record["seed"], []).append(record[metric])
    if not by_seed:
        return None
    means = [float(np.mean(values)) for values in by_seed.values()]
    std = float(np.std(means, ddof=1)) if len(means) > 1 else None
    return Spread(float(np.mean(means)), std)


def comparison(
    results: Results, method: str, calibrator: str, split: str, metric: str
) -> dict[str, Any] | None:
    """The paired difference from vanilla, if there is one."""
    for line in results["comparisons"]:
        if (line["method"], line["calibrator"], line["split"], line["metric"]) == (
            method,
            calibrator,
            split,
            metric,
        ):
            return dict(line)
    return None


def pooled_bins(
    results: Results, method: str, calibrator: str, kind: str
) -> dict[str, np.ndarray] | None:
    """Reliability sums over all seeds and all splits of a kind."""
    chosen = [
        line
        for line in results["reliability"]
        if (line["method"], line["calibrator"], line["kind"]) == (method, calibrator, kind)
    ]
    if not chosen:
        return None
    return {
        name: np.sum([line[name] for line in chosen], axis=0)
        for name in ("weight", "confidence", "residual")
    }


def title_of(results: Results, method: str) -> str:
    """How a person calls the method."""
    return str(results["methods"][method]["title"])
