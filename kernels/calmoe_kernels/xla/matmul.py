"""Grouped matrix products in XLA: the rows of each group times its matrix.

Two operations, each the other's derivative. `rows`: every row times its expert's matrix, or times
the transpose of it; zeros for rows of no group. `matrices`: for every expert, the sum over its rows
of outer products; zeros for an empty group. Sums are in float32 at least.

Three forms of each:

* `blocks`: a loop over blocks of rows of one expert. Groups that do not start at multiples of a
  block are moved there and back. The fastest on CPU.
* `batched`: one batched product, for plans with a capacity, where every expert has as many rows.
* `ragged`: a function that multiplies groups without gaps: JAX's, which is made for TPU, or that of
  tokamax. Under `vmap` one after the other: JAX 0.10 has no rule for all of its arguments.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from calmoe_kernels.varying import vary_along, varying_axes

# Rows of a block if groups are not aligned.
_BLOCK = 64


class Groups(NamedTuple):
    """The rows of each expert; a group starts at or after the end of the one before.

    Attributes:
        sizes: rows of each expert.
        offsets: first row of each expert.
    """

    sizes: jax.Array
    offsets: jax.Array


def blocks_rows(
    x: jax.Array, w: jax.Array, groups: Groups, *, transposed: bool, block_size: int | None
) -> jax.Array:
    """`rows` as a loop over blocks.

    Args:
        x: `[rows, d]`.
        w: `[experts, d, f]`, or `[experts, f, d]` if transposed.
        groups: the rows of each expert.
        transposed: whether to multiply by the transposes.
        block_size: block whose multiples groups start at, a divisor of the rows; `None` for none.

    Returns:
        `[rows, f]`, at least float32.
    """
    blocks = _Blocks(x.shape[0], groups, block_size)

    def product(block: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        some, valid, expert = block
        result = _dot(some, w[expert], 1, 1 if transposed else 0)
        return jnp.where(valid[:, None], result, 0)

    products = jax.lax.map(product, (blocks.cut(x), blocks.valid, blocks.experts))
    return blocks.join(products)


def blocks_matrices(
    x: jax.Array, y: jax.Array, groups: Groups, *, block_size: int | None
) -> jax.Array:
    """`matrices` as a loop over blocks.

    Args:
        x: `[rows, d]`.
        y: `[rows, f]`.
        groups: the rows of each expert.
        block_size: as in `blocks_rows`.

    Returns:
        `[experts, d, f]`, at least float32.
    """
    blocks = _Blocks(x.shape[0], groups, block_size)

    def add(
        total: jax.Array, block: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        some, others, valid, expert = block
        some = jnp.where(valid[:, None], some, 0)
        others = jnp.where(valid[:, None], others, 0)
        return total.at[expert].add(_dot(some, others, 0, 0)), None

    experts = groups.sizes.shape[0]
    zeros = jnp.zeros((experts, x.shape[1], y.shape[1]), _wide(x.dtype))
    zeros = vary_along(zeros, varying_axes(x, y, groups))
    return jax.lax.scan(add, zeros, (blocks.cut(x), blocks.cut(y), blocks.valid, blocks.experts))[0]


class _Blocks:
    """Rows cut into blocks of one expert each, and back."""

    def __init__(self, num_rows: int, groups: Groups, block_size: int | None) -> None:
        block = block_size or _BLOCK
        experts = groups.sizes.shape[0]
        self._shape = num_rows, block
        if block_size is None:
            padded = (groups.sizes + block - 1) // block * block
            aligned = Groups(groups.sizes, jnp.cumsum(padded, dtype=jnp.int32) - padded)
            number = num_rows // block + min(experts, num_rows)
        else:
            aligned, number = groups, num_rows // block
        first = jnp.arange(number, dtype=jnp.int32) * block
        self.experts = jnp.minimum(_expert_of(first, aligned), experts - 1)
        row = first[:, None] + jnp.arange(block, dtype=jnp.int32)[None]
        within = row - aligned.offsets[self.experts][:, None]
        self.valid = (within >= 0) & (within < groups.sizes[self.experts][:, None])
        self._taken = self._back = None
        if block_size is None:
            source = groups.offsets[self.experts][:, None] + within
            self._taken = jnp.where(self.valid, source, num_rows).reshape(-1)
            mine = jnp.arange(num_rows, dtype=jnp.int32)
            expert = jnp.minimum(_expert_of(mine, groups), experts - 1)
            place = aligned.offsets[expert] + mine - groups.offsets[expert]
            self._back = jnp.where(mine >= groups.offsets[expert], place, number * block)
            ends = groups.offsets[-1] + groups.sizes[-1]
            self._back = jnp.where(mine < ends, self._back, number * block)

    def cut(self, x: jax.Array) -> jax.Array:
        """`[rows, d]` to `[blocks, block, d]`."""
        if self._taken is not None:
            x = x.at[self._taken].get(mode="fill", fill_value=0)
        return x.reshape(self.experts.shape[0], self._shape[1], x.shape[1])

    def join(self, products: jax.Array) -> jax.Array:
        """`[blocks, block, f]` to `[rows, f]`."""
        flat = products.reshape(-1, products.shape[2])
        if self._back is None:
            return flat
        return flat.at[self._back].get(mode="fill", fill_value=0)


def batched_rows(x: jax.Array, w: jax.Array, groups: Groups, *, transposed: bool) -> jax.Array:
    """`rows` as one batched product: the group of expert `e` starts at row `e rows / experts`.

    Args:
        x: `[rows, d]`.
        w: `[experts, d, f]`, or `[experts, f, d]` if transposed.
        groups: how many rows each expert uses.
        transposed: whether to multiply by the transposes.

    Returns:
        `[rows, f]`, at least float32.
    """
    experts, rows = w.shape[0], x.shape[0]
    contracted = ((2,), (2 if transposed else 1,))
    result = jax.lax.dot_general(
        x.reshape(experts, rows // experts, x.shape[1]),
        w,
        (contracted, ((0,), (0,))),
        preferred_element_type=_wide(x.dtype),
    )
    result = jnp.where(_used(groups, rows)[..., None], result, 0)
    return result.reshape(rows, result.shape[2])


def batched_matrices(x: jax.Array, y: jax.Array, groups: Groups) -> jax.Array:
    """`matrices` as one batched product; see `batched_rows`.

    Args:
        x: `[rows, d]`.
        y: `[rows, f]`.
        groups: how many rows each expert uses.

    Returns:
        `[experts, d, f]`, at least float32.
    """
    experts, rows = groups.sizes.shape[0], x.shape[0]
    used = _used(groups, rows)[..., None]
    some, others = (
        jnp.where(used, each.reshape(experts, rows // experts, each.shape[1]), 0) for each in (x, y)
    )
    return jax.lax.dot_general(
        some, others, (((1,), (1,)), ((0,), (0,))), preferred_element_type=_wide(x.dtype)
    )


def ragged_rows(
    x: jax.Array, w: jax.Array, groups: Groups, *, transposed: bool, library: Callable[[], Any]
) -> jax.Array:
    """`rows` by the `ragged_dot` of a library.

    Args:
        x: `[rows, d]`.
        w: `[experts, d, f]`, or `[experts, f, d]` if transposed.
        groups: the rows of each expert.
        transposed: whether to multiply by the transposes.
        library: returns the module with `ragged_dot`: `jax_lax` or `tokamax`.

    Returns:
        `[rows, f]`, at least float32.
    """
    product = partial(library().ragged_dot, preferred_element_type=_wide(x.dtype))
    matrices = w.swapaxes(1, 2) if transposed else w
    result = sequential_vmap(product)(x, matrices, _spans(groups, x.shape[0]))
    return jnp.where(_held(groups, x.shape[0])[:, None], result, 0)


def ragged_matrices(
    x: jax.Array, y: jax.Array, groups: Groups, *, library: Callable[[], Any]
) -> jax.Array:
    """`matrices` by the ragged product of a library that contracts the rows.

    Args:
        x: `[rows, d]`.
        y: `[rows, f]`.
        groups: the rows of each expert.
        library: returns the module with `ragged_dot_general`: `jax_lax` or `tokamax`.

    Returns:
        `[experts, d, f]`, at least float32.
    """
    held = _held(groups, x.shape[0])[:, None]
    contracting = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((0,), (0,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    product = partial(
        library().ragged_dot_general,
        ragged_dot_dimension_numbers=contracting,
        preferred_element_type=_wide(x.dtype),
    )
    return sequential_vmap(product)(
        jnp.where(held, x, 0), jnp.where(held, y, 0), _spans(groups, x.shape[0])
    )


def jax_lax() -> Any:
    """The module of JAX's ragged products."""
    return jax.lax


def tokamax() -> Any:
    """The module of tokamax's ragged products, which selects a kernel.

    Raises:
        NotImplementedError: if it is not installed.
    """
    try:
        import tokamax
    except ImportError as error:
        raise NotImplementedError(f"tokamax cannot be imported: {error}.") from error
    return tokamax


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int) -> jax.Array:
    return jax.lax.dot_general(
        a, b, (((axis_a,), (axis_b,)), ((), ())), preferred_element_type=_wide(a.dtype)
    )


def _expert_of(row: jax.Array, groups: Groups) -> jax.Array:
    """The first expert whose group ends after a row; the number of experts if none does."""
    ends = groups.offsets + groups.sizes
    return jnp.searchsorted(ends, row, side="right").astype(jnp.int32)


def _held(groups: Groups, num_rows: int) -> jax.Array:
    """Which rows belong to a group."""
    row = jnp.arange(num_rows, dtype=jnp.int32)
    expert = _expert_of(row, groups)
    inside = row >= groups.offsets[jnp.minimum(expert, groups.sizes.shape[0] - 1)]
    return inside & (expert < groups.sizes.shape[0])


def _used(groups: Groups, num_rows: int) -> jax.Array:
    """Which of the rows of each expert are used, with equally many rows per expert."""
    experts = groups.sizes.shape[0]
    number = jnp.arange(num_rows // experts, dtype=jnp.int32)
    return number[None] < groups.sizes[:, None]


def _spans(groups: Groups, num_rows: int) -> jax.Array:
    """Sizes of groups without gaps: each extends to the start of the next one."""
    bounds = jnp.append(groups.offsets[1:], num_rows)
    return bounds - groups.offsets.at[0].set(0)
