"""Training objectives whose weights have a closed form: ERM, Robust, Robust Filtered.

They take losses and masks, not a model, so one forward pass is enough for all of them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_non_negative
from calmoe_jax._numerics import AxisName, at_least_float32, pmax, psum, safe_divide
from calmoe_jax._signatures import checked
from calmoe_jax.reweighting.signals import configuration_signal
from calmoe_jax.reweighting.tilt import tilted_log_weights


@checked
def erm_loss(
    losses: Float[Array, " examples"],
    *,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Mean loss: empirical risk.

    Args:
        losses: loss of each example.
        where: examples that count; all by default.
        axis_name: device axis to average over: sums and counts are summed.

    Returns:
        The mean, at least float32; 0 where no example counts.

    Raises:
        ValueError: if `where` has another shape than the losses.

    Example:
        >>> erm_loss(jnp.array([1.0, 3.0]))
        Array(2., dtype=float32)
    """
    losses = at_least_float32(losses)
    where = jnp.ones(losses.shape, bool) if where is None else where
    total, count = jnp.sum(jnp.where(where, losses, 0)), jnp.sum(where.astype(losses.dtype))
    return safe_divide(psum(total, axis_name), psum(count, axis_name))


@checked
def robust_loss(
    losses: Float[Array, " examples"],
    *,
    eta: float | Float[Array, ""],
    detach: bool = True,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Adversarially reweighted loss (Robust MoE): `J = sum_i w_i L_i`, `w = softmax(eta L)`.

    With `detach=True` the gradient is `sum_i w_i dL_i`: that of the penalised worst case
    `(1 / eta) log mean exp(eta L)` (Danskin). With `detach=False` it also flows through the
    weights, `dJ / dL_i = w_i (1 + eta (L_i - J))`, as in the authors' released code: examples
    with `L_i < J - 1 / eta` are then pushed to a *larger* loss. The value is the same.

    Args:
        losses: loss of each example, in nats; for a mixture, the aggregate's.
        eta: inverse temperature of the adversary, above 0; the paper's default is 2.
        detach: whether the weights are constants for the gradient.
        where: examples that count; all by default.
        axis_name: device axis over which the weights are normalised.

    Returns:
        The loss, at least float32; 0 where no example counts.

    Raises:
        ValueError: if a plain-number `eta` is not above 0, or `where` has another shape.

    Example:
        >>> robust_loss(jnp.log(jnp.array([1.0, 3.0])), eta=1.0).round(4)
        Array(0.824, dtype=float32)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    log_weights = tilted_log_weights(losses, eta=eta, where=where, axis_name=axis_name)
    if detach:
        log_weights = jax.lax.stop_gradient(log_weights)
    # a weight of exactly 0 must not meet an infinite loss
    counted = ~jnp.isneginf(log_weights)
    losses = jnp.where(counted, at_least_float32(losses), 0)
    if detach:
        return psum(jnp.sum(losses * jnp.exp(log_weights)), axis_name)
    # the weights sum to one: relative to a constant, their derivatives do not cancel
    level = jax.lax.stop_gradient(jnp.max(losses, where=counted, initial=-jnp.inf))
    level = pmax(level, axis_name)
    level = jnp.where(jnp.isfinite(level), level, 0)
    terms = jnp.where(counted, losses - level, 0) * jnp.exp(log_weights)
    return level + psum(jnp.sum(terms), axis_name)


@checked
def routing_relevance(
    regret: Float[Array, " examples"],
    disagreement: Float[Array, " examples"],
    *,
    regret_threshold: float = 1e-6,
    disagreement_threshold: float = 0.01,
) -> Bool[Array, " examples"]:
    """Marks the examples that are hard because of the routing.

    `R = {regret > regret_threshold or disagreement > disagreement_threshold}`.

    Args:
        regret: `(L - min_k L_k)_+`, in nats (see `mixture_losses`).
        disagreement: `sum_k r_k |f_k - F|^2` (see `configuration`).
        regret_threshold: threshold of the regret, in nats, at least 0. At the paper's 1e-6 nearly
            every example passes, since a mixture is nearly always worse than its best expert.
        disagreement_threshold: threshold of the disagreement, at least 0.

    Returns:
        A mask of the relevant examples; NaN statistics are not relevant.

    Raises:
        ValueError: if a threshold is negative.

    Example:
        >>> routing_relevance(jnp.array([0.0, 0.2]), jnp.array([0.0, 0.0]))
        Array([False,  True], dtype=bool)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    check_non_negative("regret_threshold", regret_threshold)
    check_non_negative("disagreement_threshold", disagreement_threshold)
    return (regret > regret_threshold) | (disagreement > disagreement_threshold)


@checked
def robust_filtered_loss(
    losses: Float[Array, " examples"],
    relevant: Bool[Array, " examples"],
    *,
    eta: float | Float[Array, ""],
    detach: bool = True,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Mean loss plus the adversarially reweighted loss of the routing-relevant examples.

    `mean_i L_i + sum_{i in R} w_i L_i` with `w = softmax(eta L)` over `R`. Where no example is
    relevant the second term is the mean as well, so that the scale of the loss does not jump.

    Args:
        losses: loss of each example, in nats.
        relevant: the set R (see `routing_relevance`).
        eta: inverse temperature of the adversary, above 0.
        detach: whether the weights are constants for the gradient (see `robust_loss`).
        where: examples that count; all by default.
        axis_name: device axis over which means and weights are taken.

    Returns:
        The loss, at least float32; 0 where no example counts.

    Raises:
        ValueError: if a plain-number `eta` is not above 0, or `relevant` or `where` has another
            shape than the losses.

    Example:
        >>> losses, relevant = jnp.array([1.0, 3.0]), jnp.array([True, False])
        >>> robust_filtered_loss(losses, relevant, eta=2.0)
        Array(3., dtype=float32)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    mean = erm_loss(losses, where=where, axis_name=axis_name)
    chosen = relevant if where is None else relevant & where
    tilted = robust_loss(losses, eta=eta, detach=detach, where=chosen, axis_name=axis_name)
    any_chosen = psum(jnp.sum(chosen.astype(jnp.int32)), axis_name) > 0
    return mean + jnp.where(any_chosen, tilted, mean)


@checked
def weighted_loss(
    log_weights: Float[Array, " examples"],
    losses: Float[Array, " examples"],
    *,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The loss under an adversary's weights: `sum_i w_i L_i`, with constant weights for gradients.

    Args:
        log_weights: log weights, whose exponentials sum to one, as from an adversary.
        losses: loss of each example.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The loss, at least float32; an infinite loss of an example of weight 0 does not count.

    Example:
        >>> weighted_loss(jnp.log(jnp.array([0.25, 0.75])), jnp.array([4.0, 0.0]))
        Array(1., dtype=float32)
    """
    log_weights = at_least_float32(jax.lax.stop_gradient(log_weights))
    counted = ~jnp.isneginf(log_weights)
    terms = jnp.where(counted, at_least_float32(losses), 0) * jnp.exp(log_weights)
    return psum(jnp.sum(terms), axis_name)


@checked
def configuration_robust_loss(
    losses: Float[Array, " examples"],
    features: Float[Array, "examples features"],
    *,
    eta: float | Float[Array, ""],
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The robust loss of an adversary that sees routing configurations, and no label.

    `sum_i w_i L_i` with `w = softmax(eta l(S))` and `l` the loss that the configuration predicts
    (`configuration_signal`): the loss stays proper, and a hard-routed mixture of calibrated experts
    stays calibrated under such an adversary.

    Args:
        losses: loss of each example, in nats.
        features: features of the configuration, as from `configuration_features`.
        eta: inverse temperature of the adversary, above 0.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The loss, at least float32; 0 where no example counts.

    Raises:
        ValueError: as `configuration_signal`, or if a plain-number `eta` is not above 0.

    Example:
        >>> features = jnp.repeat(jnp.array([[0.0], [0.0], [1.0], [1.0]]), 8, axis=0)
        >>> losses = jnp.repeat(jnp.array([0.0, 2.0, 3.0, 5.0]), 8)
        >>> configuration_robust_loss(losses, features, eta=10.0).round(2)
        Array(4., dtype=float32)
    """
    signal = configuration_signal(losses, features, where=where, axis_name=axis_name)
    log_weights = tilted_log_weights(signal, eta=eta, where=where, axis_name=axis_name)
    return weighted_loss(log_weights, losses, axis_name=axis_name)
