"""Every objective with its properties for the conformance suite."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import calmoe_jax as cm
from calmoe_jax.training import Objective, objectives


class Case(NamedTuple):
    """An objective, and which laws it does not claim to keep.

    Attributes:
        objective: the objective.
        by_position: whether positions of examples matter (folds).
        adversarial: whether its loss is a mean under weights towards large losses.
        scale: its loss over the mean where all losses are the same.
    """

    objective: Objective
    by_position: bool = False
    adversarial: bool = True
    scale: float = 1.0


def _theirs() -> Objective:
    """An objective that a user writes: five lines."""

    def loss(losses, prediction, batch, state, *, axis_name=None):
        log_weights = cm.reweighting.tilted_log_weights(
            jax.lax.stop_gradient(jnp.sqrt(losses.loss)), eta=1.0, where=batch.where,
            axis_name=axis_name,
        )  # fmt: skip
        mean = cm.reweighting.weighted_loss(log_weights, losses.loss, axis_name=axis_name)
        return mean, log_weights, state

    return Objective(lambda: (), loss)


CASES = {
    "erm": Case(objectives.erm(), adversarial=False),
    "robust": Case(objectives.robust(eta=2.0)),
    "robust_released": Case(objectives.robust(eta=2.0, detach=False)),
    "robust_filtered": Case(
        objectives.robust_filtered(eta=2.0, regret_threshold=0.01), adversarial=False, scale=2.0
    ),
    "balanced_robust": Case(objectives.balanced_robust(eta=2.0)),
    "configuration_robust": Case(objectives.configuration_robust(eta=2.0), by_position=True),
    "radius_robust": Case(objectives.radius_robust(effective_fraction=0.5)),
    "cross_batch_robust": Case(objectives.cross_batch_robust(eta=2.0)),
    "theirs": Case(_theirs()),
}
