"""Assesses logs: calibration, shift of the routing configurations, and possible repairs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import calibration
from calmoe_jax.audit import logs as of_logs
from calmoe_jax.audit import scoring
from calmoe_jax.audit.logs import Logs, log_arrays, take
from calmoe_jax.audit.results import Audit, Disagreement, HeldOutAudit, ShiftAudit, TargetsAudit
from calmoe_jax.audit.scoring import plain
from calmoe_jax.shift import repair

_PERMUTATIONS = 999
# Of the test, where examples are independent: as many a side as sorting takes no time for.
_MOST_EXAMPLES = 2000
# Of the repairs: with so many a side a mean confidence is known to .001, and more only take memory.
_MOST_REPAIRED = 200_000
# What cannot be balanced where routing and experts are not known.
_OF_CONFIGURATIONS = "configuration_balanced"


def audit(logs: Logs) -> Audit:
    """Everything that the logs show.

    Args:
        logs: checked logs.

    Returns:
        An `Audit`. The scores have 95 % intervals. Targets are scored where they have labels; no
        decision depends on these. If the logs have the aggregate alone there is nothing of experts,
        and no test for a shift of the configuration. Repairs rest on at most 200,000 examples a
        side, evenly spread.
    """
    judged, prepared = _held_out(of_logs.held_out(logs))
    targets = of_logs.targets(logs)
    left_out = len(logs.labels) - judged.n - len(targets.labels)
    if not len(targets.labels):
        return Audit(judged, left_out=left_out, notes=logs.notes)
    found = _repaired(prepared, targets)
    temperatures = {"temperature": judged.temperature, **found.pop("temperatures")}
    confidence = found.pop("mean_confidence")
    if logs.aggregate_only:
        temperatures.pop(_OF_CONFIGURATIONS)
        confidence.pop(_OF_CONFIGURATIONS)
    scored, changed, labelled = None, None, targets.labels >= 0
    if labelled.any():
        with_labels = scoring.prepare(take(targets, labelled))
        values = {"none": 1.0, **temperatures}
        scored = {name: scoring.scores(with_labels, value) for name, value in values.items()}
        changed = scoring.changes(with_labels, temperatures)
    return Audit(
        judged,
        None if logs.aggregate_only else ShiftAudit(**found),
        TargetsAudit(
            n=len(targets.labels),
            labelled=int(labelled.sum()),
            clusters=len(np.unique(targets.clusters)),
            temperatures=temperatures,
            mean_confidence=confidence,
            rests_on=[min(n, _MOST_REPAIRED) for n in (judged.n, len(targets.labels))],
        ),
        scored,
        changed,
        left_out,
        logs.notes,
    )


def _held_out(logs: Logs) -> tuple[HeldOutAudit, repair.HeldOut]:
    """What the held-out examples show; their arrays are freed before those of the targets exist."""
    judged = _judge_held_out(logs)
    some = _some(logs)
    return judged, repair.prepare(
        _sample(some),
        some.labels,
        some.clusters,
        jnp.full(1, judged.temperature, jnp.float32),
        peers=_peers(some),
        most_examples=_MOST_EXAMPLES,
    )


def _repaired(held_out: repair.HeldOut, targets: Logs) -> dict[str, Any]:
    """The shift and the temperatures for the targets, as plain values."""
    some = _some(targets)
    repaired = repair.fit_to_targets(
        held_out,
        _sample(some),
        some.clusters,
        peers=_peers(some),
        num_permutations=_PERMUTATIONS,
        most_examples=_MOST_EXAMPLES,
    )
    found = repair.describe(repaired, 0)._asdict()
    return {name: plain(v) if isinstance(v, float) else v for name, v in found.items()}


def _some(logs: Logs) -> Logs:
    """Evenly spread examples, if there are more than repairs need."""
    size = len(logs.labels)
    if size <= _MOST_REPAIRED:
        return logs
    return take(logs, np.linspace(0, size - 1, _MOST_REPAIRED).round().astype(int))


def _sample(logs: Logs) -> repair.Sample:
    """The logs as a sample of one seed: they have all experts, uniform where not chosen."""
    return repair.Sample(*(x[None] for x in log_arrays(logs)))


def _peers(logs: Logs) -> jax.Array | None:
    """Classes that the peers predict."""
    if logs.peer_probs is None:
        return None
    return jnp.asarray(logs.peer_probs.argmax(axis=-1).T, jnp.int32)


def _judge_held_out(logs: Logs) -> HeldOutAudit:
    examples = scoring.prepare(logs)
    fit, impossible, impossible_as = scoring.fit_temperature(examples)
    return HeldOutAudit(
        n=len(logs.labels),
        classes=logs.expert_probs.shape[2],
        clusters=len(np.unique(logs.clusters)),
        scores=scoring.scores(examples, 1.0),
        **_of_experts(logs),
        temperature=float(repair.usable_temperature(fit)),
        temperature_converged=bool(fit.converged),
        impossible_labels=impossible,
        impossible_as=impossible_as,
    )


def _of_experts(logs: Logs) -> dict[str, Any]:
    """What only the predictions of all experts show."""
    names = "experts", "expert_ece", "expert_mean_ece", "load", "router_confidence", "disagreement"
    if logs.aggregate_only:
        return dict.fromkeys(names)
    probs, weights, labels = map(
        jnp.asarray, (logs.expert_probs, logs.routing_weights, logs.labels)
    )
    mixed = jax.jit(calibration.mixture_calibration)(probs, weights, labels)
    identity = jax.jit(calibration.disagreement_identity)(probs, weights, labels)
    found = (
        weights.shape[1],
        plain(mixed.top_label.experts),
        plain(mixed.top_label.expert_mean),
        plain(mixed.load),
        plain(mixed.router_confidence),
        Disagreement(**{name: plain(value) for name, value in identity._asdict().items()}),
    )
    return dict(zip(names, found, strict=True))
