"""Triton kernels from chosen experts to a plan.

Three launches, none of which depends on the order in which programs run:

1. *count*: each program takes consecutive slots and numbers them within each expert, from 0; its
   counts of slots per expert go to a table of programs by experts. (Where the experts are still to
   be chosen, `route` does this too, in the launch that chooses.)
2. *scan*: the exclusive prefix sums of that table down the programs, and its totals.
3. *place*: the row of a slot is its expert's first row, plus its program's prefix, plus its number.
"""

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from calmoe_kernels.layout import num_rows
from calmoe_kernels.triton.configs import count_config
from calmoe_kernels.triton.launch import Launch, launch
from calmoe_kernels.xla.plan import plan as xla_plan

# Slots, or rows, of a program that places or clears.
_PLACED = 256
_MAX_EXPERTS = 1024


@triton.jit
def _count_kernel(
    expert_indices,
    num_slots,
    numbers,
    counts,
    E: tl.constexpr,
    EP: tl.constexpr,
    BT: tl.constexpr,
    TILES: tl.constexpr,
):
    program = tl.program_id(0)
    e = tl.arange(0, EP)
    count = tl.zeros((EP,), tl.int32)
    for tile in range(TILES):
        slot = (program * TILES + tile) * BT + tl.arange(0, BT)
        expert = tl.load(expert_indices + slot, mask=slot < num_slots, other=-1)
        own = (expert[:, None] == e[None, :]) & (e < E)[None, :]
        before = tl.cumsum(own.to(tl.int32), 0) - own.to(tl.int32) + count[None, :]
        tl.store(numbers + slot, tl.sum(tl.where(own, before, 0), 1), mask=slot < num_slots)
        count += tl.sum(own.to(tl.int32), 0)
    tl.store(counts + program.to(tl.int64) * E + e, count, mask=e < E)


@triton.jit
def _scan_kernel(
    counts, num_programs, before, load, E: tl.constexpr, BE: tl.constexpr, BP: tl.constexpr
):
    e = tl.program_id(0) * BE + tl.arange(0, BE)
    total = tl.zeros((BE,), tl.int32)
    for start in range(0, num_programs, BP):
        p = start + tl.arange(0, BP)
        cell = p.to(tl.int64)[:, None] * E + e[None, :]
        mask = (p < num_programs)[:, None] & (e < E)[None, :]
        count = tl.load(counts + cell, mask=mask, other=0)
        tl.store(before + cell, tl.cumsum(count, 0) - count + total[None, :], mask=mask)
        total += tl.sum(count, 0)
    tl.store(load + e, total, mask=e < E)


@triton.jit
def _place_kernel(
    expert_indices,
    numbers,
    before,
    load,
    num_slots,
    num_rows,
    positions,
    slot_indices,
    group_sizes,
    group_offsets,
    E: tl.constexpr,
    EP: tl.constexpr,
    CAPACITY: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS_A_PROGRAM: tl.constexpr,
    BS: tl.constexpr,
    BR: tl.constexpr,
):
    program = tl.program_id(0)
    placing = tl.cdiv(num_slots, BS)
    e = tl.arange(0, EP)
    sizes = tl.load(load + e, mask=e < E, other=0)
    if CAPACITY > 0:
        sizes = tl.minimum(sizes, CAPACITY)
        offsets = e * CAPACITY
    else:
        padded = (sizes + BLOCK - 1) // BLOCK * BLOCK
        offsets = tl.cumsum(padded, 0) - padded
    if program == 0:
        tl.store(group_sizes + e, sizes, mask=e < E)
        tl.store(group_offsets + e, offsets, mask=e < E)
    if program < placing:
        slot = program * BS + tl.arange(0, BS)
        live = slot < num_slots
        expert = tl.load(expert_indices + slot, mask=live, other=-1)
        number = tl.load(numbers + slot, mask=live, other=-1)
        known = (expert >= 0) & (expert < E) & (number >= 0)
        expert = tl.where(known, expert, 0)
        cell = (slot // SLOTS_A_PROGRAM).to(tl.int64) * E + expert
        number += tl.load(before + cell, mask=live, other=0)
        kept = live & known & (number < tl.gather(sizes, expert, 0))
        row = tl.where(kept, tl.gather(offsets, expert, 0) + number, num_rows)
        tl.store(positions + slot, row, mask=live)
        tl.store(slot_indices + row, slot, mask=kept)
    else:
        # rows that no slot takes
        r = (program - placing) * BR + tl.arange(0, BR)
        if CAPACITY == 0 and BLOCK == 1:
            empty = r >= tl.sum(sizes, 0)
        else:
            inside = (r[:, None] >= offsets[None, :]) & (r[:, None] < (offsets + sizes)[None, :])
            empty = tl.sum((inside & (e < E)[None, :]).to(tl.int32), 1) == 0
        tl.store(
            slot_indices + r, num_slots + tl.zeros((BR,), tl.int32), mask=empty & (r < num_rows)
        )


def check_experts(num_experts: int) -> None:
    """Raises `NotImplementedError` for more experts than a tile may have columns."""
    if num_experts > _MAX_EXPERTS:
        raise NotImplementedError(
            f"triton routes to at most {_MAX_EXPERTS} experts, got num_experts={num_experts}."
        )


def int32(*shape: int) -> jax.ShapeDtypeStruct:
    """An output of integers."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def scan_and_place(
    expert_indices: jax.Array,
    numbers: jax.Array,
    counts: jax.Array,
    slots_a_program: int,
    *,
    capacity: int | None,
    block_size: int | None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Runs the last two launches.

    Args:
        expert_indices: `[tokens, k]`.
        numbers: each slot's number within its expert and program; negative where it is absent.
        counts: `[programs, experts]`.
        slots_a_program: slots that each program counted.
        capacity: rows of each expert, if limited.
        block_size: block whose multiples groups are padded to.

    Returns:
        `(positions, slot_indices, group_sizes, group_offsets, load)`.
    """
    tokens, k = expert_indices.shape
    programs, num_experts = counts.shape
    columns = min(16, triton.next_power_of_2(num_experts))
    before, load = launch(
        Launch(
            kernel=_scan_kernel,
            inputs=(counts, programs),
            outputs=(int32(programs, num_experts), int32(num_experts)),
            grid=(triton.cdiv(num_experts, columns),),
            constants={
                "E": num_experts,
                "BE": columns,
                "BP": min(256, triton.next_power_of_2(programs)),
            },
            num_warps=4,
        )
    )
    rows = num_rows(tokens, k, num_experts, capacity, block_size)
    padded_experts = triton.next_power_of_2(num_experts)
    dropless = capacity is None and block_size is None
    cleared = _PLACED if dropless else max(1, min(_PLACED, 4096 // padded_experts))
    positions, slot_indices, sizes, offsets = launch(
        Launch(
            kernel=_place_kernel,
            inputs=(expert_indices, numbers, before, load, tokens * k, rows),
            outputs=(int32(tokens, k), int32(rows), int32(num_experts), int32(num_experts)),
            grid=(triton.cdiv(tokens * k, _PLACED) + triton.cdiv(rows, cleared),),
            constants={
                "E": num_experts,
                "EP": padded_experts,
                "CAPACITY": capacity or 0,
                "BLOCK": block_size or 1,
                "SLOTS_A_PROGRAM": slots_a_program,
                "BS": _PLACED,
                "BR": cleared,
            },
            num_warps=4,
        )
    )
    return positions, slot_indices, sizes, offsets, load


def plan(
    expert_indices: jax.Array, *, num_experts: int, capacity: int | None, block_size: int | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """`calmoe_kernels.xla.plan.plan` in three launches.

    Args:
        expert_indices: `[tokens, k]`, int32.
        num_experts: number of experts, at most 1024.
        capacity: rows of each expert, if limited.
        block_size: block whose multiples groups are padded to.

    Returns:
        `(positions, slot_indices, group_sizes, group_offsets, load)`.

    Raises:
        NotImplementedError: for more experts.
    """
    check_experts(num_experts)
    limits: dict[str, int | None] = {"capacity": capacity, "block_size": block_size}
    slots = expert_indices.size
    if slots == 0:
        return xla_plan(expert_indices, num_experts=num_experts, **limits)
    padded_experts = triton.next_power_of_2(num_experts)
    config = count_config(slots, padded_experts)
    programs = triton.cdiv(slots, config.tokens * config.tiles)
    numbers, counts = launch(
        Launch(
            kernel=_count_kernel,
            inputs=(expert_indices, slots),
            outputs=(int32(slots), int32(programs, num_experts)),
            grid=(programs,),
            constants={
                "E": num_experts,
                "EP": padded_experts,
                "BT": config.tokens,
                "TILES": config.tiles,
            },
            num_warps=config.num_warps,
        )
    )
    return scan_and_place(expert_indices, numbers, counts, config.tokens * config.tiles, **limits)
