"""Sums that stay accurate in float32 over tens of millions of examples.

Adding numbers one by one, as XLA's scatter does on CPUs, stagnates: the sum of 1e7 times 0.1 in
float32 has a relative error of a tenth. Here short runs are added plainly, and the sums of the runs
in pairs, whose rounding errors grow with the logarithm of their number. That is as fast as adding
plainly; sums that go on from call to call keep their rounding errors instead (`add_pairs`).
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._numerics import two_sum

# Binary logarithm of the number of examples added plainly: equal numbers lose at most 1e-6 of their
# sum in float32.
_SHIFT = 6
# The same for many bins: at most 1e-4, as far as the runs' sums are not larger than the values.
_LONG = 13
# Parts of an array that are added at once.
_PARTS = 16


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
def pairwise_sum(values: Float[Array, "rows ..."]) -> Float[Array, "..."]:
    """Sum along the first axis, in pairs: each number takes part in few additions.

    The rounding error is at most eps times the binary logarithm of the number of rows, relative to
    the sum of the absolute values.
    """
    ends = []
    while values.shape[0] > _PARTS:
        size, rest = divmod(values.shape[0], _PARTS)
        whole = size * _PARTS
        if rest:
            ends.append(_in_pairs([values[i] for i in range(whole, whole + rest)]))
        # elementwise, which vectorises; unlike a reduction, which adds in order
        values = _in_pairs([values[i * size : (i + 1) * size] for i in range(_PARTS)])
    if values.shape[0] == 0:
        return jnp.zeros(values.shape[1:], values.dtype)
    return _in_pairs([*(values[i] for i in range(values.shape[0])), *reversed(ends)])


def _in_pairs(terms: list[Float[Array, "*shape"]]) -> Float[Array, "*shape"]:
    while len(terms) > 1:
        pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = pairs + terms[2 * len(pairs) :]
    return terms[0]


@pairwise_sum.defjvp
def _pairwise_sum_jvp(
    primals: tuple[Float[Array, "rows ..."]], tangents: tuple[Float[Array, "rows ..."]]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    # linear: its derivative is the plain sum
    return pairwise_sum(*primals), jnp.sum(tangents[0], axis=0)


def total(values: Float[Array, " examples"]) -> Float[Array, ""]:
    """Sum of all values, in pairs."""
    return pairwise_sum(values)


def weighted_total(
    values: Float[Array, " examples"], weight: Float[Array, " examples"]
) -> Float[Array, ""]:
    """Weighted sum, in pairs; values of weight 0 do not count, even if they are NaN."""
    return total(jnp.where(weight == 0, 0, values) * weight)


def _shift(num_bins: int) -> int:
    """Binary logarithm of the number of examples of a run."""
    if num_bins <= 2**_SHIFT:
        return _SHIFT
    return max(min(round(math.log2(4 * num_bins)), _LONG), round(math.log2(2 * num_bins)))


def sum_by_bin(
    values: Float[Array, "examples ..."], bins: Int[Array, " examples"], num_bins: int
) -> Float[Array, "bins ..."]:
    """Sum of the values in each bin: plainly over runs of examples, then over the runs in pairs.

    Args:
        values: values to sum, or rows of them.
        bins: bin of each value, in `[0, num_bins)`; anything where the value is 0.
        num_bins: number of bins. Up to 64 a run has 64 examples, above it four times as many as
            there are bins (a power of two near that; at most 8192, or twice as many as there are),
            so that the sums of the runs take a quarter or half of the memory of the values. Equal
            numbers then lose at most 1e-4 of their sum for up to 4096 bins.
    """
    size = values.shape[0]
    shift = _shift(num_bins)
    runs = -(-size // 2**shift)
    # a narrow dtype cannot number the cells of all runs
    cells = bins if bins.dtype.itemsize >= 4 else bins.astype(jnp.int32)
    if runs > 1:
        # a shift: a division would take as long as the sums
        run = jax.lax.shift_right_logical(jax.lax.iota(jnp.int32, size), jnp.int32(shift))
        cells = cells + num_bins * run.astype(cells.dtype)
    rest = values.shape[1:]
    grid = jnp.zeros((runs * num_bins, *rest), values.dtype)
    grid = grid.at[cells].add(values, mode="drop", wrap_negative_indices=False)
    return pairwise_sum(grid.reshape(runs, num_bins, *rest))
