"""Finds the adversary's inverse temperature at which its weights have a given divergence."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax.reweighting._solver.dual import DualState

# Largest factor between the first guess and the inverse temperature.
_FURTHEST = 1e6
_LARGEST = 0.1  # of the largest number


class Tilted(NamedTuple):
    """The dual's minimum at an inverse temperature.

    Attributes:
        found: the minimum.
        kl: divergence from the base weights, in nats.
        signal_variance: variance of the signal that the columns do not explain, under the weights.
        drift: derivative of the potentials by the inverse temperature.
    """

    found: DualState
    kl: Float[Array, ""]
    signal_variance: Float[Array, ""]
    drift: Float[Array, " m"]


class Bracketed(NamedTuple):
    """State of the search for the inverse temperature.

    Attributes:
        eta: inverse temperature.
        tilted: the minimum there.
        low: largest one known to be too small.
        high: smallest one known to be too large.
        num_steps: passes over the columns.
        num_trials: inverse temperatures tried.
        limited: whether a larger one would not increase the divergence: the radius is unreachable.
    """

    eta: Float[Array, ""]
    tilted: Tilted
    low: Float[Array, ""]
    high: Float[Array, ""]
    num_steps: Int[Array, ""]
    num_trials: Int[Array, ""]
    limited: Bool[Array, ""]


def find_eta(
    solve: Callable[[Float[Array, ""], Float[Array, " m"]], Tilted],
    radius: Float[Array, ""],
    start: Float[Array, ""],
    potentials: Float[Array, " m"],
    *,
    tolerance: float,
    max_trials: int = 40,
) -> Bracketed:
    """Finds `eta` with `KL(w_eta || q) = radius` by Newton's method in `sqrt(KL)`, in a bracket.

    `dKL / deta = eta Var_w(s | 1, A)`: it increases, and its root is nearly linear in `eta`.

    Args:
        solve: finds the minimum at an inverse temperature, from starting potentials.
        radius: the divergence, in nats.
        start: first inverse temperature; 0 for a guess from the base weights.
        potentials: potentials to start from.
        tolerance: relative tolerance of the divergence.
        max_trials: inverse temperatures to try, at most.

    Returns:
        The final state.
    """
    zero = solve(jnp.zeros_like(radius), potentials)
    spread = jnp.sqrt(zero.signal_variance)
    distance = jnp.sqrt(jnp.maximum(2 * (radius - zero.kl), 0))
    guess = distance / jnp.where(spread > 0, spread, 1)
    largest = _LARGEST * jnp.finfo(radius.dtype).max
    first = jnp.where(start > 0, start, jnp.minimum(guess, largest))
    begin = Bracketed(
        eta=jnp.zeros_like(radius),
        tilted=zero,
        low=jnp.zeros_like(radius),
        high=jnp.full_like(radius, jnp.inf),
        num_steps=zero.found.num_steps,
        num_trials=jnp.zeros((), jnp.int32),
        limited=(spread == 0) & (zero.kl <= radius),
    )

    def unfinished(state: Bracketed) -> Bool[Array, ""]:
        off = jnp.abs(state.tilted.kl - radius) > tolerance * radius
        # at 0 already too far
        hopeless = (state.num_trials == 0) & (zero.kl >= radius)
        narrow = state.high - state.low <= 4 * jnp.finfo(radius.dtype).eps * state.high
        narrow &= jnp.isfinite(state.high)
        return off & ~hopeless & ~narrow & ~state.limited & (state.num_trials < max_trials)

    def advance(state: Bracketed) -> Bracketed:
        root = jnp.sqrt(2 * jnp.maximum(state.tilted.kl, 0))
        rise = state.eta * state.tilted.signal_variance / jnp.where(root > 0, root, 1)
        newton = state.eta + (jnp.sqrt(2 * radius) - root) / jnp.where(rise > 0, rise, 1)
        low = jnp.maximum(state.low, 1e-3 * state.high)
        middle = jnp.where(jnp.isinf(state.high), 4 * state.eta, jnp.sqrt(low * state.high))
        inside = (newton > state.low) & (newton < state.high) & (rise > 0)
        inside &= newton < 16 * state.eta
        eta = jnp.where(state.num_trials == 0, first, jnp.where(inside, newton, middle))
        predicted = state.tilted.found.potentials + (eta - state.eta) * state.tilted.drift
        tilted = solve(eta, predicted)
        below = tilted.kl < radius
        # the divergence that doubling it would add
        gain = eta**2 * tilted.signal_variance
        flat = (gain <= tolerance * radius) | (eta >= first * _FURTHEST)
        return Bracketed(
            eta=eta,
            tilted=tilted,
            low=jnp.where(below, eta, state.low),
            high=jnp.where(below, state.high, eta),
            num_steps=state.num_steps + tilted.found.num_steps,
            num_trials=state.num_trials + 1,
            limited=below & flat & (radius - tilted.kl > tolerance * radius),
        )

    return jax.lax.while_loop(unfinished, advance, begin)
