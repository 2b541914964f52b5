"""The losses of a gate, added to any objective."""

import jax.numpy as jnp
from jaxtyping import PyTree

from calmoe_jax._checks import check_non_negative
from calmoe_jax._numerics import AxisName
from calmoe_jax.mixture import MixtureLosses, Prediction
from calmoe_jax.training import gate
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.objective import Objective
from calmoe_jax.training.objectives._parts import Result


def with_gate_losses(
    objective: Objective, *, load_balancing: float = 0.0, z_loss: float = 0.0
) -> Objective:
    """Adds the losses of a gate to an objective.

    Args:
        objective: any objective.
        load_balancing: coefficient of the load-balancing loss, at least 0.
        z_loss: coefficient of the router z-loss, at least 0.

    Returns:
        The objective with both; the same one where both coefficients are 0.

    Raises:
        ValueError: if a coefficient is negative.

    Example:
        >>> objective = with_gate_losses(robust(eta=2.0), load_balancing=0.1, z_loss=0.001)
    """
    check_non_negative("load_balancing", load_balancing)
    check_non_negative("z_loss", z_loss)
    if not load_balancing and not z_loss:
        return objective

    def loss(
        losses: MixtureLosses,
        prediction: Prediction,
        batch: Batch,
        state: PyTree,
        *,
        axis_name: AxisName = None,
    ) -> Result:
        total, log_weights, state = objective.loss(
            losses, prediction, batch, state, axis_name=axis_name
        )
        added = jnp.float32(0)
        if load_balancing:
            # where every expert is a slot, those of weight 0 do not count as load
            added += load_balancing * gate.load_balancing_loss(
                prediction, where=batch.where, axis_name=axis_name
            )
        if z_loss:
            added += z_loss * gate.router_z_loss(prediction, where=batch.where, axis_name=axis_name)
        return total + added, log_weights, state

    return objective._replace(loss=loss)
