"""Results of an audit, as typed records of plain values."""

from dataclasses import asdict, dataclass
from typing import Any

from calmoe_jax.shift.verdict import Decision

# None: not a finite number.
Number = float | None


@dataclass(frozen=True)
class Estimate:
    """A score with a 95 % interval; an end is `None` if the data do not determine it."""

    value: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class Scores:
    """Scores of the aggregate at a temperature; `ece` is the plain estimate, without interval."""

    accuracy: Estimate
    negative_log_likelihood: Estimate
    brier_score: Estimate
    confidence_gap: Estimate
    ece: Number
    debiased_ece: Estimate


@dataclass(frozen=True)
class Disagreement:
    """The terms of `calibration.DisagreementIdentity`."""

    aggregate: Number
    disagreement: Number
    difference: Number
    standard_error: Number
    view: list[Number]
    view_error: list[Number]


@dataclass(frozen=True)
class HeldOutAudit:
    """The labelled held-out examples.

    Attributes:
        n: number of examples.
        experts: number of experts; like everything of experts `None` if the logs have the
            aggregate alone.
        classes: number of classes.
        clusters: number of clusters.
        scores: scores of the uncalibrated aggregate.
        expert_ece: ECE of each expert on its routing-weighted view.
        expert_mean_ece: their mean, weighted by load.
        load: share of the routing weights of each expert.
        router_confidence: mean largest routing weight.
        disagreement: decomposition of the aggregate's error by the experts' disagreement.
        temperature: temperature of the aggregate, fitted on these examples.
        temperature_converged: whether a finite one is optimal.
        impossible_labels: number of examples whose label the aggregate gives probability 0.
        impossible_as: the probability that these labels count as in fits of temperatures: the
            smallest positive one of all examples and classes, at most 0.001; `None` if there are
            none. The scores take 0 for 0.
    """

    n: int
    experts: int | None
    classes: int
    clusters: int
    scores: Scores
    expert_ece: list[Number] | None
    expert_mean_ece: Number
    load: list[Number] | None
    router_confidence: Number
    disagreement: Disagreement | None
    temperature: float
    temperature_converged: bool
    impossible_labels: int
    impossible_as: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the scores among the others."""
        plain: dict[str, Any] = {}
        for name, value in asdict(self).items():
            plain.update(value if name == "scores" else {name: value})
        return plain


@dataclass(frozen=True)
class ShiftAudit:
    """Whether the targets' configurations shift, and what to do; as `shift.repair.RepairRecord`."""

    p_value: Number
    load: Number
    confidence: Number
    disagreement: Number
    effective_share: Number
    balanced: bool
    balance: str
    separability: Number
    decision: Decision
    reason: str
    labels: int


@dataclass(frozen=True)
class TargetsAudit:
    """The targets.

    Attributes:
        n: number of targets.
        labelled: how many of them have a label.
        clusters: number of clusters.
        temperatures: temperatures for them, by calibrator; no label of a target is used.
        mean_confidence: mean confidence at each of these, and at `none`, the model as it is logged.
        rests_on: how many of the held-out examples and of the targets these rest on, evenly spread
            over all of them.
    """

    n: int
    labelled: int
    clusters: int
    temperatures: dict[str, float]
    mean_confidence: dict[str, float]
    rests_on: list[int]


@dataclass(frozen=True)
class Change:
    """By how much a temperature changes the Brier score on labelled targets; above 0 is harm.

    Attributes:
        from_none: from that of the model as it is logged.
        from_temperature: from that with the temperature fitted on held-out examples.
    """

    from_none: Estimate
    from_temperature: Estimate


@dataclass(frozen=True)
class Audit:
    """Everything that logs show.

    Attributes:
        held_out: results on the labelled held-out examples.
        shift: shift between them and the targets; `None` without targets.
        targets: temperatures that repair the targets' confidence; `None` without targets.
        targets_scored: scores of the targets that have labels, by calibrator; `None` if none has.
        targets_changed: what each temperature changes for these, by calibrator.
        left_out: number of examples that do not count (see `Logs.where`).
        notes: what was changed in reading, in sentences.
    """

    held_out: HeldOutAudit
    shift: ShiftAudit | None = None
    targets: TargetsAudit | None = None
    targets_scored: dict[str, Scores] | None = None
    targets_changed: dict[str, Change] | None = None
    left_out: int = 0
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; missing parts are left out."""
        plain: dict[str, Any] = {
            "held_out": self.held_out.to_json(),
            "left_out": self.left_out,
            "notes": list(self.notes),
        }
        if self.shift is not None:
            plain["shift"] = asdict(self.shift)
        if self.targets is not None:
            plain["targets"] = asdict(self.targets)
        if self.targets_scored is not None:
            plain["targets_scored"] = {k: asdict(v) for k, v in self.targets_scored.items()}
        if self.targets_changed is not None:
            plain["targets_changed"] = {k: asdict(v) for k, v in self.targets_changed.items()}
        return plain
