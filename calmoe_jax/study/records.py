"""The schema of `results.json`: its types, one reader, one writer, one number."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from calmoe_jax._errors import UserError
from calmoe_jax._files import to_json, write_whole
from calmoe_jax.data.task import Kind
from calmoe_jax.study._plain import PlainValueError, from_plain, to_plain

SCHEMA = 4
# What schema 2 did not have of a shift. It can be read: its calibrator `agreement` (the more
# cautious of two rules, as `bold` is) and its decisions keep their names.
_NEW_IN_3 = ("balance", "mean_confidence", "labels")
# What schemas 2 and 3 did not have of a record: they knew no votes.
_NEW_IN_4 = ("human_nll", "human_brier", "human_ece")
# The `split` of a comparison of means over the shifted splits, with equal weights.
SHIFT_MEAN = "mean over shifts"


class ResultsError(UserError):
    """A results file cannot be used; the message says why."""


@dataclass(frozen=True)
class Record:
    """The metrics of one method, seed, split and calibrator.

    Attributes:
        task: name of the task.
        method: name of the method.
        routing: routing kind of the run's models, for a method with a single expert as well.
        seed: seed of the training.
        split: name of the split.
        kind: relation of the split to the training data.
        calibrator: calibrator applied after training; `none` for none.
        n: number of examples.
        accuracy: share of examples whose most probable class is right, in [0, 1].
        nll: mean negative log-likelihood, nats; `None` if infinite.
        brier: mean Brier score, in [0, 2].
        ece: expected calibration error of the top label, 15 bins of equal width.
        classwise_ece: mean over classes of each one's calibration error.
        smooth_ece: smooth calibration error of the top label.
        confidence_gap: mean confidence minus accuracy.
        disagreement: mean of `sum_k r_k |f_k - F|^2`; `None` with one expert.
        routing_entropy: mean entropy of the routing weights, nats; `None` with one expert.
        human_nll: mean cross-entropy `-sum_c q_c log F_c` with the votes' shares `q`, nats; its
            least value is their mean entropy. `None` if infinite. Like the following it is `None`
            for a split without soft labels.
        human_brier: mean of `sum_c q_c |F - e_c|^2`, the Brier score of a label drawn from the
            votes, in [0, 2]; its least value is the mean of `1 - |q|^2`.
        human_ece: human-calibrated ECE of the top label. With the predicted class
            `yhat = argmax F` and the examples in 15 bins of equal width by `max F`, it is
            `(1 / n) sum_b |sum_{i in b} (max F_i - q_i(yhat_i))|`: as `ece`, with the share of
            people who chose the predicted class in place of whether it is the label. So it is an
            estimate for labels drawn from people: `E[q(yhat) | max F = p] = p` (top-label
            calibration with respect to the people), which is weaker than agreement with the
            people's shares on each example.

    References:
        Peterson et al., Human Uncertainty Makes Classification More Robust, 2019 (the votes, and
        cross-entropy against them); Baan et al., Stop Measuring Calibration When Humans Disagree,
        2022 (why the label is not enough; their own errors compare whole distributions, example
        by example).
    """

    task: str
    method: str
    routing: str
    seed: int
    split: str
    kind: Kind
    calibrator: str
    n: int
    accuracy: float | None
    nll: float | None
    brier: float | None
    ece: float | None
    classwise_ece: float | None
    smooth_ece: float | None
    confidence_gap: float | None
    disagreement: float | None
    routing_entropy: float | None
    human_nll: float | None
    human_brier: float | None
    human_ece: float | None


_RECORD_FIELDS = tuple(field.name for field in dataclasses.fields(Record))
METRICS = _RECORD_FIELDS[_RECORD_FIELDS.index("n") + 1 :]


@dataclass(frozen=True)
class Fit:
    """Temperatures of one method and seed, fitted on the calibration split.

    Attributes:
        method: name of the method.
        calibrator: the calibrator that was fitted.
        seed: seed of the training.
        temperature: temperature of the aggregate, or of every expert.
        converged: whether each is a finite optimum.
        at_bound: whether each search ended at an end of its range.
    """

    method: str
    calibrator: str
    seed: int
    temperature: float | tuple[float, ...]
    converged: bool | tuple[bool, ...]
    at_bound: bool | tuple[bool, ...]


@dataclass(frozen=True)
class ShiftFinding:
    """Whether the routing configuration of a split differs from the held-out one, and the remedy.

    Attributes:
        method: name of the method.
        split: name of the split.
        kind: relation of the split to the training data.
        seed: seed of the training.
        p_value: p-value of the permutation test of any difference.
        load: p-value of a difference of the experts' load.
        confidence: p-value of a difference of confidence.
        disagreement: p-value of a difference of the experts' disagreement.
        effective_share: effective share of the held-out examples under balancing weights.
        balanced: whether those weights exist and were found.
        balance: what the configuration-balanced calibrator rests on, as text.
        separability: separability of held-out and target configurations, in [0, 1].
        temperatures: temperatures of the aggregate on this split, by calibrator.
        mean_confidence: mean confidence on this split at each of these, and at `none` and
            `temperature`.
        decision: what to do.
        reason: the reason for it, as text.
        labels: how many examples of the split to label; 0 if none. Like `balance` and
            `mean_confidence` it is `None` if the file is of schema 2.
    """

    method: str
    split: str
    kind: Kind
    seed: int
    p_value: float
    load: float
    confidence: float
    disagreement: float
    effective_share: float
    balanced: bool
    balance: str | None
    separability: float
    temperatures: dict[str, float]
    mean_confidence: dict[str, float] | None
    decision: str
    reason: str
    labels: int | None


@dataclass(frozen=True)
class Comparison:
    """A paired difference of one metric between a method and the reference.

    Attributes:
        method: name of the method.
        calibrator: calibrator of both methods.
        split: name of the split, or `SHIFT_MEAN`.
        metric: name of the metric.
        value: value of the method, mean over the seeds.
        reference: value of the reference, mean over the seeds.
        difference: `value - reference`.
        low: lower end of the 95 % interval of the difference.
        high: upper end.
    """

    method: str
    calibrator: str
    split: str
    metric: str
    value: float
    reference: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Reliability:
    """Sums over the examples of all seeds in bins of confidence of equal width.

    Attributes:
        method: name of the method.
        calibrator: calibrator applied after training.
        split: name of the split.
        kind: relation of the split to the training data.
        weight: number of examples in each bin.
        confidence: sum of their confidences.
        residual: sum of confidence minus correctness.
    """

    method: str
    calibrator: str
    split: str
    kind: Kind
    weight: tuple[float, ...]
    confidence: tuple[float, ...]
    residual: tuple[float, ...]


@dataclass(frozen=True)
class SplitInfo:
    """A split of the task.

    Attributes:
        name: unique within the task.
        kind: kind of the split.
        n: number of examples.
        clusters: number of clusters of dependent examples.
        description: a one-line description.
        series: the ordered family that it is a member of, if any.
        position: its place in the family.
    """

    name: str
    kind: Kind
    n: int
    clusters: int
    description: str
    series: str | None
    position: float | None


@dataclass(frozen=True)
class MethodInfo:
    """A method that was run.

    Attributes:
        name: name in the records.
        title: title in tables and plots.
        summary: a one-line description.
        training: name of the training; methods of one training share their models.
        expert_temperatures: whether a temperature for every expert is part of the method.
    """

    name: str
    title: str
    summary: str
    training: str
    expert_temperatures: bool


@dataclass(frozen=True)
class Environment:
    """What a result depends on besides its configuration.

    Attributes:
        python: version of Python.
        versions: versions of packages; `None` if not installed.
        platform: operating system and processor.
        devices: number and kind of the devices.
        cores: cores of the processor, if known.
        commit: commit of the sources, if they are a checkout; with `+` if it has changes.
    """

    python: str
    versions: dict[str, str | None]
    platform: str
    devices: tuple[str, ...]
    cores: int | None
    commit: str | None


@dataclass(frozen=True)
class Results:
    """Results of a finished run.

    Attributes:
        task: name of the task.
        config: the run's configuration as plain JSON values.
        environment: versions and devices.
        source: origin of the data.
        splits: all splits of the task, in its order.
        methods: all methods, in the run's order.
        reference: name of the method that the others are compared with; it need not be in the run.
        records: method by method, calibrator by calibrator, split by split, seed by seed.
        fits: fitted temperatures.
        shifts: findings of the shift test, for each method, split and seed.
        comparisons: differences from the reference.
        reliability: binned sums, for each method, calibrator and split.
        warnings: problems that did not end the run, as text.
    """

    task: str
    config: dict[str, object]
    environment: Environment
    source: str
    splits: tuple[SplitInfo, ...]
    methods: tuple[MethodInfo, ...]
    reference: str
    records: tuple[Record, ...]
    fits: tuple[Fit, ...]
    shifts: tuple[ShiftFinding, ...]
    comparisons: tuple[Comparison, ...]
    reliability: tuple[Reliability, ...]
    warnings: tuple[str, ...]


def write_results(path: Path, results: Results) -> None:
    """Writes results as JSON, atomically.

    Args:
        path: the file, `results.json` of a run's folder.
        results: the results.

    Raises:
        ValueError: if a field holds a value that is not of its type, or not finite.
    """
    write_whole(path, to_json({"schema": SCHEMA, **to_plain(Results, results)}))


def read_results(folder: Path) -> Results:
    """Reads `results.json` of a run's folder.

    Args:
        folder: the run's folder.

    Returns:
        The results, equal to those that were written.

    Raises:
        ResultsError: if the file is missing, is not JSON or has another schema, or if a field is
            missing, unknown or of a wrong type.
    """
    path = folder / "results.json"
    if not path.is_file():
        unfinished = (folder / "config.json").is_file()
        hint = " The run is not finished: the same `calmoe run` continues it." if unfinished else ""
        raise ResultsError(f"there is no {path}.{hint}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ResultsError(f"{path} is not JSON: {error}.") from error
    found = content.pop("schema", None) if isinstance(content, dict) else None
    if found not in (2, 3, SCHEMA):
        raise ResultsError(f"{path} must be of schema 2, 3 or {SCHEMA}, got schema={found}.")
    if found == 2:
        _add_absent(content, "shifts", _NEW_IN_3)
    if found < SCHEMA:
        _add_absent(content, "records", _NEW_IN_4)
    try:
        results: Results = from_plain(Results, content)
    except PlainValueError as error:
        raise ResultsError(f"{path}: {error}") from error
    return results


def _add_absent(content: dict[str, object], part: str, fields: tuple[str, ...]) -> None:
    """Adds fields that an earlier schema did not have, as `None`; what is broken stays so."""
    lines = content.get(part)
    for line in lines if isinstance(lines, list) else ():
        if isinstance(line, dict):
            line.update(dict.fromkeys(fields))
