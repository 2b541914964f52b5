"""Ridge regression of one column on others, on their standardised values."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName, pmax
from calmoe_jax.reweighting._solver.linear import solve_semidefinite
from calmoe_jax.reweighting._solver.units import units
from calmoe_kernels.xla import dual

# A column whose deviation is below this fraction of its reach would extrapolate to anything.
_LEAST_DEVIATION = 1e-6


def predicted_last(
    rows: Float[Array, "examples columns"],
    learnt: Bool[Array, " examples"],
    sloped: Bool[Array, ""],
    *,
    ridge: float,
    axis_name: AxisName,
) -> Float[Array, " examples"]:
    """The last column predicted from the others.

    Args:
        rows: the columns; of examples that do not count, any that are within reach of the others.
        learnt: examples to learn from; at least one on some device.
        sloped: whether to use the others; otherwise the prediction is the mean.
        ridge: penalty on standardised coefficients, in units of an example's share.
        axis_name: device axis that the examples are sharded over.
    """
    found = units(rows, learnt.astype(rows.dtype), axis_name=axis_name)
    reach = pmax(jnp.max(jnp.abs(rows - found.pivot[None]), axis=0, initial=0), axis_name)
    flat = found.deviation <= _LEAST_DEVIATION * reach
    scale = jnp.where(flat, jnp.inf, found.deviation)
    columns = dual.Columns(rows, found.pivot, scale)
    mean, nothing = found.mean / scale, jnp.zeros_like(scale)
    moments = dual.moments(columns, jnp.where(learnt, nothing[-1], -jnp.inf), nothing)
    if axis_name is not None:
        moments = dual.over_devices(moments, axis_name)
    second = dual.recentre(moments, mean, nothing).second
    assert second is not None
    size = len(mean) - 1
    normal = second[:size, :size] + ridge * jnp.eye(size, dtype=rows.dtype)
    slopes = jnp.append(solve_semidefinite(normal, second[:size, size], jnp.full(size, sloped)), 0)
    standard = -dual.shifts(columns, slopes) - jnp.sum(mean * slopes)
    return found.pivot[-1] + (found.mean[-1] + found.deviation[-1] * standard)
