"""Triton kernels that move tokens to rows and back.

Token-major both ways: a program holds some tokens, reads each of their rows once and writes it to
its slots, or reads the slots and writes their sum once. So every byte that must move moves once,
and nothing depends on the order in which programs run. Rows that hold no slot are cleared by
separate programs, in the same launch.
"""

from typing import Any

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from calmoe_kernels.triton.configs import permute_config
from calmoe_kernels.triton.launch import Launch, launch
from calmoe_kernels.xla import permute


@triton.jit
def _scatter_kernel(
    x,
    positions,
    slot_indices,
    weights,
    rows,
    num_tokens,
    num_rows,
    out,
    dots,
    D: tl.constexpr,
    K: tl.constexpr,
    KP: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    SPAN: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """`out[positions[t, j]] = x[t]`.

    Backward (of a weighted sum) it is `w[t, j] x[t]`, and `dots[t, j] = <x[t], rows[position]>`.
    """
    program = tl.program_id(0)
    first = tl.program_id(1) * SPAN
    tokens_programs = tl.cdiv(num_tokens, BT)
    c = tl.arange(0, BD)
    if program < tokens_programs:
        t = program * BT + tl.arange(0, BT)
        live = t < num_tokens
        slot = t.to(tl.int64) * K
        source = x + t.to(tl.int64)[:, None] * D
        if BACKWARD:
            kk = tl.arange(0, KP)
            sums = tl.zeros((BT, KP), tl.float32)
        for start in range(first, min(first + SPAN, D), BD):
            column = start + c
            inside = column < D
            values = tl.load(
                source + column[None, :], mask=live[:, None] & inside[None, :], other=0
            )
            for j in range(K):
                position = tl.load(positions + slot + j, mask=live, other=-1)
                there = (position >= 0) & (position < num_rows)
                target = tl.where(there, position, 0).to(tl.int64)[:, None] * D + column[None, :]
                mask = there[:, None] & inside[None, :]
                if BACKWARD:
                    weight = tl.load(weights + slot + j, mask=live, other=0).to(tl.float32)
                    wide = values.to(tl.float32)
                    scaled = tl.where(weight[:, None] == 0.0, 0.0, wide * weight[:, None])
                    tl.store(out + target, scaled.to(out.dtype.element_ty), mask=mask)
                    other = tl.load(rows + target, mask=mask, other=0).to(tl.float32)
                    dot = tl.sum(wide * other, 1)
                    sums += tl.where(kk[None, :] == j, dot[:, None], 0.0)
                else:
                    tl.store(out + target, values, mask=mask)
        if BACKWARD:
            tl.store(
                dots + slot[:, None] + kk[None, :],
                sums,
                mask=live[:, None] & (kk[None, :] < K),
            )
    else:
        r = (program - tokens_programs) * BT + tl.arange(0, BT)
        slot_of_row = tl.load(slot_indices + r, mask=r < num_rows, other=0)
        empty = (slot_of_row < 0) | (slot_of_row >= num_tokens * K)
        for start in range(first, min(first + SPAN, D), BD):
            column = start + c
            target = r.to(tl.int64)[:, None] * D + column[None, :]
            zeros = tl.zeros((BT, BD), out.dtype.element_ty)
            tl.store(out + target, zeros, mask=empty[:, None] & (column[None, :] < D))


@triton.jit
def _gather_kernel(
    rows,
    positions,
    weights,
    num_tokens,
    num_rows,
    out,
    D: tl.constexpr,
    K: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """`out[t] = sum_j w[t, j] rows[positions[t, j]]`, summed in float32."""
    t = tl.program_id(0) * BT + tl.arange(0, BT)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    live = t < num_tokens
    inside = column < D
    slot = t.to(tl.int64) * K
    total = tl.zeros((BT, BD), tl.float32)
    for j in range(K):
        position = tl.load(positions + slot + j, mask=live, other=-1)
        there = (position >= 0) & (position < num_rows)
        source = tl.where(there, position, 0).to(tl.int64)[:, None] * D + column[None, :]
        values = tl.load(rows + source, mask=there[:, None] & inside[None, :], other=0)
        values = values.to(tl.float32)
        if WEIGHTED:
            # NaN times the zeros of a dropped slot is NaN, so that NaN weights do not pass silently
            weight = tl.load(weights + slot + j, mask=live, other=0).to(tl.float32)
            values = tl.where(weight[:, None] == 0.0, 0.0, values * weight[:, None])
        total += values
    target = t.to(tl.int64)[:, None] * D + column[None, :]
    tl.store(out + target, total.to(out.dtype.element_ty), mask=live[:, None] & inside[None, :])


def _check_dtype(x: jax.Array) -> None:
    if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise NotImplementedError(f"triton has no kernel for rows of dtype {x.dtype}.")


def _scatter(
    x: jax.Array,
    positions: jax.Array,
    slot_indices: jax.Array,
    backward: tuple[jax.Array, jax.Array] | None,
) -> tuple[jax.Array, ...]:
    """One launch; `backward` holds the rows and the weights of the sum it is the gradient of."""
    (tokens, d), k, num_rows = x.shape, positions.shape[1], slot_indices.shape[0]
    config = permute_config(d, x.dtype.itemsize, operands=1 if backward is None else 2)
    # the products are of whole rows; copies need not be
    span = config.columns if backward is None else d
    # what a copy neither reads nor writes is any array of the right kind
    rows, weights = (x, positions) if backward is None else backward
    dots = jax.ShapeDtypeStruct((1,) if backward is None else positions.shape, jnp.float32)
    constants: dict[str, Any] = {
        "D": d,
        "K": k,
        "KP": triton.next_power_of_2(k),
        "BT": config.tokens,
        "BD": config.columns,
        "SPAN": span,
        "BACKWARD": backward is not None,
    }
    one = Launch(
        kernel=_scatter_kernel,
        inputs=(x, positions, slot_indices, weights, rows, tokens, num_rows),
        outputs=(jax.ShapeDtypeStruct((num_rows, d), x.dtype), dots),
        grid=(
            triton.cdiv(tokens, config.tokens) + triton.cdiv(num_rows, config.tokens),
            triton.cdiv(d, span),
        ),
        constants=constants,
        num_warps=config.num_warps,
    )
    return launch(one)


def scatter_rows(x: jax.Array, positions: jax.Array, slot_indices: jax.Array) -> jax.Array:
    """`calmoe_kernels.xla.permute.scatter_rows` in one launch.

    Args:
        x: `[tokens, d]` in float32, bfloat16 or float16.
        positions: `[tokens, k]`.
        slot_indices: `[rows]`.

    Returns:
        `[rows, d]`.

    Raises:
        NotImplementedError: for other dtypes.
    """
    _check_dtype(x)
    if x.size == 0 or slot_indices.size == 0:
        return permute.scatter_rows(x, positions, slot_indices)
    return _scatter(x, positions, slot_indices, None)[0]


def gather_rows(rows: jax.Array, positions: jax.Array, weights: jax.Array | None) -> jax.Array:
    """`calmoe_kernels.xla.permute.gather_rows` in one launch.

    Args:
        rows: `[rows, d]` in float32, bfloat16 or float16.
        positions: `[tokens, k]`.
        weights: `[tokens, k]`.

    Returns:
        `[tokens, d]`.

    Raises:
        NotImplementedError: for other dtypes.
    """
    _check_dtype(rows)
    (num_rows, d), (tokens, k) = rows.shape, positions.shape
    if rows.size == 0 or positions.size == 0:
        return permute.gather_rows(rows, positions, weights)
    config = permute_config(d, rows.dtype.itemsize)
    one = Launch(
        kernel=_gather_kernel,
        inputs=(rows, positions, positions if weights is None else weights, tokens, num_rows),
        outputs=(jax.ShapeDtypeStruct((tokens, d), rows.dtype),),
        grid=(triton.cdiv(tokens, config.tokens), triton.cdiv(d, config.columns)),
        constants={
            "D": d,
            "K": k,
            "BT": config.tokens,
            "BD": config.columns,
            "WEIGHTED": weights is not None,
        },
        num_warps=config.num_warps,
    )
    return launch(one)[0]


def combine_backward(
    cotangent: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
    slot_indices: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """`calmoe_kernels.xla.permute.combine_backward` in one launch.

    Args:
        cotangent: `[tokens, d]`, of the dtype of the rows.
        rows: `[rows, d]` in float32, bfloat16 or float16.
        positions: `[tokens, k]`.
        slot_indices: `[rows]`.
        weights: `[tokens, k]`.

    Returns:
        `[rows, d]` and `[tokens, k]`.

    Raises:
        NotImplementedError: for other dtypes.
    """
    _check_dtype(rows)
    if cotangent.size == 0 or rows.size == 0:
        return permute.combine_backward(cotangent, rows, positions, slot_indices, weights)
    to_rows, dots = _scatter(cotangent, positions, slot_indices, (rows, weights))
    return to_rows, permute.defined_dots(dots, weights)
