"""The paper's robust objectives: an entropic adversary on all examples, or on some."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from calmoe_jax import reweighting
from calmoe_jax._checks import check_non_negative, check_positive
from calmoe_jax._numerics import AxisName, psum
from calmoe_jax.mixture import MixtureLosses, Prediction
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.objective import Objective
from calmoe_jax.training.objectives._parts import (
    Result,
    configuration_of,
    even_log_weights,
    no_state,
)


def robust(*, eta: float, detach: bool = True) -> Objective:
    """Robust MoE: losses reweighted by an entropic adversary.

    Args:
        eta: inverse temperature of the adversary, above 0.
        detach: whether the weights are constants for the gradient (see `cm.robust_loss`).

    Returns:
        The objective.

    Raises:
        ValueError: if `eta` is not above 0.

    Example:
        >>> objective = robust(eta=2.0)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    check_positive("eta", eta)

    def loss(
        losses: MixtureLosses,
        prediction: Prediction,
        batch: Batch,
        state: PyTree,
        *,
        axis_name: AxisName = None,
    ) -> Result:
        del prediction
        total = reweighting.robust_loss(
            losses.loss, eta=eta, detach=detach, where=batch.where, axis_name=axis_name
        )
        constant = jax.lax.stop_gradient(losses.loss)
        log_weights = reweighting.tilted_log_weights(
            constant, eta=eta, where=batch.where, axis_name=axis_name
        )
        return total, log_weights, state

    return Objective(no_state, loss)


def robust_filtered(
    *,
    eta: float,
    regret_threshold: float = 1e-6,
    disagreement_threshold: float = 0.01,
    detach: bool = True,
) -> Objective:
    """Robust Filtered: the mean loss, and the adversary's on examples that are hard by routing.

    Args:
        eta: inverse temperature of the adversary, above 0.
        regret_threshold: in nats, at least 0 (see `cm.reweighting.routing_relevance`).
        disagreement_threshold: at least 0.
        detach: whether the weights are constants for the gradient.

    Returns:
        The objective. The regret is against all experts, so all are computed.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> objective = robust_filtered(eta=2.0)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    check_positive("eta", eta)
    check_non_negative("regret_threshold", regret_threshold)
    check_non_negative("disagreement_threshold", disagreement_threshold)

    def loss(
        losses: MixtureLosses,
        prediction: Prediction,
        batch: Batch,
        state: PyTree,
        *,
        axis_name: AxisName = None,
    ) -> Result:
        relevant = reweighting.routing_relevance(
            losses.regret,
            configuration_of(prediction).disagreement,
            regret_threshold=regret_threshold,
            disagreement_threshold=disagreement_threshold,
        )
        if batch.where is not None:
            relevant &= batch.where
        total = reweighting.robust_filtered_loss(
            losses.loss, relevant, eta=eta, detach=detach, where=batch.where, axis_name=axis_name
        )
        constant = jax.lax.stop_gradient(losses.loss)
        tilted = reweighting.tilted_log_weights(
            constant, eta=eta, where=relevant, axis_name=axis_name
        )
        any_relevant = psum(jnp.sum(relevant.astype(jnp.int32)), axis_name) > 0
        return total, jnp.where(any_relevant, tilted, even_log_weights(batch, axis_name)), state

    return Objective(no_state, loss, needs_all_experts=True)
