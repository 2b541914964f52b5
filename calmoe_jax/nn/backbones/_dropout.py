"""Dropout in a transformer: where, how much, and what it does to an array."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class DropoutRates(NamedTuple):
    """Shares of numbers that are dropped in training.

    Attributes:
        outputs: of what the blocks get, and of the MLPs' and sparse layers' outputs.
        attention: of the weights of attention.
    """

    outputs: float
    attention: float


def dropped(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """`x` with a share `rate` of its numbers zero and the others divided by what is kept."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)
