"""Assesses logs: calibration, shift of the routing configurations, and possible repairs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import calibration, mixture
from calmoe_jax.audit import logs as of_logs
from calmoe_jax.audit.logs import Logs, log_arrays, take
from calmoe_jax.audit.results import (
    Audit,
    Disagreement,
    Estimate,
    HeldOutAudit,
    Scores,
    ShiftAudit,
    TargetsAudit,
)
from calmoe_jax.calibration.intervals import Interval, ScoreIntervals
from calmoe_jax.shift import repair

_PERMUTATIONS = 999
# Of the test, where examples are independent: as many a side as sorting takes no time for.
_MOST_EXAMPLES = 2000


def audit(logs: Logs) -> Audit:
    """Everything that the logs show.

    Args:
        logs: checked logs.

    Returns:
        An `Audit`. The scores have 95 % intervals. Targets are scored where they have labels; no
        decision depends on these.
    """
    judged, prepared = _held_out(of_logs.held_out(logs))
    targets = of_logs.targets(logs)
    left_out = len(logs.labels) - judged.n - len(targets.labels)
    if not len(targets.labels):
        return Audit(judged, left_out=left_out)
    found = _repaired(prepared, targets)
    temperatures = {"temperature": judged.temperature, **found.pop("temperatures")}
    scored, labelled = None, targets.labels >= 0
    if labelled.any():
        with_labels = take(targets, labelled)
        values = {"none": 1.0, **temperatures}
        scored = {name: _scores(with_labels, value) for name, value in values.items()}
    clusters = len(np.unique(targets.clusters))
    return Audit(
        judged,
        ShiftAudit(**found),
        TargetsAudit(len(targets.labels), int(labelled.sum()), clusters, temperatures),
        scored,
        left_out,
    )


def _held_out(logs: Logs) -> tuple[HeldOutAudit, repair.HeldOut]:
    """What the held-out examples show; their arrays are freed before those of the targets exist."""
    judged = _judge_held_out(logs)
    return judged, repair.prepare(
        _sample(logs),
        logs.labels,
        logs.clusters,
        jnp.full(1, judged.temperature, jnp.float32),
        most_examples=_MOST_EXAMPLES,
    )


def _repaired(held_out: repair.HeldOut, targets: Logs) -> dict[str, Any]:
    """The shift and the temperatures for the targets, as plain values."""
    repaired = repair.fit_to_targets(
        held_out,
        _sample(targets),
        targets.clusters,
        num_permutations=_PERMUTATIONS,
        most_examples=_MOST_EXAMPLES,
    )
    found = repair.describe(repaired, 0)._asdict()
    return {name: _plain(v) if isinstance(v, float) else v for name, v in found.items()}


def _sample(logs: Logs) -> repair.Sample:
    """The logs as a sample of one seed: they have all experts, uniform where not chosen."""
    return repair.Sample(*(x[None] for x in log_arrays(logs)))


def _judge_held_out(logs: Logs) -> HeldOutAudit:
    log_probs, weights = log_arrays(logs)
    labels = jnp.asarray(logs.labels)
    probs = jnp.exp(log_probs)
    mixed = jax.jit(calibration.mixture_calibration)(probs, weights, labels)
    identity = jax.jit(calibration.disagreement_identity)(probs, weights, labels)
    aggregate = mixture.mix_log_probs(log_probs, weights)
    impossible = int(jnp.isneginf(aggregate[jnp.arange(len(labels)), labels]).sum())
    fit = calibration.calibrators.fit_temperature(
        repair.with_possible_labels(aggregate, labels), labels
    )
    return HeldOutAudit(
        n=len(logs.labels),
        experts=weights.shape[1],
        classes=probs.shape[2],
        clusters=len(np.unique(logs.clusters)),
        scores=_scores(logs, 1.0),
        expert_ece=_plain(mixed.top_label.experts),
        expert_mean_ece=_plain(mixed.top_label.expert_mean),
        load=_plain(mixed.load),
        router_confidence=_plain(mixed.router_confidence),
        disagreement=Disagreement(
            **{name: _plain(value) for name, value in identity._asdict().items()}
        ),
        temperature=float(repair.usable_temperature(fit)),
        temperature_converged=bool(fit.converged),
        impossible_labels=impossible,
        impossible_as=float(jnp.exp(repair.least_log_prob(aggregate))) if impossible else None,
    )


def _scores(logs: Logs, temperature: float) -> Scores:
    """Scores of the aggregate at a temperature, with intervals."""
    numbers = np.unique(logs.clusters, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    scores, ece, plain = _score(
        *log_arrays(logs),
        jnp.asarray(logs.labels, jnp.int32),
        jnp.full(1, temperature, jnp.float32),
        jnp.asarray(numbers, jnp.int32),
        None if count == len(numbers) else count,
    )
    named = {name: _estimate(value) for name, value in scores._asdict().items()}
    return Scores(**named, ece=_plain(plain), debiased_ece=_estimate(ece))


@partial(jax.jit, static_argnums=5)
def _score(
    expert_log_probs: jax.Array,
    routing_weights: jax.Array,
    labels: jax.Array,
    temperature: jax.Array,
    clusters: jax.Array,
    num_clusters: int | None,
) -> tuple[ScoreIntervals, Interval, jax.Array]:
    """Intervals; examples are independent if there is no number of clusters."""
    mixed = mixture.mix_log_probs(expert_log_probs, routing_weights)
    log_probs = calibration.calibrators.scale_log_probs(mixed, temperature)
    key = jax.random.key(0)
    plain = calibration.expected_calibration_error(log_probs, labels, from_logits=True)
    if num_clusters is None:
        scores = calibration.intervals.scores(key, log_probs, labels, from_logits=True)
        bins = calibration.top_label_bins(log_probs, labels, from_logits=True)
        return scores, calibration.intervals.calibration_error(key, bins), plain
    scores = calibration.intervals.scores(
        key, log_probs, labels, from_logits=True, clusters=clusters, num_clusters=num_clusters
    )
    confidence, correct = calibration.top_label(log_probs, labels, from_logits=True)
    bins = calibration.intervals.cluster_bins(
        confidence, correct, clusters, num_clusters=num_clusters
    )
    return scores, calibration.intervals.clustered_calibration_error(key, bins), plain


def _estimate(interval: Interval) -> Estimate:
    return Estimate(**{name: _plain(x) for name, x in interval._asdict().items()})


def _plain(value: Any) -> Any:
    """Converts numbers for JSON; those that are not finite become `None`."""
    array = np.asarray(value, np.float64)
    if array.ndim:
        return [_plain(x) for x in array]
    return float(array) if np.isfinite(array) else None
