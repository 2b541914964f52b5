"""Plots of the labelled logs: reliability, experts, and gaps between confidence and accuracy."""

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import calibration, mixture
from calmoe_jax.audit import logs as of_logs
from calmoe_jax.audit.logs import Logs, log_arrays
from calmoe_jax.drawing.diagrams import draw_expert_diagrams, draw_gaps, draw_reliability_diagram
from calmoe_jax.drawing.style import png


def draw_audit(logs: Logs) -> dict[str, bytes]:
    """Plots the labelled held-out examples; returns PNG files by name.

    Args:
        logs: checked logs.
    """
    held_out = of_logs.held_out(logs)
    log_probs, weights = log_arrays(held_out)
    labels = jnp.asarray(held_out.labels, jnp.int32)
    config = jax.jit(mixture.configuration)(log_probs, weights)
    bins = calibration.top_label_bins(config.log_probs, labels, from_logits=True)
    of_experts = calibration.expert_bins(jnp.exp(log_probs), weights, labels)
    confidence, correct = calibration.top_label(config.log_probs, labels, from_logits=True)
    statistics = {
        "routing entropy, nats": config.routing_entropy,
        "root of disagreement": jnp.sqrt(jnp.maximum(config.disagreement, 0)),
    }
    gaps = {
        name: {"aggregate": calibration.gap_by_statistic(values, confidence, correct)}
        for name, values in statistics.items()
        if float(jnp.ptp(values)) > 0
    }
    figures = {
        "reliability": draw_reliability_diagram(calibration.reliability_curve(bins)),
        "experts": draw_expert_diagrams(
            jax.vmap(calibration.reliability_curve)(of_experts),
            np.asarray(weights.mean(axis=0)),
            title="experts on their routing-weighted views",
        ),
    }
    if gaps:
        figures["gaps"] = draw_gaps(gaps)
    return {name: png(figure) for name, figure in figures.items()}
