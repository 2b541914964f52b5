"""Grouped matrix products: the rows of each group times the group's matrix.

`implementation=` is one of

* `None`: a kernel where it was measured to be correct and faster on this kind of device at this
  size (`calmoe_kernels.selection`), otherwise `"xla"`;
* `"xla"`: XLA's form for these products: `"batched"` where a capacity is promised, otherwise
  `"blocks"` on CPU and `"ragged_dot"` elsewhere;
* `"batched"` (plans with a capacity), `"blocks"` (a loop over blocks of rows: the fastest on CPU),
  `"ragged_dot"` (XLA's own), `"tokamax"` (where it is installed) and `"triton"` (NVIDIA GPUs).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import checkify
from jaxtyping import Array, Float, Int

from calmoe_jax._signatures import checked
from calmoe_kernels import selection
from calmoe_kernels.derivatives import Arrays
from calmoe_kernels.multilinear import gradients
from calmoe_kernels.varying import vary_along, varying_axes
from calmoe_kernels.xla import matmul

_RAGGED = {"ragged_dot": matmul.jax_lax, "tokamax": matmul.tokamax}
# Rows of a block on CPU: 32 to 256 were tried.
_CPU_BLOCK = 64


class _Statics(NamedTuple):
    """Static arguments of a product, the same in both directions."""

    block_size: int | None
    capacity: int | None
    implementation: str | None
    dtype: jnp.dtype
    operands: jnp.dtype


@checked
def grouped_matmul(
    x: Float[Array, "rows d"],
    w: Float[Array, "experts d f"],
    group_sizes: Int[Array, " experts"],
    group_offsets: Int[Array, " experts"] | None = None,
    *,
    block_size: int | None = None,
    capacity: int | None = None,
    preferred_element_type: Any = None,
    implementation: str | None = None,
) -> Float[Array, "rows f"]:
    """Multiplies the rows of each expert by its matrix: `y[r] = x[r] @ w[e]` for `r` of group `e`.

    Sums are in float32 at least, whatever the dtype. Gradients: `dx[r] = dy[r] @ w[e].T`, and
    `dw[e] = sum_r x[r]^T dy[r]` over the rows of group `e`, zeros for an empty one.

    Args:
        x: rows, grouped by expert.
        w: a matrix for each expert, of the dtype of `x`.
        group_sizes: rows of each expert, 0 allowed.
        group_offsets: first row of each expert, at or after the end of the group before it; by
            default exactly at its end.
        block_size: a promise that all offsets are multiples of it, as with
            `plan_dispatch(block_size=...)`; avoids a copy on CPU.
        capacity: a promise that the group of expert `e` starts at `e * capacity`, as with
            `plan_dispatch(capacity=...)`.
        preferred_element_type: dtype of the result; by default that of `x`. Gradients are in the
            dtype of `x`, to which the cotangent is rounded first.
        implementation: see the module.

    Returns:
        The products; 0 for rows that are in no group.

    Raises:
        TypeError: if `x` and `w` do not have one floating dtype, `group_sizes` or `group_offsets`
            are not integers, or `preferred_element_type` is not a floating dtype.
        ValueError: if shapes do not match, or a promise contradicts them.
        NotImplementedError: if the implementation declines.

    Example:
        >>> x = jnp.array([[1.0], [2.0], [3.0]])
        >>> grouped_matmul(x, jnp.array([[[10.0]], [[100.0]]]), jnp.array([1, 2])).tolist()
        [[10.0], [200.0], [300.0]]

    References:
        Gale et al., MegaBlocks, 2022.
    """
    _check(x, w, group_offsets, block_size, capacity)
    sizes = jax.lax.stop_gradient(group_sizes).astype(jnp.int32)
    if group_offsets is None:
        offsets = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
    else:
        offsets = jax.lax.stop_gradient(group_offsets).astype(jnp.int32)
    groups = matmul.Groups(sizes, offsets)
    axes = varying_axes(x, w, groups)
    dtype = jnp.dtype(x.dtype if preferred_element_type is None else preferred_element_type)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            "preferred_element_type must be a dtype of floats, got "
            f"preferred_element_type={preferred_element_type}."
        )
    form = partial(_products, _Statics(block_size, capacity, implementation, dtype, x.dtype))
    x, w, groups = vary_along((x, w, groups), axes)
    return gradients(form, groups, (x, w, None), _Y)[0]


def preferred_block_size(
    *, capacity: int | None = None, implementation: str | None = None
) -> int | None:
    """The `block_size` to plan with for fast products of the plan's rows.

    The form `"blocks"`, which `None` and `"xla"` choose on CPU without a capacity, is a loop over
    blocks of one expert's rows. It avoids a copy if every group starts at a multiple of a block.

    Args:
        capacity: capacity of the plan, if it has one; it then needs no blocks.
        implementation: implementation of the products.

    Returns:
        A block size for `plan_dispatch` or `route`, and `grouped_matmul`; `None` for none.

    Example:
        >>> preferred_block_size(capacity=8) is None
        True
    """
    # on a CPU no kernel is taken for `None`
    looped = implementation == "blocks" or (
        implementation in (None, "xla") and _form_in_xla(capacity) == "blocks"
    )
    return _CPU_BLOCK if looped and capacity is None else None


@checked
def check_groups(
    group_sizes: Int[Array, " experts"],
    group_offsets: Int[Array, " experts"] | None = None,
    *,
    num_rows: int,
) -> None:
    """Reports invalid groups, in functions that run under `checkify`.

    Without `checkify` it does nothing. `grouped_matmul` does not call it, and never reads beyond
    its arrays.

    Args:
        group_sizes: rows of each expert; must not be negative.
        group_offsets: first row of each expert; a group must start at or after the end of the one
            before.
        num_rows: number of rows; the last group must end within them.

    Example:
        >>> from jax.experimental import checkify
        >>> def checked(sizes):
        ...     check_groups(sizes, num_rows=3)
        ...     return grouped_matmul(jnp.ones((3, 1)), jnp.ones((2, 1, 1)), sizes)
        >>> error, _ = checkify.checkify(checked, errors=checkify.user_checks)(jnp.array([1, 5]))
        >>> error.get().split(".")[0]
        'group_sizes must be non-negative, and groups one after the other within 3 rows'
    """
    offsets = group_offsets
    if offsets is None:
        offsets = jnp.cumsum(group_sizes) - group_sizes
    ends = offsets + group_sizes
    fit = jnp.all(group_sizes >= 0) & jnp.all(ends[:-1] <= offsets[1:]) & (ends[-1] <= num_rows)
    checkify.debug_check(
        fit,
        f"group_sizes must be non-negative, and groups one after the other within {num_rows} rows.",
    )


def _form_in_xla(capacity: int | None) -> str:
    """The form that `"xla"` chooses for products of rows."""
    if capacity is not None:
        return "batched"
    return "blocks" if jax.default_backend() == "cpu" else "ragged_dot"


def _rows(
    statics: _Statics,
    dtype: jnp.dtype,
    x: jax.Array,
    w: jax.Array,
    groups: matmul.Groups,
    *,
    transposed: bool,
) -> jax.Array:
    block_size = statics.block_size
    attempts: dict[str, Callable[..., jax.Array]] = {
        "triton": partial(
            selection.lazy("triton.matmul", "rows"), transposed=transposed, dtype=dtype
        ),
        "blocks": partial(matmul.blocks_rows, transposed=transposed, block_size=block_size),
        **{
            name: partial(matmul.ragged_rows, transposed=transposed, library=library)
            for name, library in _RAGGED.items()
        },
    }
    if statics.capacity is not None:
        attempts["batched"] = partial(matmul.batched_rows, transposed=transposed)
    return _run(attempts, statics, dtype, x, w, groups, operation="grouped_rows")


def _matrices(statics: _Statics, x: jax.Array, y: jax.Array, groups: matmul.Groups) -> jax.Array:
    attempts: dict[str, Callable[..., jax.Array]] = {
        "triton": partial(selection.lazy("triton.matmul", "matrices"), dtype=x.dtype),
        "blocks": partial(matmul.blocks_matrices, block_size=statics.block_size),
        **{
            name: partial(matmul.ragged_matrices, library=library)
            for name, library in _RAGGED.items()
        },
    }
    if statics.capacity is not None:
        attempts["batched"] = matmul.batched_matrices
    return _run(attempts, statics, x.dtype, x, y, groups, operation="grouped_matrices")


def _run(
    attempts: dict[str, Callable[..., jax.Array]],
    statics: _Statics,
    dtype: jnp.dtype,
    *args: Any,
    operation: str,
) -> jax.Array:
    attempts = attempts | {"xla": attempts[_form_in_xla(statics.capacity)]}

    def rounded(attempt: Callable[..., jax.Array], *args: Any) -> jax.Array:
        return attempt(*args).astype(dtype)

    # each by itself: a program for several platforms needs branches of one dtype
    every = {name: partial(rounded, attempt) for name, attempt in attempts.items()}
    result: jax.Array = selection.run(every, statics.implementation, *args, operation=operation)
    return result


_X, _W, _Y = range(3)


def _products(
    statics: _Statics, groups: matmul.Groups, arrays: Arrays, wanted: tuple[int, ...]
) -> Arrays:
    """Gradients of `sum_r <y_r, x_r w_e(r)>` to x, to w, to y."""
    x, w, y = arrays

    def gradient(i: int) -> jax.Array:
        if i == _Y:
            return _rows(statics, statics.dtype, x, w, groups, transposed=False)
        rounded = y.astype(statics.operands)
        if i == _X:
            return _rows(statics, statics.operands, rounded, w, groups, transposed=True)
        return _matrices(statics, x, rounded, groups)

    return tuple(map(gradient, wanted))


def _check(
    x: jax.Array,
    w: jax.Array,
    group_offsets: jax.Array | None,
    block_size: int | None,
    capacity: int | None,
) -> None:
    if x.dtype != w.dtype:
        raise TypeError(f"w must have the dtype of x, {x.dtype}, got w.dtype={w.dtype}.")
    experts, rows = w.shape[0], x.shape[0]
    if experts < 1:
        raise ValueError(f"w must have at least one expert, got w.shape={w.shape}.")
    if block_size is not None and capacity is not None:
        raise ValueError(
            "at most one of block_size and capacity may be given, got "
            f"block_size={block_size} and capacity={capacity}."
        )
    for name, promise in (("block_size", block_size), ("capacity", capacity)):
        if promise is not None and group_offsets is None:
            raise ValueError(f"group_offsets must be given with {name}, got group_offsets=None.")
    if block_size is not None and (block_size < 1 or rows % block_size):
        raise ValueError(
            f"block_size must divide the {rows} rows of x, got block_size={block_size}."
        )
    if capacity is not None and capacity * experts != rows:
        raise ValueError(
            f"capacity times the {experts} experts must equal the {rows} rows of x, got "
            f"capacity={capacity}."
        )
