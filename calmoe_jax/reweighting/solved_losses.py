"""Training losses whose weights need a solver: with fixed moments, or with a radius."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_positive, check_range
from calmoe_jax._numerics import AxisName, at_least_float32, psum
from calmoe_jax._signatures import checked
from calmoe_jax.reweighting.balance import BalanceSolution, entropy_balance
from calmoe_jax.reweighting.losses import erm_loss, weighted_loss

# Weights that miss a target by more standard deviations than this are not used.
_USELESS = 0.01


@checked
def balanced_robust_loss(
    losses: Float[Array, " examples"],
    constraints: Float[Array, "examples m"],
    targets: Float[Array, " m"] | None = None,
    *,
    eta: float | Float[Array, ""] | None = None,
    radius: float | Float[Array, ""] | None = None,
    ridge: float | Float[Array, ""] = 0.0,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The robust loss of an adversary that keeps moments fixed (class shares, expert loads).

    `max_w <w, L> - KL(w || q) / eta` over `A^T w = b`, without the divergence term. Its gradient
    is that of the worst case, also if the constraints depend on the parameters, as loads do: with
    multipliers `v / eta` it is `sum_i w_i (dL_i - da_i v / eta)`.

    Args:
        losses: loss of each example, in nats.
        constraints: columns whose weighted means must not move.
        targets: their values; by default the unweighted means.
        eta: inverse temperature of the adversary, above 0; either it or `radius` must be given.
        radius: divergence of the weights, in nats.
        ridge: as in `entropy_balance`.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The loss, at least float32; 0 where no example counts; else as `danskin_loss`.

    Raises:
        ValueError: as `entropy_balance`.

    Example:
        >>> losses, classes = jnp.array([1.0, 3.0, 5.0]), jnp.array([[1.0], [1.0], [0.0]])
        >>> balanced_robust_loss(losses, classes, eta=100.0).round(3)
        Array(3.667, dtype=float32)
    """
    solution = entropy_balance(
        losses, constraints, targets, eta=eta, radius=radius, ridge=ridge, where=where,
        axis_name=axis_name,
    )  # fmt: skip
    return danskin_loss(solution, losses, constraints, targets, where=where, axis_name=axis_name)


@checked
def danskin_loss(
    solution: BalanceSolution,
    losses: Float[Array, " examples"],
    constraints: Float[Array, "examples m"],
    targets: Float[Array, " m"] | None = None,
    *,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The loss under the weights of `entropy_balance`, with the gradient of its worst case.

    `sum_i w_i L_i`, and to its gradient `- sum_i w_i d(a_i - b) v / eta`, which is not 0 where
    constraints or targets depend on the parameters.

    Args:
        solution: as from `entropy_balance`, for these losses as the signal.
        losses: loss of each example, in nats.
        constraints: those of the solution.
        targets: those of the solution.
        where: those of the solution; base weights must have been uniform.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The loss, at least float32; the plain mean where the targets cannot be met, or are missed
        by more than a hundredth of a standard deviation.

    Raises:
        ValueError: if `where` has another shape than the losses.

    Example:
        >>> losses, classes = jnp.array([1.0, 3.0, 5.0]), jnp.array([[1.0], [1.0], [0.0]])
        >>> solution = entropy_balance(losses, classes, eta=100.0)
        >>> danskin_loss(solution, losses, classes).round(3)
        Array(3.667, dtype=float32)

    References:
        Danskin, The Theory of Max-Min, 1967.
    """
    share = jnp.exp(jax.lax.stop_gradient(solution.log_weights))
    price = solution.potentials / jnp.where(solution.eta > 0, solution.eta, 1)
    off = at_least_float32(constraints)
    if targets is None:
        counted = jnp.ones(losses.shape, bool) if where is None else where
        number = psum(jnp.sum(counted.astype(off.dtype)), axis_name)
        total = psum(jnp.sum(jnp.where(counted[:, None], off, 0), axis=0), axis_name)
        off = off - (total / jnp.maximum(number, 1))[None]
    else:
        off = off - targets[None]
    # has value 0
    moved = jnp.where(share[:, None] > 0, off - jax.lax.stop_gradient(off), 0)
    loss = weighted_loss(solution.log_weights, losses, axis_name=axis_name)
    loss -= psum(jnp.sum(share * (moved @ jax.lax.stop_gradient(price))), axis_name)
    mean = erm_loss(losses, where=where, axis_name=axis_name)
    return jnp.where(solution.feasible & (solution.residual <= _USELESS), loss, mean)


def radius_of_fraction(fraction: float) -> float:
    """The divergence of weights with a given effective fraction of examples: `-log(fraction)`.

    Of uniform base weights the perplexity `exp(H(w))` is `n exp(-KL)`; `1 / sum w^2` is no more.

    Args:
        fraction: perplexity of the weights over the number of examples, in (0, 1].

    Returns:
        A radius in nats.

    Raises:
        ValueError: if the fraction is outside (0, 1].

    Example:
        >>> round(radius_of_fraction(0.5), 3)
        0.693
    """
    check_positive("fraction", fraction)
    check_range("fraction", fraction, 0, 1)
    return -math.log(fraction)


@checked
def radius_robust_loss(
    losses: Float[Array, " examples"],
    *,
    radius: float | Float[Array, ""],
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """The worst mean loss over weights with `KL(w || uniform) <= radius`.

    With a fixed `eta` a single example of a large loss can take all the weight; with a radius it
    cannot (`radius_of_fraction` gives one).

    Args:
        losses: loss of each example, in nats.
        radius: divergence in nats, at least 0.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The loss, at least float32, with the gradient of the worst case; 0 where nothing counts.

    Raises:
        ValueError: if a plain-number radius is negative, or `where` has another shape.

    Example:
        >>> round(float(radius_robust_loss(jnp.array([0.0, 1.0]), radius=0.1)), 2)
        0.72
    """
    solution = entropy_balance(losses, radius=radius, where=where, axis_name=axis_name)
    return weighted_loss(solution.log_weights, losses, axis_name=axis_name)
