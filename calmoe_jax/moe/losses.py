"""Losses of a gate from the plan and the statistics that `route` has already computed.

The same losses as `calmoe_jax.routing.load_balancing_loss` and `router_z_loss`, which take gate
logits or probabilities. The tokens that count are those that counted for `route`. Of stacked
results (of `vmap`, or of a scan over layers) the losses are stacked too.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from calmoe_jax._numerics import AxisName, psum, safe_divide
from calmoe_jax.moe.route import Routed


def load_balancing_loss(routed: Routed, *, axis_name: AxisName = None) -> Float[Array, "*stacked"]:
    """Penalises experts that receive many slots and have high gate probability.

    With `f_e` the fraction of all slots sent to expert `e` and `P_e` its mean gate
    probability, the loss is `E sum_e f_e P_e`: **1 at perfect balance for every k**, and up to
    `E / k` at collapse. Only `P_e` carries a gradient.

    Args:
        routed: what `route` returns, or the `routed` of a sparse layer.
        axis_name: device axis to sum over, inside `pmap` or `shard_map`: sums and counts are
            summed, so uneven shards give the loss of the full batch.

    Returns:
        The loss, a float32 scalar; 0 without tokens, NaN if one that counts cannot be routed. Slots
        dropped by a capacity count as sent; slots of weight 0 do not count.

    Example:
        >>> routed = route(jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]])), k=1)
        >>> cm.moe.load_balancing_loss(routed)
        Array(1., dtype=float32)

    References:
        Fedus et al., Switch Transformers, 2021, eq. 4 (whose constant is also 1, for k = 1).
    """
    mean = routed.statistics.mean_gate_probs
    load = psum(routed.plan.load, axis_name).astype(mean.dtype)
    importance = psum(mean * _own_count(routed)[..., None], axis_name)
    slots_times_tokens = jnp.sum(load, axis=-1) * psum(_own_count(routed), axis_name)
    correlation = jnp.sum(load * importance, axis=-1)
    return load.shape[-1] * safe_divide(correlation, slots_times_tokens)


def router_z_loss(routed: Routed, *, axis_name: AxisName = None) -> Float[Array, "*stacked"]:
    """Mean squared log-partition of the gate: `mean_t (log sum_e exp g_te)^2`.

    Args:
        routed: what `route` returns, or the `routed` of a sparse layer.
        axis_name: device axis to sum over, inside `pmap` or `shard_map`.

    Returns:
        The loss, a float32 scalar; 0 without tokens, and 0 where every token's gate logits are the
        logs of probabilities; NaN if a token that counts cannot be routed.

    Example:
        >>> cm.moe.router_z_loss(route(jnp.log(jnp.array([[0.5, 0.5]])), k=1))
        Array(0., dtype=float32)

    References:
        Zoph et al., ST-MoE, 2022.
    """
    total = psum(jnp.sum(jnp.square(routed.statistics.logsumexp), axis=-1), axis_name)
    return safe_divide(total, psum(_own_count(routed), axis_name))


def _own_count(routed: Routed) -> Float[Array, "*stacked"]:
    """Tokens that count on this device."""
    return routed.statistics.num_tokens.astype(routed.statistics.logsumexp.dtype)
