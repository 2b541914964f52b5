"""What is known of a split's shift and what to do about it, as plain values."""

from typing import NamedTuple

import numpy as np

from calmoe_jax.shift.repair.fit import Repair
from calmoe_jax.shift.verdict import Decision, repair_verdict


class RepairRecord(NamedTuple):
    """One seed's repair for a split, in plain values.

    Attributes:
        p_value: that nothing of the configuration shifts.
        load: that the loads of experts do not.
        confidence: that confidences do not.
        disagreement: that the experts' disagreement does not.
        effective_share: effective share of the held-out examples under the balancing weights.
        balanced: whether those were found.
        separability: of held-out and target configurations, in [0, 1].
        temperatures: of the aggregate, by calibrator.
        decision: what to do.
        reason: why, in a sentence.
    """

    p_value: float
    load: float
    confidence: float
    disagreement: float
    effective_share: float
    balanced: bool
    separability: float
    temperatures: dict[str, float]
    decision: Decision
    reason: str


def describe(repaired: Repair, seed: int, num_held_out: int) -> RepairRecord:
    """What is known of the shift, and what to do about it.

    Args:
        repaired: as from `fit_to_targets`.
        seed: which of the seeds, from 0.
        num_held_out: labelled held-out examples.
    """
    tested = {name: float(np.asarray(x)[seed]) for name, x in repaired.shift._asdict().items()}
    share = float(np.asarray(repaired.effective_share)[seed])
    balanced = bool(np.asarray(repaired.balanced)[seed])
    verdict = repair_verdict(
        tested["p_value"],
        share,
        num_held_out,
        hard=bool(np.asarray(repaired.hard)[seed]),
        feasible=balanced,
        smallest_p_value=repaired.smallest_p_value,
    )
    return RepairRecord(
        **tested,
        effective_share=share,
        balanced=balanced,
        separability=float(np.asarray(repaired.separability)[seed]),
        temperatures={k: float(np.asarray(t)[seed]) for k, t in repaired.temperatures.items()},
        decision=verdict.decision,
        reason=verdict.reason,
    )
