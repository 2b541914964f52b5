"""The calibrators' names, and the temperature to apply if none is optimal."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax import calibration
from calmoe_jax.shift.confidence import match_confidence

# `neighbours`: their labels; `agreement`: theirs and that of seeds, whichever gives less confidence
# (where there is no other seed, there is nothing to agree with).
CALIBRATORS = (
    "agreement",
    "neighbours",
    "configuration_balanced",
    "separability",
    "difference_of_confidences",
    "average_threshold",
)
# Smallest distance of an aim above the confidence of a uniform prediction, which no T > 0 reaches.
_LEAST_ABOVE = 1e-3


def usable_temperature(fit: calibration.calibrators.TemperatureFit) -> Float[Array, "*batch"]:
    """Temperatures to apply if not all have a finite optimum.

    If the optimum is at infinity (confidence is never justified), the bound of the search, at which
    predictions are nearly uniform. If all held-out examples are right, which does not justify
    unbounded confidence, or there was nothing to fit, 1 (no change).

    Args:
        fit: fitted temperatures.
    """
    flat = fit.at_bound & (fit.temperature > 1)
    return jnp.where(fit.converged | flat, fit.temperature, 1.0)


def match_aim(
    log_probs: Float[Array, "targets classes"],
    aim: Float[Array, ""],
    temperature: Float[Array, ""],
    where: Bool[Array, " targets"],
) -> Float[Array, ""]:
    """The temperature at which the mean confidence is the aim, and at least the given one.

    Args:
        log_probs: log probabilities of the aggregate on unlabelled examples.
        aim: target mean confidence of a rule; NaN gives NaN.
        temperature: temperature fitted in distribution.
        where: examples that count.
    """
    aim = jnp.maximum(aim, 1 / log_probs.shape[-1] + _LEAST_ABOVE)
    return match_confidence(log_probs, aim, at_least=temperature, where=where).temperature
