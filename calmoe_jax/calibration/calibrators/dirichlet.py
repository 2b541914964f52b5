"""Matrix scaling and Dirichlet calibration: multinomial logistic regression on logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_non_negative
from calmoe_jax._numerics import at_least_float32, example_weights
from calmoe_jax.calibration.calibrators._examples import Examples, examples, standardise
from calmoe_jax.calibration.calibrators._masks import without_impossible
from calmoe_jax.calibration.calibrators._newton import Linear, Precondition, minimise


class MatrixFit(NamedTuple):
    """A fitted matrix scaling, or Dirichlet calibration, with its certificate.

    Attributes:
        matrix: `W`; row `c` maps the logits to the score of class `c`. Without a penalty each
            column sums to 0, because a shift of a column changes no probability.
        offset: `b`, in nats; sums to 0 without a penalty.
        residual: largest entry of the gradient of the penalised loss, in nats per unit of a
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

    matrix: Float[Array, "*batch classes classes"]
    offset: Float[Array, "*batch classes"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    at_bound: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    reach: Float[Array, "*batch"]


def fit_matrix_scaling(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    *,
    off_diagonal: float | Float[Array, ""] = 0.0,
    intercept: float | Float[Array, ""] = 0.0,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> MatrixFit:
    """Finds the `W` and `b` that minimise the log loss of `softmax(W z + b)`, penalised (ODIR).

    The penalised loss is convex: the mean log loss `+ off_diagonal * sum_{c != j} W_cj^2
    + intercept * sum_c b_c^2`. A damped Newton method finds the minimum, with steps by conjugate
    gradients that need only products with the Hessian: memory is that of the logits for any number
    of classes, and time grows with `examples * classes^2`. For gradients the fit is a
    constant.

    There are `classes * (classes + 1)` parameters: without penalties, at least a few hundred
    examples for each class are needed.

    Args:
        logits: logits or log probabilities. A class with logit `-inf`, or a finite number as low as
            a mask is (beyond `reach`), is impossible for that example, stays so, and counts as 0
            in the scores of the others.
        labels: class of each example, in `[0, classes)`.
        off_diagonal: penalty of the off-diagonal entries of `W`, at least 0.
        intercept: penalty of the offsets, at least 0.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        A `MatrixFit`. `W` is the identity and `b` 0, unconverged, if there is nothing to fit: no
        weight, or one class; or if the search ends above the penalised loss of that.
        Labels outside the classes, true classes with logit `-inf`, logits
        `inf` and NaN make every parameter NaN.

    Raises:
        ValueError: if a penalty is a negative number.

    Example:
        >>> logits = jnp.log(jnp.array([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 4))
        >>> fit = fit_matrix_scaling(logits, jnp.array([0, 0, 0, 1, 0, 0, 1, 1]))
        >>> apply_matrix_scaling(fit, logits)[3:5].round(4)
        Array([[0.75, 0.25],
               [0.5 , 0.5 ]], dtype=float32)

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017; Kull et al., Beyond Temperature
        Scaling: Obtaining Well-Calibrated Multiclass Probabilities with Dirichlet Calibration,
        2019, for the penalty.
    """
    check_non_negative("off_diagonal", off_diagonal)
    check_non_negative("intercept", intercept)
    logits = jax.lax.stop_gradient(at_least_float32(logits))
    dtype, classes = logits.dtype, logits.shape[1]
    weight = example_weights(labels.shape, weights, where, dtype)
    given = examples(logits, labels, jax.lax.stop_gradient(weight))
    values, mean, scale = _columns(logits, given)

    def scores(parameters: jax.Array) -> jax.Array:
        if classes < 3:  # the transpose of so narrow a product is summed in order on CPUs
            return jnp.sum(values[:, None] * parameters[None], axis=-1)
        return values @ parameters.T

    off_diagonal, intercept = jnp.asarray(off_diagonal, dtype), jnp.asarray(intercept, dtype)
    ridge = _ridge(off_diagonal, intercept, classes)
    original, penalise = _coordinates(ridge, mean, scale)
    precondition = _decorrelated(values, given.weight)
    as_it_is = jnp.concatenate([jnp.diag(scale), mean[:, None]], axis=1)
    found = minimise(scores, as_it_is, given, precondition=precondition, penalise=penalise)
    table = original(found.parameters)
    matrix, offset = table[:, :-1], table[:, -1]
    identity = ~found.fitted & ~given.invalid
    centred = matrix - jnp.mean(matrix, axis=0, keepdims=True)
    matrix = jnp.where(off_diagonal == 0, centred, matrix)
    offset = jnp.where(intercept == 0, offset - jnp.mean(offset), offset)
    return MatrixFit(
        matrix=jnp.where(identity, jnp.eye(classes, dtype=dtype), matrix),
        offset=jnp.where(identity, 0, offset),
        residual=found.residual,
        converged=found.converged,
        at_bound=found.at_bound,
        num_steps=found.num_steps,
        reach=given.reach,
    )


def _columns(
    logits: Float[Array, "examples classes"], given: Examples
) -> tuple[Float[Array, "examples columns"], Float[Array, " classes"], Float[Array, " classes"]]:
    """Standardised logits with a column of ones, and their original mean and scale."""
    counted = given.weight > 0
    shown = jnp.where(given.possible & counted[:, None], logits, 0)
    values, mean, scale = standardise(shown, given.weight, jnp.ones(shown.shape, bool))
    ones = jnp.ones((len(values), 1), logits.dtype)
    return jnp.concatenate([values, ones], axis=1), mean, scale


def _decorrelated(
    values: Float[Array, "examples columns"], weight: Float[Array, " examples"]
) -> Precondition:
    """A preconditioner from the columns' correlations and the spread of the probabilities."""
    covariance = (values * weight[:, None]).T @ values
    sizes, axes = jnp.linalg.eigh(covariance)
    classes = values.shape[1] - 1
    present = sizes > 4 * classes * jnp.finfo(values.dtype).eps * jnp.max(sizes)
    inverse = jnp.where(present, 1 / jnp.where(present, sizes, 1), 0)

    def precondition(gradient: jax.Array, spread: jax.Array) -> jax.Array:
        level = jnp.sum(spread, axis=0)[:, None]
        decorrelated = (gradient @ axes * inverse[None]) @ axes.T
        return jnp.where(level > 0, decorrelated / jnp.where(level > 0, level, 1), 0)

    return precondition


def _coordinates(
    ridge: Float[Array, "classes columns"],
    mean: Float[Array, " classes"],
    scale: Float[Array, " classes"],
) -> tuple[Linear, Linear]:
    """Maps parameters of standardised logits to `W` and `b`; and the penalty's product."""

    def original(parameters: jax.Array) -> jax.Array:
        matrix = parameters[:, :-1] / scale[None]
        offset = parameters[:, -1:] - matrix @ mean[:, None]
        return jnp.concatenate([matrix, offset], axis=1)

    _, pull = jax.vjp(original, jnp.zeros_like(ridge))

    def penalise(parameters: jax.Array) -> jax.Array:
        result: jax.Array = pull(ridge * original(parameters))[0]
        return result

    return original, penalise


def _ridge(
    off_diagonal: Float[Array, ""], intercept: Float[Array, ""], classes: int
) -> Float[Array, "classes columns"]:
    """The penalty's second derivative with respect to `W` and, in the last column, `b`."""
    off = off_diagonal * (1 - jnp.eye(classes, dtype=off_diagonal.dtype))
    return 2 * jnp.concatenate([off, jnp.broadcast_to(intercept, (classes, 1))], axis=1)


def apply_matrix_scaling(
    fit: MatrixFit, logits: Float[Array, "examples classes"]
) -> Float[Array, "examples classes"]:
    """Probabilities after matrix scaling: `softmax(W z + b)`.

    Args:
        fit: a fitted matrix scaling.
        logits: logits or log probabilities, as in the fit; impossible classes as there.

    Returns:
        Probabilities, at least float32.

    Example:
        >>> fit = fit_matrix_scaling(jnp.zeros((4, 2)), jnp.array([0, 0, 0, 1]))
        >>> apply_matrix_scaling(fit, jnp.zeros((1, 2))).round(4)
        Array([[0.75, 0.25]], dtype=float32)
    """
    logits = without_impossible(at_least_float32(logits), fit.reach)
    possible = ~jnp.isneginf(logits)
    scores = jnp.where(possible, logits, 0) @ fit.matrix.T + fit.offset[None]
    return jax.nn.softmax(jnp.where(possible, scores, -jnp.inf), axis=-1)


def fit_dirichlet(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    *,
    off_diagonal: float | Float[Array, ""] = 0.0,
    intercept: float | Float[Array, ""] = 0.0,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> MatrixFit:
    """Fits Dirichlet calibration: matrix scaling of log probabilities, `softmax(W log p + b)`.

    Args:
        logits: logits or log probabilities; `log p = log_softmax(logits)` either way.
        labels: class of each example, in `[0, classes)`.
        off_diagonal: penalty of the off-diagonal entries of `W`, at least 0.
        intercept: penalty of the offsets, at least 0.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        A `MatrixFit`, as from `fit_matrix_scaling`.

    Raises:
        ValueError: if a penalty is a negative number.

    Example:
        >>> logits = jnp.array([[2.0, 0.0]] * 4 + [[0.0, 2.0]] * 4)
        >>> fit = fit_dirichlet(logits, jnp.array([0, 0, 0, 1, 0, 0, 1, 1]))
        >>> apply_dirichlet(fit, logits)[3:5].round(4)
        Array([[0.75, 0.25],
               [0.5 , 0.5 ]], dtype=float32)

    References:
        Kull et al., Beyond Temperature Scaling: Obtaining Well-Calibrated Multiclass Probabilities
        with Dirichlet Calibration, 2019.
    """
    return fit_matrix_scaling(
        jax.nn.log_softmax(at_least_float32(logits), axis=-1),
        labels,
        off_diagonal=off_diagonal,
        intercept=intercept,
        weights=weights,
        where=where,
    )


def apply_dirichlet(
    fit: MatrixFit, logits: Float[Array, "examples classes"]
) -> Float[Array, "examples classes"]:
    """Probabilities after Dirichlet calibration: `softmax(W log_softmax(logits) + b)`.

    Args:
        fit: a fit from `fit_dirichlet`.
        logits: logits or log probabilities; `-inf` for impossible classes.

    Returns:
        Probabilities, at least float32.

    Example:
        >>> fit = fit_dirichlet(jnp.zeros((4, 2)), jnp.array([0, 0, 0, 1]))
        >>> apply_dirichlet(fit, jnp.zeros((1, 2))).round(4)
        Array([[0.75, 0.25]], dtype=float32)
    """
    return apply_matrix_scaling(fit, jax.nn.log_softmax(at_least_float32(logits), axis=-1))
