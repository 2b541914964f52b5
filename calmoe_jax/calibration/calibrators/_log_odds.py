"""Logistic regression of an event on a few columns, for Platt scaling and beta calibration."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax.calibration.calibrators._examples import Examples, standardise
from calmoe_jax.calibration.calibrators._newton import Minimum, minimise


def fit_log_odds(
    columns: Float[Array, "examples columns"],
    outcome: Float[Array, " examples"],
    weight: Float[Array, " examples"],
    free: Bool[Array, " columns"],
) -> tuple[Minimum, Float[Array, " columns"], Float[Array, ""]]:
    """Fits the log odds of an event as a weighted sum of columns plus a constant.

    Args:
        columns: columns; the fit is invalid if an entry that counts is not finite.
        outcome: whether the event happened, or its probability.
        weight: weight of each example, not yet normalised.
        free: which columns may have a coefficient other than 0.

    Returns:
        The minimum, the coefficients and the constant.
    """
    counted = weight != 0
    sound = jnp.isfinite(columns).all(axis=-1) & (outcome >= 0) & (outcome <= 1)
    columns = jnp.where((counted & sound)[:, None], columns, 0)
    outcome = jnp.where(counted & sound, outcome, 0)
    # an outcome o counts as an event of weight o and a non-event of weight 1 - o
    size = len(outcome)
    twice = jnp.concatenate([outcome, 1 - outcome]) * jnp.concatenate([weight, weight])
    total = jnp.sum(twice)
    given = Examples(
        labels=(jnp.arange(2 * size) < size).astype(jnp.int32),
        weight=twice / jnp.where(total == 0, 1, total),
        possible=jnp.ones((2 * size, 2), bool),
        reach=jnp.full((), jnp.inf, weight.dtype),
        invalid=jnp.any(counted & ~sound) | jnp.isnan(total),
    )
    columns = jnp.concatenate([columns, columns])
    values, mean, scale = standardise(columns, given.weight, jnp.ones(columns.shape, bool))
    values = jnp.where(free[None], values, 0)

    def scores(parameters: jax.Array) -> jax.Array:
        # not a product of matrices: the transpose of a narrow one is summed in order on CPUs
        terms = (values[:, i] * parameters[i] for i in range(values.shape[1]))
        log_odds = sum(terms, parameters[-1])
        return jnp.stack([jnp.zeros_like(log_odds), log_odds], axis=-1)

    def precondition(gradient: jax.Array, spread: jax.Array) -> jax.Array:
        columns = jnp.sum(jnp.square(values) * spread[:, 1:], axis=0)
        squares = jnp.append(columns, jnp.sum(spread[:, 1]))
        return jnp.where(squares > 0, gradient / jnp.where(squares > 0, squares, 1), 0)

    identity = jnp.append(jnp.where(free, scale, 0), jnp.sum(jnp.where(free, mean, 0)))
    found = minimise(scores, identity, given, precondition=precondition, penalise=jnp.zeros_like)
    slopes = jnp.where(free, found.parameters[:-1] / scale, 0)
    return found, slopes, found.parameters[-1] - jnp.sum(slopes * mean)
