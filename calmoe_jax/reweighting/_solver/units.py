"""Means and standard deviations of columns that may be far from 0 or of any scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName, pmax, pmin, psum
from calmoe_kernels.xla.dual import weighted_sum

# Squares of larger numbers would overflow, and of its inverse underflow; where they nearly do, the
# distances of so many examples from the mean stand for the deviation.
_LARGEST = 1e18
_FEW = 64
# Up to so many columns a sum in blocks is faster than a product, for which the terms are stored.
_NARROW, _WIDE = 8, 16
_BLOCK = 128
_DEVICES = 2**30  # more than there are


class Units(NamedTuple):
    """Means and standard deviations of columns.

    Attributes:
        pivot: a value of each column, of an example that counts.
        mean: mean relative to it, with digits that the sum of both may not have.
        deviation: standard deviation, or where squares would under- or overflow the largest
            distance of a few examples from the mean; 0 for a constant column.
    """

    pivot: Float[Array, " m"]
    mean: Float[Array, " m"]
    deviation: Float[Array, " m"]

    @property
    def constant(self) -> Bool[Array, " m"]:
        """Whether a column is constant."""
        return self.deviation == 0


def units(
    rows: Float[Array, "examples m"],
    share: Float[Array, " examples"],
    *,
    masked: bool = True,
    axis_name: AxisName = None,
) -> Units:
    """Weighted means and standard deviations.

    Everything is relative to the values of an example, so that rounding errors are small beside
    the deviations, and not only beside the mean.

    Args:
        rows: columns; finite also where they do not count.
        share: weights of the examples, at least 0; need not sum to one.
        masked: whether some of them may be 0.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The `Units`; of 0 where no example counts.
    """
    mass = psum(jnp.sum(share), axis_name)
    share = share / jnp.where(mass > 0, mass, 1)
    pivot = one_row(rows, share if masked else None, axis_name)
    off = rows - pivot[None]
    squares = jnp.clip(off, -_LARGEST, _LARGEST) ** 2
    if rows.shape[1] <= _NARROW:
        sums = _sums(share[:, None] * off, share[:, None] * squares)
        mean, square = psum(jnp.stack(sums), axis_name)
    elif rows.shape[1] <= _WIDE:  # one product is faster, but not of wide rows
        powers = jnp.concatenate([off, squares], axis=1)
        mean, square = jnp.split(mean_of(powers, share, axis_name), 2)
    else:
        mean, square = (mean_of(x, share, axis_name) for x in (off, squares))
    variance = square - mean**2
    some = slice(None, None, max(1, len(rows) // _FEW))
    away = jnp.where(share[some, None] > 0, jnp.abs(off[some] - mean[None]), 0)
    away = pmax(jnp.max(away, axis=0, initial=0), axis_name)
    extreme = (square < _LARGEST**-1.5) | (square > _LARGEST**1.5) | (variance <= 0)
    deviation = jnp.sqrt(jnp.where(extreme, 0, variance))
    return Units(pivot, mean, jnp.where(extreme, away, deviation))


def _sums(*arrays: Float[Array, "examples m"]) -> tuple[Float[Array, " m"], ...]:
    """Sums of each column in one pass, which stores no term: block by block, as in `mean_of`."""
    zeros = tuple(jnp.zeros((), x.dtype) for x in arrays)

    def add(left: tuple[Array, ...], right: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    size, width = arrays[0].shape
    blocks = size // _BLOCK
    cut = blocks * _BLOCK
    whole = tuple(x[:cut].reshape(blocks, _BLOCK, width) for x in arrays)
    totals = (jnp.sum(x, axis=0) for x in jax.lax.reduce(whole, zeros, add, (1,)))
    if cut == size:
        return tuple(totals)
    rest = jax.lax.reduce(tuple(x[cut:] for x in arrays), zeros, add, (0,))
    return tuple(x + y for x, y in zip(totals, rest, strict=True))


def mean_of(
    rows: Float[Array, "examples m"], share: Float[Array, " examples"], axis_name: AxisName
) -> Float[Array, " m"]:
    """Weighted means, for weights of sum one."""
    return psum(weighted_sum(share, rows, jnp.zeros_like(rows, shape=rows.shape[1:])), axis_name)


def one_row(
    rows: Float[Array, "examples m"], share: Float[Array, " examples"] | None, axis_name: AxisName
) -> Float[Array, " m"]:
    """A row that counts: one of largest weight, or the first."""
    if rows.shape[0] == 0:
        row, peak = jnp.zeros_like(rows, shape=rows.shape[1:]), -jnp.ones((), rows.dtype)
    elif share is None:
        row, peak = rows[0], jnp.ones((), rows.dtype)
    else:
        place = jnp.argmax(share)
        row, peak = rows[place], share[place]
    if axis_name is None:
        return row
    device = jax.lax.axis_index(axis_name)
    first = pmin(jnp.where(peak == pmax(peak, axis_name), device, _DEVICES), axis_name)
    return psum(jnp.where(device == first, row, 0), axis_name)
