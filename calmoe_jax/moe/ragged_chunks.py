"""Which rows go where when devices exchange as many rows as there are: arithmetic of indices.

Rows are sorted by expert, and so by the device that has the expert: those for one device are one
chunk. A device receives the chunks in the order of their devices, and cuts what does not fit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from calmoe_jax.moe.plan import DispatchPlan


class Chunks(NamedTuple):
    """A device's chunks of rows in one direction, one for each other device and one for itself.

    Attributes:
        offsets: first row of each chunk that is sent, among the rows of this device.
        sizes: rows of each chunk that is sent.
        offsets_there: first row of each chunk that is sent, among the rows of its receiver.
        received: rows of each chunk that is received.
    """

    offsets: Int[Array, " devices"]
    sizes: Int[Array, " devices"]
    offsets_there: Int[Array, " devices"]
    received: Int[Array, " devices"]


class RaggedChunks(NamedTuple):
    """A device's part in an exchange of rows and in the way back.

    Attributes:
        there: chunks of tokens' rows, to the devices of their experts.
        back: the same rows, to where they came from.
        group_sizes: rows of this device's tokens for each of all experts that are not cut.
        experts: expert of each received row, counted from the device's first; the number of its
            experts where nothing was received.
    """

    there: Chunks
    back: Chunks
    group_sizes: Int[Array, " all_experts"]
    experts: Int[Array, " rows"]


def ragged_chunks(
    group_sizes: Int[Array, "devices all_experts"], device: Int[Array, ""], *, num_rows: int
) -> RaggedChunks:
    """Plans the exchange of rows that are sorted by expert, from the numbers of all devices.

    Device `i` has the experts `[i E / P, (i + 1) E / P)`. Every device finds by the same sums what
    each of them cuts: with `n_sd` rows from device `s` to `d`, the chunk from `s` starts at row
    `sum_{s' < s} n_s'd`, and what lies at `num_rows` or beyond is cut.

    Args:
        group_sizes: rows that each device has for each expert.
        device: number of this device.
        num_rows: rows that a device has room for.

    Returns:
        The device's `RaggedChunks`.
    """
    devices, all_experts = group_sizes.shape
    own = all_experts // devices
    by_target = group_sizes.reshape(devices, devices, own)
    sizes = by_target.sum(axis=2, dtype=jnp.int32)  # of chunks, from (rows) and to (columns)
    first_sent = _starts(sizes, axis=1)
    first_received = jnp.minimum(_starts(sizes, axis=0), num_rows)
    kept = jnp.minimum(sizes, num_rows - first_received)
    there = Chunks(first_sent[device], kept[device], first_received[device], kept[:, device])
    back = Chunks(first_received[:, device], kept[:, device], first_sent[:, device], kept[device])
    in_chunk = _starts(by_target[device], axis=1)
    kept_groups = jnp.clip(kept[device][:, None] - in_chunk, 0, by_target[device])
    ends = jnp.cumsum(by_target[:, device].reshape(-1), dtype=jnp.int32)
    rows = jnp.arange(num_rows, dtype=jnp.int32)
    group = jnp.searchsorted(ends, rows, side="right").astype(jnp.int32)
    experts = jnp.where(rows < ends[-1], group % own, own)
    return RaggedChunks(there, back, kept_groups.reshape(-1), experts)


def without_cut_rows(
    plan: DispatchPlan,
    expert_indices: Int[Array, "tokens k"],
    group_sizes: Int[Array, " all_experts"],
) -> DispatchPlan:
    """The plan without the last rows of groups that are cut.

    Args:
        plan: a plan of rows without gaps.
        expert_indices: expert of each slot that it was made for.
        group_sizes: rows that are left of each group.

    Returns:
        The plan, in which the slots of the other rows have none. The number of rows is the same.
    """
    rows, slots = plan.slot_indices.shape[0], plan.positions.size
    rank = plan.positions - plan.group_offsets[expert_indices]
    kept = (plan.positions < rows) & (rank < group_sizes[expert_indices])
    slot_kept = jnp.append(kept.reshape(-1), False)  # no slot is one more
    return plan._replace(
        positions=jnp.where(kept, plan.positions, rows),
        slot_indices=jnp.where(slot_kept[plan.slot_indices], plan.slot_indices, slots),
        group_sizes=group_sizes,
    )


def _starts(sizes: jax.Array, axis: int) -> jax.Array:
    return jnp.cumsum(sizes, axis=axis, dtype=jnp.int32) - sizes
