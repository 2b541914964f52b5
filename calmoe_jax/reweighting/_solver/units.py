"""Means and standard deviations of columns that may be far from 0 or of any scale."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName, pmax, psum
from calmoe_kernels.xla.dual import weighted_sum

# Squares of larger numbers could overflow; of columns that reach so far, or less far than the
# inverse, no squares are used.
_LARGEST, _MIDDLE = 1e18, 1e15


class Units(NamedTuple):
    """Means and standard deviations of columns.

    Attributes:
        pivot: a value of each column, of an example that counts.
        mean: mean relative to it, with digits that the sum of both may not have.
        deviation: standard deviation, or the largest distance from the pivot where squares would
            under- or overflow; 0 for a constant column.
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
    the deviations, and not only beside the mean. One product gives both.

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
    size = jnp.abs(off)
    size = jnp.where(share[:, None] > 0, size, 0) if masked else size
    reach = pmax(jnp.max(size, axis=0, initial=0), axis_name)
    powers = jnp.concatenate([off, jnp.clip(off, -_LARGEST, _LARGEST) ** 2], axis=1)
    mean, square = jnp.split(mean_of(powers, share, axis_name), 2)
    deviation = jnp.sqrt(jnp.maximum(square - mean**2, 0))
    extreme = (reach < 1 / _MIDDLE) | (reach > _MIDDLE) | (deviation == 0)
    deviation = jnp.where(extreme, reach, deviation)
    # with several devices the pivot is a mean, and a constant column off it by its rounding
    least = 4 * float(jnp.finfo(rows.dtype).eps) * jnp.abs(pivot)
    equal = (reach <= least) & (jnp.abs(jnp.abs(mean) - reach) <= 1e-3 * reach)
    return Units(pivot, mean, jnp.where(equal & (axis_name is not None), 0, deviation))


def mean_of(
    rows: Float[Array, "examples m"], share: Float[Array, " examples"], axis_name: AxisName
) -> Float[Array, " m"]:
    """Weighted means, for weights of sum one."""
    return psum(weighted_sum(share, rows, jnp.zeros_like(rows, shape=rows.shape[1:])), axis_name)


def one_row(
    rows: Float[Array, "examples m"], share: Float[Array, " examples"] | None, axis_name: AxisName
) -> Float[Array, " m"]:
    """A row that counts: one of largest weight, or the first; their mean over several devices."""
    if rows.shape[0] == 0:
        row, peak = jnp.zeros_like(rows, shape=rows.shape[1:]), jnp.zeros((), rows.dtype)
    elif share is None:
        row, peak = rows[0], jnp.ones((), rows.dtype)
    else:
        place = jnp.argmax(share)
        row, peak = rows[place], share[place]
    if axis_name is None:
        return row
    chosen = peak == pmax(peak, axis_name)
    number = psum(chosen.astype(rows.dtype), axis_name)
    return psum(jnp.where(chosen, row, 0) / jnp.maximum(number, 1), axis_name)
