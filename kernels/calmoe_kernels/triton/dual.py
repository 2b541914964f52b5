"""A Triton kernel for the moments of tilted examples: the columns are read once.

Each program sums its part of the examples with a running maximum; XLA adds up the sums of a few
hundred programs, in a fixed order.
"""

from typing import Any

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from calmoe_kernels.triton.configs import dual_config
from calmoe_kernels.triton.launch import Launch, launch
from calmoe_kernels.xla.dual import Columns, Moments

_MOST_COLUMNS = 64


@triton.jit
def _moments_kernel(
    rows,
    scores,
    centre,
    scale,
    slopes,
    size,
    tiles,
    peaks,
    sums,
    reaches,
    firsts,
    seconds,
    M: tl.constexpr,
    MP: tl.constexpr,
    BN: tl.constexpr,
    SECOND: tl.constexpr,
):
    """Sums of a part of the examples, relative to their maximum."""
    program = tl.program_id(0)
    c = tl.arange(0, MP)
    inside = c < M
    middle = tl.load(centre + c, mask=inside, other=0)
    unit = tl.load(scale + c, mask=inside, other=1)
    v = tl.load(slopes + c, mask=inside, other=0)
    lowest = -3.0e38
    peak = lowest
    reach = -float("inf")
    total = 0.0
    first = tl.zeros((MP,), tl.float32)
    second = tl.zeros((MP, MP), tl.float32)
    for tile in range(tiles):
        r = (program * tiles + tile) * BN + tl.arange(0, BN)
        live = r < size
        row = rows + r.to(tl.int64)[:, None] * M + c[None, :]
        values = tl.load(row, mask=live[:, None] & inside[None, :], other=0)
        a = (values - middle[None, :]) / unit[None, :]
        # rows beyond the end must not count either
        a = tl.where(live[:, None] & inside[None, :], a, 0.0)
        u = tl.load(scores + r, mask=live, other=-float("inf"))
        shift = -tl.sum(a * v[None, :], 1)
        reach = tl.maximum(reach, tl.max(tl.where(u == -float("inf"), -float("inf"), shift), 0))
        z = u + shift
        higher = tl.maximum(peak, tl.max(z, 0))
        fade = tl.exp(peak - higher)
        weight = tl.exp(z - higher)
        weighted = a * weight[:, None]
        total = total * fade + tl.sum(weight, 0)
        first = first * fade + tl.sum(weighted, 0)
        if SECOND:
            second = second * fade + tl.dot(tl.trans(weighted), a, input_precision="ieee")
        peak = higher
    tl.store(peaks + program, peak)
    tl.store(sums + program, total)
    tl.store(reaches + program, reach)
    tl.store(firsts + program * M + c, first, mask=inside)
    if SECOND:
        target = seconds + program.to(tl.int64) * M * M + c[:, None] * M + c[None, :]
        tl.store(target, second, mask=inside[:, None] & inside[None, :])


def moments(columns: Columns, scores: jax.Array, slopes: jax.Array) -> Moments:
    """`calmoe_kernels.xla.dual.moments` in one launch.

    Args:
        columns: columns of `[n, m]` in float32, with `m` at most 64.
        scores: `[n]`.
        slopes: `[m]`.

    Returns:
        Moments.

    Raises:
        NotImplementedError: for other dtypes or widths.
    """
    return _launch(columns, scores, slopes, with_second=True)


def means(columns: Columns, scores: jax.Array, slopes: jax.Array) -> Moments:
    """`calmoe_kernels.xla.dual.means` in one launch; see `moments`."""
    return _launch(columns, scores, slopes, with_second=False)


def _launch(
    columns: Columns, scores: jax.Array, slopes: jax.Array, *, with_second: bool
) -> Moments:
    rows, centre, scale = columns
    size, width = rows.shape
    if centre is None or scale is None:
        centre, scale = jnp.zeros(width, rows.dtype), jnp.ones(width, rows.dtype)
    if any(x.dtype != jnp.float32 for x in (rows, centre, scale, scores, slopes)):
        raise NotImplementedError(f"triton has no kernel for moments of dtype {rows.dtype}.")
    if size == 0 or not 1 <= width <= _MOST_COLUMNS:
        raise NotImplementedError(
            f"triton needs 1 to {_MOST_COLUMNS} columns and at least one example, got "
            f"{width} columns and {size} examples."
        )
    config = dual_config(size, width)
    programs = triton.cdiv(size, config.examples * config.tiles)
    shapes: list[tuple[int, ...]] = [(programs,), (programs,), (programs,), (programs, width)]
    shapes.append((programs, width, width) if with_second else (1,))
    constants: dict[str, Any] = {
        "M": width,
        "MP": max(16, triton.next_power_of_2(width)),
        "BN": config.examples,
        "SECOND": with_second,
    }
    peaks, sums, reaches, firsts, seconds = launch(
        Launch(
            kernel=_moments_kernel,
            inputs=(rows, scores, centre, scale, slopes, size, config.tiles),
            outputs=tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
            grid=(programs,),
            constants=constants,
            num_warps=config.num_warps,
        )
    )
    peak = jnp.max(peaks)
    fade = jnp.exp(peaks - peak)
    total = jnp.sum(fade * sums)
    some = jnp.where(total == 0, 1, total)
    return Moments(
        log_sum=jnp.where(total == 0, -jnp.inf, jnp.log(some) + peak),
        mean=jnp.sum(fade[:, None] * firsts, axis=0) / some,
        second=jnp.sum(fade[:, None, None] * seconds, axis=0) / some if with_second else None,
        reach=jnp.max(reaches),
    )
