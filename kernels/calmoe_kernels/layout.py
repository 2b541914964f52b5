"""The layout of the groups of a dispatch, shared by all implementations."""

import jax
import jax.numpy as jnp

# Names for policies of `jax.checkpoint`: residuals of a routing and of a plan.
PLAN_NAME = "calmoe_plan"
ROUTING_NAME = "calmoe_routing"


def check_layout(
    tokens: int, k: int, num_experts: int, capacity: int | None, block_size: int | None
) -> None:
    """Raises `ValueError` if the static arguments of a plan are inconsistent."""
    for name, value in (("num_experts", num_experts), ("capacity", capacity),
                        ("block_size", block_size)):  # fmt: skip
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {name}={value}.")
        if value is not None and value >= 2**31:
            raise ValueError(f"{name} must be less than 2**31, got {name}={value}.")
    if capacity is not None and block_size is not None:
        raise ValueError(
            "at most one of capacity and block_size may be given (make the capacity itself a "
            f"multiple of the block), got capacity={capacity} and block_size={block_size}."
        )
    rows = num_rows(tokens, k, num_experts, capacity, block_size)
    # in an export for any number of tokens they cannot be compared
    if isinstance(tokens, int) and max(rows, tokens * k) >= 2**31:
        raise ValueError(
            "positions are int32: tokens * k and the rows of a plan must be less than 2**31, got "
            f"tokens={tokens}, k={k} and {rows} rows."
        )


def num_rows(
    tokens: int, k: int, num_experts: int, capacity: int | None, block_size: int | None
) -> int:
    """Number of rows of the dispatched array, independent of the routing.

    Dropless: `tokens * k`. With a capacity `C`: `experts * C`. With blocks of `B`: the most that
    padding every expert that can have a slot to a multiple of `B` may need.
    """
    slots = tokens * k
    if capacity is not None:
        return num_experts * capacity
    if block_size is not None:
        with_slots = min(num_experts, slots) if isinstance(slots, int) else num_experts
        worst = slots + with_slots * (block_size - 1)
        return worst // block_size * block_size
    return slots


def groups(
    load: jax.Array, *, capacity: int | None, block_size: int | None
) -> tuple[jax.Array, jax.Array]:
    """Sizes and first rows of the groups of experts that are sent `load` slots."""
    if capacity is not None:
        starts = jnp.arange(load.shape[0], dtype=jnp.int32) * capacity
        return jnp.minimum(load, capacity), starts
    block = block_size or 1
    padded = (load + block - 1) // block * block
    return load, jnp.cumsum(padded, dtype=jnp.int32) - padded
