"""Triton kernels for grouped matrix products: the rows of each group times its matrix.

A tile of the result belongs to one expert: a program finds which from the sizes of the groups,
which are device values, so groups may be of any size and start anywhere. Rows of a tile beyond
its group are computed on repeated rows and not written; rows that no group holds are cleared by
separate programs, in the same launch. (`WIDEN` is for Triton's interpreter, which has no
arithmetic of bfloat16.)
"""

from typing import Any

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from calmoe_kernels.triton.configs import matmul_config
from calmoe_kernels.triton.launch import INTERPRETED, Launch, launch
from calmoe_kernels.xla.matmul import Groups


@triton.jit
def _tile_of(program, sizes, e, E: tl.constexpr, BM: tl.constexpr):
    """Expert of a tile of rows, E beyond the last, and the tile's number within its group."""
    tiles = (sizes + BM - 1) // BM
    ends = tl.cumsum(tiles, 0)
    expert = tl.sum(((ends <= program) & (e < E)).to(tl.int32), 0)
    before = tl.sum(tl.where(e == expert, ends - tiles, 0), 0)
    return expert, program - before


@triton.jit
def _rows_kernel(
    x,
    w,
    group_sizes,
    group_offsets,
    num_rows,
    num_tiles,
    out,
    E: tl.constexpr,
    EP: tl.constexpr,
    D: tl.constexpr,
    F: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """`out[r] = x[r] @ w[e]`, or `x[r] @ w[e].T`, for the rows `r` of each expert `e`."""
    program = tl.program_id(0)
    columns: tl.constexpr = (F + BN - 1) // BN
    e = tl.arange(0, EP)
    sizes = tl.load(group_sizes + e, mask=e < E, other=0)
    if program < num_tiles * columns:
        # neighbours in time share rows of x and columns of w
        width = GROUP * columns
        first = program // width * GROUP
        height = tl.minimum(num_tiles - first, GROUP)
        tile = first + program % width % height
        column = program % width // height
        expert, number = _tile_of(tile, sizes, e, E, BM)
        if expert < E:
            start = tl.load(group_offsets + expert)
            end = tl.minimum(start + tl.load(group_sizes + expert), num_rows)
            r = start + number * BM + tl.arange(0, BM)
            n = column * BN + tl.arange(0, BN)
            k = tl.arange(0, BK)
            rows = x + tl.minimum(r, end - 1).to(tl.int64)[:, None] * D + k[None, :]
            matrix = w + expert.to(tl.int64) * D * F
            cut = n % F
            if TRANSPOSED:
                weights = matrix + cut[None, :] * D + k[:, None]
            else:
                weights = matrix + k[:, None] * F + cut[None, :]
            total = tl.zeros((BM, BN), tl.float32)
            for done in range(0, D, BK):
                if EVEN:
                    a = tl.load(rows)
                    b = tl.load(weights)
                else:
                    a = tl.load(rows, mask=(done + k < D)[None, :], other=0)
                    b = tl.load(weights, mask=(done + k < D)[:, None], other=0)
                if WIDEN:
                    a = a.to(tl.float32)
                    b = b.to(tl.float32)
                total = tl.dot(a, b, total, input_precision="tf32x3")
                rows += BK
                if TRANSPOSED:
                    weights += BK
                else:
                    weights += BK * F
            target = out + r.to(tl.int64)[:, None] * F + n[None, :]
            mask = (r < end)[:, None] & (n < F)[None, :]
            tl.store(target, total.to(out.dtype.element_ty), mask=mask)
    else:
        r = (program - num_tiles * columns) * BM + tl.arange(0, BM)
        offsets = tl.load(group_offsets + e, mask=e < E, other=0)
        held = (r[:, None] >= offsets[None, :]) & (r[:, None] < (offsets + sizes)[None, :])
        empty = (tl.sum((held & (e < E)[None, :]).to(tl.int32), 1) == 0) & (r < num_rows)
        for done in range(0, F, BN):
            n = done + tl.arange(0, BN)
            target = out + r.to(tl.int64)[:, None] * F + n[None, :]
            zeros = tl.zeros((BM, BN), out.dtype.element_ty)
            tl.store(target, zeros, mask=empty[:, None] & (n < F)[None, :])


@triton.jit
def _matrices_kernel(
    x,
    y,
    group_sizes,
    group_offsets,
    num_rows,
    out,
    D: tl.constexpr,
    F: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """`out[e] = sum_r x[r]^T y[r]` over the rows of each expert; zeros for an empty group."""
    expert = tl.program_id(1)
    columns: tl.constexpr = (F + BN - 1) // BN
    m = tl.program_id(0) // columns * BM + tl.arange(0, BM)
    n = tl.program_id(0) % columns * BN + tl.arange(0, BN)
    start = tl.load(group_offsets + expert)
    end = tl.minimum(start + tl.load(group_sizes + expert), num_rows)
    total = tl.zeros((BM, BN), tl.float32)
    for first in range(start, end, BK):
        r = first + tl.arange(0, BK)
        live = r < end
        a = tl.load(
            x + r.to(tl.int64)[None, :] * D + m[:, None],
            mask=live[None, :] & (m < D)[:, None],
            other=0,
        )
        b = tl.load(
            y + r.to(tl.int64)[:, None] * F + n[None, :],
            mask=live[:, None] & (n < F)[None, :],
            other=0,
        )
        if WIDEN:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="tf32x3")
    target = out + expert.to(tl.int64) * D * F + m[:, None] * F + n[None, :]
    mask = (m < D)[:, None] & (n < F)[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


def _check(dtype: Any, num_experts: int) -> None:
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"triton has no kernel for products of dtype {dtype}.")
    if num_experts > 1024:
        raise NotImplementedError(
            f"triton multiplies at most 1024 groups, got {num_experts} experts."
        )


def rows(
    x: jax.Array, w: jax.Array, groups: Groups, *, transposed: bool, dtype: jnp.dtype
) -> jax.Array:
    """`calmoe_kernels.xla.matmul`'s `rows` in one launch.

    Args:
        x: `[rows, d]` in float32, bfloat16 or float16.
        w: `[experts, d, f]`, or `[experts, f, d]` if transposed.
        groups: the rows of each expert.
        transposed: whether to multiply by the transposes.
        dtype: dtype of the result.

    Returns:
        `[rows, f]`.

    Raises:
        NotImplementedError: for other dtypes, or more than 1024 experts.
    """
    num_experts, columns = w.shape[0], w.shape[1 if transposed else 2]
    num_rows, d = x.shape
    _check(x.dtype, num_experts)
    if num_rows == 0 or columns == 0 or d == 0:
        return jnp.zeros((num_rows, columns), dtype)
    config = matmul_config(num_rows // num_experts, columns, x.dtype.itemsize)
    # every expert may leave one tile that is not full
    tiles = num_rows // config.rows + min(num_experts, num_rows)
    products = tiles * triton.cdiv(columns, config.columns)
    return launch(
        Launch(
            kernel=_rows_kernel,
            inputs=(x, w, groups.sizes, groups.offsets, num_rows, tiles),
            outputs=(jax.ShapeDtypeStruct((num_rows, columns), dtype),),
            grid=(products + triton.cdiv(num_rows, config.rows),),
            constants={
                "E": num_experts,
                "EP": triton.next_power_of_2(num_experts),
                "D": d,
                "F": columns,
                "TRANSPOSED": transposed,
                "BM": config.rows,
                "BN": config.columns,
                "BK": config.depth,
                "GROUP": 8,
                "EVEN": d % config.depth == 0,
                "WIDEN": INTERPRETED,
            },
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    )[0]


def matrices(x: jax.Array, y: jax.Array, groups: Groups, *, dtype: jnp.dtype) -> jax.Array:
    """`calmoe_kernels.xla.matmul`'s `matrices` in one launch.

    Args:
        x: `[rows, d]` in float32, bfloat16 or float16.
        y: `[rows, f]`, of the dtype of `x`.
        groups: the rows of each expert.
        dtype: dtype of the result.

    Returns:
        `[experts, d, f]`.

    Raises:
        NotImplementedError: for other dtypes, or more than 1024 experts.
    """
    (num_rows, d), columns, num_experts = x.shape, y.shape[1], groups.sizes.shape[0]
    _check(x.dtype, num_experts)
    if num_rows == 0 or columns == 0 or d == 0:
        return jnp.zeros((num_experts, d, columns), dtype)
    config = matmul_config(d, columns, x.dtype.itemsize)
    tiles = triton.cdiv(d, config.rows) * triton.cdiv(columns, config.columns)
    return launch(
        Launch(
            kernel=_matrices_kernel,
            inputs=(x, y, groups.sizes, groups.offsets, num_rows),
            outputs=(jax.ShapeDtypeStruct((num_experts, d, columns), dtype),),
            grid=(tiles, num_experts),
            constants={
                "D": d,
                "F": columns,
                "BM": config.rows,
                "BN": config.columns,
                "BK": config.depth,
                "WIDEN": INTERPRETED,
            },
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    )[0]
