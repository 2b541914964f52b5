"""The shift of a split and the verdict on its repair, as plain values."""

from typing import NamedTuple

import numpy as np

from calmoe_jax.shift.repair.fit import Repair
from calmoe_jax.shift.verdict import Decision, repair_verdict


class RepairRecord(NamedTuple):
    """One seed's repair for a split, as plain values.

    Attributes:
        p_value: p-value of any shift of the configuration.
        load: p-value of a shift of the experts' loads.
        confidence: p-value of a shift of confidences.
        disagreement: p-value of a shift of the experts' disagreement.
        effective_share: effective share of the independent held-out examples or clusters under the
            balancing weights.
        balanced: whether the balancing weights were found.
        separability: separability of held-out and target configurations, in [0, 1].
        temperatures: temperatures of the aggregate, by calibrator.
        decision: the remedy.
        reason: the reason for it, in a sentence.
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


def describe(repaired: Repair, seed: int) -> RepairRecord:
    """Describes the shift and decides on a remedy, for one seed.

    Args:
        repaired: as from `fit_to_targets`.
        seed: position of the seed, from 0.
    """
    tested = {name: float(np.asarray(x)[seed]) for name, x in repaired.shift._asdict().items()}
    share = float(np.asarray(repaired.effective_share)[seed])
    balanced = bool(np.asarray(repaired.balanced)[seed])
    verdict = repair_verdict(
        tested["p_value"],
        share,
        repaired.num_held_out,
        units="clusters" if repaired.clustered else "examples",
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
