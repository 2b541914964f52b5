"""The shift of a split and the verdict on its repair, as plain values."""

from typing import NamedTuple

import numpy as np

from calmoe_jax.shift.repair.balance_evidence import balance_evidence
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
        balance: what `configuration_balanced` rests on, in words.
        separability: separability of held-out and target configurations, in [0, 1].
        temperatures: temperatures of the aggregate, by calibrator.
        mean_confidence: mean confidence on the targets at each of these, and at `none` and
            `temperature`.
        decision: what to do.
        reason: the reason for it, in a sentence.
        labels: how many targets to label; 0 if none.
    """

    p_value: float
    load: float
    confidence: float
    disagreement: float
    effective_share: float
    balanced: bool
    balance: str
    separability: float
    temperatures: dict[str, float]
    mean_confidence: dict[str, float]
    decision: Decision
    reason: str
    labels: int


def describe(repaired: Repair, seed: int) -> RepairRecord:
    """Describes the shift and decides what to do, for one seed.

    Args:
        repaired: as from `fit_to_targets`.
        seed: position of the seed, from 0.

    Example:
        >>> import numpy as np
        >>> rows = jnp.log(jnp.tile(jnp.array([[0.9, 0.1], [0.6, 0.4]]), (1, 60, 1, 1)))
        >>> sample = Sample(rows, jnp.full((1, 60, 2), 0.5))
        >>> labels = (np.arange(60) % 4 == 0).astype(np.int32)
        >>> held_out = prepare(sample, labels, np.arange(60), jnp.ones(1))
        >>> found = describe(fit_to_targets(held_out, sample, np.arange(60)), 0)
        >>> found.decision, found.labels, found.p_value
        ('keep', 0, 1.0)
    """
    tested = {name: float(np.asarray(x)[seed]) for name, x in repaired.shift._asdict().items()}
    share = float(np.asarray(repaired.effective_share)[seed])
    balanced = bool(np.asarray(repaired.balanced)[seed])
    confidence = {k: float(np.asarray(x)[seed]) for k, x in repaired.mean_confidence.items()}
    verdict = repair_verdict(
        tested["p_value"],
        confidence["temperature"],
        confidence["safe"],
        confidence["bold"],
        repaired.num_targets,
        peers=repaired.num_peers > 0,
        units="clusters of targets" if repaired.clustered else "targets",
        smallest_p_value=repaired.smallest_p_value,
    )
    return RepairRecord(
        **tested,
        effective_share=share,
        balanced=balanced,
        balance=balance_evidence(
            share,
            repaired.num_held_out,
            hard=bool(np.asarray(repaired.hard)[seed]),
            feasible=balanced,
            units="clusters" if repaired.clustered else "examples",
        ),
        separability=float(np.asarray(repaired.separability)[seed]),
        temperatures={k: float(np.asarray(t)[seed]) for k, t in repaired.temperatures.items()},
        mean_confidence=confidence,
        decision=verdict.decision,
        reason=verdict.reason,
        labels=verdict.labels,
    )
