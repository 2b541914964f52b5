"""Temperatures: by which calibrators, and what to apply where none is optimal."""

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
# An aim is at least so far above the confidence of a uniform prediction, which no T > 0 reaches.
_LEAST_ABOVE = 1e-3


def usable_temperature(fit: calibration.calibrators.TemperatureFit) -> Float[Array, "*batch"]:
    """Temperatures to apply where not all have a finite optimum.

    Towards infinity (confidence is never justified) the bound of the search, at which predictions
    are all but uniform; 1 (as it is) where all held-out examples are right, which does not show
    that confidence should be boundless, or where there was nothing to fit.

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
        log_probs: of the aggregate, of unlabelled examples.
        aim: mean confidence that a rule asks for; NaN gives NaN.
        temperature: fitted in distribution.
        where: examples that count.
    """
    aim = jnp.maximum(aim, 1 / log_probs.shape[-1] + _LEAST_ABOVE)
    return match_confidence(log_probs, aim, at_least=temperature, where=where).temperature
