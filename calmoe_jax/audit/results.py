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
        experts: number of experts.
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
    """

    n: int
    experts: int
    classes: int
    clusters: int
    scores: Scores
    expert_ece: list[Number]
    expert_mean_ece: Number
    load: list[Number]
    router_confidence: Number
    disagreement: Disagreement
    temperature: float
    temperature_converged: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the scores among the others."""
        plain: dict[str, Any] = {}
        for name, value in asdict(self).items():
            plain.update(value if name == "scores" else {name: value})
        return plain


@dataclass(frozen=True)
class ShiftAudit:
    """Whether the targets' configurations shift, and the remedy; as `shift.repair.RepairRecord`."""

    p_value: Number
    load: Number
    confidence: Number
    disagreement: Number
    effective_share: Number
    balanced: bool
    separability: Number
    decision: Decision
    reason: str


@dataclass(frozen=True)
class TargetsAudit:
    """The targets: their number, and temperatures for them by calibrator."""

    n: int
    temperatures: dict[str, float]


@dataclass(frozen=True)
class Audit:
    """Everything that logs show.

    Attributes:
        held_out: results on the labelled held-out examples.
        shift: shift between them and the targets; `None` without targets.
        targets: temperatures that repair the targets' confidence; `None` without targets.
        targets_scored: scores of the targets by calibrator, if all of them have labels.
    """

    held_out: HeldOutAudit
    shift: ShiftAudit | None = None
    targets: TargetsAudit | None = None
    targets_scored: dict[str, Scores] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; missing parts are left out."""
        plain: dict[str, Any] = {"held_out": self.held_out.to_json()}
        if self.shift is not None:
            plain["shift"] = asdict(self.shift)
        if self.targets is not None:
            plain["targets"] = asdict(self.targets)
        if self.targets_scored is not None:
            plain["targets_scored"] = {k: asdict(v) for k, v in self.targets_scored.items()}
        return plain
