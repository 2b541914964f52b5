"""Newton's method in one dimension, inside a bracket."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Largest number of steps towards a root.
_MAX_STEPS = 60

Values = tuple[Array, ...]
Slope = Callable[[Float[Array, ""]], tuple[Float[Array, ""], Float[Array, ""]]]


class Root(NamedTuple):
    """State of a search for a root.

    Attributes:
        at: the current point.
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
    """Newton's method inside a bracket, with bisection if a step would leave it.

    The function is one of `log beta`. A step of Newton's method for the root of its derivative in
    `beta` is short where beta has to grow by much; the same in `log beta` is long, and fails where
    the function is concave in that. Both agree near the root. The step is between them: `r` of the
    relative change of beta becomes `asinh r` of the change of its logarithm, so that half as many
    are needed.

    Args:
        moments: slope and curvature, in `log beta`, of the function to minimise.
        start: starting point, in the bracket.
        low: lower end of the bracket.
        high: upper end.
        idle: whether to skip the search; the result is then the start.
        near: the search ends with a step of at most this size.
    """

    def unfinished(root: Root) -> Bool[Array, ""]:
        return ~root.done & (root.num_steps < _MAX_STEPS)

    def step(root: Root) -> Root:
        slope, curvature = moments(root.at)
        low = jnp.where(slope < 0, root.at, root.low)
        high = jnp.where(slope > 0, root.at, root.high)
        # the function's curvature in `exp(at)`, which is positive where it is convex in that
        steep = curvature - slope
        forward = root.at + jnp.arcsinh(-slope / jnp.where(steep > 0, steep, 1))
        inside = (steep > 0) & (forward >= low) & (forward <= high)
        proposal = jnp.where(inside, forward, (low + high) / 2)
        done = jnp.abs(proposal - root.at) <= near
        return Root(proposal, low, high, done, root.num_steps + 1)

    begin = Root(start, low, high, idle, jnp.zeros((), jnp.int32))
    return jax.lax.while_loop(unfinished, step, begin)


def once(
    needed: Bool[Array, ""],
    function: Callable[[Values, Values], Values],
    values: Values,
    given: Values,
) -> Values:
    """`function(values, given)` where that is needed, else the values.

    A loop of at most one step: unlike both sides of `lax.cond`, it costs nothing under `vmap` where
    no element needs it.

    Args:
        needed: whether to call the function.
        function: takes everything that costs something from its arguments: the compiler moves what
            depends on constants alone out of the loop, where it is always computed.
        values: its first argument.
        given: its second.
    """

    def unfinished(state: tuple[Bool[Array, ""], Values]) -> Bool[Array, ""]:
        return state[0]

    def step(state: tuple[Bool[Array, ""], Values]) -> tuple[Bool[Array, ""], Values]:
        (_, values), held = jax.lax.optimization_barrier((state, given))
        return jnp.zeros_like(state[0]), function(values, held)

    return jax.lax.while_loop(unfinished, step, (needed, values))[1]


def sums(*arrays: Float[Array, "..."], axis: int) -> tuple[Float[Array, "..."], ...]:
    """The sum of each array, in one pass: XLA's CPU compiler does not fuse separate sums.

    Number by number on CPUs: for an axis of classes, not of millions of examples.
    """

    def add(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)
    return tuple(jax.lax.reduce(arrays, zeros, add, (axis,)))
