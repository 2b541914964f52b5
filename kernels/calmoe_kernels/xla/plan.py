"""A plan of dispatch in XLA: the reference and the default.

A plan holds `positions` (the row of each slot) and `slot_indices` (the slot of each row), each
the inverse of the other.
"""

import jax
import jax.numpy as jnp

from calmoe_kernels.layout import groups, num_rows


def plan(
    expert_indices: jax.Array, *, num_experts: int, capacity: int | None, block_size: int | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Groups slots by expert, stably: a sort of integers and a scatter for its inverse.

    Args:
        expert_indices: `[tokens, k]`; an index outside `[0, num_experts)` drops its slot.
        num_experts: number of experts.
        capacity: rows of each expert, if limited.
        block_size: block whose multiples groups are padded to.

    Returns:
        `(positions, slot_indices, group_sizes, group_offsets, load)`.
    """
    tokens, k = expert_indices.shape
    slots, rows = tokens * k, num_rows(tokens, k, num_experts, capacity, block_size)
    flat = expert_indices.reshape(-1)
    # one additional last group, for dropped slots
    expert = jnp.where((flat >= 0) & (flat < num_experts), flat, num_experts).astype(jnp.int32)
    load = jnp.zeros(num_experts + 1, jnp.int32).at[expert].add(1)
    order = _stable_order(expert, num_experts + 1)
    sizes, offsets = groups(load[:-1], capacity=capacity, block_size=block_size)
    ends = jnp.cumsum(load, dtype=jnp.int32)
    of_row = expert[order]
    rank = jnp.arange(slots, dtype=jnp.int32) - (ends - load)[of_row]
    kept = rank < jnp.append(sizes, 0)[of_row]
    row = jnp.where(kept, jnp.append(offsets, 0)[of_row] + rank, rows)
    positions = jnp.zeros(slots, jnp.int32).at[order].set(row, unique_indices=True)
    # one additional last row, for dropped slots
    slot_indices = jnp.full(rows + 1, slots, jnp.int32).at[row].set(order)[:rows]
    return positions.reshape(tokens, k), slot_indices, sizes, offsets, load[:-1]


def _stable_order(expert: jax.Array, num_groups: int) -> jax.Array:
    """Slots in the order of their expert, and of their number within an expert."""
    slots = expert.shape[0]
    if not isinstance(slots, int) or num_groups * slots > 2**32:
        return jnp.argsort(expert, stable=True).astype(jnp.int32)
    # expert and slot in one integer: they are distinct, and a sort of one array is the fastest
    key = expert.astype(jnp.uint32) * slots + jnp.arange(slots, dtype=jnp.uint32)
    return (jax.lax.sort(key, is_stable=False) % max(slots, 1)).astype(jnp.int32)
