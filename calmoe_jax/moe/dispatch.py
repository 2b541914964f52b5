"""Tokens to experts and back: `dispatch`, `combine`, `gather_slots`.

Both directions, and their derivatives in both modes, are gathers along a plan's two permutations.

`implementation=` is `"xla"`, `"triton"` or `"pallas_tpu"`, which raise `NotImplementedError` where
they cannot run, or `None`: a kernel where it was measured to be correct and faster on this kind of
device at this size (`calmoe_kernels.selection`), otherwise `"xla"`. All of them give the same
positions; sums may differ in their last bits.

Sharding: inside `shard_map` or `pmap` each device routes and groups its own tokens. Under plain
`jit` with sharded tokens the groups are of all tokens, so XLA has to move them; Triton kernels
refuse. Axes of a mesh may be of either type: on explicit ones, what has a row for each token is
sharded like the tokens, and rows of experts are whole on every device.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calmoe_jax._signatures import checked
from calmoe_jax.moe.plan import DispatchPlan
from calmoe_kernels import selection
from calmoe_kernels.derivatives import Arrays
from calmoe_kernels.multilinear import gradients
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
    x, plan = vary_along((x, plan), varying_axes(x, plan))
    return gradients(partial(_copies, implementation), plan, (x, None), _ROWS)[0]


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
    axes = varying_axes(rows, combine_weights, plan)
    rows, combine_weights, plan = vary_along((rows, combine_weights, plan), axes)
    form = partial(_sums, implementation, combine_weights.dtype)
    return gradients(form, plan, (None, rows, combine_weights), _TOKENS)[0]


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
    rows, plan = vary_along((rows, plan), varying_axes(rows, plan))
    # each slot as a token of one slot
    alone = plan._replace(positions=plan.positions.reshape(-1, 1))
    slots = gradients(partial(_copies, implementation), alone, (None, rows), _TOKENS)[0]
    return slots.reshape(*plan.positions.shape, rows.shape[1])


def _copies(
    implementation: str | None, plan: DispatchPlan, arrays: Arrays, wanted: tuple[int, ...]
) -> Arrays:
    """Gradients of `sum_tj <x_t, rows_p(t,j)>` to tokens or to rows."""
    x, rows = arrays
    if wanted == (_ROWS,):
        args = x, plan.positions, plan.slot_indices
        return (_run("scatter_rows", implementation, *args),)
    return (_run("gather_rows", implementation, rows, plan.positions, None),)


def _sums(
    implementation: str | None,
    weights_dtype: jnp.dtype,
    plan: DispatchPlan,
    arrays: Arrays,
    wanted: tuple[int, ...],
) -> Arrays:
    """Gradients of `sum_tj w_tj <x_t, rows_p(t,j)>` to tokens, to rows, to weights."""
    x, rows, weights = arrays
    if wanted == (_ROWS, _WEIGHTS):
        args = x, rows, plan.positions, plan.slot_indices, weights
        to_both: Arrays = _run("combine_backward", implementation, *args)
        return to_both

    def gradient(i: int) -> jax.Array:
        if i == _TOKENS:
            result: jax.Array = _run("gather_rows", implementation, rows, plan.positions, weights)
            return result
        # only derivatives of second order ask for one of these, which kernels do not compute alone
        if i == _ROWS:
            return permute.to_rows(x, plan.positions, plan.slot_indices, weights)
        dots = permute.to_weights(x, rows, plan.positions, plan.slot_indices)
        return (
            dots.astype(weights_dtype) if weights is None else permute.defined_dots(dots, weights)
        )

    return tuple(map(gradient, wanted))


_TOKENS, _ROWS, _WEIGHTS = range(3)


def _run(operation: str, implementation: str | None, *args: Any) -> Any:
    attempts = {
        "xla": getattr(permute, operation),
        "triton": selection.lazy("triton.permute", operation),
    }
    return selection.run(attempts, implementation, *args, operation=operation)
