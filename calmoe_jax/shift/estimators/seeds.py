"""The estimator from the agreement of models that were trained alike."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._numerics import AxisName, at_least_float32
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import largest_class
from calmoe_jax.shift.agreement import (
    Agreement,
    agreement_accuracy,
    chance_corrected_agreement,
)
from calmoe_jax.shift.estimators._observed import (
    Observed,
    as_estimate,
    chance_level,
    mean,
    observe,
    required,
)
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence


@checked
def seed_agreement(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    growth: float = 3.0,
    margin: float = 0.0,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """Accuracy falls with the chance-corrected agreement of the model with its peers (R1).

    `chance + (max(c_h, c_t) - chance) kappa^(1 + growth (1 - kappa)^2)`, with `c_h` and `c_t` the
    mean confidence on held-out and target examples, and `kappa` the ratio of Cohen's kappa on the
    targets to that on the held-out examples, clipped to [0, 1]. See `agreement_accuracy`. One pass
    over the predictions of all peers.

    Args:
        held_out: labelled examples, with peers.
        labels: their classes.
        targets: unlabelled examples, with the same peers.
        growth: growth of the exponent as agreement is lost, at least 0.
        margin: standard errors in favour of the targets, at least 0. A repair that must not do
            harm wants some (the mode safe takes 1.25); an estimate wants 0.
        axis_name: device axis that both samples are sharded over.

    Returns:
        An `AccuracyEstimate`. The standard error is that of the mean confidence and of kappa, to
        first order, with kappa's that of a pair of models. Where target agreement is above that on
        held-out examples it is of the unclipped estimate. NaN if models agree no better than by
        chance on held-out examples, without an example, or for a NaN or a label out of range in one
        that counts.

    Raises:
        ValueError: if peers are missing, a constant is negative, or sizes do not match.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]] * 4))
        >>> labels = jnp.array([0, 1] * 4)
        >>> held_out = Evidence(log_probs, peers=log_probs[None])
        >>> targets = Evidence(log_probs, peers=log_probs[None].at[:, :2].set(log_probs[:2][::-1]))
        >>> round(float(seed_agreement(held_out, labels, held_out).accuracy), 3)
        0.9
        >>> round(float(seed_agreement(held_out, labels, targets).accuracy), 3)
        0.619

    References:
        Jiang et al., Assessing Generalization of SGD via Disagreement, 2022; the rule is ours.
    """
    own, other = observe(held_out, labels, targets, axis_name)
    peers = required("peers", held_out, targets)
    return agreement_estimate(peers, labels, (own, other), growth=growth, margin=margin)


def agreement_estimate(
    peers: tuple[Float[Array, "peers examples classes"], Float[Array, "peers targets classes"]],
    labels: Int[Array, " examples"],
    seen: tuple[Observed, Observed],
    *,
    growth: float,
    margin: float,
) -> AccuracyEstimate:
    """The estimate of `seed_agreement`, from samples that have been looked at.

    Args:
        peers: log probabilities of the peers on both samples.
        labels: classes of the held-out examples.
        seen: predictions for both samples.
        growth: growth of the exponent as agreement is lost.
        margin: standard errors in favour of the targets.
    """
    own, other = seen
    held, found = (_of_first(p, s) for p, s in zip(peers, seen, strict=True))
    chance = chance_level(own, labels, other)
    before, after = (mean(s.confidence, s) for s in seen)
    estimate = agreement_accuracy(
        held, found, before.value[None], chance[None], target_confidence=after.value[None],
        growth=growth, margin=margin,
    )[0]  # fmt: skip
    ratio = found.kappa[0] / held.kappa[0]
    rho = jnp.clip(ratio, 0, 1)
    exponent = 1 + growth * jnp.square(1 - rho)
    kept = jnp.power(rho, exponent)
    # d rho^e(rho): both the base and the exponent move
    positive = jnp.where(rho > 0, rho, 1)
    moved = kept * (exponent / positive - 2 * growth * (1 - rho) * jnp.log(positive))
    if growth == 0:
        moved = jnp.ones_like(moved)
    of_ratio = jnp.square(found.standard_error[0]) + jnp.square(ratio * held.standard_error[0])
    of_ratio = of_ratio / jnp.square(held.kappa[0])
    larger = after.value > before.value
    of_anchor = jnp.where(larger, after.variance, before.variance)
    anchor = jnp.where(larger, after.value, before.value)
    variance = jnp.square(kept) * of_anchor
    variance += jnp.square((anchor - chance) * moved) * of_ratio
    return as_estimate(estimate, variance, own, other)


def predicted_by_peers(
    peers: Float[Array, "peers examples classes"], seen: Observed
) -> Int[Array, "peers examples"]:
    """Class that each peer predicts for each example; -1 where it predicts none."""
    flat = at_least_float32(peers).reshape(-1, peers.shape[-1])
    chosen = largest_class(jnp.exp(flat - jnp.max(flat, axis=-1, keepdims=True)))[1]
    chosen = jnp.where(jnp.isnan(flat).any(axis=-1), -1, chosen)
    return chosen.reshape(peers.shape[:2])


def _of_first(peers: Float[Array, "peers examples classes"], seen: Observed) -> Agreement:
    """Agreement of the model with its peers, as the only one of its axis."""
    predicted = jnp.concatenate([seen.predicted[None], predicted_by_peers(peers, seen)])
    agreement = chance_corrected_agreement(
        predicted, num_classes=seen.probs.shape[1], where=seen.counted, axis_name=seen.axis_name
    )
    return Agreement(*(x[:1].astype(seen.probs.dtype) for x in agreement))
