"""The calibrators' names, and the temperature to apply if none is optimal."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax import calibration
from calmoe_jax._numerics import AxisName
from calmoe_jax.shift.confidence import match_confidence

# The two modes first (see `modes.MODES`), then single rules.
CALIBRATORS = (
    "safe",
    "bold",
    "neighbours",
    "configuration_balanced",
    "separability",
    "difference_of_confidences",
    "average_threshold",
)
# Smallest distance of an aim above the confidence of a uniform prediction, which no T > 0 reaches.
_LEAST_ABOVE = 1e-3
# Largest probability that a label of probability 0 counts as.
_MOST_OF_NONE = 1e-3


def usable_temperature(fit: calibration.calibrators.TemperatureFit) -> Float[Array, "*batch"]:
    """Temperatures to apply if not all have a finite optimum.

    If the optimum is at infinity (confidence is never justified), the bound of the search, at which
    predictions are nearly uniform. If all held-out examples are right, which does not justify
    unbounded confidence, or there was nothing to fit, 1 (no change).

    Args:
        fit: fitted temperatures.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> usable_temperature(cm.calibration.calibrators.fit_temperature(log_probs, jnp.arange(2)))
        Array(1., dtype=float32)
    """
    flat = fit.at_bound & (fit.temperature > 1)
    return jnp.where(fit.converged | flat, fit.temperature, 1.0)


def least_log_prob(log_probs: Float[Array, "*batch classes"]) -> Float[Array, ""]:
    """Logarithm of the smallest positive probability, at most that of 0.001.

    Probabilities of 0 are no larger: a file that rounds to four digits has none below 0.0001.

    Args:
        log_probs: log probabilities.

    Example:
        >>> round(float(jnp.exp(least_log_prob(jnp.log(jnp.array([0.9996, 0.0004, 0.0]))))), 6)
        0.0004
    """
    lowest = jnp.min(jnp.where(jnp.isneginf(log_probs), jnp.inf, log_probs), initial=jnp.inf)
    return jnp.minimum(lowest, jnp.log(_MOST_OF_NONE))


def with_possible_labels(
    log_probs: Float[Array, "examples classes"], labels: Int[Array, " examples"]
) -> Float[Array, "examples classes"]:
    """Log probabilities for fitting a temperature: those of impossible labels are finite.

    One label of probability 0 makes every log loss infinite, and no temperature would be optimal.
    It counts as the smallest positive probability of all (see `least_log_prob`).

    Args:
        log_probs: log probabilities of the aggregate.
        labels: class of each example.

    Example:
        >>> found = with_possible_labels(jnp.log(jnp.array([[1.0, 0.0]])), jnp.array([1]))
        >>> round(float(jnp.exp(found[0, 1])), 6)
        0.001
    """
    is_label = jnp.arange(log_probs.shape[-1])[None] == labels[:, None]
    floor = least_log_prob(log_probs)
    return jnp.where(is_label & jnp.isneginf(log_probs), floor, log_probs)


def match_aim(
    log_probs: Float[Array, "targets classes"],
    aim: Float[Array, ""],
    temperature: Float[Array, ""],
    where: Bool[Array, " targets"] | None = None,
    *,
    weights: Float[Array, " targets"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The temperature at which the mean confidence is the aim, and at least the given one.

    Args:
        log_probs: log probabilities of the aggregate on unlabelled examples.
        aim: target mean confidence of a rule; NaN gives NaN.
        temperature: temperature fitted in distribution.
        where: examples that count; all by default.
        weights: weight of each; 1 by default.
        axis_name: device axis that the examples are sharded over.
    """
    aim = jnp.maximum(aim, 1 / log_probs.shape[-1] + _LEAST_ABOVE)
    found = match_confidence(
        log_probs, aim, at_least=temperature, weights=weights, where=where, axis_name=axis_name
    )
    return found.temperature
