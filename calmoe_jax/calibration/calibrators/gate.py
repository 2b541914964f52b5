"""The router's temperature, fitted for a calibrated mixture."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32, example_weights, pick_label, wide_dtype
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.calibrators._masks import margin_of, reach_of, without_impossible
from calmoe_jax.calibration.calibrators._root import Slope, search_root

# The search runs over log T within this distance of the logarithm of the logits' scale, and starts
# with a grid of this many temperatures, half a nat apart.
_LOG_RANGE = 10.0
_GRID = 41


class GateTemperatureFit(NamedTuple):
    """A fitted temperature of the router with its certificate.

    Attributes:
        temperature: T > 0; routing weights are `softmax(gate_logits / T)`.
        loss: mean log loss of the aggregate at T, in nats.
        residual: `|dloss / dlog T|` at T, in nats: 0 at an optimum.
        converged: whether T is a local minimum (a further Newton step would move log T by less
            than eps^(2/3), 2e-5 in float32, and the loss curves upwards) whose loss is no higher
            than at any of the 41 temperatures of the grid, and at T = 1.
        at_bound: whether the loss is smallest at an end of the search: towards T = 0 (the top
            expert alone) or T = infinity (uniform weights). T is then that end.
        num_steps: Newton or bisection steps taken after the grid search.
        reach: distance from the largest logit of an example beyond which an expert is not chosen:
            750 times the typical margin of the examples, and 750 nats, or more.
    """

    temperature: Float[Array, "*batch"]
    loss: Float[Array, "*batch"]
    residual: Float[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    at_bound: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    reach: Float[Array, "*batch"]


class _Given(NamedTuple):
    """The data that the temperature is fitted to.

    Attributes:
        below: gate logits minus the largest of their example, in units of their spread.
        prior: 0 for experts that may be chosen, `-inf` for the others.
        likelihood: log probability of the label under each expert that may be chosen.
        weight: weight of each example; they sum to 1, or to 0 if no example counts.
        spread: scale of the gate logits.
        reach: distance from the largest beyond which an expert is not chosen.
        empty: whether no example has weight.
        trivial: whether the logits do not distinguish experts.
        invalid: whether an example that counts cannot be fitted.
    """

    below: Float[Array, "examples experts"]
    prior: Float[Array, "examples experts"]
    likelihood: Float[Array, "examples experts"]
    weight: Float[Array, " examples"]
    spread: Float[Array, ""]
    reach: Float[Array, ""]
    empty: Bool[Array, ""]
    trivial: Bool[Array, ""]
    invalid: Bool[Array, ""]


@checked
def fit_gate_temperature(
    gate_logits: Float[Array, "examples experts"],
    expert_logits: Float[Array, "examples experts classes"],
    labels: Int[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> GateTemperatureFit:
    """Finds the T that minimises the log loss of the aggregate `sum_k softmax(g / T)_k f_k`.

    The loss is not convex in T. It is evaluated at 41 temperatures, a factor `exp(1/2)` apart,
    around the scale of the logits; then Newton's method, with bisection, goes from the best of them
    to the minimum between its neighbours. A minimum narrower than that can be missed. For gradients
    the fit is a constant.

    Args:
        gate_logits: the router's logits; `-inf`, or a finite number as low as a mask is (beyond
            `reach`), for experts that are not chosen, as after top-k.
        expert_logits: each expert's logits or log probabilities.
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        A `GateTemperatureFit`. T is 1, unconverged, if there is nothing to fit: no weight (the
        loss is then NaN), one expert, or logits that do not distinguish experts; or if the loss is
        lower there than where the search ends. T is NaN for
        labels outside the classes, NaN, logits `inf`, and if all chosen experts give the true class
        probability 0.

    Example:
        >>> experts = jnp.log(jnp.array([[[0.9, 0.1], [0.3, 0.7]]] * 5))
        >>> gate = jnp.array([[2.0, 0.0]] * 5)
        >>> fit = fit_gate_temperature(gate, experts, jnp.array([0, 0, 0, 1, 1]))
        >>> apply_gate_temperature(fit, gate)[0].round(3)
        Array([0.5, 0.5], dtype=float32)

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017, for temperatures.
    """
    given = _given(gate_logits, expert_logits, labels, weights, where)
    dtype = given.below.dtype
    loss, moments = _loss(given), _moments(given)
    grid = jnp.asarray(np.linspace(-_LOG_RANGE, _LOG_RANGE, _GRID), dtype)
    losses = jax.lax.map(loss, grid)
    best = jnp.argmin(losses)
    low, high = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, _GRID - 1)]
    fitted = ~(given.trivial | given.invalid)
    epsilon = float(jnp.finfo(dtype).eps)
    noise = 4 * epsilon * (1 + jnp.abs(losses[best]))
    end = jnp.where(grid[best] < 0, 0, _GRID - 1)
    # a plateau at the loss of the end: the end is as good
    inner = jnp.maximum(jnp.minimum(best, end), 0), jnp.maximum(best, end)
    number = jnp.arange(_GRID)
    on_the_way = (number >= inner[0]) & (number <= inner[1])
    level = jnp.max(jnp.where(on_the_way, losses, -jnp.inf)) <= losses[best] + noise
    at_bound = fitted & level
    start = jnp.where(at_bound, grid[end], grid[best])
    root = search_root(moments, start, low, high, at_bound | ~fitted, epsilon**0.5)
    # where the search ends, unless the loss is lower at T = 1
    unscaled = jnp.log(jnp.where(given.trivial, 1, given.spread))
    worse = fitted & ~(loss(root.at) <= loss(unscaled) + noise)
    at = jnp.where(worse, unscaled, root.at)
    slope, curvature = moments(at)
    least = loss(at)
    precise = (curvature > 0) & (jnp.abs(slope) <= epsilon ** (2 / 3) * curvature)
    temperature = jnp.where(given.trivial | worse, 1, given.spread * jnp.exp(-at))
    converged = fitted & ~at_bound & ~worse & precise & (least <= losses[best] + noise)
    least = jnp.where(given.invalid | given.empty, jnp.nan, least)
    residual = jnp.where(given.trivial, 0, jnp.abs(slope))
    return GateTemperatureFit(
        temperature=jnp.where(given.invalid, jnp.nan, temperature).astype(dtype),
        loss=least,
        residual=jnp.where(given.invalid, jnp.nan, residual),
        converged=converged,
        at_bound=at_bound & ~worse,
        num_steps=root.num_steps,
        reach=given.reach,
    )


def _given(
    gate_logits: Float[Array, "examples experts"],
    expert_logits: Float[Array, "examples experts classes"],
    labels: Int[Array, " examples"],
    weights: Float[Array, " examples"] | None,
    where: Bool[Array, " examples"] | None,
) -> _Given:
    gate = jax.lax.stop_gradient(at_least_float32(gate_logits))
    experts = jax.nn.log_softmax(jax.lax.stop_gradient(at_least_float32(expert_logits)), axis=-1)
    dtype = wide_dtype(gate.dtype, experts.dtype)
    weight = jax.lax.stop_gradient(example_weights(labels.shape, weights, where, dtype))
    gate, experts = gate.astype(dtype), experts.astype(dtype)
    reach = reach_of(margin_of(gate, weight > 0))
    gate = without_impossible(gate, reach)
    total = jnp.sum(weight)
    weight = weight / jnp.where(total == 0, 1, total)
    counted = weight > 0
    likelihood = jax.vmap(pick_label, in_axes=(1, None), out_axes=1)(experts, labels)
    chosen = ~jnp.isneginf(gate)
    strange = jnp.any(jnp.isnan(gate) | jnp.isposinf(gate), axis=-1)
    strange |= jnp.any(chosen & jnp.isnan(likelihood), axis=-1)
    strange |= ~jnp.any(chosen & (likelihood > -jnp.inf), axis=-1)
    invalid = jnp.any(counted & strange) | jnp.isnan(total)
    sound = (counted & ~strange)[:, None]
    weight = jnp.where(sound[:, 0], weight, 0)
    chosen |= ~sound
    peak = jnp.max(gate, axis=-1, keepdims=True, initial=-jnp.inf)
    below = jnp.where(chosen & sound, gate - jnp.where(sound, peak, 0), 0)
    likelihood = jnp.where(sound, likelihood, 0)
    spread = jnp.sqrt(jnp.sum(weight * jnp.square(jnp.min(below, axis=-1, initial=0))))
    trivial = ~(spread > 0)
    below = below / jnp.where(trivial, 1, spread)
    return _Given(
        below=below,
        prior=jnp.where(chosen, 0, -jnp.inf),
        likelihood=jnp.where(chosen, likelihood, -jnp.inf),
        weight=weight,
        spread=spread,
        reach=reach,
        empty=total == 0,
        trivial=trivial,
        invalid=invalid,
    )


def _loss(given: _Given) -> Callable[[Float[Array, ""]], Float[Array, ""]]:
    """The mean log loss of the aggregate, as a function of `log 1/T`."""

    def loss(log_beta: Float[Array, ""]) -> Float[Array, ""]:
        scores = jnp.exp(log_beta) * given.below + given.prior
        gained = jax.nn.logsumexp(scores + given.likelihood, axis=-1)
        return jnp.sum(given.weight * (jax.nn.logsumexp(scores, axis=-1) - gained))

    return loss


def _moments(given: _Given) -> Slope:
    """Slope and curvature of the loss in `log 1/T`."""
    below, weight = given.below, given.weight

    def moments(log_beta: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        beta = jnp.exp(log_beta)
        scores = beta * below + given.prior
        routing = jax.nn.softmax(scores, axis=-1)
        # posterior weights of the experts given the label
        posterior = jax.nn.softmax(scores + given.likelihood, axis=-1)
        before = jnp.sum(routing * below, axis=-1)
        after = jnp.sum(posterior * below, axis=-1)
        # in one sum: prior and posterior are nearly equal if the label is uninformative
        change = jnp.sum((routing - posterior) * below, axis=-1)
        variance = jnp.sum(routing * jnp.square(below - before[:, None]), axis=-1)
        variance -= jnp.sum(posterior * jnp.square(below - after[:, None]), axis=-1)
        slope = beta * jnp.sum(weight * change)
        return slope, jnp.square(beta) * jnp.sum(weight * variance) + slope

    return moments


@checked
def apply_gate_temperature(
    fit: GateTemperatureFit, gate_logits: Float[Array, "examples experts"]
) -> Float[Array, "examples experts"]:
    """Routing weights at the fitted temperature: `softmax(gate_logits / T)`.

    Args:
        fit: a fitted temperature of the router.
        gate_logits: the router's logits; `-inf`, or beyond the fit's reach, for experts that are
            not chosen.

    Returns:
        Routing weights, at least float32, ready for `mix` and `mix_log_probs`.

    Example:
        >>> experts = jnp.log(jnp.array([[[0.9, 0.1], [0.3, 0.7]]]))
        >>> fit = fit_gate_temperature(jnp.zeros((1, 2)), experts, jnp.array([0]))
        >>> apply_gate_temperature(fit, jnp.zeros((1, 2)))
        Array([[0.5, 0.5]], dtype=float32)
    """
    gate = without_impossible(at_least_float32(gate_logits), fit.reach)
    return jax.nn.softmax(gate / fit.temperature, axis=-1)
