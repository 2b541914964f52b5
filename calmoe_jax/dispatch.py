"""Tokens to experts and back: `plan_dispatch`, `dispatch`, `combine`, and `route`, all in one.

A plan is two permutations, each the inverse of the other: `positions` says in which row each slot
of each token lies, `slot_indices` which slot each row holds. The rows of an expert are contiguous
and in the order of the tokens, on every device and in every run. Both directions, and both
gradients, are gathers.

`implementation=` is `None` (the best that this platform and these sizes support), `"xla"`,
`"triton"` or `"pallas_tpu"`; one that declines raises `NotImplementedError`. All of them give the
same positions; sums may differ in their last bits.

Sharding: inside `shard_map` or `pmap` each device routes and groups its own tokens. Under plain
`jit` with sharded tokens the groups are of all tokens, so XLA has to move them; Triton kernels
refuse. `jax.checkpoint` finds the routing and the plan by the names `ROUTING_NAME` and `PLAN_NAME`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least
from calmoe_jax._choice import check_top_k, choose, largest
from calmoe_jax._kernels import kernel
from calmoe_jax.routing import GateStatistics, Routing, gate_statistics
from calmoe_kernels import layout, selection, xla
from calmoe_kernels.varying import vary_along, varying_axes

PLAN_NAME = layout.PLAN_NAME
ROUTING_NAME = layout.ROUTING_NAME


class DispatchPlan(NamedTuple):
    """Where the slots of a routing lie when they are grouped by expert.

    Attributes:
        positions: row of each slot; the number of rows where the slot is dropped.
        slot_indices: slot (`token * k + column`) of each row; `tokens * k` where a row is empty.
        group_sizes: slots in each expert's group.
        group_offsets: first row of each expert's group.
        load: slots that were sent to each expert, those it had no room for included.
    """

    positions: Int[Array, "tokens k"]
    slot_indices: Int[Array, " rows"]
    group_sizes: Int[Array, " experts"]
    group_offsets: Int[Array, " experts"]
    load: Int[Array, " experts"]

    @property
    def dropped(self) -> Bool[Array, "tokens k"]:
        """Slots without a row: beyond the capacity, or sent to no expert."""
        return self.positions >= self.slot_indices.shape[0]

    @property
    def num_dropped(self) -> Int[Array, ""]:
        """Number of slots without a row."""
        return jnp.sum(self.dropped, dtype=jnp.int32)


class Routed(NamedTuple):
    """A routing with its plan and the statistics of its gate.

    Attributes:
        routing: expert and weight of each slot.
        plan: where the slots lie.
        statistics: what the losses of the gate need.
    """

    routing: Routing
    plan: DispatchPlan
    statistics: GateStatistics


def expert_capacity(*, num_tokens: int, k: int, num_experts: int, capacity_factor: float) -> int:
    """Rows an expert gets for a multiple of its fair share: `ceil(factor T k / E)`, at least 1.

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
    return max(1, math.ceil(capacity_factor * num_tokens * k / num_experts))


def plan_dispatch(
    expert_indices: Int[Array, "tokens k"],
    *,
    num_experts: int,
    capacity: int | None = None,
    block_size: int | None = None,
    implementation: str | None = None,
) -> DispatchPlan:
    """Plans the rows of all slots, grouped by expert in the order of tokens.

    Dropless by default: as many rows as slots. With `capacity=C` every expert has `C` rows, and
    slots beyond them are dropped, the last tokens first. With `block_size=B` every group starts
    at a multiple of `B`, as kernels of grouped matrix products want; between groups, and after
    the last one, rows are empty.

    Args:
        expert_indices: expert of each slot; an index outside `[0, num_experts)` drops its slot.
        num_experts: number of experts; static under `jax.jit`.
        capacity: rows per expert, at least 1.
        block_size: block whose multiples groups start at, at least 1.
        implementation: see the module.

    Returns:
        A `DispatchPlan`. The order within a group is that of a stable sort of
        `expert_indices.reshape(-1)`.

    Raises:
        TypeError: if the indices are no integers.
        ValueError: if the indices have not two axes, a size is less than 1, both capacity and
            block size are given, or there are 2**31 rows or more.
        NotImplementedError: if the implementation declines.

    Example:
        >>> plan = plan_dispatch(jnp.array([[1], [0], [1]]), num_experts=2)
        >>> plan.positions.tolist(), plan.group_sizes.tolist()
        ([[1], [0], [2]], [1, 2])
    """
    _check_integers("expert_indices", expert_indices)
    _check_axes("expert_indices", expert_indices, 2, "tokens, k")
    tokens, k = expert_indices.shape
    layout.check_layout(tokens, k, num_experts, capacity, block_size)
    statics: dict[str, Any] = {
        "num_experts": num_experts,
        "capacity": capacity,
        "block_size": block_size,
    }
    attempts = {
        "xla": partial(xla.plan, **statics),
        "triton": partial(kernel("gpu.plan", "plan"), **statics),
    }
    indices = jax.lax.stop_gradient(expert_indices)
    if indices.dtype.itemsize > 4:
        indices = jnp.clip(indices, -1, num_experts)  # what is outside stays there
    indices = indices.astype(jnp.int32)
    return _named_plan(DispatchPlan(*selection.run(attempts, implementation, indices)))


def route(
    gate_logits: Float[Array, "tokens experts"],
    selection_bias: Float[Array, " experts"] | None = None,
    *,
    k: int,
    scores: str = "softmax",
    renormalize: bool = True,
    num_groups: int = 1,
    groups_per_token: int = 1,
    capacity: int | None = None,
    block_size: int | None = None,
    implementation: str | None = None,
) -> Routed:
    """Routes tokens and plans their dispatch in one go: gate logits in, rows out.

    The same as `top_k_routing`, `plan_dispatch` and `gate_statistics` one after the other; on a
    GPU, kernels that read the logits once.

    Args:
        gate_logits: gate logits, in float32, bfloat16 or float16; `-inf` masks an expert.
        selection_bias: finite addition to the scores in the choice.
        k: experts per token, in `[1, experts]`.
        scores: `"softmax"` or `"sigmoid"`.
        renormalize: whether each token's weights sum to one.
        num_groups: number of groups of consecutive experts.
        groups_per_token: groups a token's experts may come from.
        capacity: rows per expert; `None` for dropless.
        block_size: block whose multiples groups start at.
        implementation: see the module; `"pallas_tpu"` makes the choice of experts.

    Returns:
        A `Routed`. Gradients flow to the logits from the weights, the mean gate probabilities and
        the logsumexp. Tokens that cannot be routed have experts `0, ..., k - 1`, NaN weights, and
        are counted in `statistics.num_unroutable`; a bias that is not finite makes all weights NaN
        and is not counted.

    Raises:
        ValueError: where `top_k_routing` or `plan_dispatch` raise it.
        NotImplementedError: if the implementation declines.

    Example:
        >>> routed = route(jnp.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]]), k=2)
        >>> routed.plan.group_sizes.tolist(), routed.plan.positions.tolist()
        ([1, 1, 2], [[1, 2], [0, 3]])
    """
    _check_floats("gate_logits", gate_logits)
    _check_axes("gate_logits", gate_logits, 2, "tokens, experts")
    tokens, num_experts = gate_logits.shape
    choice: dict[str, Any] = {
        "k": k,
        "scores": scores,
        "num_groups": num_groups,
        "groups_per_token": groups_per_token,
    }
    check_top_k(gate_logits, selection_bias, **choice)
    layout.check_layout(tokens, k, num_experts, capacity, block_size)
    rooms = {"capacity": capacity, "block_size": block_size}

    def composed(
        top_k: Any, logits: jax.Array, bias: jax.Array | None
    ) -> tuple[Routing, DispatchPlan, GateStatistics]:
        def named(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
            top, indices = top_k(values, k)
            return checkpoint_name(top, ROUTING_NAME), checkpoint_name(indices, ROUTING_NAME)

        routing = Routing(*choose(named, logits, bias, renormalize=renormalize, **choice))
        plan = xla.plan(routing.expert_indices, num_experts=num_experts, **rooms)
        return routing, DispatchPlan(*plan), gate_statistics(logits, scores=scores)

    def triton(logits: jax.Array, bias: jax.Array | None) -> Any:
        fused = kernel("gpu.route", "route")
        result = fused(logits, bias, renormalize=renormalize, **choice, **rooms)
        return Routing(*result[:2]), DispatchPlan(*result[2:7]), GateStatistics(*result[7:])

    attempts: dict[str, Callable[..., Any]] = {
        "xla": partial(composed, largest),
        "triton": triton if tokens else partial(composed, largest),
        "pallas_tpu": partial(composed, kernel("tpu", "top_k")),
    }
    given = gate_logits, selection_bias
    given = vary_along(given, varying_axes(given))
    routing, plan, statistics = selection.run(attempts, implementation, *given)
    routing = jax.tree.map(lambda x: checkpoint_name(x, ROUTING_NAME), routing)
    return Routed(routing, _named_plan(plan), statistics)


def check_plan(plan: DispatchPlan) -> None:
    """Reports indices that point nowhere, in functions that are run under `checkify`.

    For plans that were made by hand or came from elsewhere; without `checkify` it does nothing.
    `dispatch` and `combine` do not call it (it would cost each call of a jitted function a tenth
    of a millisecond) and read zeros in place of what is outside.

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
    rows, slots = plan.slot_indices.shape[0], plan.positions.size
    for name, values, end in (
        ("positions", plan.positions, rows),
        ("slot_indices", plan.slot_indices, slots),
    ):
        checkify.debug_check(
            jnp.all((values >= 0) & (values <= end)), f"plan.{name} must lie in [0, {end}]."
        )


def dispatch(
    x: Float[Array, "tokens d"], plan: DispatchPlan, *, implementation: str | None = None
) -> Float[Array, "rows d"]:
    """Copies each token's row to the rows of its slots: tokens in, groups of experts out.

    `result[positions[t, j]] = x[t]`; its gradient to `x` sums a token's rows in float32.

    Args:
        x: what the experts are to see of each token.
        plan: where the slots lie.
        implementation: see the module.

    Returns:
        The rows, in the dtype of `x`. Empty rows are 0.

    Raises:
        TypeError: if `x` is not of floats.
        ValueError: if `x` has not two axes, or the plan is of another number of tokens.
        NotImplementedError: if the implementation declines.

    Example:
        >>> plan = plan_dispatch(jnp.array([[1], [0], [1]]), num_experts=2)
        >>> dispatch(jnp.array([[10.0], [20.0], [30.0]]), plan).tolist()
        [[20.0], [10.0], [30.0]]
    """
    _check_floats("x", x)
    _check_axes("x", x, 2, "tokens, d")
    _check_tokens("x", x, plan)
    axes = varying_axes(x, plan)
    return _dispatch(implementation, vary_along(x, axes), vary_along(plan, axes))


def combine(
    rows: Float[Array, "rows d"],
    plan: DispatchPlan,
    combine_weights: Float[Array, "tokens k"],
    *,
    implementation: str | None = None,
) -> Float[Array, "tokens d"]:
    """Brings the experts' outputs back: `y[t] = sum_j w[t, j] rows[positions[t, j]]`.

    Args:
        rows: outputs of the experts, a row for each of the plan's.
        plan: where the slots lie.
        combine_weights: weight of each slot.
        implementation: see the module.

    Returns:
        The tokens' outputs in the dtype of `rows`, summed in float32. Dropped slots count as
        zeros; tokens with a NaN weight are NaN. Gradients go to `rows` (0 where a row is empty)
        and to the weights (0 where a slot is dropped).

    Raises:
        TypeError: if the rows or the weights are not of floats.
        ValueError: if a shape does not fit the plan.
        NotImplementedError: if the implementation declines.

    Example:
        >>> plan = plan_dispatch(jnp.array([[1, 0]]), num_experts=2)
        >>> combine(jnp.array([[10.0], [20.0]]), plan, jnp.array([[0.75, 0.25]])).tolist()
        [[17.5]]
    """
    _check_rows(rows, plan)
    _check_floats("combine_weights", combine_weights)
    if combine_weights.shape != plan.positions.shape:
        raise ValueError(
            f"combine_weights must have the plan's shape {plan.positions.shape}, got "
            f"combine_weights.shape={combine_weights.shape}."
        )
    axes = varying_axes(rows, combine_weights, plan)
    rows, combine_weights, plan = vary_along((rows, combine_weights, plan), axes)
    return _combine(implementation, rows, combine_weights, plan)


def gather_slots(
    rows: Float[Array, "rows d"], plan: DispatchPlan, *, implementation: str | None = None
) -> Float[Array, "tokens k d"]:
    """Brings the experts' outputs back without summing them: `y[t, j] = rows[positions[t, j]]`.

    For what is not a weighted sum of outputs: probabilities are mixed after each slot's softmax.

    Args:
        rows: outputs of the experts, a row for each of the plan's.
        plan: where the slots lie.
        implementation: see the module.

    Returns:
        Each slot's output, in the dtype of `rows`; 0 for dropped slots.

    Raises:
        TypeError: if the rows are not of floats.
        ValueError: if `rows` has not two axes, or not the plan's number of rows.
        NotImplementedError: if the implementation declines.

    Example:
        >>> plan = plan_dispatch(jnp.array([[1, 0]]), num_experts=2)
        >>> gather_slots(jnp.array([[10.0], [20.0]]), plan).tolist()
        [[[20.0], [10.0]]]
    """
    _check_rows(rows, plan)
    rows, plan = vary_along((rows, plan), varying_axes(rows, plan))
    # each slot as a token of one slot
    alone = plan._replace(positions=plan.positions.reshape(-1, 1))
    return _gather_slots(implementation, rows, alone).reshape(*plan.positions.shape, rows.shape[1])


def _scatter_rows(implementation: str | None, x: jax.Array, plan: DispatchPlan) -> jax.Array:
    attempts = {"xla": xla.scatter_rows, "triton": kernel("gpu.permute", "scatter_rows")}
    args = x, plan.positions, plan.slot_indices
    result: jax.Array = selection.run(attempts, implementation, *args)
    return result


def _gather_rows(
    implementation: str | None, rows: jax.Array, plan: DispatchPlan, weights: jax.Array | None
) -> jax.Array:
    attempts = {"xla": xla.gather_rows, "triton": kernel("gpu.permute", "gather_rows")}
    result: jax.Array = selection.run(attempts, implementation, rows, plan.positions, weights)
    return result


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dispatch(implementation: str | None, x: jax.Array, plan: DispatchPlan) -> jax.Array:
    return _scatter_rows(implementation, x, plan)


def _dispatch_forward(
    implementation: str | None, x: jax.Array, plan: DispatchPlan
) -> tuple[jax.Array, DispatchPlan]:
    return _dispatch(implementation, x, plan), plan


def _dispatch_backward(
    implementation: str | None, plan: DispatchPlan, cotangent: jax.Array
) -> tuple[jax.Array, None]:
    return _gather_rows(implementation, cotangent, plan, None), None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather_slots(implementation: str | None, rows: jax.Array, plan: DispatchPlan) -> jax.Array:
    return _gather_rows(implementation, rows, plan, None)


def _gather_slots_forward(
    implementation: str | None, rows: jax.Array, plan: DispatchPlan
) -> tuple[jax.Array, DispatchPlan]:
    return _gather_slots(implementation, rows, plan), plan


def _gather_slots_backward(
    implementation: str | None, plan: DispatchPlan, cotangent: jax.Array
) -> tuple[jax.Array, None]:
    return _scatter_rows(implementation, cotangent, plan), None


_gather_slots.defvjp(_gather_slots_forward, _gather_slots_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _combine(
    implementation: str | None, rows: jax.Array, weights: jax.Array, plan: DispatchPlan
) -> jax.Array:
    return _gather_rows(implementation, rows, plan, weights)


def _combine_forward(
    implementation: str | None, rows: jax.Array, weights: jax.Array, plan: DispatchPlan
) -> tuple[jax.Array, tuple[jax.Array, jax.Array, DispatchPlan]]:
    return _combine(implementation, rows, weights, plan), (rows, weights, plan)


def _combine_backward(
    implementation: str | None,
    saved: tuple[jax.Array, jax.Array, DispatchPlan],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array, None]:
    rows, weights, plan = saved
    attempts = {
        "xla": xla.combine_backward,
        "triton": kernel("gpu.permute", "combine_backward"),
    }
    args = cotangent, rows, plan.positions, plan.slot_indices, weights
    to_rows, to_weights = selection.run(attempts, implementation, *args)
    return to_rows, to_weights, None


_combine.defvjp(_combine_forward, _combine_backward)


def _named_plan(plan: DispatchPlan) -> DispatchPlan:
    named: DispatchPlan = jax.tree.map(lambda x: checkpoint_name(x, PLAN_NAME), plan)
    return named


def _check_floats(name: str, array: jax.Array) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be of floats, got {name}.dtype={array.dtype}.")


def _check_integers(name: str, array: jax.Array) -> None:
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be of integers, got {name}.dtype={array.dtype}.")


def _check_axes(name: str, array: jax.Array, number: int, axes: str) -> None:
    if array.ndim != number:
        raise ValueError(
            f"{name} must have the axes [{axes}] (reshape and vmap others), got "
            f"{name}.shape={array.shape}."
        )


def _check_rows(rows: jax.Array, plan: DispatchPlan) -> None:
    _check_floats("rows", rows)
    _check_axes("rows", rows, 2, "rows, d")
    if rows.shape[0] != plan.slot_indices.shape[0]:
        raise ValueError(
            f"rows must have the plan's {plan.slot_indices.shape[0]} rows, got "
            f"rows.shape={rows.shape}."
        )


def _check_tokens(name: str, array: jax.Array, plan: DispatchPlan) -> None:
    if array.shape[0] != plan.positions.shape[0]:
        raise ValueError(
            f"{name} must have the plan's {plan.positions.shape[0]} tokens, got "
            f"{name}.shape={array.shape}."
        )
