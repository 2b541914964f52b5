"""Assesses logs: calibration, shift of the routing configurations, and possible repairs."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import calibration, mixture
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
        An `Audit`. The scores have 95 % intervals. Scores of the targets exist only if all targets
        have labels; no decision depends on them.
    """
    held_out = take(logs, ~logs.targets)
    judged = _judge_held_out(held_out)
    if not logs.targets.any():
        return Audit(judged)
    targets = take(logs, logs.targets)
    prepared = repair.prepare(
        _sample(held_out),
        held_out.labels,
        held_out.clusters,
        jnp.full(1, judged.temperature, jnp.float32),
        most_examples=_MOST_EXAMPLES,
    )
    repaired = repair.fit_to_targets(
        prepared,
        _sample(targets),
        targets.clusters,
        num_permutations=_PERMUTATIONS,
        most_examples=_MOST_EXAMPLES,
    )
    found = repair.describe(repaired, 0, len(held_out.labels))._asdict()
    temperatures = {"temperature": judged.temperature, **found.pop("temperatures")}
    scored = None
    if (targets.labels >= 0).all():
        values = {"none": 1.0, **temperatures}
        scored = {name: _scores(targets, value) for name, value in values.items()}
    return Audit(
        judged,
        ShiftAudit(**{k: _plain(v) if isinstance(v, float) else v for k, v in found.items()}),
        TargetsAudit(len(targets.labels), temperatures),
        scored,
    )


def _sample(logs: Logs) -> repair.Sample:
    """The logs as a sample of one seed, with all experts in order."""
    log_probs, weights = (x[None] for x in log_arrays(logs))
    experts = jnp.broadcast_to(jnp.arange(weights.shape[2]), weights.shape)
    return repair.dense_sample(log_probs, weights, experts, num_experts=weights.shape[2])


def _judge_held_out(logs: Logs) -> HeldOutAudit:
    log_probs, weights = log_arrays(logs)
    labels = jnp.asarray(logs.labels)
    probs = jnp.exp(log_probs)
    mixed = jax.jit(calibration.mixture_calibration)(probs, weights, labels)
    identity = jax.jit(calibration.disagreement_identity)(probs, weights, labels)
    fit = calibration.calibrators.fit_temperature(mixture.mix_log_probs(log_probs, weights), labels)
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
