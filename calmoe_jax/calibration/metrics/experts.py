"""Calibration of a mixture and of its experts, each on its routed examples.

An expert is evaluated on its *view* of the data: every example counts with a view weight.
The routing weights themselves are the routing-weighted view, `chosen_region` of them is the view of
a hard-routed expert; ones where they are above 0 are that of an expert among the top k.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import (
    at_least_float32,
    entropy,
    example_weights,
    largest_or_nan,
    safe_divide,
    weighted_sum,
    wide_dtype,
)
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import probabilities
from calmoe_jax.calibration._sums import total
from calmoe_jax.calibration.diagrams import mean_and_error
from calmoe_jax.calibration.metrics.binning import ReliabilityBins, classwise_bins, top_label_bins
from calmoe_jax.calibration.metrics.errors import calibration_error, expected_calibration_error
from calmoe_jax.mixture import mix

_ExpertProbs = Float[Array, "examples experts classes"]
_Routing = Float[Array, "examples experts"]
_Labels = Int[Array, " examples"]
_Weights = Float[Array, " examples"] | None
_Where = Bool[Array, " examples"] | None


class ExpertCalibration(NamedTuple):
    """Calibration of every expert on its view of the data.

    Attributes:
        top_label: expected calibration error of the expert's predicted class.
        classwise: expected calibration error of each class, averaged over the classes.
        gap: mean confidence minus accuracy; above 0 is over-confident.
        load: mean view weight of an example; for routing weights that sum to one these are the
            experts' shares of the data. An expert with load 0 has NaN errors.
        effective_examples: Kish's number of examples in the view, `(sum v)^2 / sum v^2`. Noise
            alone makes a binned error up to about `0.4 sqrt(bins / effective_examples)`.
    """

    top_label: Float[Array, " experts"]
    classwise: Float[Array, " experts"]
    gap: Float[Array, " experts"]
    load: Float[Array, " experts"]
    effective_examples: Float[Array, " experts"]


class MixtureErrors(NamedTuple):
    """Calibration error of a mixture against those of its experts, in one condition.

    Attributes:
        aggregate: error of the aggregate `F = sum_k r_k f_k`.
        experts: error of each expert on its routing-weighted view; NaN without load.
        expert_mean: mean of the experts' errors by load.
        gap: `aggregate - expert_mean`: the error that mixing adds (above 0) or removes (below 0).
    """

    aggregate: Float[Array, ""]
    experts: Float[Array, " experts"]
    expert_mean: Float[Array, ""]
    gap: Float[Array, ""]


class MixtureCalibration(NamedTuple):
    """Calibration of a mixture and of its experts, and the confidence of its router.

    Attributes:
        top_label: errors of the confidence in each model's predicted class.
        classwise: errors of the probability of each class, averaged over the classes.
        load: share of the routing weight of each expert.
        router_confidence: mean largest routing weight, in [1 / experts, 1]; 1 for hard routing.
        routing_entropy: mean Shannon entropy of the routing weights, in nats.
    """

    top_label: MixtureErrors
    classwise: MixtureErrors
    load: Float[Array, " experts"]
    router_confidence: Float[Array, ""]
    routing_entropy: Float[Array, ""]


@checked
def chosen_region(
    routing_weights: Float[Array, "*examples experts"],
) -> Float[Array, "*examples experts"]:
    """View weights of hard routing: 1 for the expert with the largest weight, 0 for the others.

    Args:
        routing_weights: non-negative weight of each expert.

    Returns:
        One-hot rows, at least float32; ties go to the lower expert. A row of zeros stays zero (the
        example belongs to no expert); a row with NaN is NaN.

    Example:
        >>> chosen_region(jnp.array([[0.2, 0.8], [0.5, 0.5]]))
        Array([[0., 1.],
               [1., 0.]], dtype=float32)
    """
    weights = at_least_float32(routing_weights)
    largest = largest_or_nan(weights)
    chosen = jax.nn.one_hot(jnp.argmax(weights, axis=-1), weights.shape[-1], dtype=weights.dtype)
    # compilers may fold products with the zeros of a one-hot row to 0, even for NaN factors
    chosen = jnp.where((largest > 0)[..., None], chosen, 0)
    return jnp.where(jnp.isnan(largest)[..., None], jnp.nan, chosen)


@checked
def expert_bins(
    expert_probs: _ExpertProbs,
    routing_weights: _Routing,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> ReliabilityBins:
    """Reliability sums of every expert's predicted class, on its view of the data.

    An example has weight `w v_k` for expert k: its weight times its view weight. Condition:
    top-label, for the class that the expert predicts.

    Args:
        expert_probs: each expert's class probabilities (or logits, with `from_logits`).
        routing_weights: view weight of each example for each expert, non-negative: the routing
            weights, or `chosen_region` of them. `routing_weights(routing, ...)` writes a top-k
            routing in this form.
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `expert_probs` holds logits or log probabilities.

    Returns:
        The sums with a leading axis of experts, ready for `calibration_error` and
        `reliability_curve`; sums of parts of the data add up. An expert may be NaN where its view
        weight is 0: it need not have been computed there. A negative view weight becomes NaN.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> probs = jnp.array([[[0.25, 0.75], [0.5, 0.5]]])
        >>> expert_bins(probs, jnp.array([[0.75, 0.25]]), jnp.array([1]), num_bins=2).weight
        Array([[0.  , 0.75],
               [0.  , 0.25]], dtype=float32)
    """
    view = _view_weights(expert_probs, routing_weights, weights, where)

    def of_expert(
        probs: Float[Array, "examples classes"], weight: Float[Array, " examples"]
    ) -> ReliabilityBins:
        return top_label_bins(
            probs, labels, weights=weight, num_bins=num_bins, from_logits=from_logits
        )

    return jax.vmap(of_expert, in_axes=1)(expert_probs, view)


@checked
def expert_calibration(
    expert_probs: _ExpertProbs,
    routing_weights: _Routing,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> ExpertCalibration:
    """Calibration error of every expert on its routing-weighted view.

    The metric of each expert with the gate's weights as example weights, `w r_k`. This is the
    condition of the theory of mixtures: calibrated experts are those with
    `E[r_k (e_Y - f_k) | f_k] = 0`. A mixture of them is calibrated at the source only where the
    active experts agree (see `disagreement_identity`).

    Args:
        expert_probs: each expert's class probabilities (or logits, with `from_logits`).
        routing_weights: view weight of each example for each expert, non-negative; rows need not
            sum to one. With `chosen_region` of them every expert is evaluated on the region where
            its weight is the largest: the condition under which a hard-routed mixture is
            calibrated, and stays so under every shift that keeps the distribution of labels given
            expert and confidence.
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `expert_probs` holds logits or log probabilities.

    Returns:
        An `ExpertCalibration`. An expert without load has load 0 and NaN errors. If no example
        counts all is NaN. An expert may be NaN where its weight is 0.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> probs = jnp.array([[[0.25, 0.75], [0.5, 0.5]]])
        >>> expert_calibration(probs, jnp.array([[1.0, 0.0]]), jnp.array([1])).top_label
        Array([0.25,  nan], dtype=float32)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    view = _view_weights(expert_probs, routing_weights, weights, where)
    bins = expert_bins(
        expert_probs,
        routing_weights,
        labels,
        weights=weights,
        where=where,
        num_bins=num_bins,
        from_logits=from_logits,
    )

    def by_class(
        probs: Float[Array, "examples classes"], weight: Float[Array, " examples"]
    ) -> Float[Array, ""]:
        bins = classwise_bins(
            probs, labels, weights=weight, num_bins=num_bins, from_logits=from_logits
        )
        return jnp.mean(calibration_error(bins))

    load = jax.vmap(total, in_axes=1)(view)
    share = view / jnp.where(load == 0, 1, load)[None]  # squares of small weights underflow
    held = total(example_weights(labels.shape, weights, where, view.dtype))
    effective = safe_divide(jnp.ones_like(load), jnp.sum(jnp.square(share), axis=0))
    return ExpertCalibration(
        top_label=calibration_error(bins),
        classwise=jax.vmap(by_class, in_axes=1)(expert_probs, view),
        gap=jnp.sum(bins.residual, axis=-1) / load,
        load=load / held,
        effective_examples=jnp.where(held == 0, jnp.nan, effective),
    )


@checked
def mixture_calibration(
    expert_probs: _ExpertProbs,
    routing_weights: _Routing,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    num_bins: int = 15,
    from_logits: bool = False,
) -> MixtureCalibration:
    """Calibration errors of the aggregate and of its experts, and the router's confidence.

    The gap between them shows whether calibrating the experts is sufficient: if the experts are
    calibrated (`expert_mean` near 0) and the aggregate is not, they disagree. With hard routing the
    gap is never above 0: residuals of different experts in one bin may cancel.

    Args:
        expert_probs: each expert's class probabilities (or logits, with `from_logits`).
        routing_weights: weight of each expert; non-negative, summing to one.
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.
        from_logits: whether `expert_probs` holds logits or log probabilities; the experts'
            probabilities are mixed, not their logits.

    Returns:
        A `MixtureCalibration`. Experts without load are NaN and left out of the means; where
        nothing counts all is NaN. A row of routing weights that does not sum to one is NaN if it
        counts. An expert may be NaN where its weight is 0. Binned errors are biased upwards, the
        experts' more than the aggregate's, since they have fewer examples
        (`expert_calibration(...).effective_examples`).

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> probs = jnp.array([[[0.0, 1.0], [0.5, 0.5]]])
        >>> found = mixture_calibration(probs, jnp.array([[0.5, 0.5]]), jnp.array([1]))
        >>> found.top_label.aggregate, found.top_label.experts, found.router_confidence
        (Array(0.25, dtype=float32), Array([0. , 0.5], dtype=float32), Array(0.5, dtype=float32))

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026.
    """
    routing = probabilities(routing_weights, from_logits=False)
    probs = computed(probabilities(expert_probs, from_logits=from_logits), routing)
    aggregate = mix(probs, routing)
    if min(jnp.finfo(x.dtype).bits for x in (expert_probs, routing_weights)) < 32:
        # valid sums in the coarser dtype differ from 1 by more than the float32 tolerance
        aggregate = aggregate / jnp.sum(aggregate, axis=-1, keepdims=True)
    experts = expert_calibration(
        expert_probs,
        routing,
        labels,
        weights=weights,
        where=where,
        num_bins=num_bins,
        from_logits=from_logits,
    )
    top_label = expected_calibration_error(
        aggregate, labels, weights=weights, where=where, num_bins=num_bins
    )
    bins = classwise_bins(aggregate, labels, weights=weights, where=where, num_bins=num_bins)
    by_class = jnp.mean(calibration_error(bins))
    weight = example_weights(labels.shape, weights, where, routing.dtype)
    return MixtureCalibration(
        top_label=_against_experts(top_label, experts.top_label, experts.load),
        classwise=_against_experts(by_class, experts.classwise, experts.load),
        load=experts.load,
        router_confidence=mean_and_error(largest_or_nan(routing), weight)[0],
        routing_entropy=mean_and_error(entropy(routing), weight)[0],
    )


def _view_weights(
    expert_probs: _ExpertProbs, routing_weights: _Routing, weights: _Weights, where: _Where
) -> _Routing:
    """Weight of each example for each expert; negative ones become NaN."""
    dtype = wide_dtype(expert_probs.dtype, routing_weights.dtype)
    weight = example_weights(expert_probs.shape[:1], weights, where, dtype)
    view = routing_weights.astype(dtype)
    view = jnp.where(view < 0, jnp.nan, view)
    return jnp.where(weight[:, None] == 0, 0, view * weight[:, None])


def computed(probs: _ExpertProbs, routing: _Routing) -> _ExpertProbs:
    """Zeros where an expert has no weight, since it may not have been computed there."""
    return jnp.where(routing[..., None] == 0, 0, probs)


def _against_experts(
    aggregate: Float[Array, ""], experts: Float[Array, " experts"], load: Float[Array, " experts"]
) -> MixtureErrors:
    mean = weighted_sum(experts, load) / jnp.sum(load)
    return MixtureErrors(aggregate, experts, mean, aggregate - mean)
