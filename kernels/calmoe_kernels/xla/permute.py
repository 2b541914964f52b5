"""Moves rows along the permutations of a plan in XLA: the reference and the default.

Both directions of a permutation are gathers, along `positions` or along `slot_indices`. Nothing is
repeated `k` times in memory, and no gradient is a scatter-add.
"""

import jax
import jax.numpy as jnp

from calmoe_kernels.varying import vary_along, varying_axes

# Up to this many slots per token the sum over slots is unrolled into one fusion.
_UNROLLED_SLOTS = 16


def _take(rows: jax.Array, indices: jax.Array) -> jax.Array:
    """Rows by index; zeros for indices out of range."""
    if rows.shape[0] == 0:
        return jnp.zeros((*indices.shape, *rows.shape[1:]), rows.dtype)
    return rows.at[indices].get(mode="fill", fill_value=0, wrap_negative_indices=False)


def _coarse(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def scatter_rows(x: jax.Array, positions: jax.Array, slot_indices: jax.Array) -> jax.Array:
    """Copies each token's row to its slots' rows.

    Args:
        x: `[tokens, d]`.
        positions: `[tokens, k]`.
        slot_indices: `[rows]`.

    Returns:
        `[rows, d]` in the dtype of `x`; rows that hold no slot are 0.
    """
    return _take(x, slot_indices // positions.shape[1])


def gather_rows(rows: jax.Array, positions: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Sums each token's rows, times their weights where there are any, in float32.

    Args:
        rows: `[rows, d]`.
        positions: `[tokens, k]`.
        weights: `[tokens, k]`.

    Returns:
        `[tokens, d]` in the dtype of `rows`; dropped slots count as zeros, and so do slots of
        weight 0, whatever their rows hold.
    """
    tokens, k = positions.shape

    def add(total: jax.Array, position: jax.Array, weight: jax.Array | None) -> jax.Array:
        taken = _coarse(_take(rows, position))
        if weight is None:
            return total + taken
        weight = _coarse(weight)[:, None]
        return total + jnp.where(weight == 0, 0, taken * weight)

    total = jnp.zeros((tokens, rows.shape[1]), _coarse(rows[:0]).dtype)
    if k <= _UNROLLED_SLOTS:
        for j in range(k):
            total = add(total, positions[:, j], None if weights is None else weights[:, j])
    else:
        columns = (positions.T, None if weights is None else weights.T)
        total = vary_along(total, varying_axes(rows, columns))
        total, _ = jax.lax.scan(lambda t, column: (add(t, *column), None), total, columns)
    return total.astype(rows.dtype)


def combine_backward(
    cotangent: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
    slot_indices: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of `gather_rows` with weights, to the rows and to the weights.

    Args:
        cotangent: `[tokens, d]`.
        rows: `[rows, d]`.
        positions: `[tokens, k]`.
        slot_indices: `[rows]`.
        weights: `[tokens, k]`.

    Returns:
        `[rows, d]` in the dtype of `rows` and `[tokens, k]` in that of the weights; 0 for rows
        that hold no slot or one of weight 0, for slots that were dropped, and for weights of 0
        whose rows are not finite.
    """
    dots = to_weights(cotangent, rows, positions, slot_indices)
    to_all_rows = to_rows(cotangent, positions, slot_indices, weights)
    return to_all_rows, defined_dots(dots, weights)


def to_rows(
    x: jax.Array, positions: jax.Array, slot_indices: jax.Array, weights: jax.Array
) -> jax.Array:
    """Each token's row times the weights of its slots, in the slots' rows.

    Args:
        x: `[tokens, d]`.
        positions: `[tokens, k]`.
        slot_indices: `[rows]`.
        weights: `[tokens, k]`.

    Returns:
        `[rows, d]` in the dtype of `x`; 0 for rows that hold no slot or one of weight 0.
    """
    taken = _coarse(_take(x, slot_indices // positions.shape[1]))
    weight = _take(_coarse(weights).reshape(-1), slot_indices)[:, None]
    return jnp.where(weight == 0, 0, taken * weight).astype(x.dtype)


def to_weights(
    x: jax.Array, rows: jax.Array, positions: jax.Array, slot_indices: jax.Array
) -> jax.Array:
    """Products of tokens with the rows of their slots.

    Args:
        x: `[tokens, d]`.
        rows: `[rows, d]`.
        positions: `[tokens, k]`.
        slot_indices: `[rows]`.

    Returns:
        `[tokens, k]`, at least float32; 0 for slots that were dropped.
    """
    dots: jax.Array = jax.lax.platform_dependent(
        x, rows, positions, slot_indices, cpu=_dots_of_slots, default=_dots_of_rows
    )
    return dots


def defined_dots(dots: jax.Array, weights: jax.Array) -> jax.Array:
    """Gradients to weights, in their dtype; 0 where a weight of 0 has rows that are not finite."""
    return jnp.where((weights == 0) & ~jnp.isfinite(dots), 0, dots).astype(weights.dtype)


def _dots_of_rows(
    cotangent: jax.Array, rows: jax.Array, positions: jax.Array, slot_indices: jax.Array
) -> jax.Array:
    """Products of tokens with the rows of their slots, row by row: one pass with `to_rows`."""
    taken = _coarse(_take(cotangent, slot_indices // positions.shape[1]))
    return _take(jnp.sum(taken * _coarse(rows), axis=1), positions)


def _dots_of_slots(
    cotangent: jax.Array, rows: jax.Array, positions: jax.Array, slot_indices: jax.Array
) -> jax.Array:
    """The same, token by token: for CPU, where XLA would store the common part in float32."""
    del slot_indices
    return jnp.einsum("td,tkd->tk", _coarse(cotangent), _coarse(_take(rows, positions)))
