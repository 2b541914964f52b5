"""Temperature scaling, fitted by Newton's method.

The fitted temperature is differentiable, by the implicit function theorem.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32, example_weights
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._labels import Labels, at_label, farthest_label, not_ignored
from calmoe_jax.calibration.calibrators._masks import distances, margin_of, reach_of
from calmoe_jax.calibration.calibrators._root import Slope, once, search_root, sums

# The search runs over log T within this distance of the logarithm of the logits' scale; downwards
# at least to this far below that of their margin.
_LOG_RANGE = 10.0
_BELOW_MARGIN = 3.0
# Logit of an impossible class, in units of the logits' scale: its probability underflows at every
# temperature of the search, and its square is still finite.
_IMPOSSIBLE = -1e15
# From this many examples on the search starts at the optimum for every sixteenth example: it then
# needs about three passes over all examples instead of ten.
_MANY = 2**12
_STRIDE = 16
# Up to this many examples are added plainly.
_PLAIN = 2**14
# Tolerance of the start, in log T.
_NEAR = 0.01


class TemperatureFit(NamedTuple):
    """A fitted temperature with its certificate.

    Attributes:
        temperature: T > 0; probabilities are `softmax(logits / T)`.
        residual: `|dNLL / dlog T|` at the solution, in nats: 0 at the optimum, NaN with T.
        converged: whether a further Newton step would move log T by less than eps^(2/3) (2e-5 in
            float32), and T is not at a bound.
        at_bound: whether the optimum is outside the search range: all examples right (T towards 0),
            confidence never justified (T towards infinity), or an optimum more than a factor
            exp(10) from the logits' scale, and not near their margins. T is then the bound of the
            search.
        num_steps: Newton or bisection steps taken over all the examples.
    """

    temperature: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    at_bound: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]


@checked
def fit_temperature(
    logits: Float[Array, "examples classes"],
    labels: Labels,
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    ignore_label: int | None = None,
) -> TemperatureFit:
    """Finds the temperature that minimises the log loss of `softmax(logits / T)`.

    Newton's method on `log T` for the root of the slope `E_p[z] - z_y`, kept inside a bracket
    (bisection if a step would leave it). The loss is convex in `1 / T`, so the root is the
    optimum; scaling the logits scales T. A class that is farther below the largest of its example
    than 750 nats, 750 times the typical margin (the lower quartile of the difference between the
    two largest logits), and twice the distance of any true class, is a mask: it is impossible, as
    with logit `-inf`. Of 4096 examples or more the search starts at the optimum for every sixteenth
    example.

    The temperature is differentiable with respect to logits and weights, forwards and backwards:
    the slope stays 0, so `dlog T = d(slope) / curvature` (slope and curvature of the loss in
    `log 1/T`). Everything else of the fit is a constant for gradients.

    Args:
        logits: logits, or log probabilities (of an aggregate, say); `-inf` for impossible classes.
        labels: class of each example, in `[0, classes)`; or a distribution over the classes, such
            as votes, whose mean log loss is then minimised.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        ignore_label: label of examples that do not count (-100, say); none by default.

    Returns:
        A `TemperatureFit`. T is 1, unconverged, if there is nothing to fit: no weight, one class,
        or logits that do not distinguish classes; or if the search ends at a higher loss. If no
        finite T is optimal, T is a bound far from the logits' scale, flagged by `at_bound`. Labels
        outside the classes, true classes with logit `-inf`, logits `inf` and NaN give T = NaN. The
        derivative of T is that of the optimum, and 0 if T is at a bound, or 1 and not converged.

    Example:
        >>> logits = jnp.log(jnp.array([[0.9, 0.1]] * 4))
        >>> fit = fit_temperature(logits, jnp.array([0, 0, 0, 1]))
        >>> apply_temperature(fit, logits)[0].round(4)
        Array([0.75, 0.25], dtype=float32)

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    where = not_ignored(labels, where, ignore_label)
    logits = at_least_float32(logits)
    weight = example_weights(logits.shape[:1], weights, where, logits.dtype)
    fit, reach = _solve(jax.lax.stop_gradient(logits), labels, jax.lax.stop_gradient(weight))
    return fit._replace(temperature=_implicit(logits, weight, labels, fit, reach))


def _solve(
    logits: Float[Array, "examples classes"],
    labels: Labels,
    weight: Float[Array, " examples"],
) -> tuple[TemperatureFit, Float[Array, ""]]:
    """The fit, and the distance from the largest logit beyond which classes are impossible."""
    dtype = logits.dtype
    total = jnp.sum(weight)
    weight = weight / jnp.where(total == 0, 1, total)
    counted = weight > 0
    strange = jnp.any(jnp.isnan(logits) | jnp.isposinf(logits), axis=-1)
    strange |= ~jnp.isfinite(at_label(logits, labels))
    invalid = jnp.any(counted & strange) | jnp.isnan(total)
    sound = counted & ~strange
    # relative to the largest, so that no exponential overflows at any temperature
    distance = distances(logits)
    true = -jnp.where(sound, at_label(distance, labels), 0)
    margin = margin_of(logits, sound)
    farthest = farthest_label(distance, labels) * sound.astype(distance.dtype)
    reach = reach_of(margin, jnp.max(farthest, initial=0))
    possible = ~jnp.isneginf(logits) & (distance <= reach) & sound[:, None]
    below = jnp.where(possible, -distance, 0)
    farthest = jnp.maximum(-true, true - jnp.min(below, axis=-1, initial=0))
    largest = jnp.max(farthest * counted.astype(farthest.dtype), initial=0)
    share = farthest / jnp.where(largest > 0, largest, 1)  # whose squares do not overflow
    spread = largest * jnp.sqrt(jnp.sum(weight * jnp.square(share)))
    trivial = ~(spread > 0)
    unit = jnp.where(trivial, 1, spread)
    original, true = true, true / unit
    scaled = jnp.where(possible | ~counted[:, None], below / unit, _IMPOSSIBLE)

    # The slope's limits decide whether an optimum exists: at T = 0 it is the mean of the largest
    # relative logit (0 if every example is right), at T = infinity that of the mean one.
    number = jnp.sum(possible, axis=-1)
    classes = below.shape[1]
    # the quotient of all logits would be another pass
    mean = jnp.dot(below, jnp.full(classes, 1 / max(classes, 1), dtype), precision="highest") / unit
    mean *= classes / jnp.maximum(number, 1).astype(dtype)
    too_right = jnp.sum(weight * true) >= 0
    too_wrong = jnp.sum(weight * (mean - true)) >= 0
    low = jnp.full((), -_LOG_RANGE, dtype)
    steepest = jnp.log(unit / jnp.where(margin > 0, margin, unit)) + _BELOW_MARGIN
    high = jnp.clip(steepest, _LOG_RANGE, jnp.log(jnp.finfo(dtype).max) - 1)
    bound = jnp.where(too_right, high, low)
    boundless = too_right | too_wrong
    fitted = ~(trivial | invalid)

    idle = boundless | ~fitted
    start = _start(scaled, true, weight, low, high, idle)
    moments = _moments(scaled, true, weight)
    # after a Newton step of size h the error is of order h^2
    near = float(jnp.finfo(dtype).eps) ** 0.5
    start = jnp.where(boundless, bound, start)
    found = search_root(moments, start, low, high, idle, near)
    slope, curvature = moments(found.at)
    at_bound = boundless | (found.at > high - 0.1) | (found.at < low + 0.1)
    precise = jnp.abs(slope) <= jnp.finfo(dtype).eps ** (2 / 3) * curvature
    converged = fitted & ~at_bound & precise
    temperature = jnp.minimum(unit * jnp.exp(-found.at), jnp.finfo(dtype).max)
    temperature = jnp.where(trivial, 1, temperature)
    # the loss is convex in 1 / T, and falls all the way from T = 1, unless masks count in the end
    whole = ~jnp.any(sound & (number < logits.shape[1]))
    lower = boundless & whole & jnp.where(too_right, temperature <= 1, temperature >= 1)

    def or_identity(
        old: tuple[jax.Array, ...], given: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        logits, scale = given
        below = jnp.where(sound[:, None], -distances(logits), 0)
        scaled, unscaled = _losses(below, original, weight, old[0])
        worse = ~((scaled <= unscaled) | jnp.isnan(unscaled))
        slope, _ = moments(jnp.log(scale))
        return jnp.where(worse, 1, old[0]), jnp.where(worse, slope, old[1])

    doubtful = fitted & ~(converged | lower)
    ended, slope = once(doubtful, or_identity, (temperature, slope), (logits, unit))
    fit = TemperatureFit(
        temperature=jnp.where(invalid, jnp.nan, ended).astype(dtype),
        residual=jnp.where(invalid, jnp.nan, jnp.where(trivial, 0, jnp.abs(slope))),
        converged=converged,
        at_bound=fitted & at_bound & (ended == temperature),
        num_steps=found.num_steps,
    )
    return fit, reach


def _start(
    scaled: Float[Array, "examples classes"],
    true: Float[Array, " examples"],
    weight: Float[Array, " examples"],
    low: Float[Array, ""],
    high: Float[Array, ""],
    idle: Bool[Array, ""],
) -> Float[Array, ""]:
    """Where the search begins: at the scale, or of many examples near the optimum of some."""
    scale = jnp.zeros((), scaled.dtype)
    if scaled.shape[0] < _MANY:
        return scale
    some = slice(None, None, _STRIDE)
    moments = _moments(scaled[some], true[some], weight[some])
    few = search_root(moments, scale, low, high, idle, _NEAR)
    # all examples may have an optimum even if the subset has none
    inside = (few.at > low + _LOG_RANGE / 2) & (few.at < high - _LOG_RANGE / 2)
    return jnp.where(inside, few.at, scale)


def _losses(
    below: Float[Array, "examples classes"],
    true: Float[Array, " examples"],
    weight: Float[Array, " examples"],
    temperature: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The mean log loss at a temperature and at 1, with every class as possible as its logit says.

    Args:
        below: logits minus the largest of their example: of their powers one is 1.
        true: the same for the true class.
        weight: weight of each example; they sum to 1.
        temperature: the temperature.
    """
    totals = sums(jnp.exp(below / temperature), jnp.exp(below), axis=1)
    of_each = jnp.log(totals[0]) - true / temperature, jnp.log(totals[1]) - true
    scaled, unscaled = (jnp.sum(jnp.where(weight > 0, weight * x, 0)) for x in of_each)
    return scaled, unscaled


def _moments(
    below: Float[Array, "examples classes"],
    true: Float[Array, " examples"],
    weight: Float[Array, " examples"],
) -> Slope:
    """Slope and curvature of the loss in `log beta`, `beta = 1 / T`: one pass over the logits.

    Args:
        below: logits minus the largest of their example.
        true: the same for the true class.
        weight: weight of each example; they sum to 1.
    """

    def at(log_beta: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        beta = jnp.exp(log_beta)
        powers = jnp.exp(beta * below)
        total, first, second = sums(powers, powers * below, powers * below * below, axis=1)
        mean = first / total
        # no cancellation: the largest is at 0, so the variance is at least mean^2 / classes
        variance = jnp.maximum(second / total - jnp.square(mean), 0)
        terms = weight * (mean - true), weight * variance
        # of many examples apart: pairwise, at the cost of more and smaller programs
        few = weight.shape[0] <= _PLAIN
        slope, spread = sums(*terms, axis=0) if few else map(jnp.sum, terms)
        return beta * slope, jnp.square(beta) * spread + beta * slope

    return at


@jax.custom_jvp
def _implicit(
    logits: Float[Array, "examples classes"],
    weight: Float[Array, " examples"],
    labels: Labels,
    fit: TemperatureFit,
    reach: Float[Array, ""],
) -> Float[Array, ""]:
    """The fitted temperature, as a function of its data."""
    return fit.temperature


@_implicit.defjvp
def _implicit_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    logits, weight, labels, fit, reach = primals
    temperature = _implicit(*primals)  # not the constant: this rule is differentiated again
    stayed = (fit.temperature == 1) & ~fit.converged  # at a lower loss than the search found
    settled = ~(fit.at_bound | (fit.num_steps == 0) | stayed)
    beta = 1 / jnp.where(settled, temperature, 1)
    # rows that count, or would count if they had weight
    true = at_label(logits, labels)
    sound = jnp.isfinite(true) & ~jnp.any(jnp.isnan(logits) | jnp.isposinf(logits), axis=-1)
    impossible = jnp.isneginf(logits) | (distances(logits) > reach)
    possible = ~impossible | ~sound[:, None]

    def slope(
        beta: Float[Array, ""],
        logits: Float[Array, "examples classes"],
        weight: Float[Array, " examples"],
    ) -> Float[Array, ""]:
        """Slope of the loss in `log beta`, up to a factor, which does not matter at its root."""
        logits = jnp.where(possible & sound[:, None], logits, 0)
        probs = jax.nn.softmax(jnp.where(possible, beta * logits, -jnp.inf), axis=-1)
        true = jnp.where(sound, at_label(logits, labels), 0)
        mean = jnp.sum(probs * logits, axis=-1) - true
        return beta * jnp.sum(jnp.where(sound, weight, 0) * mean)

    _, change = jax.jvp(
        lambda z, w: slope(beta, z, w), (logits, weight), (tangents[0], tangents[1])
    )
    _, curvature = jax.jvp(lambda b: slope(b, logits, weight), (beta,), (beta,))
    moved = temperature * change / jnp.where(curvature > 0, curvature, 1)
    moved = jnp.where(settled & (curvature > 0), moved, 0)
    return temperature, jnp.where(jnp.isnan(temperature), jnp.nan, moved).astype(temperature.dtype)


@checked
def apply_temperature(
    fit: TemperatureFit, logits: Float[Array, "examples classes"]
) -> Float[Array, "examples classes"]:
    """Probabilities after temperature scaling: `softmax(logits / T)`.

    Args:
        fit: a fitted temperature.
        logits: logits or log probabilities.

    Returns:
        Probabilities, at least float32; the order of the classes is unchanged.

    Example:
        >>> fit = fit_temperature(jnp.zeros((2, 2)), jnp.array([0, 1]))
        >>> apply_temperature(fit, jnp.zeros((1, 2)))
        Array([[0.5, 0.5]], dtype=float32)
    """
    return jnp.exp(scale_log_probs(logits, fit.temperature[None]))


@checked
def scale_log_probs(
    logits: Float[Array, "*examples classes"], temperature: Float[Array, "*#examples"]
) -> Float[Array, "*examples classes"]:
    """Log probabilities after temperature scaling: `log_softmax(logits / T)`.

    Args:
        logits: logits or log probabilities.
        temperature: T > 0 of each example, or of size 1 along an axis that shares it.

    Returns:
        Log probabilities, at least float32.

    Example:
        >>> scale_log_probs(jnp.array([[0.0, 2.0]]), jnp.array([1e6])).round(3)
        Array([[-0.693, -0.693]], dtype=float32)
    """
    return jax.nn.log_softmax(
        at_least_float32(logits) / at_least_float32(temperature)[..., None], axis=-1
    )
