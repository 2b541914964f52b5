"""Newton's method for one unknown, inside a bracket."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Steps towards a root, at most.
_MAX_STEPS = 60

Slope = Callable[[Float[Array, ""]], tuple[Float[Array, ""], Float[Array, ""]]]


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
        return ~root.done & (root.num_steps < _MAX_STEPS)

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
