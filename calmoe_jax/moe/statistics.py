"""Statistics of the gates of sparse layers as sums over tokens, which add up over devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_positive
from calmoe_jax._numerics import at_least_float32, entropy, normal_cdf, wide_dtype
from calmoe_jax._signatures import checked
from calmoe_jax.moe.route import Routed
from calmoe_jax.routing import expert_importance, gate_probabilities, gate_statistics
from calmoe_jax.routing.statistics import count_tokens


class LayerStatistics(NamedTuple):
    """Sums over the tokens that count, for each sparse layer of a network.

    They are of this device's tokens; the functions of them sum over devices (`axis_name=`).
    Unless said otherwise they are of the gate logits without noise.

    Attributes:
        importance: sum of the gate probabilities of each expert, in tokens.
        load: slots that were sent to each expert (with noise, if there was any), including those
            dropped by the capacity.
        smooth_load: sum over the tokens of the probability that the expert is among the `k` chosen
            when its noise alone is drawn anew; without noise the load.
        squared_logsumexp: sum of `(log sum_e exp g_te)^2`.
        entropy: sum of the gates' Shannon entropies, in nats.
        dropped: slots beyond the capacity.
        num_tokens: tokens that count.
    """

    importance: Float[Array, "*layers experts"]
    load: Int[Array, "*layers experts"]
    smooth_load: Float[Array, "*layers experts"]
    squared_logsumexp: Float[Array, "*layers"]
    entropy: Float[Array, "*layers"]
    dropped: Int[Array, "*layers"]
    num_tokens: Int[Array, "*layers"]


@checked
def layer_statistics(
    gate_logits: Float[Array, "tokens experts"],
    routed: Routed,
    noise: Float[Array, "tokens experts"] | None = None,
    *,
    where: Bool[Array, " tokens"] | None = None,
    noise_scale: float = 1.0,
) -> LayerStatistics:
    """Sums the statistics of one sparse layer over its tokens.

    With noise `n_te` of standard deviation `s`, and `h_te` the `k`-th largest of the *other*
    experts' `g_tj + n_tj`, the smooth load is `sum_t Phi((g_te - h_te) / s)`.

    Args:
        gate_logits: the router's logits without noise; `-inf` masks an expert.
        routed: what `route` made of the logits (with their noise); its choice must be by the
            logits alone, without a bias or groups, for the smooth load to be what it says.
        noise: normal noise that was added to the logits; `None` for none.
        where: tokens that count; all by default. The others may hold anything and get no gradient.
        noise_scale: standard deviation of the noise, above 0; unused without noise.

    Returns:
        A `LayerStatistics` without axes of layers, at least float32; stack several with
        `jax.tree.map`. The sums are NaN if a token that counts cannot be routed.

    Raises:
        ValueError: if the scale is not positive and finite.

    Example:
        >>> logits = jnp.log(jnp.array([[0.75, 0.25], [0.5, 0.5]]))
        >>> layer = layer_statistics(logits, route(logits, k=1))
        >>> layer.importance.tolist(), layer.load.tolist()
        ([1.25, 0.75], [2, 0])

    References:
        Shazeer et al., Outrageously Large Neural Networks, 2017, appendix A; Riquelme et al.,
        Scaling Vision with Sparse Mixture of Experts, 2021, appendix A (which compares with the
        `k`-th largest of all experts, so that the chosen ones compete with themselves).
    """
    check_positive("noise_scale", noise_scale)
    logits = at_least_float32(gate_logits)
    if where is not None:
        logits = jnp.where(where[:, None], logits, 0)  # may be NaN, and gets no gradient
    probs = gate_probabilities(logits)
    log_sums = gate_statistics(logits, where=where).logsumexp
    load = routed.plan.load
    if noise is None:
        smooth = load.astype(probs.dtype)
    else:
        k = routed.routing.expert_indices.shape[-1]
        chances = _chances(logits, at_least_float32(noise), k, noise_scale)
        smooth = expert_importance(jnp.where(jnp.isnan(probs), jnp.nan, chances), where=where)
    entropies = entropy(probs)
    return LayerStatistics(
        importance=expert_importance(probs, where=where),
        load=load,
        smooth_load=smooth,
        squared_logsumexp=jnp.sum(jnp.square(log_sums)),
        entropy=jnp.sum(entropies if where is None else jnp.where(where, entropies, 0)),
        dropped=routed.plan.num_over_capacity,
        num_tokens=count_tokens(logits.shape[0], where),
    )


def _chances(
    logits: Float[Array, "tokens experts"],
    noise: Float[Array, "tokens experts"],
    k: int,
    scale: float,
) -> Float[Array, "tokens experts"]:
    """Probability that each expert is among the `k` best when its own noise is drawn anew."""
    dtype = wide_dtype(logits.dtype, noise.dtype)
    noisy = logits.astype(dtype) + noise.astype(dtype)
    experts = logits.shape[-1]
    if k == experts:
        return jnp.isfinite(logits).astype(dtype)
    top = jax.lax.top_k(noisy, k + 1)[0]
    # what an expert has to exceed: the k-th largest of the others
    bar = jnp.where(noisy >= top[:, k - 1 : k], top[:, k:], top[:, k - 1 : k])
    masked, free = jnp.isneginf(logits), jnp.isneginf(bar)
    lead = jnp.where(masked | free, 0, logits) - jnp.where(masked | free, 0, bar)
    chance = normal_cdf(lead / scale)
    return jnp.where(masked, 0, jnp.where(free, 1, chance))
