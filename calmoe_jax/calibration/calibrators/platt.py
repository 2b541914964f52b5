"""Platt scaling: the probability of an event from a score, by a sigmoid."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32, example_weights
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.calibrators._log_odds import fit_log_odds


class PlattFit(NamedTuple):
    """A fitted Platt scaling with its certificate.

    Attributes:
        slope: `a`, in nats per unit of the score.
        offset: `b`, in nats.
        residual: largest entry of the gradient of the mean log loss, in nats per unit of a
            parameter, with the score standardised: 0 at the optimum.
        converged: whether a further Newton step would gain less than eps^(2/3) nats (2e-5 in
            float32), and change no example's log odds by more than eps^(1/3) of 1 + |log odds|
            (5e-3).
        num_steps: Newton steps taken.
    """

    slope: Float[Array, "*batch"]
    offset: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]


@checked
def fit_platt(
    score: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> PlattFit:
    """Finds the `a` and `b` that minimise the log loss of `sigmoid(a * score + b)`.

    Outcomes are always smoothed, as by Platt: to `(n_1 + 1) / (n_1 + 2)` where the event happened
    and `1 / (n_0 + 2)` where it did not, with `n_1` and `n_0` the total weights of both. So there
    is a finite optimum for any data, including separable data, and weights are in units of
    examples. The loss is convex, and minimised by a damped Newton method. For gradients the fit
    is a constant.

    Args:
        score: score of each example: a logit, a margin, a log confidence.
        outcome: whether the event happened, or its probability where that is known.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        A `PlattFit`. The slope is 1 and the offset 0, unconverged, if no example has weight; the
        slope is 0 if all scores are equal. Scores that are not finite and outcomes outside
        [0, 1] make both NaN.

    Example:
        >>> fit = fit_platt(jnp.array([-1.0, 1.0, 1.0, 1.0]), jnp.array([0.0, 0.0, 1.0, 1.0]))
        >>> apply_platt(fit, jnp.array([-1.0, 1.0])).round(3)
        Array([0.25 , 0.583], dtype=float32)

    References:
        Platt, Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized
        Likelihood Methods, 1999.
    """
    score = jax.lax.stop_gradient(at_least_float32(score))
    weight = jax.lax.stop_gradient(example_weights(score.shape, weights, where, score.dtype))
    outcome = jax.lax.stop_gradient(outcome.astype(score.dtype))
    shown = jnp.where(weight == 0, 0, outcome)
    happened = jnp.sum(weight * shown)
    missed = jnp.sum(weight * (1 - shown))
    high, low = (happened + 1) / (happened + 2), 1 / (missed + 2)
    valid = (outcome >= 0) & (outcome <= 1)
    target = jnp.where(valid, outcome * high + (1 - outcome) * low, outcome)
    found, slopes, offset = fit_log_odds(score[:, None], target, weight, jnp.ones(1, bool))
    identity = jnp.sum(weight) == 0
    return PlattFit(
        slope=jnp.where(identity, 1, slopes[0]),
        offset=jnp.where(identity, 0, offset),
        residual=found.residual,
        converged=found.converged,
        num_steps=found.num_steps,
    )


@checked
def apply_platt(fit: PlattFit, score: Float[Array, " examples"]) -> Float[Array, " examples"]:
    """Probability of the event after Platt scaling: `sigmoid(a * score + b)`.

    Args:
        fit: a fitted Platt scaling.
        score: scores, as in the fit.

    Returns:
        Probabilities, at least float32; NaN where the score is NaN.

    Example:
        >>> fit = fit_platt(jnp.zeros(2), jnp.array([0.0, 1.0]))
        >>> apply_platt(fit, jnp.zeros(1))
        Array([0.5], dtype=float32)
    """
    return jax.nn.sigmoid(fit.slope * at_least_float32(score) + fit.offset)
