"""A temperature for every expert of a mixture, before mixing."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._signatures import checked
from calmoe_jax.calibration._labels import Labels, not_ignored
from calmoe_jax.calibration.calibrators.temperature import (
    TemperatureFit,
    fit_temperature,
    scale_log_probs,
)


@checked
def fit_expert_temperatures(
    expert_logits: Float[Array, "examples experts classes"],
    labels: Labels,
    *,
    routing_weights: Float[Array, "examples experts"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    ignore_label: int | None = None,
) -> TemperatureFit:
    """Fits one temperature for every expert, before mixing (MoCaE).

    Args:
        expert_logits: each expert's logits or log probabilities.
        labels: class of each example, in `[0, classes)`, or a distribution over the classes.
        routing_weights: weight of each example for each expert. `None` fits every expert on all
            examples with equal weight, as MoCaE does; the routing weights fit it on its
            routing-weighted view, the condition under which a hard-routed mixture stays calibrated.
        where: examples that count; all by default.
        ignore_label: label of examples that do not count (-100, say); none by default.

    Returns:
        A `TemperatureFit` with a leading axis of experts. An expert without any weight keeps T = 1
        and is not converged.

    Example:
        >>> logits = jnp.log(jnp.array([[[0.9, 0.1], [0.75, 0.25]]] * 4))
        >>> fit_expert_temperatures(logits, jnp.array([0, 0, 0, 1])).temperature.round(3)
        Array([2., 1.], dtype=float32)

    References:
        Oksuz et al., MoCaE: Mixture of Calibrated Experts, 2023.
    """
    where = not_ignored(labels, where, ignore_label)
    if routing_weights is None:
        routing_weights = jnp.ones(expert_logits.shape[:2], jnp.float32)

    def fit(
        logits: Float[Array, "examples classes"], weights: Float[Array, " examples"]
    ) -> TemperatureFit:
        return fit_temperature(logits, labels, weights=weights, where=where)

    return jax.vmap(fit, in_axes=1)(expert_logits, routing_weights)


@checked
def apply_expert_temperatures(
    fit: TemperatureFit, expert_logits: Float[Array, "examples experts classes"]
) -> Float[Array, "examples experts classes"]:
    """Probabilities of every expert after temperature scaling, ready to be mixed.

    Args:
        fit: temperatures with a leading axis of experts.
        expert_logits: each expert's logits or log probabilities.

    Returns:
        Each expert's probabilities, at least float32.

    Example:
        >>> fit = fit_expert_temperatures(jnp.zeros((1, 1, 2)), jnp.array([0]))
        >>> apply_expert_temperatures(fit, jnp.zeros((1, 1, 2)))
        Array([[[0.5, 0.5]]], dtype=float32)
    """
    return jnp.exp(scale_log_probs(expert_logits, fit.temperature[None, :]))
