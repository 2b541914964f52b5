"""Moments of exponentially tilted examples, in XLA, for Newton steps on a dual.

With `a_i = (row_i - centre) / scale`, `z_i = u_i - a_i v` and `w = softmax(z)`: the log of the sum,
the weighted mean and the weighted second moment of `a`, and how far `-a_i v` reaches. Examples with
`u_i = -inf` do not count, but their rows must be finite too. The standardised columns are never
stored.

For all moments the columns are read once, in blocks that fit in the cache, with a running maximum.
Sums are in float32 at least, block by block, so errors grow with the number of blocks and not with
the number of examples.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from calmoe_kernels.varying import vary_along, varying_axes

# Rows of a block, at most: 1024 to 65536 were tried on CPU, for 10 and 50 columns.
_BLOCK = 8192
# Rows that one product of `weighted_sum` sums, at most. On CPU a few thousand are up to twice as
# fast as a hundred, and more up to six times as slow for some widths; few rows leave little
# rounding where a centre is far from 0, by more than so many units of its column. Beyond `_FAR`
# units the centre is subtracted from each number, which takes twice the time and costs no digits.
_PANEL = 128
_LARGE_PANEL = 4096
_NEAR, _FAR = 2.0, 16.0


class Columns(NamedTuple):
    """Columns with the centre and scale that standardise them.

    Attributes:
        rows: `[n, m]`, at least float32.
        centre: `[m]`; None for rows in standard units.
        scale: `[m]`, above 0; None likewise.
    """

    rows: jax.Array
    centre: jax.Array | None = None
    scale: jax.Array | None = None


class Moments(NamedTuple):
    """Sums over tilted examples.

    Attributes:
        log_sum: `log sum_i exp z_i`; -inf where no example counts.
        mean: `sum_i w_i a_i`, and 0 where no example counts.
        second: `sum_i w_i a_i a_i^T`, likewise; None for `means`.
        reach: `max_i -a_i v` over the examples that count.
    """

    log_sum: jax.Array
    mean: jax.Array
    second: jax.Array | None
    reach: jax.Array


def moments(columns: Columns, scores: jax.Array, slopes: jax.Array) -> Moments:
    """All moments.

    Args:
        columns: columns of `[n, m]`.
        scores: `[n]`, `u`.
        slopes: `[m]`, `v`.

    Returns:
        Moments.
    """
    size, width = columns.rows.shape
    block = _divide(size, _BLOCK)
    blocks = size // block
    if blocks < 2:
        return _of_block(columns, scores, slopes)
    cut = blocks * block

    def add(total: Moments, block: tuple[jax.Array, jax.Array]) -> tuple[Moments, None]:
        rows, some = block
        return merge(total, _of_block(columns._replace(rows=rows), some, slopes)), None

    empty = _of_block(columns._replace(rows=columns.rows[:0]), scores[:0], slopes)
    empty = vary_along(empty, varying_axes(columns, scores, slopes))
    stacked = (
        columns.rows[:cut].reshape(blocks, block, width),
        scores[:cut].reshape(blocks, block),
    )
    total, _ = jax.lax.scan(add, empty, stacked)
    if cut == size:
        return total
    rest = columns._replace(rows=columns.rows[cut:])
    return merge(total, _of_block(rest, scores[cut:], slopes))


def means(columns: Columns, scores: jax.Array, slopes: jax.Array) -> Moments:
    """All moments but the second, which takes most of the time on a CPU.

    Args:
        columns: columns of `[n, m]`.
        scores: `[n]`, `u`.
        slopes: `[m]`, `v`.

    Returns:
        Moments without the second.
    """
    reach, log_sum, terms, total = _tilt(shifts(columns, slopes), scores)
    return Moments(log_sum, standard_sum(terms, columns) / total, None, reach)


def shifts(columns: Columns, slopes: jax.Array) -> jax.Array:
    """`-a_i v` of each example."""
    rows, centre, scale = columns
    if centre is None or scale is None:
        return -_product("nm,m->n", rows, slopes)
    slopes = slopes / scale

    def of_rows(rows: jax.Array) -> jax.Array:
        return -_product("nm,m->n", rows - centre[None], slopes)

    def by_block() -> jax.Array:
        whole, rest = _by_block(of_rows, rows)
        return jnp.concatenate([whole.reshape(-1), rest])

    def product() -> jax.Array:
        return jnp.sum(centre * slopes) - _product("nm,m->n", rows, slopes)

    return jax.lax.cond(distance(columns) > _FAR, by_block, product)


def standard_sum(weights: jax.Array, columns: Columns) -> jax.Array:
    """`sum_i weights_i a_i`: the centre is subtracted first where it is far from 0."""
    rows, centre, scale = columns
    nothing = jnp.zeros_like(rows, shape=rows.shape[1:])
    if centre is None or scale is None:
        return weighted_sum(weights, rows, nothing)

    def of_rows(weights: jax.Array, rows: jax.Array) -> jax.Array:
        return weighted_sum(weights, rows - centre[None], nothing)

    def by_block() -> jax.Array:
        whole, rest = _by_block(of_rows, weights, rows)
        return jnp.sum(whole, axis=0) + rest

    near, small = (
        partial(weighted_sum, weights, rows, centre, panel=panel)
        for panel in (_LARGE_PANEL, _PANEL)
    )
    away = distance(columns)
    kind = (away > _NEAR).astype(jnp.int32) + (away > _FAR).astype(jnp.int32)
    return jax.lax.switch(kind, (near, small, by_block)) / scale


def distance(columns: Columns) -> jax.Array:
    """The largest distance of a centre from 0, in units of its column."""
    if columns.centre is None or columns.scale is None:
        return jnp.zeros((), columns.rows.dtype)
    return jnp.max(jnp.abs(columns.centre) / columns.scale, initial=0)


def _by_block(
    function: Callable[..., jax.Array], *arrays: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A function of blocks of rows, and of the remaining rows."""
    size = len(arrays[0])
    block = _divide(size, _BLOCK)
    blocks = size // block
    cut = blocks * block
    stacked = (x[:cut].reshape(blocks, block, *x.shape[1:]) for x in arrays)
    whole = jax.lax.map(lambda part: function(*part), tuple(stacked))
    return whole, function(*(x[cut:] for x in arrays))


def recentre(moments: Moments, shift: jax.Array, slopes: jax.Array) -> Moments:
    """Moments of `a - shift`, for a shift that is not large.

    Centres have the resolution of their rows, which may be coarser than the scale allows; the
    rest of a centre is subtracted from the moments.
    """
    second = moments.second
    if second is not None:
        cross = moments.mean[:, None] * shift[None]
        second = second - cross - cross.T + shift[:, None] * shift[None]
    moved = jnp.sum(shift * slopes)
    return Moments(moments.log_sum + moved, moments.mean - shift, second, moments.reach + moved)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the examples of both."""
    log_sum = jnp.logaddexp(a.log_sum, b.log_sum)
    of_a, of_b = (jnp.where(jnp.isneginf(x), 0, jnp.exp(x - log_sum)) for x in (a[0], b[0]))
    second = None
    if a.second is not None and b.second is not None:
        second = of_a * a.second + of_b * b.second
    return Moments(log_sum, of_a * a.mean + of_b * b.mean, second, jnp.maximum(a.reach, b.reach))


def over_devices(moments: Moments, axis_name: str | Sequence[str]) -> Moments:
    """Moments of the examples of all devices: one sum of `1 + m + m^2` numbers."""
    peak = jax.lax.pmax(moments.log_sum, axis_name)
    peak = jnp.where(jnp.isneginf(peak), 0, peak)
    share = jnp.exp(moments.log_sum - peak)
    sums = jax.tree.map(lambda x: share * x, (jnp.ones_like(share), *moments[1:3]))
    total, mean, second = jax.lax.psum(sums, axis_name)
    some = jnp.where(total == 0, 1, total)
    return Moments(
        jnp.where(total == 0, -jnp.inf, jnp.log(some)) + peak,
        mean / some,
        None if second is None else second / some,
        jax.lax.pmax(moments.reach, axis_name),
    )


def weighted_sum(
    weights: jax.Array, rows: jax.Array, centre: jax.Array, *, panel: int = _PANEL
) -> jax.Array:
    """`sum_i weights_i (rows_i - centre)`, in panels: exact for 1e7 rows, and fast on a CPU.

    Args:
        weights: `[n]`.
        rows: `[n, m]`.
        centre: `[m]`.
        panel: largest number of rows that are summed before the centre is subtracted.

    Returns:
        Sums, `[m]`.
    """
    size, width = rows.shape
    panel = _divide(size, panel)
    panels = size // panel
    cut = panels * panel
    masses = weights[:cut].reshape(panels, panel)
    parts = _product("kb,kbm->km", masses, rows[:cut].reshape(panels, panel, width))
    parts -= jnp.sum(masses, axis=1)[:, None] * centre[None]
    total = jnp.sum(parts, axis=0)
    if cut == size:
        return total
    return total + _product("n,nm->m", weights[cut:], rows[cut:] - centre[None])


def _divide(size: int, most: int) -> int:
    """Rows of a part: a divisor of their number if there is one of suitable size.

    Otherwise there is a remainder, and XLA copies all the other rows.
    """
    for part in range(min(size, most), most // 8, -1):
        if size % part == 0:
            return part
    return max(1, min(size, most))


def _of_block(columns: Columns, scores: jax.Array, slopes: jax.Array) -> Moments:
    standard = columns.rows
    if columns.centre is not None and columns.scale is not None:
        standard = (standard - columns.centre[None]) / columns.scale[None]
    reach, log_sum, terms, total = _tilt(-_product("nm,m->n", standard, slopes), scores)
    mean = _product("n,nm->m", terms, standard) / total
    second = _product("nm,nl->ml", standard * terms[:, None], standard) / total
    return Moments(log_sum, mean, second, reach)


def _tilt(shift: jax.Array, scores: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Reach, log of the sum, terms relative to the largest, and their sum (1 where it is 0)."""
    counted = ~jnp.isneginf(scores)
    reach = jnp.max(jnp.where(counted, shift, -jnp.inf), initial=-jnp.inf)
    z = scores + shift
    peak = jnp.max(z, initial=-jnp.inf)
    peak = jnp.where(jnp.isneginf(peak), 0, peak)
    terms = jnp.exp(z - peak)
    total = jnp.sum(terms)
    some = jnp.where(total == 0, 1, total)
    log_sum = jnp.where(total == 0, -jnp.inf, jnp.log(some) + peak)
    return reach, log_sum, terms, some


def _product(formula: str, *arrays: jax.Array) -> jax.Array:
    # no TF32, no bfloat16: a residual of 1e-5 would be impossible
    return jnp.einsum(formula, *arrays, precision=jax.lax.Precision.HIGHEST)
