"""Means and standard deviations of columns that may be far from 0 or of any scale."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName, pmax, psum
from calmoe_kernels.xla.dual import weighted_sum


class Units(NamedTuple):
    """Means and standard deviations of columns.

    Attributes:
        pivot: a value near the mean, with the resolution of the column.
        mean: mean relative to it, which may be much finer.
        deviation: standard deviation; 0 for a constant column.
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
    axis_name: AxisName = None,
) -> Units:
    """Weighted means and standard deviations.

    Means are taken in two steps, the second relative to the first: their rounding errors are then
    small beside the deviations, and not only beside the mean.

    Args:
        rows: columns; finite also where they do not count.
        share: weights of the examples, at least 0; need not sum to one.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The `Units`; of 0 where no example counts.
    """
    mass = psum(jnp.sum(share), axis_name)
    share = share / jnp.where(mass > 0, mass, 1)
    nothing = jnp.zeros(rows.shape[1], rows.dtype)

    def mean_of(values: jax.Array) -> Float[Array, " m"]:
        return psum(weighted_sum(share, values, nothing), axis_name)

    pivot = mean_of(rows)
    off = rows - pivot[None]
    mean = mean_of(off)
    off -= mean[None]
    # squares of numbers of any size neither under- nor overflow
    most = pmax(jnp.max(jnp.abs(off), axis=0, initial=0), axis_name)
    most = jnp.where(most > 0, most, 1)
    deviation = most * jnp.sqrt(mean_of((off / most[None]) ** 2))
    # the rounding errors of a mean that is taken in two steps
    least = 4 * float(jnp.finfo(rows.dtype).eps) ** 1.5 * jnp.abs(pivot + mean)
    return Units(pivot, mean, jnp.where(deviation <= least, 0, deviation))
