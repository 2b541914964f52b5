"""The losses of a classifier's gate, or of the sparse layers within it, added to any objective."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from calmoe_jax import moe
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


def with_layer_losses(
    objective: Objective,
    *,
    importance: float = 0.0,
    load: float = 0.0,
    load_balancing: float = 0.0,
    z_loss: float = 0.0,
) -> Objective:
    """Adds the losses of the sparse layers of a network to an objective.

    They are means over the layers of the prediction's `layers`, and of all tokens of the batch:
    those of examples that do not count (`batch.where`) too, unless the network masks them. V-MoE
    takes the mean of the importance and the load loss with a coefficient of 0.01 in all.

    Args:
        objective: any objective.
        importance: coefficient of `calmoe_jax.moe.importance_loss`, at least 0.
        load: coefficient of `calmoe_jax.moe.smooth_load_loss`, at least 0; without noise in the
            router that loss has no gradient.
        load_balancing: coefficient of `calmoe_jax.moe.mean_load_balancing_loss`, at least 0.
        z_loss: coefficient of `calmoe_jax.moe.mean_z_loss`, at least 0.

    Returns:
        The objective with them; the same one where all coefficients are 0. Its loss raises
        `ValueError` for a prediction without sparse layers.

    Raises:
        ValueError: if a coefficient is negative.

    Example:
        >>> objective = with_layer_losses(robust(eta=2.0), importance=0.005, load=0.005)

    References:
        Riquelme et al., Scaling Vision with Sparse Mixture of Experts, 2021.
    """
    terms: tuple[tuple[str, float, Callable[..., Float[Array, ""]]], ...] = (
        ("importance", importance, moe.importance_loss),
        ("load", load, moe.smooth_load_loss),
        ("load_balancing", load_balancing, moe.mean_load_balancing_loss),
        ("z_loss", z_loss, moe.mean_z_loss),
    )
    for name, coefficient, _ in terms:
        check_non_negative(name, coefficient)
    terms = tuple(term for term in terms if term[1])
    if not terms:
        return objective

    def loss(
        losses: MixtureLosses,
        prediction: Prediction,
        batch: Batch,
        state: PyTree,
        *,
        axis_name: AxisName = None,
    ) -> Result:
        if prediction.layers is None:
            raise ValueError(
                "prediction must have the statistics of sparse layers for with_layer_losses (of a "
                "backbone such as ViT with moe=MoEBlocks(...)), got prediction.layers=None."
            )
        total, log_weights, state = objective.loss(
            losses, prediction, batch, state, axis_name=axis_name
        )
        for _, coefficient, term in terms:
            total = total + coefficient * term(prediction.layers, axis_name=axis_name)
        return total, log_weights, state

    return objective._replace(loss=loss)
