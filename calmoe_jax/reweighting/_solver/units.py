"""Means and standard deviations of columns that may be far from 0 or of any scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName, pmax, psum
from calmoe_kernels.xla.dual import weighted_sum

# Examples from which on means are taken relative to the mean.
_FEW = 2**16
_LEAST_VARIANCE = 1e-30


class Units(NamedTuple):
    """Means and standard deviations of columns.

    Attributes:
        pivot: a value of each column, of an example that counts.
        mean: mean relative to it, with digits that the sum of both may not have.
        deviation: standard deviation, or the reach where its square would underflow; 0 for a
            constant column.
        reach: largest distance of any row from the pivot.
    """

    pivot: Float[Array, " m"]
    mean: Float[Array, " m"]
    deviation: Float[Array, " m"]
    reach: Float[Array, " m"]

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
    reach = pmax(jnp.max(jnp.abs(off), axis=0, initial=0), axis_name)
    # squares must not overflow; one factor for all columns costs little
    most = jnp.max(reach, initial=0)
    most = jnp.where(most > 0, most, 1)
    off *= 1 / most
    if len(rows) < _FEW:
        # with one product, twice as fast for many small problems; the pivot is then no further
        # from the mean than rounding allows for
        powers = jnp.stack([off, off * off])
        sums = jnp.einsum("n,pnm->pm", share, powers, precision=jax.lax.Precision.HIGHEST)
        mean, square = psum(sums, axis_name)
        variance = jnp.maximum(square - mean**2, 0)
    else:
        mean = mean_of(off, share, axis_name)
        variance = mean_of((off - mean[None]) ** 2, share, axis_name)
    # beside a column larger by 1e15 or more, the squares of another underflow
    small = (variance < _LEAST_VARIANCE) & (reach > 0)
    mean, deviation = most * mean, jnp.where(small, reach, most * jnp.sqrt(variance))
    # the rounding errors of equal numbers
    least = 4 * float(jnp.finfo(rows.dtype).eps) ** 1.5 * jnp.abs(pivot + mean)
    return Units(pivot, mean, jnp.where(deviation <= least, 0, deviation), reach)


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
