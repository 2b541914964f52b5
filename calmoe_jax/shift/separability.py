"""How well a classifier distinguishes unlabelled target examples from held-out ones."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_positive
from calmoe_jax._numerics import AxisName, at_least_float32
from calmoe_jax._signatures import checked
from calmoe_jax.shift._discriminator import cross_fitted_log_odds, judgeable, pool

# Smaller weights are replaced by this one: their logarithm would dominate.
_LEAST_WEIGHT = 1e-6


@checked
def configuration_coordinates(
    expert_log_probs: Float[Array, "examples experts classes"],
    routing_weights: Float[Array, "examples experts"],
) -> Float[Array, "examples coordinates"]:
    """The routing configuration as coordinates: log weights and log probabilities, centred.

    Args:
        expert_log_probs: each expert's log probabilities, in nats.
        routing_weights: weight of each expert.

    Returns:
        `experts * classes + experts` columns. Each expert's log probabilities and the logarithms of
        the weights (of at least 1e-6) have mean 0 along their axis, as logits would.

    Example:
        >>> configuration_coordinates(jnp.zeros((5, 3, 2)), jnp.full((5, 3), 1 / 3)).shape
        (5, 9)
    """
    logs = at_least_float32(expert_log_probs)
    logs = jnp.maximum(logs, jnp.log(jnp.finfo(logs.dtype).tiny))
    logs = logs - jnp.mean(logs, axis=-1, keepdims=True)
    gates = jnp.log(jnp.maximum(at_least_float32(routing_weights), _LEAST_WEIGHT))
    gates = gates - jnp.mean(gates, axis=-1, keepdims=True)
    return jnp.concatenate([logs.reshape(len(logs), -1), gates], axis=-1)


@checked
def separability(
    held_out: Float[Array, "examples coordinates"],
    targets: Float[Array, "targets coordinates"],
    *,
    where: Bool[Array, " examples"] | None = None,
    target_where: Bool[Array, " targets"] | None = None,
    penalty: float = 100.0,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """How well a cross-fitted linear classifier separates two samples: `clip(2 AUC - 1, 0, 1)`.

    Ridge logistic regression on standardised columns, both samples of equal weight, fitted on the
    even rows of each (of those that count) and judged on the odd ones, and the other way round.

    Of more than 256 columns the classifier sees 256 leading principal directions of both samples
    together, and the difference of the means of the rows that it is fitted on. Rotations do not
    change a ridge regression, so that only what these directions leave out is lost; on 450 to 900
    columns that was .02 at most. The cost is then linear in rows and columns.

    Args:
        held_out: rows of the one sample.
        targets: rows of the other.
        where: held-out rows that count; all by default.
        target_where: targets that count; all by default.
        penalty: `penalty / 2 |beta|^2` is added to the sum of the log losses of a fold; above 0.
        axis_name: device axis that both samples are sharded over; each device works on all rows.

    Returns:
        0 if the samples cannot be separated or one has fewer than two rows, 1 if they can be
        separated perfectly, NaN if a number that counts is NaN. Dependent rows in both folds make
        it too large.

    Raises:
        ValueError: if the samples differ in columns, `penalty` is not above 0, or a mask has
            another shape than what it masks.

    Example:
        >>> a, b = jnp.linspace(0, 1, 50)[:, None], jnp.linspace(2, 3, 50)[:, None]
        >>> separability(a, b), separability(a, a)
        (Array(1., dtype=float32), Array(0., dtype=float32))

    References:
        Ben-David et al., Analysis of Representations for Domain Adaptation, 2007.
    """
    check_positive("penalty", penalty)
    pooled = pool(held_out, targets, where=where, target_where=target_where, axis_name=axis_name)
    scores = cross_fitted_log_odds(pooled, penalty)

    def area(fold: Bool[Array, " rows"]) -> Float[Array, ""]:
        return _area_under_curve(scores, pooled.is_target, pooled.counts & fold)

    mean = jnp.mean(jnp.stack([area(pooled.even), area(~pooled.even)]))
    return jnp.where(judgeable(pooled), jnp.clip(2 * mean - 1, 0, 1), 0)


def _area_under_curve(
    scores: Float[Array, " n"], is_target: Bool[Array, " n"], counts: Bool[Array, " n"]
) -> Float[Array, ""]:
    """Probability that a target scores higher than a held-out example; ties count half."""
    low = counts & ~is_target
    high = counts & is_target
    ranked = jnp.sort(jnp.where(low, scores, jnp.inf))
    below = jnp.searchsorted(ranked, scores, side="left")
    up_to = jnp.searchsorted(ranked, scores, side="right")
    up_to = jnp.minimum(up_to, jnp.sum(low, dtype=up_to.dtype))
    wins = 0.5 * (below + up_to).astype(scores.dtype)
    pairs = jnp.sum(low).astype(scores.dtype) * jnp.sum(high).astype(scores.dtype)
    area = jnp.sum(jnp.where(high, wins, 0)) / jnp.where(pairs > 0, pairs, 1)
    unknown = jnp.any(jnp.isnan(scores) & counts)
    return jnp.where(unknown, jnp.nan, jnp.where(pairs > 0, area, 0.5))
