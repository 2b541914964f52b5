"""Experts with one hidden layer on rows that are grouped by expert.

Parameters are plain arrays, so they can come from any neural network library.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calmoe_jax._checks import check_choice
from calmoe_jax._signatures import checked
from calmoe_jax.moe.matmul import grouped_matmul
from calmoe_jax.moe.plan import DispatchPlan


def _swiglu(inner: jax.Array) -> jax.Array:
    gate, value = jnp.split(inner, 2, axis=1)
    return jax.nn.silu(gate) * value


# Under `checkpoint`: otherwise factors of their derivatives would be stored with the hidden units,
# two more arrays of that size, which save no time (measured on CPU).
_ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": jax.checkpoint(partial(jax.nn.gelu, approximate=False)),
    "swiglu": jax.checkpoint(_swiglu),
}
ACTIVATIONS = tuple(_ACTIVATIONS)


class ExpertParams(NamedTuple):
    """Parameters of experts with one hidden layer.

    Attributes:
        w_in: matrices from inputs to hidden units. For SwiGLU the gates' columns come first and
            then the values', so that one product gives both: `columns` is then twice `hidden`.
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
    if bias.shape != (w.shape[0], w.shape[2]):
        raise ValueError(
            f"bias must have shape {(w.shape[0], w.shape[2])} for w.shape={w.shape}, got "
            f"bias.shape={bias.shape}."
        )
    # a product too: its gradient sums an expert's rows in a fixed order, and in float32
    return result + product(jnp.ones((len(rows), 1), rows.dtype), bias[:, None])


@checked
def expert_mlp(
    rows: Float[Array, "rows d"],
    plan: DispatchPlan,
    params: ExpertParams,
    *,
    activation: str = "gelu",
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
        activation: `"relu"`, `"gelu"` (the exact one) or `"swiglu"`. It is recomputed in the
            backward pass.
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
    check_choice("activation", activation, ACTIVATIONS)
    columns, hidden = params.w_in.shape[2], params.w_out.shape[1]
    wanted = 2 * hidden if activation == "swiglu" else hidden
    if columns != wanted:
        raise ValueError(
            f"w_in must have {wanted} columns for {activation} and w_out's {hidden} hidden units, "
            f"got w_in.shape={params.w_in.shape}."
        )
    linear = partial(
        expert_linear, block_size=block_size, capacity=capacity, implementation=implementation
    )
    inner = linear(rows, plan, params.w_in, params.b_in)
    return linear(_ACTIVATIONS[activation](inner), plan, params.w_out, params.b_out)
