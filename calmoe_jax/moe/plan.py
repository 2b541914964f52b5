"""Plans the rows of the slots of a routing, grouped by expert.

A plan is two permutations, each the inverse of the other: `positions` is the row of each slot of
each token, `slot_indices` the slot of each row. The rows of an expert are contiguous and in the
order of the tokens (or of their priority, see `plan_by_priority`), on every device and in every
run.

Policies of `jax.checkpoint` can save a plan by the name `PLAN_NAME`.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least
from calmoe_jax._signatures import checked
from calmoe_kernels import layout, selection
from calmoe_kernels.xla.plan import plan as plan_in_xla

PLAN_NAME = layout.PLAN_NAME


class DispatchPlan(NamedTuple):
    """Rows of the slots of a routing, grouped by expert.

    A slot is absent if it is sent to no expert: its index lies outside the experts, its weight is
    0, or its token does not count. It has no row, takes no capacity and is not in the load.

    Under `vmap`, `scan` and `pmap` plans are stacked; what is derived from them is for each.

    Attributes:
        positions: row of each slot; the number of rows where the slot has none.
        slot_indices: slot (`token * k + column`) of each row; `tokens * k` where a row is empty.
        group_sizes: slots in each expert's group.
        group_offsets: first row of each expert's group.
        load: slots that were sent to each expert, including those dropped by the capacity.
    """

    positions: Int[Array, "tokens k"]
    slot_indices: Int[Array, " rows"]
    group_sizes: Int[Array, " experts"]
    group_offsets: Int[Array, " experts"]
    load: Int[Array, " experts"]

    @property
    def dropped(self) -> Bool[Array, "*stacked tokens k"]:
        """Slots without a row: beyond the capacity, or absent."""
        return jnp.greater_equal(self.positions, self.slot_indices.shape[-1])

    @property
    def num_dropped(self) -> Int[Array, "*stacked"]:
        """Number of slots without a row."""
        return jnp.sum(self.dropped, axis=(-2, -1), dtype=jnp.int32)

    @property
    def num_over_capacity(self) -> Int[Array, "*stacked"]:
        """Number of slots that were sent to an expert beyond its capacity."""
        return jnp.sum(jnp.subtract(self.load, self.group_sizes), axis=-1, dtype=jnp.int32)


def expert_capacity(*, num_tokens: int, k: int, num_experts: int, capacity_factor: float) -> int:
    """Rows per expert for a multiple of the fair share: `ceil(factor T k / E)`.

    At least 1, and at most the number of tokens, since an expert gets a token at most once.

    Args:
        num_tokens: tokens `T`.
        k: experts per token.
        num_experts: number of experts `E`.
        capacity_factor: multiple of the fair share, above 0; 1.25 is common.

    Returns:
        A capacity for `plan_dispatch`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> expert_capacity(num_tokens=100, k=2, num_experts=8, capacity_factor=1.25)
        32

    References:
        Fedus et al., Switch Transformers, 2021, eq. 3.
    """
    check_at_least("num_tokens", num_tokens, 0)
    check_at_least("k", k, 1)
    check_at_least("num_experts", num_experts, 1)
    if not (capacity_factor > 0 and math.isfinite(capacity_factor)):
        raise ValueError(
            f"capacity_factor must be positive and finite, got capacity_factor={capacity_factor}."
        )
    return max(1, min(num_tokens, math.ceil(capacity_factor * num_tokens * k / num_experts)))


@checked
def plan_dispatch(
    expert_indices: Int[Array, "tokens k"],
    combine_weights: Float[Array, "tokens k"] | None = None,
    *,
    where: Bool[Array, " tokens"] | None = None,
    num_experts: int,
    capacity: int | None = None,
    block_size: int | None = None,
    implementation: str | None = None,
) -> DispatchPlan:
    """Plans the rows of all slots, grouped by expert in the order of tokens.

    Dropless by default: as many rows as slots. With `capacity=C` every expert has `C` rows, and
    slots beyond them are dropped, the last tokens first. With `block_size=B` every group starts
    at a multiple of `B`, as kernels of grouped matrix products require; rows between groups, and
    after the last one, are empty.

    Args:
        expert_indices: expert of each slot; with an index outside `[0, num_experts)` the slot is
            absent.
        combine_weights: weight of each slot; those of weight exactly 0 are absent too, as
            `top_k_routing` gives them where a token has fewer unmasked experts than `k`. Without
            weights, all slots of valid experts have rows.
        where: tokens that count; all by default. The slots of the others (padding) are absent.
        num_experts: number of experts; static under `jax.jit`.
        capacity: rows per expert, at least 1.
        block_size: every group starts at a multiple of it; at least 1.
        implementation: see `calmoe_jax.moe.dispatch`.

    Returns:
        A `DispatchPlan`. The order within a group is that of a stable sort of
        `expert_indices.reshape(-1)`.

    Raises:
        TypeError: if the indices are not integers.
        ValueError: if the indices do not have two axes, the weights or the mask do not fit them, a
            size is less than 1, both `capacity` and `block_size` are given, or there are 2**31 rows
            or more.
        NotImplementedError: if the implementation declines.

    Example:
        >>> plan = plan_dispatch(jnp.array([[1], [0], [1]]), num_experts=2)
        >>> plan.positions.tolist(), plan.group_sizes.tolist()
        ([[1], [0], [2]], [1, 2])
    """
    tokens, k = expert_indices.shape
    if combine_weights is not None and combine_weights.shape != (tokens, k):
        raise ValueError(
            f"combine_weights must have the shape {(tokens, k)} of expert_indices, got "
            f"combine_weights.shape={combine_weights.shape}."
        )
    layout.check_layout(tokens, k, num_experts, capacity, block_size)
    statics: dict[str, Any] = {
        "num_experts": num_experts,
        "capacity": capacity,
        "block_size": block_size,
    }
    attempts = {
        "xla": partial(plan_in_xla, **statics),
        "triton": partial(selection.lazy("triton.plan", "plan"), **statics),
    }
    indices = jax.lax.stop_gradient(expert_indices)
    if indices.dtype.itemsize > 4:
        indices = jnp.clip(indices, -1, num_experts)  # what is outside stays there
    indices = indices.astype(jnp.int32)
    indices = present_experts(indices, combine_weights, where, num_experts=num_experts)
    arrays = selection.run(attempts, implementation, indices, operation="plan")
    return named_plan(DispatchPlan(*arrays))


def check_plan(plan: DispatchPlan) -> None:
    """Reports indices out of range, in functions that run under `checkify`.

    For plans that were not made by `plan_dispatch`; without `checkify` it does nothing. `dispatch`
    and `combine` do not call it (it would cost each call of a jitted function a tenth of a
    millisecond); they read zeros for indices out of range.

    Args:
        plan: any plan.

    Example:
        >>> from jax.experimental import checkify
        >>> def checked(x, plan):
        ...     check_plan(plan)
        ...     return dispatch(x, plan)
        >>> plan = plan_dispatch(jnp.array([[1], [0]]), num_experts=2)
        >>> wrong = plan._replace(positions=plan.positions + 5)
        >>> error, _ = checkify.checkify(checked, errors=checkify.user_checks)(jnp.ones((2, 1)), wrong)
        >>> error.get().split(".")[1]
        'positions must lie in [0, 2]'
    """  # noqa: E501
    rows, slots = plan.slot_indices.shape[-1], math.prod(plan.positions.shape[-2:])
    for name, values, end in (
        ("positions", plan.positions, rows),
        ("slot_indices", plan.slot_indices, slots),
    ):
        checkify.debug_check(
            jnp.all((values >= 0) & (values <= end)), f"plan.{name} must lie in [0, {end}]."
        )


def present_experts(
    expert_indices: Int[Array, "tokens k"],
    combine_weights: Float[Array, "tokens k"] | None,
    where: Bool[Array, " tokens"] | None,
    *,
    num_experts: int,
) -> Int[Array, "tokens k"]:
    """The expert of each slot to plan with: none (`num_experts`) where the slot is absent."""
    if combine_weights is not None:
        expert_indices = jnp.where(combine_weights == 0, num_experts, expert_indices)
    if where is not None:
        expert_indices = jnp.where(where[:, None], expert_indices, num_experts)
    return expert_indices


def named_plan(plan: DispatchPlan) -> DispatchPlan:
    """The same plan, with a name for the policies of `jax.checkpoint`."""
    named: DispatchPlan = jax.tree.map(lambda x: checkpoint_name(x, PLAN_NAME), plan)
    return named
