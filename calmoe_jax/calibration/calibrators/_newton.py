"""Minimises log losses of scores that are linear in their parameters, by a damped Newton method.

`F(t) = sum_i w_i log sum_c exp u_ic(t) + t A t / 2`, where `u_ic = s_ic - s_iy` are the scores
relative to the true class, linear in the parameters `t`, and `A` is a penalty (or 0). F is convex.
Relative to the true class nothing cancels: the gradient `sum_i w_i p_ic du_ic` stays accurate if
nearly every example is right.

Steps come from conjugate gradients, which need only products with the Hessian. No matrix of that
size is stored, so a hundred classes (ten thousand parameters) are feasible, and directions in which
F is flat do no harm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax.calibration.calibrators._examples import Examples
from calmoe_jax.calibration.calibrators._root import once

_MAX_STEPS = 80
# Largest number of products with the Hessian for one step.
_MAX_PRODUCTS = 300
# Fraction of the residual at which conjugate gradients stop: far from the optimum, and near it.
_ROUGH, _FINE = 0.1, 0.003
# Smallest fraction of a step.
_SHORTEST = 1e-4

Linear = Callable[[jax.Array], jax.Array]
Precondition = Callable[[jax.Array, jax.Array], jax.Array]


class Minimum(NamedTuple):
    """The result of a minimisation.

    Attributes:
        parameters: parameters of the scores; 0 if there is nothing to fit.
        loss: the loss at them, in nats.
        residual: largest entry of the gradient, in nats per unit of a parameter.
        fitted: whether there was something to fit.
        converged: whether the parameters are those of the optimum.
        at_bound: whether the loss has no finite minimum.
        num_steps: Newton steps taken.
    """

    parameters: Float[Array, "..."]
    loss: Float[Array, ""]
    residual: Float[Array, ""]
    fitted: Bool[Array, ""]
    converged: Bool[Array, ""]
    at_bound: Bool[Array, ""]
    num_steps: Int[Array, ""]


class _Search(NamedTuple):
    parameters: jax.Array
    direction: jax.Array
    loss: jax.Array
    residual: jax.Array
    decrement: jax.Array
    moved: jax.Array
    done: jax.Array
    steps: jax.Array


class _Loss(NamedTuple):
    """The loss to minimise.

    Attributes:
        given: labels, weights and possible classes.
        weight: weight of each example, as a column.
        relative: maps parameters to scores relative to the true class.
        adjoint: the transpose of `relative`.
        precondition: maps a gradient and its spread to an approximate Newton step.
        penalise: product with the penalty's matrix.
    """

    given: Examples
    weight: Float[Array, "examples 1"]
    relative: Linear
    adjoint: Linear
    precondition: Precondition
    penalise: Linear

    def probabilities(self, relative: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.where(self.given.possible, relative, -jnp.inf), axis=-1)


def minimise(
    scores: Linear,
    identity: Float[Array, "..."],
    given: Examples,
    *,
    precondition: Precondition,
    penalise: Linear,
) -> Minimum:
    """Minimises the mean log loss of linear scores, from parameters 0.

    Args:
        scores: linear map from parameters to scores of all examples and classes.
        identity: the parameters with which nothing changes: the result where the search ends,
            unconverged, at a higher loss.
        given: labels, weights and possible classes.
        precondition: maps a gradient and `w_i p_ic (1 - p_ic)` to an approximate Newton step;
            symmetric and positive semidefinite.
        penalise: product with the penalty's matrix A; symmetric and positive semidefinite.
    """
    dtype = given.weight.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    zeros = jnp.zeros_like(identity)
    loss = _loss(scores, zeros, given, precondition, penalise)
    # after a Newton step of size h the error is of order h^2
    small, settled, flat = epsilon**0.5, epsilon ** (1 / 3), epsilon ** (2 / 3)

    def unfinished(search: _Search) -> jax.Array:
        return ~search.done & (search.steps < _MAX_STEPS)

    def step(old: _Search) -> _Search:
        parameters, value, share = _line_search(loss, old)
        residual, decrement, direction, moved = _direction(loss, parameters, old.moved > 0.1)
        # rounding prevents further progress
        stalled = (old.moved <= settled) & (residual > 0.5 * old.residual) & (decrement <= flat)
        done = (old.moved <= small) | (residual <= 2 * epsilon) | stalled | (share <= _SHORTEST)
        steps = old.steps + 1
        return _Search(parameters, direction, value, residual, decrement, moved, done, steps)

    fitted = (jnp.sum(given.weight) > 0) & ~given.invalid & (given.possible.shape[1] > 1)
    # the first step has size 0: it only evaluates the gradient
    endless = jnp.full((), jnp.inf, dtype)
    steps = jnp.full((), -1, jnp.int32)
    begin = _Search(zeros, zeros, endless, endless, endless, endless, ~fitted, steps)
    found = jax.lax.while_loop(unfinished, step, begin)
    level = fitted & (found.decrement <= flat)
    converged = level & (found.moved <= settled)

    def or_identity(
        old: tuple[jax.Array, ...], given: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        new = _at(loss, *given)
        kept = (old[1] <= new[1]) | jnp.isnan(new[1])
        return tuple(jnp.where(kept, x, y) for x, y in zip(old, new, strict=True))

    ended = found.parameters, found.loss, found.residual
    end = once(fitted & ~converged, or_identity, ended, (identity,))
    return Minimum(
        parameters=jnp.where(given.invalid, jnp.nan, end[0]),
        loss=end[1],
        residual=jnp.where(given.invalid, jnp.nan, jnp.where(fitted, end[2], 0)),
        fitted=fitted,
        converged=converged,
        at_bound=level & ~converged & (end[1] == found.loss),
        num_steps=jnp.maximum(found.steps, 0),
    )


def _at(loss: _Loss, parameters: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The parameters, the loss there, and the largest entry of its gradient."""
    odds, pull = loss.relative(parameters), loss.penalise(parameters)
    log_total = jax.nn.logsumexp(jnp.where(loss.given.possible, odds, -jnp.inf), axis=-1)
    value = jnp.sum(loss.given.weight * log_total) + jnp.sum(parameters * pull) / 2
    gradient = loss.adjoint(loss.weight * loss.probabilities(odds)) + pull
    return parameters, value, jnp.max(jnp.abs(gradient), initial=0)


def _loss(
    scores: Linear,
    zeros: jax.Array,
    given: Examples,
    precondition: Precondition,
    penalise: Linear,
) -> _Loss:
    classes = jnp.arange(given.possible.shape[1], dtype=given.labels.dtype)
    is_true = classes[None] == given.labels[:, None]

    def relative(parameters: jax.Array) -> jax.Array:
        values = scores(parameters)
        true = jnp.sum(jnp.where(is_true, values, 0), axis=-1, keepdims=True)
        return jnp.where(given.possible, values - true, 0)

    _, pull = jax.vjp(relative, zeros)

    def adjoint(values: jax.Array) -> jax.Array:
        result: jax.Array = pull(values)[0]
        return result

    return _Loss(given, given.weight[:, None], relative, adjoint, precondition, penalise)


def _direction(loss: _Loss, parameters: jax.Array, rough: jax.Array) -> tuple[jax.Array, ...]:
    """The gradient's largest entry, the gain of the Newton step, the step, and its size."""
    weight = loss.weight
    odds = loss.relative(parameters)
    probs = loss.probabilities(odds)
    gradient = loss.adjoint(weight * probs) + loss.penalise(parameters)
    spread = weight * probs * (1 - probs)

    def curve(step: jax.Array) -> jax.Array:
        change = loss.relative(step)
        mean = jnp.sum(probs * change, axis=-1, keepdims=True)
        return loss.adjoint(weight * probs * (change - mean)) + loss.penalise(step)

    share = jnp.where(rough, _ROUGH, _FINE)
    direction = _solve(curve, -gradient, lambda r: loss.precondition(r, spread), share)
    change = jnp.abs(loss.relative(direction)) / (1 + jnp.abs(odds))
    moved = jnp.max(jnp.where(weight > 0, change, 0), initial=0)
    # all probabilities are 0 or 1 up to rounding: the loss cannot decrease further
    moved = jnp.where(jnp.sum(spread) > 0, moved, jnp.inf)
    # twice the predicted decrease of the loss
    decrement = -jnp.sum(gradient * direction)
    return jnp.max(jnp.abs(gradient), initial=0), decrement, direction, moved


def _line_search(loss: _Loss, old: _Search) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A fraction of the step at which the loss is lower and its slope not too steep."""
    given, dtype = loss.given, loss.weight.dtype
    odds, change = loss.relative(old.parameters), loss.relative(old.direction)
    curved = jnp.sum(old.direction * loss.penalise(old.direction))
    pulled = jnp.sum(old.direction * loss.penalise(old.parameters))
    held = jnp.sum(old.parameters * loss.penalise(old.parameters)) / 2
    noise = 8 * float(jnp.finfo(dtype).eps) * (1 + jnp.abs(old.loss))

    def overshot(state: tuple[Any, ...]) -> jax.Array:
        share, value, slope, first = state
        # rejects a slope that rises as steeply as it fell, or a higher loss; accepts steps so short
        # that rounding hides both
        steep = slope > 0.5 * old.decrement + noise * share
        higher = (value > old.loss + noise) | jnp.isnan(value)
        return first | ((steep | higher) & (share > _SHORTEST))

    def shorten(state: tuple[Any, ...]) -> tuple[Any, ...]:
        share, _, slope, first = state
        # the zero of the slope by linear interpolation
        rise = slope + old.decrement
        root = share * old.decrement / jnp.where(rise > 0, rise, 1)
        root = jnp.where(slope > 0, root, share / 2)
        share = jnp.where(first, 1, jnp.clip(root, share / 10, share / 2))
        moved = jnp.where(given.possible, odds + share * change, -jnp.inf)
        value = jnp.sum(given.weight * jax.nn.logsumexp(moved, axis=-1))
        value += held + share * pulled + share**2 * curved / 2
        mean = jnp.sum(loss.probabilities(moved) * change, axis=-1)
        slope = jnp.sum(given.weight * mean) + pulled + share * curved
        return share, value, slope, jnp.zeros((), bool)

    one = jnp.ones((), dtype)
    start = (one, one, one, jnp.ones((), bool))
    share, value, _, _ = jax.lax.while_loop(overshot, shorten, start)
    return old.parameters + share * old.direction, value, share


def _solve(curve: Linear, right: jax.Array, precondition: Linear, share: jax.Array) -> jax.Array:
    """Conjugate gradients for `curve(x) = right`, until `share` of the residual is left."""
    most = min(2 * right.size + 8, _MAX_PRODUCTS)
    least = 8 * float(jnp.finfo(right.dtype).eps)
    first = precondition(right)
    energy = jnp.sum(right * first)

    def unfinished(state: tuple[Any, ...]) -> jax.Array:
        _, _, _, left, _, sound, count = state
        return (left > share**2 * energy) & sound & (count < most)

    def product(state: tuple[Any, ...]) -> tuple[Any, ...]:
        x, residual, way, left, norm, _, count = state
        bent = curve(way)
        curvature = jnp.sum(way * bent)
        # directions whose curvature is within rounding (a common shift of all classes' scores, say)
        # are flat: a step along them would be long and useless
        sound = curvature > least * norm
        length = jnp.where(sound, left / jnp.where(sound, curvature, 1), 0)
        x, residual = x + length * way, residual - length * bent
        next_way = precondition(residual)
        now = jnp.sum(residual * next_way)
        ratio = now / left
        return x, residual, next_way + ratio * way, now, now + ratio**2 * norm, sound, count + 1

    state = (
        jnp.zeros_like(right),
        right,
        first,
        energy,
        energy,  # of the way, in the norm of the preconditioner
        jnp.asarray(True),
        jnp.zeros((), jnp.int32),
    )
    result: jax.Array = jax.lax.while_loop(unfinished, product, state)[0]
    return result
