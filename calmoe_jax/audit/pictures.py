"""Plots of logs: reliability, experts, gaps between confidence and accuracy, and the targets."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import calibration, mixture
from calmoe_jax.audit import logs as of_logs
from calmoe_jax.audit import scoring
from calmoe_jax.audit.logs import Logs, log_arrays, take
from calmoe_jax.audit.results import Audit
from calmoe_jax.calibration.diagrams import ReliabilityCurve
from calmoe_jax.drawing.diagrams import (
    draw_confidences,
    draw_expert_diagrams,
    draw_gaps,
    draw_method_comparison,
    draw_reliability_diagram,
)
from calmoe_jax.drawing.style import png


def draw_audit(logs: Logs) -> dict[str, bytes]:
    """Plots the labelled held-out examples; returns PNG files by name.

    Args:
        logs: checked logs; if they have the aggregate alone there is only its reliability.
    """
    held_out = of_logs.held_out(logs)
    log_probs, weights = log_arrays(held_out)
    config = jax.jit(mixture.configuration)(log_probs, weights)
    examples = scoring.prepare(held_out, config.log_probs)
    bins = calibration.top_label_bins(config.log_probs, examples.labels, from_logits=True)
    figures = {"reliability": draw_reliability_diagram(calibration.reliability_curve(bins))}
    if logs.aggregate_only:
        return {name: png(figure) for name, figure in figures.items()}
    labels = jnp.asarray(held_out.labels, jnp.int32)
    of_experts = calibration.expert_bins(jnp.exp(log_probs), weights, labels)
    figures["experts"] = draw_expert_diagrams(
        jax.vmap(calibration.reliability_curve)(of_experts),
        np.asarray(weights.mean(axis=0)),
        title="experts on their routing-weighted views",
    )
    confidence, correct = calibration.top_label(config.log_probs, examples.labels, from_logits=True)
    statistics = {
        "routing entropy, nats": config.routing_entropy,
        "root of disagreement": jnp.sqrt(jnp.maximum(config.disagreement, 0)),
    }
    gaps = {
        name: {"aggregate": calibration.gap_by_statistic(values, confidence, correct)}
        for name, values in statistics.items()
        if float(jnp.ptp(values)) > 0
    }
    if gaps:
        figures["gaps"] = draw_gaps(gaps)
    return {name: png(figure) for name, figure in figures.items()}


def draw_targets(logs: Logs, found: Audit, calibrators: Sequence[str]) -> dict[str, bytes]:
    """Plots the targets; returns PNG files by name.

    Args:
        logs: checked logs.
        found: what an audit of them found.
        calibrators: whose temperatures to show, of those that there are.

    Returns:
        The confidences of held-out examples and targets, and the reliability of the targets that
        have labels; nothing if there are no targets.
    """
    if found.targets is None:
        return {}
    targets = of_logs.targets(logs)
    sides = {"held out": of_logs.held_out(logs), "targets": targets}
    shares = {name: _shares_of_confidence(side) for name, side in sides.items()}
    figures = {"confidence": draw_confidences(shares)}
    labelled = targets.labels >= 0
    if labelled.any():
        examples = scoring.prepare(take(targets, labelled))
        values = {"as it is": 1.0} | {
            name.replace("_", " "): found.targets.temperatures[name]
            for name in dict.fromkeys(("temperature", *calibrators))
            if name in found.targets.temperatures
        }
        curves = {name: _curve(examples, value) for name, value in values.items()}
        figures["targets"] = draw_method_comparison(curves)
    return {name: png(figure) for name, figure in figures.items()}


def _curve(examples: scoring.Scored, temperature: float) -> ReliabilityCurve:
    scaled = calibration.calibrators.scale_log_probs(
        examples.log_probs, jnp.full(1, temperature, jnp.float32)
    )
    bins = calibration.top_label_bins(
        scaled, examples.labels, weights=examples.weights, from_logits=True
    )
    return calibration.reliability_curve(bins)


def _shares_of_confidence(logs: Logs) -> np.ndarray:
    """Share of the examples in each of 20 bins of the aggregate's confidence."""
    largest = np.exp(np.asarray(mixture.mix_log_probs(*log_arrays(logs)).max(axis=-1)))
    counts = np.histogram(np.minimum(largest, 1), bins=20, range=(0, 1))[0]
    return np.asarray(counts / len(largest))
