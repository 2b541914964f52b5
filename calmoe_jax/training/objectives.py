"""Every objective of this library, each a few lines over the losses of `calmoe_jax.reweighting`."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from calmoe_jax import calibration, fgr, mixture, reweighting, routing
from calmoe_jax._checks import check_non_negative, check_positive, check_range
from calmoe_jax._numerics import AxisName, psum
from calmoe_jax.mixture import MixtureLosses, Prediction
from calmoe_jax.training import gate
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.objective import Objective, Rectification

# Qualities that FGR draws from: Zhang et al., Frequency-aware Gradient Rectification, 2025.
_FILTER_QUALITIES = (15.0, 18.0, 25.0)

_Result = tuple[Float[Array, ""], Float[Array, " examples"], PyTree]


def erm() -> Objective:
    """The mean loss.

    Returns:
        The objective. It hands on whatever state it is given, so that it can stand in for another
        objective while that one warms up.

    Example:
        >>> objective = erm()
    """

    def loss(
        losses: MixtureLosses,
        prediction: Prediction,
        batch: Batch,
        state: PyTree,
        *,
        axis_name: AxisName = None,
    ) -> _Result:
        del prediction
        mean = reweighting.erm_loss(losses.loss, where=batch.where, axis_name=axis_name)
        return mean, _even(batch, axis_name), state

    return Objective(_nothing, loss)


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
    ) -> _Result:
        del prediction
        total = reweighting.robust_loss(
            losses.loss, eta=eta, detach=detach, where=batch.where, axis_name=axis_name
        )
        constant = jax.lax.stop_gradient(losses.loss)
        log_weights = reweighting.tilted_log_weights(
            constant, eta=eta, where=batch.where, axis_name=axis_name
        )
        return total, log_weights, state

    return Objective(_nothing, loss)


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
    ) -> _Result:
        relevant = reweighting.routing_relevance(
            losses.regret,
            _configuration(prediction).disagreement,
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
        return total, jnp.where(any_relevant, tilted, _even(batch, axis_name)), state

    return Objective(_nothing, loss, needs_all_experts=True)


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
    ) -> _Result:
        config = _configuration(prediction)
        classes = jax.nn.one_hot(batch.labels, config.log_probs.shape[-1])
        moments = jnp.stack([config.confidence, config.entropy], axis=-1)
        constraints = jnp.concatenate([classes, dense_weights(prediction), moments], axis=-1)
        solution = reweighting.entropy_balance(
            losses.loss, constraints, eta=eta, where=batch.where, axis_name=axis_name
        )
        total = reweighting.danskin_loss(
            solution, losses.loss, constraints, where=batch.where, axis_name=axis_name
        )
        even = _even(batch, axis_name)
        return total, jnp.where(solution.converged, solution.log_weights, even), state

    return Objective(_nothing, loss)


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
    ) -> _Result:
        features = mixture.configuration_features(_configuration(prediction))
        signal = reweighting.configuration_signal(
            losses.loss, features, where=batch.where, axis_name=axis_name
        )
        log_weights = reweighting.tilted_log_weights(
            signal, eta=eta, where=batch.where, axis_name=axis_name
        )
        return _weighted(log_weights, losses, axis_name), log_weights, state

    return Objective(_nothing, loss)


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
    ) -> _Result:
        del prediction
        log_weights = reweighting.entropy_balance(
            losses.loss, radius=radius, where=batch.where, axis_name=axis_name
        ).log_weights
        return _weighted(log_weights, losses, axis_name), log_weights, state

    return Objective(_nothing, loss)


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
    ) -> _Result:
        del prediction
        log_weights, state = adversary.update(
            losses.loss, state, where=batch.where, axis_name=axis_name
        )
        return _weighted(log_weights, losses, axis_name), log_weights, state

    return Objective(adversary.init, loss)


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
    ) -> _Result:
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


def rectified(objective: Objective, *, filter_share: float = 0.05) -> Objective:
    """FGR on any objective: a frequency filter, and no gradient step against calibration.

    The objective is taken on a batch some images of which are filtered, and its gradient loses
    the part that opposes the gradient of the soft-binned calibration error of the batch as it is.

    Args:
        objective: any objective.
        filter_share: share of a batch's images that are filtered, in [0, 1]; at least one is.
            Inputs that are no images stay as they are.

    Returns:
        The objective with its rectification.

    Raises:
        ValueError: if the share is outside [0, 1].

    Example:
        >>> objective = rectified(erm(), filter_share=0.05)

    References:
        Zhang et al., Frequency-aware Gradient Rectification, arXiv 2508.19830, 2025.
    """
    check_range("filter_share", filter_share, 0, 1)

    def perturb(inputs: PyTree, key: jax.Array) -> PyTree:
        return filter_some(inputs, key, filter_share)

    return objective._replace(rectification=Rectification(perturb, soft_calibration_error))


def soft_calibration_error(
    prediction: Prediction, batch: Batch, *, axis_name: AxisName = None
) -> Float[Array, ""]:
    """FGR's calibration loss: the soft-binned top-label error of the aggregate.

    Args:
        prediction: of the batch.
        batch: the batch.
        axis_name: device axis that the examples are spread over.
    """
    confidence, correct = calibration.top_label(jnp.exp(prediction.log_probs), batch.labels)
    return calibration.soft_binned_error(
        confidence, correct, where=batch.where, axis_name=axis_name
    )


def filter_some(inputs: PyTree, key: jax.Array, share: float) -> PyTree:
    """FGR's filter on the first images of a batch (it is in random order); features stay.

    Args:
        inputs: of a batch, as floats.
        key: for the qualities.
        share: share of the images, in [0, 1]; at least one is filtered.
    """
    if not isinstance(inputs, jax.Array) or inputs.ndim != 4:
        return inputs
    count = max(1, int(share * len(inputs)))
    quality = jax.random.choice(key, jnp.array(_FILTER_QUALITIES), (count,))
    return inputs.at[:count].set(fgr.dct_filter(inputs[:count], quality))


def dense_weights(prediction: Prediction) -> Float[Array, "examples experts"]:
    """The routing weights of all experts.

    Args:
        prediction: of a batch.
    """
    count = prediction.gate_logits.shape[-1]
    return routing.routing_weights(prediction.routing, num_experts=count)


def _nothing() -> tuple[()]:
    return ()


def _configuration(prediction: Prediction) -> mixture.Configuration:
    return mixture.configuration(
        prediction.expert_log_probs, prediction.routing.combine_weights, prediction.log_probs
    )


def _weighted(
    log_weights: Float[Array, " examples"], losses: MixtureLosses, axis_name: AxisName
) -> Float[Array, ""]:
    return reweighting.weighted_loss(log_weights, losses.loss, axis_name=axis_name)


def _even(batch: Batch, axis_name: AxisName) -> Float[Array, " examples"]:
    """Log weights that are the same for every example that counts."""
    if batch.where is None and axis_name is None:
        return jnp.full(batch.labels.shape, -math.log(len(batch.labels)), jnp.float32)
    counted = jnp.ones(batch.labels.shape, bool) if batch.where is None else batch.where
    number = psum(jnp.sum(counted.astype(jnp.float32)), axis_name)
    return jnp.where(counted, -jnp.log(jnp.maximum(number, 1)), -jnp.inf)
