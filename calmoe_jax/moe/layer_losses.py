"""Losses and a summary of sparse layers, from their statistics.

The losses are means over the layers. Given sums of shards with an `axis_name`, they are those of
all tokens together: sums are added first.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName, psum, safe_divide
from calmoe_jax._signatures import checked
from calmoe_jax.moe.statistics import LayerStatistics

# An expert with less than this part of the fair share of slots is dead.
_ALIVE = 1 / 20


class LayerSummary(NamedTuple):
    """What the gates of sparse layers do.

    Attributes:
        share_dropped: share of the slots sent that were beyond the capacity, in [0, 1].
        mean_entropy: mean Shannon entropy of a token's gate, in nats.
        load_shares: share of the slots that was sent to each expert; sums to one.
        dead: experts that were sent less than a twentieth of the fair share of slots.
    """

    share_dropped: Float[Array, "*layers"]
    mean_entropy: Float[Array, "*layers"]
    load_shares: Float[Array, "*layers experts"]
    dead: Bool[Array, "*layers experts"]


@checked
def importance_loss(layers: LayerStatistics, *, axis_name: AxisName = None) -> Float[Array, ""]:
    """Penalises experts of unequal importance: `var_e(I_e) / mean_e(I_e)^2`.

    `I_e` is the sum of the expert's gate probabilities. 0 at balance, `E - 1` at collapse.

    Args:
        layers: statistics of the layers.
        axis_name: device axis that the tokens are sharded over, inside `pmap` or `shard_map`.

    Returns:
        The mean over the layers; 0 without tokens.

    Example:
        >>> logits = jnp.log(jnp.array([[0.75, 0.25]]))
        >>> importance_loss(layer_statistics(logits, route(logits, k=1))).round(6)
        Array(0.25, dtype=float32)

    References:
        Shazeer et al., Outrageously Large Neural Networks, 2017, eq. 6 and 7.
    """
    return jnp.mean(_squared_variation(psum(layers.importance, axis_name)))


@checked
def smooth_load_loss(layers: LayerStatistics, *, axis_name: AxisName = None) -> Float[Array, ""]:
    """Penalises experts of unequal smooth load: `var_e(L_e) / mean_e(L_e)^2`.

    `L_e` is the `smooth_load`. 0 at balance, up to `E / k - 1` at collapse. It has a gradient only
    where there was noise.

    Args:
        layers: statistics of the layers.
        axis_name: device axis that the tokens are sharded over, inside `pmap` or `shard_map`.

    Returns:
        The mean over the layers; 0 without tokens.

    Example:
        >>> logits = jnp.log(jnp.array([[0.75, 0.25]]))
        >>> smooth_load_loss(layer_statistics(logits, route(logits, k=1)))
        Array(1., dtype=float32)

    References:
        Shazeer et al., Outrageously Large Neural Networks, 2017, eq. 10 and 11.
    """
    return jnp.mean(_squared_variation(psum(layers.smooth_load, axis_name)))


@checked
def mean_load_balancing_loss(
    layers: LayerStatistics, *, axis_name: AxisName = None
) -> Float[Array, ""]:
    """The load-balancing loss of each layer, `E sum_e f_e P_e`: 1 at balance, up to `E / k`.

    As `load_balancing_loss`: `f_e` is the share of slots sent to the expert, `P_e` its mean gate
    probability (without noise). Only `P_e` carries a gradient.

    Args:
        layers: statistics of the layers.
        axis_name: device axis that the tokens are sharded over, inside `pmap` or `shard_map`.

    Returns:
        The mean over the layers; 0 without tokens.

    Example:
        >>> logits = jnp.log(jnp.array([[0.75, 0.25]]))
        >>> mean_load_balancing_loss(layer_statistics(logits, route(logits, k=1))).round(6)
        Array(1.5, dtype=float32)

    References:
        Fedus et al., Switch Transformers, 2021, eq. 4.
    """
    total = _total(layers, axis_name)
    dtype = total.importance.dtype
    load = total.load.astype(dtype)
    correlation = jnp.sum(load * total.importance, axis=-1)
    slots_times_tokens = jnp.sum(load, axis=-1) * total.num_tokens.astype(dtype)
    return jnp.mean(load.shape[-1] * safe_divide(correlation, slots_times_tokens))


@checked
def mean_z_loss(layers: LayerStatistics, *, axis_name: AxisName = None) -> Float[Array, ""]:
    """The router z-loss of each layer, `mean_t (log sum_e exp g_te)^2`.

    Args:
        layers: statistics of the layers.
        axis_name: device axis that the tokens are sharded over, inside `pmap` or `shard_map`.

    Returns:
        The mean over the layers; 0 without tokens.

    Example:
        >>> logits = jnp.array([[1.0, -jnp.inf], [0.0, -jnp.inf]])
        >>> mean_z_loss(layer_statistics(logits, route(logits, k=1)))
        Array(0.5, dtype=float32)

    References:
        Zoph et al., ST-MoE, 2022.
    """
    total = _total(layers, axis_name)
    tokens = total.num_tokens.astype(total.squared_logsumexp.dtype)
    return jnp.mean(safe_divide(total.squared_logsumexp, tokens))


@checked
def summarise_layers(layers: LayerStatistics, *, axis_name: AxisName = None) -> LayerSummary:
    """Summarises what the gates of sparse layers do.

    Args:
        layers: statistics of the layers, of one batch or summed over several.
        axis_name: device axis that the tokens are sharded over, inside `pmap` or `shard_map`.

    Returns:
        A `LayerSummary`. Without slots all shares are 0, and no expert is dead.

    Example:
        >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))
        >>> summarise_layers(layer_statistics(logits, route(logits, k=1, capacity=1))).share_dropped
        Array(0.5, dtype=float32)
    """
    total = _total(layers, axis_name)
    dtype = total.importance.dtype
    load = total.load.astype(dtype)
    slots = jnp.sum(load, axis=-1)
    shares = safe_divide(load, jnp.broadcast_to(slots[..., None], load.shape))
    few = shares * load.shape[-1] < _ALIVE
    return LayerSummary(
        share_dropped=safe_divide(total.dropped.astype(dtype), slots),
        mean_entropy=safe_divide(total.entropy, total.num_tokens.astype(dtype)),
        load_shares=shares,
        dead=few & jnp.greater(slots, 0)[..., None],
    )


def _total(layers: LayerStatistics, axis_name: AxisName) -> LayerStatistics:
    """The sums over all devices."""
    total: LayerStatistics = jax.tree.map(lambda x: psum(x, axis_name), layers)
    return total


def _squared_variation(values: Float[Array, "*layers experts"]) -> Float[Array, "*layers"]:
    """The squared coefficient of variation over the experts."""
    mean = jnp.mean(values, axis=-1, keepdims=True)
    return safe_divide(jnp.mean(jnp.square(values - mean), axis=-1), jnp.square(mean)[..., 0])
