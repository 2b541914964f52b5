"""Temperature scaling, of one classifier or of every expert, fitted by a converged Newton."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32, example_weights, pick_label

_MAX_STEPS = 60
# The search runs over log T within this distance of the logarithm of the logits' own scale.
_LOG_RANGE = 10.0


class TemperatureFit(NamedTuple):
    """A fitted temperature with its certificate.

    Attributes:
        temperature: T > 0; probabilities are `softmax(logits / T)`.
        residual: `|dNLL / dlog T|` at the solution, in nats: 0 at the optimum.
        converged: whether a further Newton step would move log T by less than eps^(2/3) (2e-5 in
            float32), and T is not at a bound.
        at_bound: whether the optimum lies at no T that is searched: every example right (T
            towards 0), confidence never justified (T towards infinity), or an optimum further
            than exp(10) from the logits' own scale. T is then the bound of the search.
        num_steps: Newton or bisection steps taken.
    """

    temperature: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    at_bound: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]


class _Search(NamedTuple):
    log_beta: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    done: Bool[Array, ""]
    steps: Int[Array, ""]


def fit_temperature(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> TemperatureFit:
    """Finds the temperature that minimises the log loss of `softmax(logits / T)`.

    Newton's method on `log T` for the root of the slope `E_p[z] - z_y`, kept inside a bracket
    (bisection where a step would leave it). The loss is convex in `1 / T`, so the root is the
    optimum; scaling the logits scales T.

    Args:
        logits: logits, or log probabilities (of an aggregate, say); `-inf` for impossible classes.
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        A `TemperatureFit`. T is 1, unconverged, where there is nothing to fit: no weight, one
        class, or logits that do not distinguish classes. Where no finite T is optimal, T stops
        at a bound far from the logits' scale, flagged by `at_bound`. Labels outside the classes,
        true classes with logit `-inf` and NaN logits give T = NaN.

    Example:
        >>> logits = jnp.log(jnp.array([[0.9, 0.1]] * 4))
        >>> fit = fit_temperature(logits, jnp.array([0, 0, 0, 1]))
        >>> apply_temperature(fit, logits)[0].round(4)
        Array([0.75, 0.25], dtype=float32)

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    logits = at_least_float32(logits)
    dtype = logits.dtype
    weight = example_weights(labels.shape, weights, where, dtype)
    total = jnp.sum(weight)
    weight = weight / jnp.where(total == 0, 1, total)
    counted = weight > 0
    true = jnp.where(counted, pick_label(logits, labels), 0)
    invalid = jnp.any(counted & ~jnp.isfinite(true)) | jnp.any(jnp.isnan(logits) & counted[:, None])
    # relative to the true class, so that nothing cancels: the slope is E_p[z - z_y]
    possible = ~jnp.isneginf(logits) & counted[:, None]
    relative = jnp.where(possible, logits - jnp.where(jnp.isfinite(true), true, 0)[:, None], 0)
    spread = jnp.sqrt(jnp.sum(weight * jnp.max(jnp.square(relative), axis=-1)))
    trivial = ~(spread > 0)
    relative = relative / jnp.where(trivial, 1, spread)

    def slope_and_curvature(
        log_beta: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        beta = jnp.exp(log_beta)
        scores = jnp.where(possible, beta * relative, -jnp.inf)
        probs = jax.nn.softmax(jnp.where(counted[:, None], scores, 0), axis=-1)
        mean = jnp.sum(probs * relative, axis=-1)
        variance = jnp.sum(probs * jnp.square(relative - mean[:, None]), axis=-1)
        slope = beta * jnp.sum(weight * mean)  # dNLL / dlog beta
        return slope, jnp.square(beta) * jnp.sum(weight * variance) + slope

    # after a Newton step of size h the error is of order h^2
    small = jnp.sqrt(jnp.finfo(dtype).eps)

    def unfinished(search: _Search) -> Bool[Array, ""]:
        return ~search.done & (search.steps < _MAX_STEPS)

    def step(search: _Search) -> _Search:
        slope, curvature = slope_and_curvature(search.log_beta)
        low = jnp.where(slope < 0, search.log_beta, search.low)
        high = jnp.where(slope > 0, search.log_beta, search.high)
        newton = search.log_beta - slope / jnp.where(curvature > 0, curvature, 1)
        inside = (curvature > 0) & (newton >= low) & (newton <= high)
        proposal = jnp.where(inside, newton, (low + high) / 2)
        done = jnp.abs(proposal - search.log_beta) <= small
        return _Search(proposal, low, high, done, search.steps + 1)

    # The slope's limits decide whether an optimum exists: at T = 0 it is the mean of the largest
    # relative logit (0 where every example is right), at T = infinity that of the mean one.
    largest = jnp.max(jnp.where(possible, relative, -jnp.inf), axis=-1, initial=-jnp.inf)
    mean = jnp.sum(relative, axis=-1) / jnp.maximum(jnp.sum(possible, axis=-1), 1)
    too_right = jnp.sum(weight * jnp.where(counted, largest, 0)) <= 0
    too_wrong = jnp.sum(weight * mean) >= 0
    bound = jnp.where(too_right, _LOG_RANGE, -_LOG_RANGE)
    boundless = too_right | too_wrong
    fitted = ~(trivial | invalid)
    start = _Search(
        log_beta=jnp.where(boundless, bound, 0).astype(dtype),
        low=jnp.asarray(-_LOG_RANGE, dtype),
        high=jnp.asarray(_LOG_RANGE, dtype),
        done=boundless | ~fitted,
        steps=jnp.asarray(0, jnp.int32),
    )
    found = jax.lax.while_loop(unfinished, step, start)
    slope, curvature = slope_and_curvature(found.log_beta)
    at_bound = boundless | (jnp.abs(found.log_beta) > _LOG_RANGE - 0.1)
    precise = jnp.abs(slope) <= jnp.finfo(dtype).eps ** (2 / 3) * curvature
    temperature = jnp.where(trivial, 1, spread * jnp.exp(-found.log_beta))
    return TemperatureFit(
        temperature=jnp.where(invalid, jnp.nan, temperature).astype(dtype),
        residual=jnp.where(trivial, 0, jnp.abs(slope)),
        converged=fitted & ~at_bound & precise,
        at_bound=fitted & at_bound,
        num_steps=found.steps,
    )


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
    return jax.nn.log_softmax(at_least_float32(logits) / temperature[..., None], axis=-1)


def fit_expert_temperatures(
    expert_logits: Float[Array, "examples experts classes"],
    labels: Int[Array, " examples"],
    *,
    routing_weights: Float[Array, "examples experts"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> TemperatureFit:
    """Fits one temperature for every expert, before mixing (MoCaE).

    Args:
        expert_logits: each expert's logits or log probabilities.
        labels: class of each example, in `[0, classes)`.
        routing_weights: weight of each example for each expert. `None` fits every expert on all
            examples alike, as MoCaE does; the routing weights fit it on its own routing-weighted
            view, the condition under which a hard-routed mixture stays calibrated.
        where: examples that count; all by default.

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
    if routing_weights is None:
        routing_weights = jnp.ones(expert_logits.shape[:2], jnp.float32)

    def fit(
        logits: Float[Array, "examples classes"], weights: Float[Array, " examples"]
    ) -> TemperatureFit:
        return fit_temperature(logits, labels, weights=weights, where=where)

    return jax.vmap(fit, in_axes=1)(expert_logits, routing_weights)


def apply_expert_temperatures(
    fit: TemperatureFit, expert_logits: Float[Array, "examples experts classes"]
) -> Float[Array, "examples experts classes"]:
    """Probabilities of every expert after its own temperature, ready to be mixed.

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
