"""Calibrators fitted anew to labelled targets, and deployed if other labels show that they help."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_non_negative
from calmoe_jax._signatures import checked
from calmoe_jax.calibration.calibrators import (
    fit_expert_temperatures,
    fit_temperature,
    scale_log_probs,
)
from calmoe_jax.calibration.intervals._interval import check_level
from calmoe_jax.calibration.metrics.scores import squared_distances
from calmoe_jax.mixture import mix_log_probs
from calmoe_jax.shift.balance import configuration_balance
from calmoe_jax.shift.few_labels.betting import lower_confidence_sequence
from calmoe_jax.shift.repair.sample import Sample, observe
from calmoe_jax.shift.repair.temperatures import usable_temperature, with_possible_labels

# What is fitted, in this order.
REFITS = ("temperature", "expert_temperatures", "configuration_balanced")
# Largest difference of two Brier scores of an example.
_MOST = 2.0
_DEVIATION = 0.3


class Refit(NamedTuple):
    """A calibrator to deploy: experts at their temperatures are mixed, the aggregate is at another.

    Attributes:
        expert_temperatures: temperature of each expert.
        temperature: temperature of the aggregate.
        chosen: which of `REFITS` it is; -1 for the reference, where none is shown to be as good.
        improvement: mean improvement of the Brier score of each of `REFITS` over the reference, on
            the labels that it was not fitted to.
        lower: lower bound of it; they hold together at the level.
    """

    expert_temperatures: Float[Array, " experts"]
    temperature: Float[Array, ""]
    chosen: Int[Array, ""]
    improvement: Float[Array, " refits"]
    lower: Float[Array, " refits"]


class _Calibrator(NamedTuple):
    expert_temperatures: Float[Array, "*refits experts"]
    temperature: Float[Array, "*refits"]


@checked
def refit_with_labels(
    held_out: Sample,
    labels: Int[Array, " examples"],
    targets: Sample,
    target_labels: Int[Array, " targets"],
    drawn: Int[Array, " draws"],
    *,
    temperature: Float[Array, ""],
    target_where: Bool[Array, " targets"] | None = None,
    tolerance: float = 0.01,
    level: float = 0.9,
) -> Refit:
    """Fits calibrators to the first half of the labels, and deploys what the second half confirms.

    Candidates are a temperature of the aggregate, temperatures of the experts on their routed
    views, and a temperature fitted to held-out examples under weights that balance the
    configuration, together with the labels. For each, the improvement of the Brier score over the
    reference has a lower bound by betting (`lower_confidence_sequence`, at the level divided among
    the candidates). Of those whose bound is at least `-tolerance` the one that improved most is
    deployed, if it did improve; otherwise the reference. So, with probability `level`, what is
    deployed is worse than the reference by at most the tolerance.

    Args:
        held_out: labelled examples, of one model.
        labels: their classes.
        targets: the targets.
        target_labels: class of each target that was labelled; read for drawn ones only.
        drawn: targets in the order in which they were drawn, each with the same chance; -1 for
            padding.
        temperature: of the aggregate: the reference.
        target_where: targets that count; all by default.
        tolerance: largest loss of the Brier score to be excluded, at least 0.
        level: probability that it is, in (0, 1).

    Returns:
        A `Refit`. With few labels it is the reference, since nothing can be confirmed. A drawn
        label outside the classes, or NaN in a drawn row, makes it the reference too, and the
        bounds NaN.

    Raises:
        ValueError: if a number is out of range, or sizes do not match.

    Example:
        >>> rows = jnp.log(jnp.array([[[0.9, 0.1], [0.6, 0.4]]] * 400))
        >>> sample = Sample(rows, jnp.full((400, 2), 0.5))
        >>> wrong = (jnp.arange(400) % 2).astype(jnp.int32)
        >>> found = refit_with_labels(
        ...     sample, jnp.zeros(400, jnp.int32), sample, wrong, jnp.arange(300),
        ...     temperature=jnp.array(0.5),
        ... )
        >>> cm.shift.repair.REFITS[int(found.chosen)], bool(found.temperature > 0.5)
        ('temperature', True)

    References:
        Guo et al., On Calibration of Modern Neural Networks, 2017; Oksuz et al., MoCaE, 2023. The
        test is in the spirit of Angelopoulos et al., Learn then Test, 2021.
    """
    check_non_negative("tolerance", tolerance)
    check_level(level)
    counted = drawn >= 0
    row = jnp.clip(drawn, 0, len(target_labels) - 1)
    theirs = Sample(targets.expert_log_probs[row], targets.routing_weights[row])
    given = target_labels[row]
    first = counted & (jnp.cumsum(counted) <= jnp.sum(counted) // 2)
    fitted = _fit(held_out, labels, targets, theirs, given, first, temperature, target_where)
    reference = _Calibrator(jnp.ones_like(fitted.expert_temperatures[0]), temperature)
    before = _squared(reference, theirs, given)
    after = jax.vmap(lambda x: _squared(x, theirs, given))(fitted)
    judged = counted & ~first

    def bound(better: Float[Array, " draws"]) -> Float[Array, ""]:
        return lower_confidence_sequence(
            better, least=-_MOST, mean_range=(-_MOST, _MOST), where=judged,
            level=1 - (1 - level) / len(REFITS), planned=max(len(drawn) // 2, 1),
            deviation=_DEVIATION,
        )[-1]  # fmt: skip

    better = before[None] - after
    number = jnp.sum(judged).astype(better.dtype)
    sums = jnp.sum(jnp.where(judged[None], better, 0), axis=1)
    improvement = sums / jnp.where(number == 0, jnp.nan, number)
    lower = jax.lax.map(bound, better)
    passes = (lower >= -tolerance) & (improvement > 0)
    best = jnp.argmax(jnp.where(passes, improvement, -jnp.inf))
    chosen = jnp.where(jnp.any(passes), best, -1).astype(jnp.int32)
    deployed = jax.tree.map(
        lambda x, otherwise: jnp.where(chosen >= 0, x[jnp.maximum(chosen, 0)], otherwise),
        fitted, reference,
    )  # fmt: skip
    return Refit(deployed.expert_temperatures, deployed.temperature, chosen, improvement, lower)


def _fit(
    held_out: Sample,
    labels: Int[Array, " examples"],
    targets: Sample,
    theirs: Sample,
    given: Int[Array, " draws"],
    first: Bool[Array, " draws"],
    temperature: Float[Array, ""],
    target_where: Bool[Array, " targets"] | None,
) -> _Calibrator:
    """The candidates, with a leading axis in the order of `REFITS`."""
    log_probs = with_possible_labels(mix_log_probs(*theirs), given)
    plain = usable_temperature(fit_temperature(log_probs, given, where=first))
    of_experts = fit_expert_temperatures(
        theirs.expert_log_probs, given, routing_weights=theirs.routing_weights, where=first
    )
    experts = usable_temperature(of_experts)
    own = observe(held_out)
    weights = jnp.exp(
        configuration_balance(
            own.features, observe(targets).features, target_where=target_where
        ).log_weights
    )
    # a label of a target counts as one of the examples that the balanced ones are worth
    size = jnp.square(jnp.sum(weights)) / jnp.sum(jnp.square(weights))
    both = jnp.concatenate([with_possible_labels(own.config.log_probs, labels), log_probs])
    weighted = jnp.concatenate([weights * size, first.astype(weights.dtype)])
    balanced = fit_temperature(both, jnp.concatenate([labels, given]), weights=weighted)
    found = jnp.stack([plain, jnp.ones_like(plain), usable_temperature(balanced)])
    ones = jnp.ones_like(experts)
    usable = jnp.isfinite(found)
    return _Calibrator(
        jnp.stack([ones, jnp.where(jnp.isfinite(experts), experts, 1), ones]),
        jnp.where(usable, found, temperature),
    )


def _squared(
    by: _Calibrator, sample: Sample, labels: Int[Array, " draws"]
) -> Float[Array, " draws"]:
    """Squared distance of each prediction from its label."""
    mixed = mixed_at(sample, by.expert_temperatures, by.temperature)
    return squared_distances(mixed, labels, from_logits=True)


def mixed_at(
    sample: Sample, expert_temperatures: Float[Array, " experts"], temperature: Float[Array, ""]
) -> Float[Array, "examples classes"]:
    """Log probabilities of the mixture of scaled experts, at a temperature of its own.

    Args:
        sample: of one model.
        expert_temperatures: of each expert, before they are mixed.
        temperature: of the aggregate.
    """
    experts = scale_log_probs(sample.expert_log_probs, expert_temperatures[None])
    return scale_log_probs(mix_log_probs(experts, sample.routing_weights), temperature[None])
