"""Log losses of scores that are linear in their parameters, minimised by a damped Newton method.

`F(t) = sum_i w_i log sum_c exp u_ic(t) + t A t / 2`, where `u_ic = s_ic - s_iy` are the scores
relative to the true class, linear in the parameters `t`, and `A` is a penalty (or 0). F is convex.
Relative to the true class nothing cancels: the gradient `sum_i w_i p_ic du_ic` keeps its digits
where nearly every example is right.

Steps are found by conjugate gradients, which need products with the Hessian only: no matrix of as
many rows as parameters is held, so that a hundred classes (ten thousand parameters) are as good as
two, and directions in which F is flat do no harm.

And Newton's method for one unknown, inside a bracket.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import pick_label

_MAX_STEPS = 80
# Products with the Hessian for one step, at most.
_MAX_PRODUCTS = 300
# Share of the residual that the conjugate gradients of one step leave: far away, and near.
_ROUGH, _FINE = 0.1, 0.003
# Share of a step that is not worth taking.
_SHORTEST = 1e-4

# Steps towards a root, at most.
_MAX_HALVINGS = 60

Linear = Callable[[jax.Array], jax.Array]
Slope = Callable[[Float[Array, ""]], tuple[Float[Array, ""], Float[Array, ""]]]


class Examples(NamedTuple):
    """What scores are fitted to.

    Attributes:
        labels: class of each example; 0 where it does not count.
        weight: of each example; sums to 1, or to 0 where nothing counts.
        possible: classes that an example may have; all of them where it does not count.
        invalid: whether something that counts cannot be fitted.
    """

    labels: Int[Array, " examples"]
    weight: Float[Array, " examples"]
    possible: Bool[Array, "examples classes"]
    invalid: Bool[Array, ""]


class Found(NamedTuple):
    """Where a search ended.

    Attributes:
        parameters: of the scores; 0 where there is nothing to fit.
        loss: what is minimised, in nats.
        residual: largest entry of the gradient, in nats per unit of a parameter.
        fitted: whether there was something to fit.
        converged: whether the parameters are those of the optimum.
        at_bound: whether the loss falls on and on, however far the parameters go.
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


def examples(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    weight: Float[Array, " examples"],
) -> Examples:
    """Sorts out what counts, what is possible and what cannot be fitted.

    Args:
        logits: logits or log probabilities; `-inf` for impossible classes.
        labels: class of each example.
        weight: of each example, not yet normalised.
    """
    total = jnp.sum(weight)
    weight = weight / jnp.where(total == 0, 1, total)
    counted = weight > 0
    true = pick_label(logits, labels)
    strange = jnp.any(jnp.isnan(logits) | jnp.isposinf(logits), axis=-1) | ~jnp.isfinite(true)
    invalid = jnp.any(counted & strange) | jnp.isnan(total)
    sound = counted & ~strange
    return Examples(
        labels=jnp.where(sound, labels, 0),
        weight=jnp.where(sound, weight, 0),
        possible=~jnp.isneginf(logits) | ~sound[:, None],
        invalid=invalid,
    )


def minimise(
    scores: Linear,
    size: tuple[int, ...],
    given: Examples,
    *,
    precondition: Callable[[jax.Array, jax.Array], jax.Array],
    penalise: Linear,
) -> Found:
    """Minimises the mean log loss of linear scores, from parameters 0.

    Args:
        scores: from parameters to scores of all examples and classes; linear.
        size: shape of the parameters.
        given: labels, weights, and what is possible.
        precondition: from a gradient and `w_i p_ic (1 - p_ic)` to an approximate Newton step;
            symmetric and positive semidefinite.
        penalise: product with the penalty's matrix A; symmetric and positive semidefinite.
    """
    weight, possible = given.weight[:, None], given.possible
    dtype = given.weight.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    is_true = jnp.arange(possible.shape[1])[None] == given.labels[:, None]
    zeros = jnp.zeros(size, dtype)

    def relative(parameters: jax.Array) -> jax.Array:
        values = scores(parameters)
        true = jnp.sum(jnp.where(is_true, values, 0), axis=-1, keepdims=True)
        return jnp.where(possible, values - true, 0)

    _, pull = jax.vjp(relative, zeros)

    def adjoint(values: jax.Array) -> jax.Array:
        result: jax.Array = pull(values)[0]
        return result

    def probabilities(relative: jax.Array) -> jax.Array:
        return jax.nn.softmax(jnp.where(possible, relative, -jnp.inf), axis=-1)

    def search_direction(parameters: jax.Array, rough: jax.Array) -> tuple[jax.Array, ...]:
        """The gradient's largest entry, the Newton step, what it gains and how far it moves."""
        odds = relative(parameters)
        probs = probabilities(odds)
        gradient = adjoint(weight * probs) + penalise(parameters)
        spread = weight * probs * (1 - probs)

        def curve(step: jax.Array) -> jax.Array:
            change = relative(step)
            mean = jnp.sum(probs * change, axis=-1, keepdims=True)
            return adjoint(weight * probs * (change - mean)) + penalise(step)

        share = jnp.where(rough, _ROUGH, _FINE)
        direction = _solve(curve, -gradient, lambda r: precondition(r, spread), share)
        change = jnp.abs(relative(direction)) / (1 + jnp.abs(odds))
        moved = jnp.max(jnp.where(weight > 0, change, 0), initial=0)
        # probabilities of 0 and 1 alone, down to the last digit: nothing is left to move
        moved = jnp.where(jnp.sum(spread) > 0, moved, jnp.inf)
        # twice what the loss would fall by
        decrement = -jnp.sum(gradient * direction)
        return jnp.max(jnp.abs(gradient), initial=0), decrement, direction, moved

    def line_search(old: _Search) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A share of the step after which the loss is lower and does not rise too steeply."""
        odds, change = relative(old.parameters), relative(old.direction)
        curved = jnp.sum(old.direction * penalise(old.direction))
        pulled = jnp.sum(old.direction * penalise(old.parameters))
        held = jnp.sum(old.parameters * penalise(old.parameters)) / 2
        noise = 8 * epsilon * (1 + jnp.abs(old.loss))

        def overshot(state: tuple[Any, ...]) -> jax.Array:
            share, loss, slope, first = state
            # a slope that rises as steeply as it fell, or a higher loss; where the way is so short
            # that rounding hides both, it is taken
            steep = slope > 0.5 * old.decrement + noise * share
            higher = (loss > old.loss + noise) | jnp.isnan(loss)
            return first | ((steep | higher) & (share > _SHORTEST))

        def shorten(state: tuple[Any, ...]) -> tuple[Any, ...]:
            share, _, slope, first = state
            # where the slope is 0 if it grows evenly
            rise = slope + old.decrement
            root = share * old.decrement / jnp.where(rise > 0, rise, 1)
            root = jnp.where(slope > 0, root, share / 2)
            share = jnp.where(first, 1, jnp.clip(root, share / 10, share / 2))
            moved = jnp.where(possible, odds + share * change, -jnp.inf)
            loss = jnp.sum(given.weight * jax.nn.logsumexp(moved, axis=-1))
            loss += held + share * pulled + share**2 * curved / 2
            mean = jnp.sum(probabilities(moved) * change, axis=-1)
            slope = jnp.sum(given.weight * mean) + pulled + share * curved
            return share, loss, slope, jnp.zeros((), bool)

        one = jnp.ones((), dtype)
        start = (one, one, one, jnp.ones((), bool))
        share, loss, _, _ = jax.lax.while_loop(overshot, shorten, start)
        return old.parameters + share * old.direction, loss, share

    # after a Newton step of size h the error is of order h^2
    small, settled, flat = epsilon**0.5, epsilon ** (1 / 3), epsilon ** (2 / 3)

    def unfinished(search: _Search) -> jax.Array:
        return ~search.done & (search.steps < _MAX_STEPS)

    def step(old: _Search) -> _Search:
        parameters, loss, share = line_search(old)
        residual, decrement, direction, moved = search_direction(parameters, old.moved > 0.1)
        # rounding allows no more
        stalled = (old.moved <= settled) & (residual > 0.5 * old.residual) & (decrement <= flat)
        done = (old.moved <= small) | (residual <= 2 * epsilon) | stalled | (share <= _SHORTEST)
        steps = old.steps + 1
        return _Search(parameters, direction, loss, residual, decrement, moved, done, steps)

    fitted = (jnp.sum(given.weight) > 0) & ~given.invalid & (possible.shape[1] > 1)
    # the first step leads nowhere: it looks at the gradient
    endless = jnp.full((), jnp.inf, dtype)
    steps = jnp.full((), -1, jnp.int32)
    begin = _Search(zeros, zeros, endless, endless, endless, endless, ~fitted, steps)
    found = jax.lax.while_loop(unfinished, step, begin)
    level = found.decrement <= flat
    return Found(
        parameters=jnp.where(given.invalid, jnp.nan, found.parameters),
        loss=found.loss,
        residual=jnp.where(given.invalid, jnp.nan, jnp.where(fitted, found.residual, 0)),
        fitted=fitted,
        converged=fitted & level & (found.moved <= settled),
        at_bound=fitted & level & (found.moved > settled),
        num_steps=jnp.maximum(found.steps, 0),
    )


def standardise(
    columns: Float[Array, "examples columns"],
    weight: Float[Array, " examples"],
    known: Bool[Array, "examples columns"],
) -> tuple[Float[Array, "examples columns"], Float[Array, " columns"], Float[Array, " columns"]]:
    """Columns of mean 0 and mean square 1, and the mean and scale that they had.

    Args:
        columns: any finite numbers where they are known.
        weight: of each example; sums to 1.
        known: which entries count; the others become 0.
    """
    weight = jnp.where(known, weight[:, None], 0)
    total = jnp.sum(weight, axis=0)
    total = jnp.where(total > 0, total, 1)
    counted = weight > 0
    # from the middle of its range a constant column is exactly 0, and nothing overflows
    top = jnp.max(jnp.where(counted, columns, -jnp.inf), axis=0, initial=-jnp.inf)
    bottom = jnp.min(jnp.where(counted, columns, jnp.inf), axis=0, initial=jnp.inf)
    middle = jnp.where(jnp.isfinite(top), top / 2 + bottom / 2, 0)
    centred = jnp.where(counted, columns - middle[None], 0)
    shift = jnp.sum(weight * centred, axis=0) / total
    mean = middle + shift
    centred = jnp.where(counted, centred - shift[None], 0)
    # the largest is taken out first, so that no square underflows
    largest = jnp.max(jnp.abs(centred), axis=0, initial=0)
    constant = largest <= 4 * jnp.finfo(columns.dtype).eps * jnp.abs(mean)
    unit = jnp.where(constant, 1, largest)
    square = jnp.sum(weight * jnp.square(centred / unit[None]), axis=0) / total
    scale = jnp.where(constant, 1, unit * jnp.sqrt(square))
    return jnp.where(constant[None], 0, centred / scale[None]), mean, scale


def fit_log_odds(
    columns: Float[Array, "examples columns"],
    outcome: Float[Array, " examples"],
    weight: Float[Array, " examples"],
    free: Bool[Array, " columns"],
) -> tuple[Found, Float[Array, " columns"], Float[Array, ""]]:
    """Fits the log odds of an event as a weighted sum of columns plus a constant.

    Args:
        columns: anything; what is not finite and counts cannot be fitted.
        outcome: whether the event happened, or its probability.
        weight: of each example, not yet normalised.
        free: which columns may have a coefficient other than 0.

    Returns:
        Where the search ended, the coefficients and the constant.
    """
    counted = weight != 0
    sound = jnp.isfinite(columns).all(axis=-1) & (outcome >= 0) & (outcome <= 1)
    columns = jnp.where((counted & sound)[:, None], columns, 0)
    outcome = jnp.where(counted & sound, outcome, 0)
    # an example of probability o is one that happened, of weight o, and one that did not
    size = len(outcome)
    twice = jnp.concatenate([outcome, 1 - outcome]) * jnp.concatenate([weight, weight])
    total = jnp.sum(twice)
    given = Examples(
        labels=(jnp.arange(2 * size) < size).astype(jnp.int32),
        weight=twice / jnp.where(total == 0, 1, total),
        possible=jnp.ones((2 * size, 2), bool),
        invalid=jnp.any(counted & ~sound) | jnp.isnan(total),
    )
    columns = jnp.concatenate([columns, columns])
    values, mean, scale = standardise(columns, given.weight, jnp.ones(columns.shape, bool))
    values = jnp.where(free[None], values, 0)

    def scores(parameters: jax.Array) -> jax.Array:
        log_odds = values @ parameters[:-1] + parameters[-1]
        return jnp.stack([jnp.zeros_like(log_odds), log_odds], axis=-1)

    def precondition(gradient: jax.Array, spread: jax.Array) -> jax.Array:
        squares = jnp.append(jnp.square(values).T @ spread[:, 1], jnp.sum(spread[:, 1]))
        return jnp.where(squares > 0, gradient / jnp.where(squares > 0, squares, 1), 0)

    size = columns.shape[1] + 1
    found = minimise(
        scores,
        (size,),
        given,
        precondition=precondition,
        penalise=jnp.zeros_like,
    )
    slopes = jnp.where(free, found.parameters[:-1] / scale, 0)
    return found, slopes, found.parameters[-1] - jnp.sum(slopes * mean)


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
        # what does not curve more than rounding may (the same shift of every class's score, say)
        # leads far, and nowhere
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


class Root(NamedTuple):
    """Where a search for a root stands.

    Attributes:
        at: the unknown.
        low: the slope is below 0 from here, or the search began here.
        high: the slope is above 0 from here, or the search began here.
        done: whether the last step was small.
        num_steps: Newton or bisection steps taken.
    """

    at: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    done: Bool[Array, ""]
    num_steps: Int[Array, ""]


def search_root(
    moments: Slope,
    start: Float[Array, ""],
    low: Float[Array, ""],
    high: Float[Array, ""],
    idle: Bool[Array, ""],
    near: float,
) -> Root:
    """Newton's method inside a bracket; bisection where a step would leave it.

    Args:
        moments: slope and curvature of what is minimised.
        start: where to begin, in the bracket.
        low: lower end of the bracket.
        high: upper end.
        idle: whether there is nothing to search; the result is then the start.
        near: a step of no more than this is the last.
    """

    def unfinished(root: Root) -> Bool[Array, ""]:
        return ~root.done & (root.num_steps < _MAX_HALVINGS)

    def step(root: Root) -> Root:
        slope, curvature = moments(root.at)
        low = jnp.where(slope < 0, root.at, root.low)
        high = jnp.where(slope > 0, root.at, root.high)
        newton = root.at - slope / jnp.where(curvature > 0, curvature, 1)
        inside = (curvature > 0) & (newton >= low) & (newton <= high)
        proposal = jnp.where(inside, newton, (low + high) / 2)
        done = jnp.abs(proposal - root.at) <= near
        return Root(proposal, low, high, done, root.num_steps + 1)

    begin = Root(start, low, high, idle, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, step, begin)


def sums(*arrays: Float[Array, "..."], axis: int) -> tuple[Float[Array, "..."], ...]:
    """The sum of each array, in one pass: XLA's CPU compiler fuses no two sums by itself."""

    def add(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)
    return tuple(jax.lax.reduce(arrays, zeros, add, (axis,)))
