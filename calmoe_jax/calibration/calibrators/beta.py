"""Beta calibration: recalibrates a confidence by a map derived from beta distributions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import example_weights
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration.calibrators._log_odds import fit_log_odds
from calmoe_jax.calibration.calibrators._newton import Minimum


class BetaFit(NamedTuple):
    """A fitted beta calibration with its certificate.

    Attributes:
        low: `a`, at least 0: coefficient of `log p`, shapes the map near 0.
        high: `b`, at least 0: coefficient of `-log(1 - p)`, shapes the map near 1.
        offset: `c`, in nats.
        residual: largest entry of the gradient of the mean log loss with respect to the parameters
            that are not held at 0, in nats, with `log p` and `log(1 - p)` standardised.
        converged: whether the parameters are optimal among `a, b >= 0`: a further Newton
            step would gain less than eps^(2/3) nats (2e-5 in float32), and change no example's log
            odds by more than eps^(1/3) of 1 + |log odds| (5e-3).
        at_bound: whether no finite parameters are optimal: outcomes are all the same, or the
            confidences separate them.
        num_steps: Newton steps taken.
    """

    low: Float[Array, "*batch"]
    high: Float[Array, "*batch"]
    offset: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    at_bound: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]


@checked
def fit_beta(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> BetaFit:
    """Finds the `a, b >= 0` and `c` that minimise the log loss of the beta map.

    The map is `sigmoid(a log p - b log(1 - p) + c)`. The loss is convex. The constrained minimum is
    the unconstrained one if it satisfies `a, b >= 0`, otherwise the best of those with `a = 0`,
    `b = 0` or both, each found by a damped Newton method. The map is non-decreasing. For
    gradients the fit is a constant.

    Args:
        confidence: predicted probability of the event, in [0, 1]; clipped away from 0 and 1 by the
            rounding of its dtype (1.2e-7 in float32).
        outcome: whether the event happened, or its probability where that is known.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        A `BetaFit`. `a` and `b` are 1 and `c` is 0 (the identity), unconverged, if no example has
        weight. Confidences and outcomes outside [0, 1] or NaN make every parameter NaN.

    Example:
        >>> p = jnp.array([0.9] * 4 + [0.5] * 2 + [0.1] * 4)
        >>> fit = fit_beta(p, jnp.array([1.0, 1, 1, 0, 1, 0, 1, 0, 0, 0]))
        >>> apply_beta(fit, jnp.array([0.9, 0.5])).round(2)
        Array([0.75, 0.5 ], dtype=float32)

    References:
        Kull, Silva Filho and Flach, Beta calibration: a well-founded and easily implemented
        improvement on logistic calibration for binary classifiers, 2017.
    """
    confidence, outcome = jax.lax.stop_gradient(event(confidence, outcome))
    dtype = confidence.dtype
    weight = jax.lax.stop_gradient(example_weights(confidence.shape, weights, where, dtype))
    columns = _columns(confidence)

    def fit(
        free: Bool[Array, " columns"],
    ) -> tuple[Minimum, Float[Array, " columns"], Float[Array, ""]]:
        return fit_log_odds(columns, outcome, weight, free)

    free = jnp.array([[True, True], [False, True], [True, False], [False, False]])
    found, slopes, offset = jax.vmap(fit)(free)
    allowed = (slopes >= 0).all(axis=-1)
    best = jnp.argmin(jnp.where(allowed, found.loss, jnp.inf))
    best = jnp.where(allowed[0], 0, best)  # rounding must not prefer a held parameter
    chosen = jax.tree.map(lambda x: x[best], found)
    sure = (found.converged | found.at_bound).all()
    identity = jnp.sum(weight) == 0
    slope = jnp.where(identity, 1, slopes[best])
    invalid = jnp.isnan(chosen.residual)
    return BetaFit(
        low=jnp.where(invalid, jnp.nan, slope[0]),
        high=jnp.where(invalid, jnp.nan, slope[1]),
        offset=jnp.where(identity, 0, offset[best]),
        residual=chosen.residual,
        converged=chosen.converged & sure,
        at_bound=chosen.at_bound,
        num_steps=chosen.num_steps,
    )


@checked
def apply_beta(fit: BetaFit, confidence: Float[Array, " examples"]) -> Float[Array, " examples"]:
    """Probability of the event after beta calibration: `sigmoid(a log p - b log(1 - p) + c)`.

    Args:
        fit: a fitted beta calibration.
        confidence: predicted probability of the event, in [0, 1], clipped as in `fit_beta`.

    Returns:
        Probabilities, at least float32; NaN for a confidence that is NaN or outside [0, 1].

    Example:
        >>> fit = fit_beta(jnp.array([0.2, 0.2]), jnp.array([0.0, 1.0]))
        >>> apply_beta(fit, jnp.array([0.2])).round(3)
        Array([0.5], dtype=float32)
    """
    columns = _columns(event(confidence, jnp.zeros_like(confidence))[0])
    return jax.nn.sigmoid(fit.low * columns[:, 0] + fit.high * columns[:, 1] + fit.offset)


def _columns(confidence: Float[Array, " examples"]) -> Float[Array, "examples 2"]:
    """`log p` and `-log(1 - p)`."""
    least = float(jnp.finfo(confidence.dtype).eps)
    clipped = jnp.clip(confidence, least, 1 - least)
    return jnp.stack([jnp.log(clipped), -jnp.log1p(-clipped)], axis=-1)
