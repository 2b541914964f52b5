"""Balance without an auxiliary loss: a bias of the choice of experts that follows their load."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._checks import check_positive
from calmoe_jax._numerics import AxisName, psum
from calmoe_jax._signatures import checked


@checked
def update_selection_bias(
    bias: Float[Array, "*layers experts"],
    load: Int[Array, "*layers experts"],
    *,
    rate: float,
    axis_name: AxisName = None,
) -> Float[Array, "*layers experts"]:
    """Raises the bias of experts with less than the mean load, and lowers that of the others.

    `b_e <- b_e + rate sign(mean(load) - load_e)`, once for each step of training. The bias is the
    `selection_bias` of `route` or `sparse_layer`: it changes the choice of experts, not their
    weights, so it has no gradient that interferes with the loss.

    Args:
        bias: bias of each expert, zeros at first.
        load: slots that were sent to each expert: `plan.load`, which counts those that a capacity
            dropped; or their sum over several steps.
        rate: size of an update, above 0, in units of the scores; DeepSeek-V3 takes 0.001 for
            sigmoid scores.
        axis_name: device axis to sum the load over, inside `pmap` or `shard_map`; the bias is then
            the same on all devices.

    Returns:
        The new bias, in the dtype of the old one. At perfect balance, and without load, it is the
        old one.

    Raises:
        ValueError: if the rate is not positive and finite.

    Example:
        >>> update_selection_bias(jnp.zeros(3), jnp.array([5, 1, 3]), rate=0.5)
        Array([-0.5,  0.5,  0. ], dtype=float32)

    References:
        Wang et al., Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts, 2024;
        DeepSeek-AI, DeepSeek-V3 Technical Report, 2024.
    """
    check_positive("rate", rate)
    load = jax.lax.stop_gradient(psum(load, axis_name))
    # the mean is `whole + rest / experts`: exact in integers
    whole, rest = jnp.divmod(
        jnp.sum(load, axis=-1, keepdims=True, dtype=load.dtype), load.shape[-1]
    )
    below = (load < whole) | ((load == whole) & (rest > 0))
    sign = below.astype(bias.dtype) - (load > whole).astype(bias.dtype)
    return bias + rate * sign
