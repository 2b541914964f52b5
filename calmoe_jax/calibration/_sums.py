"""Sums that stay accurate in float32 over tens of millions of examples.

Adding numbers one by one, as XLA's scatter does on CPUs, stagnates: the sum of 1e7 times 0.1 in
float32 has a relative error of a tenth. Here short runs are added plainly, and the sums of the runs
with their rounding errors, which a few additions recover exactly (Knuth, The Art of Computer
Programming 2, 4.2.2).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._numerics import two_sum

# Examples added plainly: equal numbers lose at most 1e-6 of their sum in float32.
_RUN = 64
# Sums whose rounding errors are added plainly.
_BLOCK = 128
# Rows of this many numbers are added in turn, which vectorises.
_WIDE = 512


def add_pairs(
    a: tuple[Float[Array, "*shape"], Float[Array, "*shape"]],
    b: tuple[Float[Array, "*shape"], Float[Array, "*shape"]],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Adds two sums, each a rounded value and a remainder; the remainder of `inf` is 0.

    The remainder is kept below the last digit of the value; if it only grew, it would stagnate too.
    """
    total, error = two_sum(a[0], b[0])
    high, low = two_sum(total, error + (a[1] + b[1]))
    finite = jnp.isfinite(total)
    return jnp.where(finite, high, total), jnp.where(finite, low, 0)


@jax.custom_jvp
def compensated_sum(values: Float[Array, "rows ..."]) -> Float[Array, "..."]:
    """Sum along the first axis, as if in twice the precision."""
    zero = jnp.zeros((), values.dtype)
    if math.prod(values.shape[1:]) >= _WIDE:
        empty = jnp.zeros(values.shape[1:], values.dtype)

        def add(sums: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], None]:
            return add_pairs(sums, (row, empty)), None

        (high, low), _ = jax.lax.scan(add, (empty, empty), values)
        return jnp.where(jnp.isinf(high), high, high + low)
    rows = max(min(_BLOCK, values.shape[0]), 1)
    missing = -values.shape[0] % rows
    values = jnp.pad(values, ((0, missing), *((0, 0) for _ in values.shape[1:])))
    values = values.reshape(rows, -1, *values.shape[1:])
    # a block has too few errors to stagnate: adding them plainly is four times as fast
    blocks = jax.lax.reduce((values, jnp.zeros_like(values)), (zero, zero), _add_errors, (0,))
    high, low = jax.lax.reduce(blocks, (zero, zero), add_pairs, (0,))
    return jnp.where(jnp.isinf(high), high, high + low)


def _add_errors(
    a: tuple[Float[Array, "*shape"], Float[Array, "*shape"]],
    b: tuple[Float[Array, "*shape"], Float[Array, "*shape"]],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    total, error = two_sum(a[0], b[0])
    return total, error + (a[1] + b[1])


@compensated_sum.defjvp
def _compensated_sum_jvp(
    primals: tuple[Float[Array, "rows ..."]], tangents: tuple[Float[Array, "rows ..."]]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    # linear: its derivative is the plain sum
    return compensated_sum(*primals), jnp.sum(tangents[0], axis=0)


def total(values: Float[Array, " examples"]) -> Float[Array, ""]:
    """Compensated sum of all values; in 128 lanes, so that it vectorises."""
    lanes = 128 if values.shape[0] > 128 else 1
    padded = jnp.pad(values, (0, -values.shape[0] % lanes))
    return compensated_sum(compensated_sum(padded.reshape(-1, lanes)))


def weighted_total(
    values: Float[Array, " examples"], weight: Float[Array, " examples"]
) -> Float[Array, ""]:
    """Compensated weighted sum; values of weight 0 do not count, even if they are NaN."""
    return total(jnp.where(weight == 0, 0, values) * weight)


def sum_by_bin(
    values: Float[Array, "examples ..."], bins: Int[Array, " examples"], num_bins: int
) -> Float[Array, "bins ..."]:
    """Sum of the values in each bin, compensated over runs of examples.

    Args:
        values: values to sum, or rows of them.
        bins: bin of each value, in `[0, num_bins)`.
        num_bins: number of bins. Up to 64 a run has 64 examples, above it twice as many as there
            are bins, so that the sums of the runs take half of the memory of the values; equal
            numbers then lose a few 1e-5 of their sum for 2048 bins.
    """
    size = values.shape[0]
    run = _RUN if num_bins <= _RUN else 2 * num_bins
    runs = -(-size // run)
    cells = bins + num_bins * (jax.lax.iota(jnp.int32, size) // run).astype(bins.dtype)
    rest = values.shape[1:]
    grid = jnp.zeros((runs * num_bins, *rest), values.dtype).at[cells].add(values)
    return compensated_sum(grid.reshape(runs, num_bins, *rest))
