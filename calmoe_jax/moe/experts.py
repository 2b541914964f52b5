"""Experts with one hidden layer on rows that are grouped by expert.

Parameters are plain arrays, so they can come from any neural network library. Policies of
`jax.checkpoint` can save the hidden units by the name `HIDDEN_NAME`.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from calmoe_jax._numerics import at_least_float32
from calmoe_jax._signatures import checked
from calmoe_jax.moe.activations import Activation, columns_of, function_of, name_of
from calmoe_jax.moe.matmul import grouped_matmul
from calmoe_jax.moe.plan import DispatchPlan

# For policies of `jax.checkpoint`: the arguments of activations, which are recomputed from them.
HIDDEN_NAME = "calmoe_hidden"


class ExpertParams(NamedTuple):
    """Parameters of experts with one hidden layer.

    Attributes:
        w_in: matrices from inputs to hidden units. For an activation that splits its columns
            `columns` is twice `hidden`; for SwiGLU the gates' come first and then the values', so
            that one product gives both.
        w_out: matrices from hidden units to outputs.
        b_in: biases of `w_in`, if any.
        b_out: biases of `w_out`, if any.
    """

    w_in: Float[Array, "experts d columns"]
    w_out: Float[Array, "experts hidden d_out"]
    b_in: Float[Array, "experts columns"] | None = None
    b_out: Float[Array, "experts d_out"] | None = None


@checked
def expert_linear(
    rows: Float[Array, "rows d"],
    plan: DispatchPlan,
    w: Float[Array, "experts d f"],
    bias: Float[Array, "experts f"] | None = None,
    *,
    block_size: int | None = None,
    capacity: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "rows f"]:
    """Applies each expert's linear map to its rows: `x w[e] + bias[e]`.

    Args:
        rows: rows grouped by expert, as from `dispatch`.
        plan: the plan of dispatch, which gives the rows of each group.
        w: a matrix for each expert, of the dtype of the rows.
        bias: a bias for each expert, of the same dtype; `None` for none.
        block_size: the plan's, if it has one.
        capacity: the plan's, if it has one.
        implementation: implementation of the products; see `calmoe_jax.moe.matmul`.

    Returns:
        The results in the dtype of the rows; 0 for rows that are in no group.

    Raises:
        TypeError: as `grouped_matmul`.
        ValueError: as `grouped_matmul`; if the bias does not fit the matrices.

    Example:
        >>> plan = plan_dispatch(jnp.array([[0], [1]]), num_experts=2)
        >>> w, bias = jnp.ones((2, 1, 1)), jnp.array([[10.0], [20.0]])
        >>> expert_linear(jnp.array([[1.0], [2.0]]), plan, w, bias).tolist()
        [[11.0], [22.0]]
    """

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return grouped_matmul(
            x,
            w,
            plan.group_sizes,
            plan.group_offsets,
            block_size=block_size,
            capacity=capacity,
            implementation=implementation,
        )

    result = product(rows, w)
    if bias is None:
        return result
    # a product too: its gradient sums an expert's rows in a fixed order, and in float32
    return result + product(jnp.ones((rows.shape[0], 1), rows.dtype), bias[:, None])


@checked
def expert_mlp(
    rows: Float[Array, "rows d"],
    plan: DispatchPlan,
    params: ExpertParams,
    *,
    activation: Activation = "gelu",
    block_size: int | None = None,
    capacity: int | None = None,
    implementation: str | None = None,
) -> Float[Array, "rows d_out"]:
    """Applies each expert to its rows: `act(x w_in[e] + b_in[e]) w_out[e] + b_out[e]`.

    SwiGLU is `(silu(x w_gate[e]) * (x w_value[e])) w_out[e]`, with biases likewise.

    Args:
        rows: rows grouped by expert, as from `dispatch`.
        plan: the plan of dispatch, which gives the rows of each group.
        params: the experts' parameters, of the dtype of the rows.
        activation: `"relu"`, `"gelu"` (the exact one), `"swiglu"`, or a function from
            `[rows, columns]` to `[rows, hidden]` with `columns` equal to `hidden` or twice that. It
            is recomputed in the backward pass.
        block_size: the plan's, if it has one.
        capacity: the plan's, if it has one.
        implementation: implementation of the products; see `calmoe_jax.moe.matmul`.

    Returns:
        The experts' outputs; 0 for rows that are in no group.

    Raises:
        TypeError: as `grouped_matmul`.
        ValueError: as `expert_linear`; if the activation is unknown or the widths do not fit.

    Example:
        >>> plan = plan_dispatch(jnp.array([[0], [1]]), num_experts=2)
        >>> params = ExpertParams(jnp.ones((2, 1, 3)), jnp.ones((2, 3, 1)))
        >>> expert_mlp(jnp.array([[2.0], [-1.0]]), plan, params, activation="relu").tolist()
        [[6.0], [0.0]]

    References:
        Shazeer, GLU Variants Improve Transformer, 2020.
    """
    _check_widths(params, activation)
    linear = partial(
        expert_linear, block_size=block_size, capacity=capacity, implementation=implementation
    )
    inner = checkpoint_name(linear(rows, plan, params.w_in, params.b_in), HIDDEN_NAME)
    return linear(function_of(activation)(inner), plan, params.w_out, params.b_out)


@checked
def shared_mlp(
    x: Float[Array, "tokens d"], shared: ExpertParams, *, activation: Activation = "gelu"
) -> Float[Array, "tokens d_out"]:
    """Applies all experts to every token and sums: `sum_e act(x w_in[e] + b_in[e]) w_out[e] + ...`.

    For shared experts, which every token goes through without routing.

    Args:
        x: tokens.
        shared: the shared experts' parameters, of the dtype of `x`.
        activation: as in `expert_mlp`.

    Returns:
        The sums, in the dtype of `x`.

    Raises:
        TypeError: if `x` and the parameters differ in dtype.
        ValueError: if the widths do not fit, or the activation is unknown.

    Example:
        >>> shared = ExpertParams(jnp.ones((2, 1, 3)), jnp.ones((2, 3, 1)))
        >>> shared_mlp(jnp.array([[2.0], [-1.0]]), shared, activation="relu").tolist()
        [[12.0], [0.0]]

    References:
        Dai et al., DeepSeekMoE, 2024.
    """
    _check_widths(shared, activation)
    experts, _, columns = shared.w_in.shape
    units = shared.w_out.shape[1]
    if any(w.dtype != x.dtype for w in shared if w is not None):
        dtypes = [str(w.dtype) for w in shared if w is not None]
        raise TypeError(f"shared must have the dtype of x, {x.dtype}, got {', '.join(dtypes)}.")
    wide = at_least_float32(x[:0]).dtype
    inner = jnp.einsum("td,edf->tef", x, shared.w_in, preferred_element_type=wide).astype(x.dtype)
    if shared.b_in is not None:
        inner += shared.b_in[None]
    inner = checkpoint_name(inner.reshape(-1, columns), HIDDEN_NAME)
    hidden = function_of(activation)(inner).reshape(x.shape[0], experts, units)
    result = jnp.einsum("tef,efd->td", hidden, shared.w_out, preferred_element_type=wide)
    if shared.b_out is not None:
        result += at_least_float32(shared.b_out).sum(axis=0)[None]
    return result.astype(x.dtype)


def _check_widths(params: ExpertParams, activation: Activation) -> None:
    hidden = params.w_out.shape[1]
    wanted = columns_of(activation, hidden)
    if params.w_in.shape[2] != wanted:
        raise ValueError(
            f"w_in must have {wanted} columns for {name_of(activation)} and w_out's {hidden} "
            f"hidden units, got w_in.shape={params.w_in.shape}."
        )
