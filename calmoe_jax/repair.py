"""Temperatures for a split without its labels: what its routing configurations suggest.

Each calibrator here sees labelled held-out examples and unlabelled ones of the split, gives the
aggregate one temperature, and never one below the temperature fitted in distribution: unlabelled
examples are thin evidence for more confidence.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax import calibration, mixture, shift
from calmoe_jax.data import Split
from calmoe_jax.training.loop import over_seeds

# Where there is no other seed there is nothing to agree with.
CALIBRATORS = (
    "configuration_balanced",
    "agreement",
    "separability",
    "difference_of_confidences",
    "average_threshold",
)
_SLOPE = 1.5
# Of the test: relabellings, and how many examples a side where they are independent.
_PERMUTATIONS = 199
_MOST_EXAMPLES = 1000


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
        shift: the test of the configuration.
    """

    temperatures: dict[str, Float[Array, " seeds"]]
    effective_share: Float[Array, " seeds"]
    balanced: Bool[Array, " seeds"]
    separability: Float[Array, " seeds"]
    shift: shift.ShiftTest


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


def fit_to_targets(
    held_out: Sample,
    held_out_split: Split,
    temperature: Float[Array, " seeds"],
    targets: Sample,
    target_split: Split,
    *,
    most_clusters: int | None = None,
) -> Repair:
    """Fits every calibrator of this module, for every seed.

    Args:
        held_out: of the calibration split.
        held_out_split: that split.
        temperature: of the aggregate, fitted on it.
        targets: of the split to be repaired; may be padded at the end.
        target_split: that split; its labels are not looked at.
        most_clusters: clusters of the split with the most of them, so that splits share a program.

    Returns:
        A `Repair`. Where something cannot be found, the given temperature; no `agreement` with
        one seed.
    """
    labels = jnp.asarray(held_out_split.labels)
    where = jnp.arange(targets.routing_weights.shape[1]) < len(target_split)
    fits = _fit_each(held_out, labels, temperature, targets, where)
    temperatures = dict(fits.temperatures)
    if len(temperature) > 1:
        temperatures["agreement"] = _fit_agreement(held_out, labels, temperature, targets, where)
    usable = {
        name: jnp.where(jnp.isfinite(temperatures[name]), temperatures[name], temperature)
        for name in CALIBRATORS
        if name in temperatures
    }
    tested = _test(held_out, held_out_split, targets, target_split, most_clusters)
    return Repair(usable, fits.effective_share, fits.balanced, fits.separability, tested)


@jax.jit
def _fit_each(
    held_out: Sample,
    labels: Int[Array, " examples"],
    temperature: Float[Array, " seeds"],
    targets: Sample,
    where: Bool[Array, " targets"],
) -> _Fits:
    def one_seed(of_held_out: Sample, temperature: Float[Array, ""], of_targets: Sample) -> _Fits:
        ours, theirs = (mixture.configuration(*x) for x in (of_held_out, of_targets))
        scaled, target_scaled = (
            calibration.scale_log_probs(x.log_probs, temperature[None]) for x in (ours, theirs)
        )
        confidence, correct = calibration.top_label(scaled, labels, from_logits=True)
        target_confidence = jnp.exp(jnp.max(target_scaled, axis=-1))
        count = jnp.sum(where)
        mean = jnp.mean(confidence)
        target_mean = jnp.sum(jnp.where(where, target_confidence, 0)) / count
        off = jnp.where(where, target_confidence - target_mean, 0)
        error = jnp.sqrt(
            jnp.var(confidence) / len(confidence) + jnp.sum(jnp.square(off)) / count**2
        )
        told = shift.separability(
            shift.configuration_coordinates(*of_held_out),
            shift.configuration_coordinates(*of_targets),
            target_where=where,
        )
        aims = {
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
        found = {
            name: _match(theirs.log_probs, aim, temperature, where) for name, aim in aims.items()
        }
        solution = shift.configuration_balance(
            mixture.configuration_features(ours),
            mixture.configuration_features(theirs),
            target_where=where,
        )
        balanced = solution.feasible & solution.converged
        fit = calibration.fit_temperature(
            ours.log_probs, labels, weights=jnp.exp(solution.log_weights)
        )
        found["configuration_balanced"] = jnp.where(
            balanced & fit.converged, jnp.maximum(fit.temperature, temperature), temperature
        )
        share = solution.effective_sample_size / len(labels)
        return _Fits(found, share, balanced, told)

    return over_seeds(one_seed)(held_out, temperature, targets)


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
    return shift.match_confidence(log_probs, aim, at_least=temperature, where=where).temperature


def _test(
    held_out: Sample,
    held_out_split: Split,
    targets: Sample,
    target_split: Split,
    most_clusters: int | None,
) -> shift.ShiftTest:
    """The test of the configuration, on at most so many independent examples a side."""
    sides, wheres, clusters, first = [], [], [], 0
    for sample, split in ((held_out, held_out_split), (targets, target_split)):
        length = sample.routing_weights.shape[1]
        independent = split.num_clusters == len(split)
        step = -(-length // _MOST_EXAMPLES) if independent else 1
        where = np.arange(0, length, step) < len(split)
        numbers = np.full(len(where), first)
        numbers[where] += np.unique(split.clusters[::step], return_inverse=True)[1]
        sides.append(Sample(*(x[:, ::step] for x in sample)))
        wheres.append(jnp.asarray(where))
        clusters.append(numbers)
        found = len(where) if independent else split.num_clusters
        first += found if independent or split is held_out_split else max(found, most_clusters or 0)
    together = jnp.asarray(np.concatenate(clusters), jnp.int32)
    return _test_each(*sides, wheres[1], together, first)


@partial(jax.jit, static_argnums=4)
def _test_each(
    held_out: Sample,
    targets: Sample,
    where: Bool[Array, " targets"],
    clusters: Int[Array, " all"],
    num_clusters: int,
) -> shift.ShiftTest:
    def one_seed(of_held_out: Sample, of_targets: Sample) -> shift.ShiftTest:
        return shift.configuration_shift_test(
            jax.random.key(0),
            mixture.configuration(*of_held_out),
            mixture.configuration(*of_targets),
            target_where=where,
            clusters=clusters,
            num_clusters=num_clusters,
            num_permutations=_PERMUTATIONS,
        )

    # the relabellings are the same for all seeds: drawn once
    return jax.vmap(one_seed)(held_out, targets)
