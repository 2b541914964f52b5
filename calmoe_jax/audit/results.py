"""What an audit finds, as typed records of plain values."""

from dataclasses import asdict, dataclass
from typing import Any

from calmoe_jax.shift.verdict import Decision

# None: not a finite number.
Number = float | None


@dataclass(frozen=True)
class Estimate:
    """A score with a 95 % interval; an end is `None` where the data do not determine it."""

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
    """As `calibration.DisagreementIdentity`: of the aggregate, and of every expert's view."""

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
        n: number of them.
        experts: number of experts.
        classes: number of classes.
        clusters: number of clusters.
        scores: of the aggregate as it is.
        expert_ece: of each expert on its routing-weighted view.
        expert_mean_ece: mean of them, weighted by load.
        load: share of the routing weights that each expert has.
        router_confidence: mean largest routing weight.
        disagreement: what of the aggregate's error the experts' disagreement is.
        temperature: of the aggregate, fitted on them.
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
    """Whether the targets' configurations shift, and what to do; as `shift.repair.RepairRecord`."""

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
        held_out: of the labelled held-out examples.
        shift: of the targets against them; `None` without targets.
        targets: how to repair the targets' confidence; `None` without targets.
        targets_scored: scores of the targets by calibrator, where all of them have labels.
    """

    held_out: HeldOutAudit
    shift: ShiftAudit | None = None
    targets: TargetsAudit | None = None
    targets_scored: dict[str, Scores] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; what there is nothing of is left out."""
        plain: dict[str, Any] = {"held_out": self.held_out.to_json()}
        if self.shift is not None:
            plain["shift"] = asdict(self.shift)
        if self.targets is not None:
            plain["targets"] = asdict(self.targets)
        if self.targets_scored is not None:
            plain["targets_scored"] = {k: asdict(v) for k, v in self.targets_scored.items()}
        return plain
