"""Vector scaling: a factor and an offset for the logit of each class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32, example_weights
from calmoe_jax.calibration.calibrators._examples import examples, standardise
from calmoe_jax.calibration.calibrators._masks import without_impossible
from calmoe_jax.calibration.calibrators._newton import minimise


class VectorFit(NamedTuple):
    """A fitted vector scaling with its certificate.

    Attributes:
        scale: factor of each class's logit.
        offset: added to each class's scaled logit, in nats; sums to 0.
        residual: largest entry of the gradient of the mean log loss, in nats per unit of a
            parameter, with logits standardised class by class: 0 at the optimum.
        converged: whether a further Newton step would gain less than eps^(2/3) nats (2e-5 in
            float32), and change no example's log odds by more than eps^(1/3) of 1 + |log odds|
            (5e-3).
        at_bound: whether no finite parameters are optimal: the classes can be separated, or one
            has no examples. The parameters are then where the gradient vanished in rounding.
        num_steps: Newton steps taken.
        reach: distance from the largest logit of an example beyond which a class is impossible:
            750 times the typical margin of the examples, and 750 nats, or more.
    """

    scale: Float[Array, "*batch classes"]
    offset: Float[Array, "*batch classes"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    at_bound: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    reach: Float[Array, "*batch"]


def fit_vector_scaling(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> VectorFit:
    """Finds the factors and offsets that minimise the log loss of `softmax(a * logits + b)`.

    The loss is convex, and minimised by a damped Newton method. The fit depends on shifts of the
    rows: give log probabilities if the logits are defined only up to a shift. The order of the
    classes may change. For gradients the fit is a constant.

    Args:
        logits: logits or log probabilities; `-inf`, or a finite number as low as a mask is (beyond
            `reach`), for impossible classes, which stay so.
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        A `VectorFit`. Factors are 1 and offsets 0, unconverged, if there is nothing to fit: no
        weight, or one class; or if the search ends above the loss of the logits as they are.
        Labels outside the classes, true classes with logit `-inf`, logits
        `inf` and NaN make every parameter NaN.

    Example:
        >>> logits = jnp.log(jnp.array([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 4))
        >>> fit = fit_vector_scaling(logits, jnp.array([0, 0, 0, 1, 0, 0, 1, 1]))
        >>> apply_vector_scaling(fit, logits)[3:5].round(4)
        Array([[0.75, 0.25],
               [0.5 , 0.5 ]], dtype=float32)

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    logits = jax.lax.stop_gradient(at_least_float32(logits))
    weight = example_weights(labels.shape, weights, where, logits.dtype)
    given = examples(logits, labels, jax.lax.stop_gradient(weight))
    values, mean, scale = standardise(logits, given.weight, given.possible)

    def scores(parameters: jax.Array) -> jax.Array:
        return values * parameters[:1] + parameters[1:]

    def precondition(gradient: jax.Array, spread: jax.Array) -> jax.Array:
        squares = jnp.stack([jnp.sum(spread * values**2, axis=0), jnp.sum(spread, axis=0)])
        return jnp.where(squares > 0, gradient / jnp.where(squares > 0, squares, 1), 0)

    found = minimise(
        scores,
        jnp.stack([scale, mean]),
        given,
        precondition=precondition,
        penalise=jnp.zeros_like,
    )
    factor = found.parameters[0] / scale
    offset = found.parameters[1] - factor * mean
    identity = ~found.fitted & ~given.invalid
    return VectorFit(
        scale=jnp.where(identity, 1, factor),
        offset=jnp.where(identity, 0, offset - jnp.mean(offset)),
        residual=found.residual,
        converged=found.converged,
        at_bound=found.at_bound,
        num_steps=found.num_steps,
        reach=given.reach,
    )


def apply_vector_scaling(
    fit: VectorFit, logits: Float[Array, "examples classes"]
) -> Float[Array, "examples classes"]:
    """Probabilities after vector scaling: `softmax(a * logits + b)`.

    Args:
        fit: a fitted vector scaling.
        logits: logits or log probabilities, as in the fit; impossible classes as there.

    Returns:
        Probabilities, at least float32.

    Example:
        >>> fit = fit_vector_scaling(jnp.zeros((4, 2)), jnp.array([0, 0, 0, 1]))
        >>> apply_vector_scaling(fit, jnp.zeros((1, 2))).round(4)
        Array([[0.75, 0.25]], dtype=float32)
    """
    logits = without_impossible(at_least_float32(logits), fit.reach)
    possible = ~jnp.isneginf(logits)
    scores = fit.scale[None] * jnp.where(possible, logits, 0) + fit.offset[None]
    return jax.nn.softmax(jnp.where(possible, scores, -jnp.inf), axis=-1)
