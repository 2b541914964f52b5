"""Ridge regression of one column on others, on their standardised values."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName, pmax, pmin, psum
from calmoe_jax.reweighting._solver.linear import solve_semidefinite
from calmoe_jax.reweighting._solver.units import one_row
from calmoe_kernels.xla import dual

# A column whose deviation is below this fraction of its reach would extrapolate to anything.
_LEAST_DEVIATION = 1e-6
# Examples whose products are added in order.
_PANEL = 512


Ends = tuple[Float[Array, " columns"], Float[Array, " columns"]]


def ends_of(rows: Float[Array, "examples columns"], axis_name: AxisName) -> Ends:
    """The smallest and the largest value of each column."""
    low, high = jnp.min(rows, axis=0, initial=jnp.inf), jnp.max(rows, axis=0, initial=-jnp.inf)
    return pmin(low, axis_name), pmax(high, axis_name)


def predicted_last(
    rows: Float[Array, "examples columns"],
    ends: Ends,
    learnt: Bool[Array, " examples"],
    sloped: Bool[Array, ""],
    *,
    ridge: float,
    axis_name: AxisName,
) -> Float[Array, " examples"]:
    """The last column predicted from the others.

    Args:
        rows: the columns; of examples that do not count, any that are within reach of the others.
        ends: their smallest and largest values.
        learnt: examples to learn from; at least one on some device.
        sloped: whether to use the others; otherwise the prediction is the mean.
        ridge: penalty on standardised coefficients, in units of an example's share.
        axis_name: device axis that the examples are sharded over.
    """
    # Relative to an example, in units of the reach: means, deviations and products in one pass.
    # Those relative to the mean lose no more digits than an example is deviations away from it.
    # Units are powers of 2, so that no rounding depends on examples that are not learnt from.
    pivot = one_row(rows, learnt.astype(rows.dtype), axis_name)
    reach = jnp.maximum(ends[1] - pivot, pivot - ends[0])
    unit = jnp.ldexp(jnp.ones_like(reach), jnp.frexp(reach)[1] - 1)
    own = jnp.where(learnt[:, None], (rows - pivot[None]) / unit[None], 0)
    share = learnt.astype(rows.dtype)[:, None]
    products = psum(_products(jnp.concatenate([own, share], axis=1)), axis_name)
    products /= jnp.maximum(products[-1, -1], 1)
    mean = products[-1, :-1]
    second = products[:-1, :-1] - mean[:, None] * mean[None]
    deviation = jnp.sqrt(jnp.maximum(jnp.diagonal(second), 0))
    scale = jnp.where(deviation <= _LEAST_DEVIATION * (reach / unit), jnp.inf, deviation)
    size = len(mean) - 1
    second = second / scale[:, None] / scale[None]
    normal = second[:size, :size] + ridge * jnp.eye(size, dtype=rows.dtype)
    slopes = jnp.append(solve_semidefinite(normal, second[:size, size], jnp.full(size, sloped)), 0)
    columns = dual.Columns(rows, pivot, unit * scale)
    standard = -dual.shifts(columns, slopes) - jnp.sum(mean / scale * slopes)
    return pivot[-1] + unit[-1] * (mean[-1] + deviation[-1] * standard)


def _products(columns: Float[Array, "examples columns"]) -> Float[Array, "columns columns"]:
    """Sums over examples of the products of columns, in panels, which leave little rounding."""
    size, width = columns.shape
    panels = size // _PANEL
    cut = panels * _PANEL
    highest = jax.lax.Precision.HIGHEST
    some = columns[:cut].reshape(panels, _PANEL, width)
    whole = jnp.sum(jnp.einsum("kbm,kbl->kml", some, some, precision=highest), axis=0)
    rest = columns[cut:]
    return whole + jnp.einsum("bm,bl->ml", rest, rest, precision=highest)
