"""Temperatures for a split without its labels: what its routing configurations suggest.

Each calibrator here sees labelled held-out examples and unlabelled ones of the split, gives the
aggregate one temperature, and never one below the temperature fitted in distribution: unlabelled
examples are thin evidence for more confidence.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax import calibration, mixture, shift
from calmoe_jax._mapping import over_seeds
from calmoe_jax._numerics import largest_or_nan

# `neighbours`: their labels; `agreement`: theirs and that of seeds, whichever asks for less
# confidence (where there is no other seed, there is nothing to agree with).
CALIBRATORS = (
    "agreement",
    "neighbours",
    "configuration_balanced",
    "separability",
    "difference_of_confidences",
    "average_threshold",
)
_SLOPE = 1.5
# Examples a side among which neighbours are looked for; the others are left out evenly.
_MOST_NEIGHBOURS = 2000
# A largest routing weight above this one is the whole, up to rounding.
_HARD = 1 - 1e-6
# An aim is at least so far above the confidence of a uniform prediction, which no T > 0 reaches.
_LEAST_ABOVE = 1e-3


class Sample(NamedTuple):
    """What the networks of all seeds say of a split, an expert a slot; unchosen ones are uniform.

    Attributes:
        expert_log_probs: log probabilities of every expert, after its own temperature.
        routing_weights: weights of all experts, 0 for those not chosen.
    """

    expert_log_probs: Float[Array, "seeds examples experts classes"]
    routing_weights: Float[Array, "seeds examples experts"]


class Repair(NamedTuple):
    """Temperatures of the aggregate, for each seed, and what they rest on.

    Attributes:
        temperatures: by calibrator.
        effective_share: effective share of the held-out examples under the balancing weights.
        balanced: whether those were found.
        separability: of held-out and target configurations.
        hard: whether each target is routed to one expert.
        shift: the test of the configuration.
        smallest_p_value: that the test could have given.
    """

    temperatures: dict[str, Float[Array, " seeds"]]
    effective_share: Float[Array, " seeds"]
    balanced: Bool[Array, " seeds"]
    separability: Float[Array, " seeds"]
    hard: Bool[Array, " seeds"]
    shift: shift.ShiftTest
    smallest_p_value: float


def dense_sample(
    expert_log_probs: Float[Array, "seeds examples slots classes"],
    routing_weights: Float[Array, "seeds examples slots"],
    expert_indices: Int[Array, "seeds examples slots"],
    *,
    num_experts: int,
) -> Sample:
    """Slots as experts: those that were not chosen get weight 0 and uniform probabilities.

    So a split of which the chosen experts alone were computed and one of which all were can be
    compared.
    """
    seeds, examples, slots, classes = expert_log_probs.shape
    chosen = routing_weights > 0
    uniform = -jnp.log(jnp.asarray(classes, jnp.float32))
    log_probs = jnp.where(chosen[..., None], expert_log_probs, uniform)
    rows = jnp.arange(seeds * examples)[:, None]
    indices = expert_indices.reshape(-1, slots)
    weights = (
        jnp.zeros((len(rows), num_experts))
        .at[rows, indices]
        .add(routing_weights.reshape(-1, slots))
    )
    held = (
        jnp.full((len(rows), num_experts, classes), uniform)
        .at[rows, indices]
        .set(log_probs.reshape(-1, slots, classes))
    )
    return Sample(
        held.reshape(seeds, examples, num_experts, classes),
        weights.reshape(seeds, examples, num_experts),
    )


class _Fits(NamedTuple):
    temperatures: dict[str, Float[Array, "*seeds"]]
    effective_share: Float[Array, "*seeds"]
    balanced: Bool[Array, "*seeds"]
    separability: Float[Array, "*seeds"]
    hard: Bool[Array, "*seeds"]


def fit_to_targets(
    held_out: Sample,
    labels: np.ndarray,
    clusters: np.ndarray,
    temperature: Float[Array, " seeds"],
    targets: Sample,
    target_clusters: np.ndarray,
    *,
    most_clusters: int | None = None,
    num_permutations: int = 199,
    most_examples: int = 1000,
) -> Repair:
    """Fits every calibrator of this module, for every seed.

    Args:
        held_out: what was said of labelled held-out examples.
        labels: their classes.
        clusters: their clusters.
        temperature: of the aggregate, fitted on them.
        targets: what was said of unlabelled examples; may be padded at the end.
        target_clusters: clusters of those that are real.
        most_clusters: clusters of the targets with the most of them, so that several calls share
            a program.
        num_permutations: relabellings of the test.
        most_examples: examples a side of the test, where each is a cluster of its own; the others
            are left out evenly.

    Returns:
        A `Repair`. Where a rule has no aim (NaN), the given temperature; an aim near or below
        1 / classes makes predictions all but uniform; no `agreement` with one seed.
    """
    length = targets.routing_weights.shape[1]
    where = jnp.arange(length) < len(target_clusters)
    given = held_out, jnp.asarray(labels), temperature, targets, where
    own, theirs = (np.unique(c, return_inverse=True)[1] for c in (clusters, target_clusters))
    theirs = np.pad(theirs, (0, length - len(theirs)))
    fits = _fit_each(*given, jnp.asarray(own, jnp.int32), jnp.asarray(theirs, jnp.int32))
    temperatures = dict(fits.temperatures)
    if len(temperature) > 1:
        # a maximum leaves out NaN
        both = _fit_agreement(*given), temperatures["neighbours"]
        temperatures["agreement"] = jnp.fmax(*both)
    usable = {
        name: jnp.where(jnp.isfinite(temperatures[name]), temperatures[name], temperature)
        for name in CALIBRATORS
        if name in temperatures
    }
    sides, numbers, counts = _sides(
        held_out, clusters, targets, target_clusters, most_clusters, most_examples
    )
    tested = _test_each(*sides, *numbers, sum(counts), num_permutations)
    smallest = shift.smallest_p_value(*(len(np.unique(c)) for c in (clusters, target_clusters)))
    return Repair(
        usable, fits.effective_share, fits.balanced, fits.separability, fits.hard, tested, smallest
    )


def usable_temperature(fit: calibration.calibrators.TemperatureFit) -> Float[Array, "*batch"]:
    """Temperatures to apply where not all have a finite optimum.

    Towards infinity (confidence is never justified) the bound of the search, which says next to
    nothing, as it should; 1 (as it is) where all held-out examples are right, which does not show
    that confidence should be boundless, or where there was nothing to fit.

    Args:
        fit: fitted temperatures.
    """
    flat = fit.at_bound & (fit.temperature > 1)
    return jnp.where(fit.converged | flat, fit.temperature, 1.0)


def describe(repaired: Repair, seed: int, num_held_out: int) -> dict[str, Any]:
    """What is known of the shift, and what to do about it, as plain values.

    Args:
        repaired: as from `fit_to_targets`.
        seed: which of the seeds, from 0.
        num_held_out: labelled held-out examples.
    """
    tested = {name: float(x[seed]) for name, x in repaired.shift._asdict().items()}
    share, balanced = float(repaired.effective_share[seed]), bool(repaired.balanced[seed])
    verdict = shift.repair_verdict(
        tested["p_value"],
        share,
        num_held_out,
        hard=bool(repaired.hard[seed]),
        feasible=balanced,
        smallest_p_value=repaired.smallest_p_value,
    )
    return {
        **tested,
        "effective_share": share,
        "balanced": balanced,
        "separability": float(repaired.separability[seed]),
        "temperatures": {k: float(t[seed]) for k, t in repaired.temperatures.items()},
        "decision": verdict.decision,
        "reason": verdict.reason,
    }


@jax.jit
def _fit_each(
    held_out: Sample,
    labels: Int[Array, " examples"],
    temperature: Float[Array, " seeds"],
    targets: Sample,
    where: Bool[Array, " targets"],
    clusters: Int[Array, " examples"],
    target_clusters: Int[Array, " targets"],
) -> _Fits:
    def one_seed(of_held_out: Sample, temperature: Float[Array, ""], of_targets: Sample) -> _Fits:
        ours, theirs = (mixture.configuration(*x) for x in (of_held_out, of_targets))
        scaled, target_scaled = (
            calibration.calibrators.scale_log_probs(x.log_probs, temperature[None])
            for x in (ours, theirs)
        )
        confidence, correct = calibration.top_label(scaled, labels, from_logits=True)
        target_confidence = largest_or_nan(jnp.exp(target_scaled))
        count = jnp.sum(where)
        mean = jnp.mean(confidence)
        target_mean = jnp.sum(jnp.where(where, target_confidence, 0)) / count
        off = jnp.where(where, target_confidence - target_mean, 0)
        error = jnp.sqrt(
            jnp.var(confidence) / len(confidence) + jnp.sum(jnp.square(off)) / count**2
        )
        coordinates, target_coordinates = (
            shift.configuration_coordinates(*x) for x in (of_held_out, of_targets)
        )
        told = shift.separability(coordinates, target_coordinates, target_where=where)
        predicted, target_predicted = (jnp.argmax(x.log_probs, axis=-1) for x in (ours, theirs))
        rows, _ = _spread(len(labels), len(labels))
        target_rows, target_counted = _spread(count, len(where))
        references = coordinates[rows], labels[rows]
        support = shift.neighbour_support(
            coordinates[rows], predicted[rows], *references, num_classes=scaled.shape[-1],
            clusters=clusters[rows], num_clusters=len(labels), reference_clusters=clusters[rows],
        )  # fmt: skip
        target_support = shift.neighbour_support(
            target_coordinates[target_rows], target_predicted[target_rows], *references,
            num_classes=scaled.shape[-1], clusters=target_clusters[target_rows],
            num_clusters=len(where), where=target_counted,
        )  # fmt: skip
        aims = {
            "neighbours": shift.neighbour_accuracy(support, target_support, mean),
            "separability": shift.separability_confidence(
                mean, target_mean, error, told, num_classes=scaled.shape[-1]
            ),
            "difference_of_confidences": shift.difference_of_confidences(
                jnp.mean(correct.astype(mean.dtype)), mean, target_mean, slope=_SLOPE
            ),
            "average_threshold": shift.average_threshold_accuracy(
                confidence, correct, target_confidence, target_where=where
            ),
        }
        matched = jax.vmap(lambda aim: _match(theirs.log_probs, aim, temperature, where))(
            jnp.stack(list(aims.values()))
        )
        found = dict(zip(aims, matched, strict=True))
        solution = shift.configuration_balance(
            mixture.configuration_features(ours),
            mixture.configuration_features(theirs),
            target_where=where,
        )
        balanced = solution.feasible & solution.converged
        fit = calibration.calibrators.fit_temperature(
            ours.log_probs, labels, weights=jnp.exp(solution.log_weights)
        )
        found["configuration_balanced"] = jnp.where(
            balanced & fit.converged, jnp.maximum(fit.temperature, temperature), temperature
        )
        share = solution.effective_sample_size / len(labels)
        hard = jnp.all(jnp.where(where, jnp.max(of_targets.routing_weights, axis=-1), 1) > _HARD)
        return _Fits(found, share, balanced, told, hard)

    return over_seeds(one_seed)(held_out, temperature, targets)


def _spread(
    count: int | Int[Array, ""], size: int
) -> tuple[Int[Array, " rows"], Bool[Array, " rows"]]:
    """Rows of neighbours' examples, evenly over the first `count` of `size`; which are any."""
    most = min(size, _MOST_NEIGHBOURS)
    step = jnp.maximum(count / most, 1)
    rows = jnp.floor(jnp.arange(most) * step).astype(jnp.int32)
    return jnp.minimum(rows, jnp.maximum(count - 1, 0)), rows < count


@jax.jit
def _fit_agreement(
    held_out: Sample,
    labels: Int[Array, " examples"],
    temperature: Float[Array, " seeds"],
    targets: Sample,
    where: Bool[Array, " targets"],
) -> Float[Array, " seeds"]:
    ours, theirs = (mixture.mix_log_probs(*x) for x in (held_out, targets))
    num_classes = ours.shape[-1]
    predicted, target_predicted = (jnp.argmax(x, axis=-1) for x in (ours, theirs))
    agreement = shift.chance_corrected_agreement(predicted, num_classes=num_classes)
    target_agreement = shift.chance_corrected_agreement(
        target_predicted, num_classes=num_classes, where=where
    )
    confidence = jax.vmap(shift.mean_confidence)(ours, temperature)
    counted = jnp.where(where[None, :, None], jax.nn.one_hot(target_predicted, num_classes), 0)
    shares = jnp.sum(counted, axis=1) / jnp.sum(where)
    chance = shares @ jnp.mean(jax.nn.one_hot(labels, num_classes), axis=0)
    aims = shift.agreement_accuracy(agreement, target_agreement, confidence, chance)

    def match(
        log_probs: Float[Array, "targets classes"],
        aim: Float[Array, ""],
        temperature: Float[Array, ""],
    ) -> Float[Array, ""]:
        return _match(log_probs, aim, temperature, where)

    return over_seeds(match)(theirs, aims, temperature)


def _match(
    log_probs: Float[Array, "targets classes"],
    aim: Float[Array, ""],
    temperature: Float[Array, ""],
    where: Bool[Array, " targets"],
) -> Float[Array, ""]:
    aim = jnp.maximum(aim, 1 / log_probs.shape[-1] + _LEAST_ABOVE)
    return shift.match_confidence(log_probs, aim, at_least=temperature, where=where).temperature


def _sides(
    held_out: Sample,
    clusters: np.ndarray,
    targets: Sample,
    target_clusters: np.ndarray,
    most_clusters: int | None,
    most_examples: int,
) -> tuple[list[Sample], tuple[Bool[Array, " targets"], Int[Array, " all"]], list[int]]:
    """What the test is made on: both sides, which targets count, clusters, their numbers.

    A cluster with examples on both sides is one on each.
    """
    sides: list[Sample] = []
    numbers: list[np.ndarray] = []
    counts: list[int] = []
    counted = np.ones(0, bool)
    for sample, names in ((held_out, clusters), (targets, target_clusters)):
        length, own = sample.routing_weights.shape[1], len(np.unique(names))
        independent = own == len(names)
        size = min(length, most_examples) if independent else length
        # as many rows whatever is real, so that splits share a program
        rows = np.linspace(0, len(names) - 1, min(len(names), size)).round().astype(int)
        counted = np.arange(size) < len(rows)
        number = np.full(size, sum(counts))
        number[counted] += np.unique(names[rows], return_inverse=True)[1]
        padded = jnp.asarray(np.pad(rows, (0, size - len(rows))))
        sides.append(Sample(*(x[:, padded] for x in sample)))
        numbers.append(number)
        counts.append(size if independent else max(own, (counts and most_clusters) or 0))
    together = jnp.asarray(np.concatenate(numbers), jnp.int32)
    return sides, (jnp.asarray(counted), together), counts


@partial(jax.jit, static_argnums=(4, 5))
def _test_each(
    held_out: Sample,
    targets: Sample,
    where: Bool[Array, " targets"],
    clusters: Int[Array, " all"],
    num_clusters: int,
    num_permutations: int,
) -> shift.ShiftTest:
    def one_seed(of_held_out: Sample, of_targets: Sample) -> shift.ShiftTest:
        return shift.configuration_shift_test(
            jax.random.key(0),
            mixture.configuration(*of_held_out),
            mixture.configuration(*of_targets),
            target_where=where,
            clusters=clusters,
            num_clusters=num_clusters,
            num_permutations=num_permutations,
        )

    # the relabellings are the same for all seeds: drawn once
    return jax.vmap(one_seed)(held_out, targets)
