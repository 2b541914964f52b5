"""Objectives with other adversaries: constrained, blind to labels, bounded, with memory."""

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from calmoe_jax import mixture, reweighting
from calmoe_jax._checks import check_positive
from calmoe_jax._numerics import AxisName
from calmoe_jax.mixture import MixtureLosses, Prediction
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.objective import Objective
from calmoe_jax.training.objectives._parts import (
    Result,
    configuration_of,
    dense_weights,
    even_log_weights,
    no_state,
    weighted,
)


def balanced_robust(*, eta: float) -> Objective:
    """Balanced Robust: an adversary that keeps class shares, loads, confidence and entropy.

    Args:
        eta: inverse temperature of the adversary, above 0.

    Returns:
        The objective; the mean loss where the moments cannot be kept.

    Raises:
        ValueError: if `eta` is not above 0.

    Example:
        >>> objective = balanced_robust(eta=2.0)
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
        config = configuration_of(prediction)
        classes = jax.nn.one_hot(batch.labels, config.log_probs.shape[-1])
        moments = jnp.stack([config.confidence, config.entropy], axis=-1)
        constraints = jnp.concatenate([classes, dense_weights(prediction), moments], axis=-1)
        solution = reweighting.entropy_balance(
            losses.loss, constraints, eta=eta, where=batch.where, axis_name=axis_name
        )
        total = reweighting.danskin_loss(
            solution, losses.loss, constraints, where=batch.where, axis_name=axis_name
        )
        even = even_log_weights(batch, axis_name)
        return total, jnp.where(solution.converged, solution.log_weights, even), state

    return Objective(no_state, loss)


def configuration_robust(*, eta: float) -> Objective:
    """Configuration Robust: an adversary that sees routing configurations and no labels.

    Args:
        eta: inverse temperature of the adversary, above 0.

    Returns:
        The objective.

    Raises:
        ValueError: if `eta` is not above 0.

    Example:
        >>> objective = configuration_robust(eta=2.0)
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
        features = mixture.configuration_features(configuration_of(prediction))
        signal = reweighting.configuration_signal(
            losses.loss, features, where=batch.where, axis_name=axis_name
        )
        log_weights = reweighting.tilted_log_weights(
            signal, eta=eta, where=batch.where, axis_name=axis_name
        )
        return weighted(log_weights, losses, axis_name), log_weights, state

    return Objective(no_state, loss)


def radius_robust(*, effective_fraction: float = 0.5) -> Objective:
    """Radius Robust: the worst case over weights of a given effective share of the batch.

    Args:
        effective_fraction: perplexity of the weights over the number of examples, in (0, 1].

    Returns:
        The objective.

    Raises:
        ValueError: if the fraction is outside (0, 1].

    Example:
        >>> objective = radius_robust(effective_fraction=0.5)
    """
    radius = reweighting.radius_of_fraction(effective_fraction)

    def loss(
        losses: MixtureLosses,
        prediction: Prediction,
        batch: Batch,
        state: PyTree,
        *,
        axis_name: AxisName = None,
    ) -> Result:
        del prediction
        log_weights = reweighting.entropy_balance(
            losses.loss, radius=radius, where=batch.where, axis_name=axis_name
        ).log_weights
        return weighted(log_weights, losses, axis_name), log_weights, state

    return Objective(no_state, loss)


def cross_batch_robust(*, eta: float, decay: float = 0.9) -> Objective:
    """Cross-batch Robust: an adversary against the data set instead of each batch.

    Args:
        eta: inverse temperature of the adversary, above 0.
        decay: of the running partition, in [0, 1).

    Returns:
        The objective; its state is the running partition.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> objective = cross_batch_robust(eta=2.0)
    """
    adversary = reweighting.cross_batch_tilt(eta=eta, decay=decay)

    def loss(
        losses: MixtureLosses,
        prediction: Prediction,
        batch: Batch,
        state: PyTree,
        *,
        axis_name: AxisName = None,
    ) -> Result:
        del prediction
        log_weights, state = adversary.update(
            losses.loss, state, where=batch.where, axis_name=axis_name
        )
        return weighted(log_weights, losses, axis_name), log_weights, state

    return Objective(adversary.init, loss)
