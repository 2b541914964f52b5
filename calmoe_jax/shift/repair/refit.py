"""Calibrators fitted anew to labelled targets, and deployed if other labels show that they help."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from calmoe_jax._checks import check_non_negative
from calmoe_jax._numerics import AxisName, all_rows, psum, row_positions
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
from calmoe_jax.shift.few_labels._draw_values import Steps, steps_of
from calmoe_jax.shift.few_labels.betting import lower_confidence_sequence
from calmoe_jax.shift.repair.sample import Sample, observe
from calmoe_jax.shift.repair.temperatures import usable_temperature, with_possible_labels

# What is fitted, in this order.
REFITS = ("temperature", "expert_temperatures", "configuration_balanced")
# Largest difference of two Brier scores of an example.
_MOST = 2.0
_DEVIATION = 0.3
# Losses up to this, or twice the tolerance, can be excluded; nothing is said of larger ones.
_LEAST_TRIED = 0.125


class Refit(NamedTuple):
    """A calibrator to deploy: experts at their temperatures are mixed, the aggregate is at another.

    Attributes:
        expert_temperatures: temperature of each expert.
        temperature: temperature of the aggregate.
        chosen: which of `REFITS` it is; -1 for the reference, where none is shown to be as good.
        improvement: mean improvement of the Brier score of each of `REFITS` over the reference, on
            the labels that it was not fitted to.
        lower: lower bound of it, -2 where nothing is shown; they hold together at the level.
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
    chances: Float[Array, " targets"] | None = None,
    tolerance: float = 0.01,
    level: float = 0.9,
    axis_name: AxisName = None,
) -> Refit:
    """Fits calibrators to the first half of the labels, and deploys what the second half confirms.

    Candidates are a temperature of the aggregate, temperatures of the experts on their routed
    views, and a temperature fitted to held-out examples under weights that balance the
    configuration, together with the labels; a label counts by the inverse of its target's
    probability to be among the first half, `1 - (1 - chance)^n`. For each candidate the improvement
    of the Brier score over the reference, a mean over all targets, has a lower bound by betting
    (`lower_confidence_sequence`, at the level divided among the candidates) on unbiased estimates,
    as in `confidence_gap_sequence`. Of those whose bound is at least `-tolerance` the one that
    improved most is deployed, if it did improve; otherwise the reference. So, with probability
    `level`, what is deployed is worse on these targets than the reference by at most the tolerance.

    Args:
        held_out: labelled examples, of one model.
        labels: their classes.
        targets: the targets.
        target_labels: class of each target that was labelled; read for drawn ones only.
        drawn: targets in the order in which they were drawn, each once; -1 for padding.
        temperature: of the aggregate: the reference.
        target_where: targets that count; all by default.
        chances: chance of each target to be drawn among those that are left, above 0 if it counts,
            as from `few_labels.label_chances`; equal ones by default.
        tolerance: largest loss of the Brier score to be excluded, at least 0.
        level: probability that it is, in (0, 1).
        axis_name: device axis that both samples are sharded over, and the chances with the targets.
            Draws are the same on all devices; a target's number counts all devices. Drawn targets
            and the aggregate's held-out predictions are gathered.

    Returns:
        A `Refit`. With few labels it is the reference, since nothing can be confirmed. A drawn
        label outside the classes, NaN in a drawn row, or a draw that cannot be (a target drawn
        before, or that does not count) makes it the reference too, and the bounds NaN.

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
    counts = jnp.ones(target_labels.shape, bool) if target_where is None else target_where
    chances = None if chances is None else all_rows(chances, axis_name)
    steps = steps_of(all_rows(counts, axis_name), chances, drawn)
    *theirs, given = (
        _of_rows(x, steps.row, axis_name)
        for x in (targets.expert_log_probs, targets.routing_weights, target_labels)
    )
    return refit_to_draws(
        held_out, labels, targets, Sample(*theirs), given, steps, temperature=temperature,
        target_where=target_where, tolerance=tolerance, level=level, axis_name=axis_name,
    )  # fmt: skip


def _of_rows(
    x: Shaped[Array, "targets ..."], rows: Int[Array, " draws"], axis_name: AxisName
) -> Shaped[Array, "draws ..."]:
    """Rows of an array by their numbers on all devices."""
    local = rows - row_positions(len(x), axis_name)[0]
    here = (local >= 0) & (local < len(x))
    found = x[jnp.clip(local, 0, len(x) - 1)]
    return psum(jnp.where(here.reshape(-1, *(1,) * (x.ndim - 1)), found, 0), axis_name)


def refit_to_draws(
    held_out: Sample,
    labels: Int[Array, " examples"],
    targets: Sample,
    theirs: Sample,
    given: Int[Array, " draws"],
    steps: Steps,
    *,
    temperature: Float[Array, ""],
    target_where: Bool[Array, " targets"] | None = None,
    tolerance: float,
    level: float,
    axis_name: AxisName = None,
) -> Refit:
    """The same, where the targets that are balanced are a part of those that labels were drawn of.

    Args:
        held_out: labelled examples, of one model.
        labels: their classes.
        targets: targets whose configuration is balanced.
        theirs: the drawn targets.
        given: their classes.
        steps: of the draws, from all targets.
        temperature: of the aggregate: the reference.
        target_where: which of `targets` count; all by default.
        tolerance: largest loss of the Brier score to be excluded.
        level: probability that it is.
        axis_name: device axis of `held_out` and `targets`.
    """
    check_non_negative("tolerance", tolerance)
    check_level(level)
    counted = steps.counted
    first = counted & (jnp.cumsum(counted) <= jnp.sum(counted) // 2)
    of_label = jnp.where(first, _inverse_of_inclusion(steps, first), 0)
    balanced = _balanced(held_out, labels, targets, target_where, axis_name)
    fitted = _fit(balanced, theirs, given, of_label, temperature)
    reference = _Calibrator(jnp.ones_like(fitted.expert_temperatures[0]), temperature)
    before = _squared(reference, theirs, given)
    after = jax.vmap(lambda x: _squared(x, theirs, given))(fitted)
    judged = counted & ~first
    share = 1 / jnp.sum(steps.chance > 0).astype(steps.chance.dtype)
    most = jnp.max(jnp.where(steps.chance > 0, share / steps.chance, 0), initial=0)

    # a range as narrow as what is asked, so that the candidates of the bound lie close
    lowest = -min(max(_LEAST_TRIED, 2 * tolerance), _MOST)

    def bound(better: Float[Array, " draws"]) -> Float[Array, ""]:
        of_draw = jnp.where(counted, share * better, 0)
        value = of_draw / jnp.where(counted, steps.probability, 1)
        shown = lower_confidence_sequence(
            value, known=jnp.cumsum(of_draw) - of_draw, least=-_MOST * most,
            mean_range=(lowest, lowest + 1), where=judged, level=1 - (1 - level) / len(REFITS),
            planned=max(len(given) // 2, 1), deviation=_DEVIATION,
        )[-1]  # fmt: skip
        shown = jnp.where(shown <= lowest, -_MOST, shown)
        # what targets without a label can take away at most
        left = jnp.maximum(1 - jnp.sum(jnp.where(counted, share, 0)), 0)
        return jnp.maximum(shown, jnp.sum(of_draw) - _MOST * left)

    better = jnp.where(jnp.any(steps.bad), jnp.nan, before[None] - after)
    weight = jnp.where(judged, 1 / jnp.where(judged, steps.chance[steps.row], 1), 0)
    total = jnp.sum(weight)
    sums = jnp.sum(weight[None] * jnp.where(judged[None], better, 0), axis=1)
    improvement = sums / jnp.where(total == 0, jnp.nan, total)
    lower = jax.lax.map(bound, better)
    passes = (lower >= -tolerance) & (improvement > 0)
    best = jnp.argmax(jnp.where(passes, improvement, -jnp.inf))
    chosen = jnp.where(jnp.any(passes), best, -1).astype(jnp.int32)
    deployed = jax.tree.map(
        lambda x, otherwise: jnp.where(chosen >= 0, x[jnp.maximum(chosen, 0)], otherwise),
        fitted, reference,
    )  # fmt: skip
    return Refit(deployed.expert_temperatures, deployed.temperature, chosen, improvement, lower)


def _inverse_of_inclusion(steps: Steps, first: Bool[Array, " draws"]) -> Float[Array, " draws"]:
    """Inverse of each target's probability to be among the first draws, with a mean of 1."""
    number = jnp.sum(first).astype(steps.chance.dtype)
    chance = jnp.where(first, steps.chance[steps.row], 1)
    included = -jnp.expm1(jnp.maximum(number, 1) * jnp.log1p(-chance))
    inverse = jnp.where(first, 1 / included, 0)
    return inverse * number / jnp.maximum(jnp.sum(inverse), 1)


class _Balanced(NamedTuple):
    """Held-out examples with the targets' configurations; weights sum to what they are worth."""

    log_probs: Float[Array, "examples classes"]
    labels: Int[Array, " examples"]
    weights: Float[Array, " examples"]


def _balanced(
    held_out: Sample,
    labels: Int[Array, " examples"],
    targets: Sample,
    target_where: Bool[Array, " targets"] | None,
    axis_name: AxisName,
) -> _Balanced:
    own = observe(held_out)
    solution = configuration_balance(
        own.features, observe(targets).features, target_where=target_where, axis_name=axis_name
    )
    weights = all_rows(jnp.exp(solution.log_weights), axis_name)
    # a label of a target counts as one of the examples that the balanced ones are worth
    size = jnp.square(jnp.sum(weights)) / jnp.sum(jnp.square(weights))
    log_probs = with_possible_labels(own.config.log_probs, labels)
    return _Balanced(all_rows(log_probs, axis_name), all_rows(labels, axis_name), weights * size)


def _fit(
    balanced: _Balanced,
    theirs: Sample,
    given: Int[Array, " draws"],
    of_label: Float[Array, " draws"],
    temperature: Float[Array, ""],
) -> _Calibrator:
    """The candidates, with a leading axis in the order of `REFITS`; labels have weights."""
    log_probs = with_possible_labels(mix_log_probs(*theirs), given)
    plain = usable_temperature(fit_temperature(log_probs, given, weights=of_label))
    of_experts = fit_expert_temperatures(
        theirs.expert_log_probs, given, routing_weights=theirs.routing_weights * of_label[:, None]
    )
    experts = usable_temperature(of_experts)
    both = fit_temperature(
        jnp.concatenate([balanced.log_probs, log_probs]),
        jnp.concatenate([balanced.labels, given]),
        weights=jnp.concatenate([balanced.weights, of_label.astype(balanced.weights.dtype)]),
    )
    found = jnp.stack([plain, jnp.ones_like(plain), usable_temperature(both)])
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
