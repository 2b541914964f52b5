"""Tokens to experts and back: `dispatch`, `combine`, `gather_slots`.

Both directions, and both gradients, are gathers along a plan's two permutations.

`implementation=` is `"xla"`, `"triton"` or `"pallas_tpu"`, which raise `NotImplementedError` where
they cannot run, or `None`: a kernel where it was measured to be correct and faster on this kind of
device at this size (`calmoe_kernels.selection`), otherwise `"xla"`. All of them give the same
positions; sums may differ in their last bits.

Sharding: inside `shard_map` or `pmap` each device routes and groups its own tokens. Under plain
`jit` with sharded tokens the groups are of all tokens, so XLA has to move them; Triton kernels
refuse.
"""

from functools import partial

import jax
from jaxtyping import Array, Float

from calmoe_jax._checks import check_axes, check_floats
from calmoe_jax._signatures import checked
from calmoe_jax.moe.plan import DispatchPlan
from calmoe_kernels import selection
from calmoe_kernels.selection import lazy
from calmoe_kernels.varying import vary_along, varying_axes
from calmoe_kernels.xla import permute


@checked
def dispatch(
    x: Float[Array, "tokens d"], plan: DispatchPlan, *, implementation: str | None = None
) -> Float[Array, "rows d"]:
    """Copies each token's row to the rows of its slots, grouped by expert.

    `result[positions[t, j]] = x[t]`; its gradient to `x` sums a token's rows in float32.

    Args:
        x: the experts' inputs, a row for each token.
        plan: the plan of dispatch, which gives the rows of the slots.
        implementation: see the module.

    Returns:
        The rows, in the dtype of `x`. Empty rows are 0.

    Raises:
        TypeError: if `x` is not of floats.
        ValueError: if `x` does not have two axes, or not as many tokens as the plan.
        NotImplementedError: if the implementation declines.

    Example:
        >>> plan = plan_dispatch(jnp.array([[1], [0], [1]]), num_experts=2)
        >>> dispatch(jnp.array([[10.0], [20.0], [30.0]]), plan).tolist()
        [[20.0], [10.0], [30.0]]
    """
    check_floats("x", x)
    check_axes("x", x, 2, "tokens, d")
    _check_tokens("x", x, plan)
    axes = varying_axes(x, plan)
    return _dispatch(implementation, vary_along(x, axes), vary_along(plan, axes))


@checked
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
        plan: the plan of dispatch, which gives the rows of the slots.
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
    check_floats("combine_weights", combine_weights)
    if combine_weights.shape != plan.positions.shape:
        raise ValueError(
            f"combine_weights must have the plan's shape {plan.positions.shape}, got "
            f"combine_weights.shape={combine_weights.shape}."
        )
    axes = varying_axes(rows, combine_weights, plan)
    rows, combine_weights, plan = vary_along((rows, combine_weights, plan), axes)
    return _combine(implementation, rows, combine_weights, plan)


@checked
def gather_slots(
    rows: Float[Array, "rows d"], plan: DispatchPlan, *, implementation: str | None = None
) -> Float[Array, "tokens k d"]:
    """Brings the experts' outputs back without summing them: `y[t, j] = rows[positions[t, j]]`.

    For uses other than a weighted sum: probabilities are mixed after each slot's softmax.

    Args:
        rows: outputs of the experts, a row for each of the plan's.
        plan: the plan of dispatch, which gives the rows of the slots.
        implementation: see the module.

    Returns:
        Each slot's output, in the dtype of `rows`; 0 for dropped slots.

    Raises:
        TypeError: if the rows are not of floats.
        ValueError: if `rows` does not have two axes, or not as many rows as the plan.
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
    attempts = {"xla": permute.scatter_rows, "triton": lazy("triton.permute", "scatter_rows")}
    args = x, plan.positions, plan.slot_indices
    result: jax.Array = selection.run(attempts, implementation, *args, operation="scatter_rows")
    return result


def _gather_rows(
    implementation: str | None, rows: jax.Array, plan: DispatchPlan, weights: jax.Array | None
) -> jax.Array:
    attempts = {"xla": permute.gather_rows, "triton": lazy("triton.permute", "gather_rows")}
    args = rows, plan.positions, weights
    result: jax.Array = selection.run(attempts, implementation, *args, operation="gather_rows")
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
        "xla": permute.combine_backward,
        "triton": lazy("triton.permute", "combine_backward"),
    }
    args = cotangent, rows, plan.positions, plan.slot_indices, weights
    to_rows, to_weights = selection.run(
        attempts, implementation, *args, operation="combine_backward"
    )
    return to_rows, to_weights, None


_combine.defvjp(_combine_forward, _combine_backward)


def _check_rows(rows: jax.Array, plan: DispatchPlan) -> None:
    check_floats("rows", rows)
    check_axes("rows", rows, 2, "rows, d")
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
