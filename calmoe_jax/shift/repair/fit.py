"""A temperature for each calibrator, for unlabelled examples and prepared held-out ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax import calibration
from calmoe_jax._mapping import over_seeds
from calmoe_jax._numerics import largest_or_nan
from calmoe_jax._signatures import checked
from calmoe_jax.mixture import Configuration
from calmoe_jax.shift.agreement import agreement_accuracy
from calmoe_jax.shift.balance import configuration_balance
from calmoe_jax.shift.confidence import (
    difference_of_confidences,
    mean_confidence,
    separability_confidence,
    share_above,
)
from calmoe_jax.shift.neighbours import neighbour_accuracy, neighbour_support
from calmoe_jax.shift.repair.held_out import HeldOut, OfAll, OfSeed, agreement_of_seeds, spread
from calmoe_jax.shift.repair.sample import Observed, Sample, observe
from calmoe_jax.shift.repair.sides import shift_of_sides, side_of
from calmoe_jax.shift.repair.temperatures import CALIBRATORS, match_aim, with_possible_labels
from calmoe_jax.shift.separability import separability
from calmoe_jax.shift.two_sample import ShiftTest, smallest_p_value

_SLOPE = 1.5
# A largest routing weight above this one is 1, up to rounding.
_HARD = 1 - 1e-6


class Repair(NamedTuple):
    """Temperatures of the aggregate for each seed, and the evidence for them.

    Attributes:
        temperatures: temperatures by calibrator.
        mean_confidence: mean confidence on the targets at each of these, with `none` and
            `temperature`, the model as it is and with the temperature fitted in distribution.
        effective_share: effective number of independent held-out units (clusters, if they are
            given) under the balancing weights, over their number.
        balanced: whether the balancing weights were found.
        separability: separability of held-out and target configurations, in [0, 1].
        hard: whether each target is routed to one expert.
        shift: the test for a shift of the configuration.
        smallest_p_value: smallest p-value that the test can give.
        num_held_out: number of independent held-out units.
        num_targets: number of independent units of the targets.
        clustered: whether the units of a side are clusters of several examples.
        num_peers: number of models that each seed's predictions were compared with.
    """

    temperatures: dict[str, Float[Array, " seeds"]]
    mean_confidence: dict[str, Float[Array, " seeds"]]
    effective_share: Float[Array, " seeds"]
    balanced: Bool[Array, " seeds"]
    separability: Float[Array, " seeds"]
    hard: Bool[Array, " seeds"]
    shift: ShiftTest
    smallest_p_value: float
    num_held_out: int
    num_targets: int
    clustered: bool
    num_peers: int


class _Fits(NamedTuple):
    temperatures: dict[str, Float[Array, "*seeds"]]
    effective_share: Float[Array, "*seeds"]
    balanced: Bool[Array, "*seeds"]
    separability: Float[Array, "*seeds"]
    hard: Bool[Array, "*seeds"]


@checked
def fit_to_targets(
    held_out: HeldOut,
    targets: Sample,
    target_clusters: np.ndarray,
    *,
    peers: Int[Array, "peers targets"] | None = None,
    most_clusters: int | None = None,
    num_permutations: int = 199,
    most_examples: int = 1000,
) -> Repair:
    """Fits every calibrator of this package, for every seed.

    Args:
        held_out: labelled held-out examples, as from `prepare`.
        targets: predictions for unlabelled examples; may be padded at the end.
        target_clusters: clusters of those that are real.
        peers: classes that the peers of `prepare` predict for the targets, in the same order.
        most_clusters: clusters of the targets with the most of them, so that several calls share
            a program.
        num_permutations: relabellings of the test.
        most_examples: targets of the test, where each is a cluster of its own; the others are left
            out evenly.

    Returns:
        A `Repair`. If a rule's aim is NaN its temperature is the held-out one; an aim near or below
        1 / classes makes predictions nearly uniform. With one seed and no peer `safe` is the
        held-out temperature, and `bold` that of the neighbours (see `MODES`).

    Raises:
        ValueError: if `peers` are not as many as those of the held-out examples.

    Example:
        >>> import numpy as np
        >>> rows = jnp.log(jnp.tile(jnp.array([[0.9, 0.1], [0.6, 0.4]]), (1, 60, 1, 1)))
        >>> sample = Sample(rows, jnp.full((1, 60, 2), 0.5))
        >>> labels = (np.arange(60) % 4 == 0).astype(np.int32)
        >>> held_out = prepare(sample, labels, np.arange(60), jnp.ones(1))
        >>> found = fit_to_targets(held_out, sample, np.arange(60))
        >>> found.temperatures["safe"], round(float(found.mean_confidence["none"][0]), 3)
        (Array([1.], dtype=float32), 0.75)
    """
    length = targets.routing_weights.shape[1]
    numbers = np.unique(target_clusters, return_inverse=True)[1]
    padded = np.pad(numbers, (0, length - len(numbers))).astype(np.int32)
    where = np.arange(length) < len(numbers)
    num_peers = 0 if peers is None else len(peers)
    if num_peers != held_out.num_peers:
        raise ValueError(
            f"peers must be the {held_out.num_peers} that the held-out examples were prepared "
            f"with, got {num_peers}."
        )
    fits, confidence, config = _fit(held_out.seeds, held_out.common, targets, peers, where, padded)
    num_targets = len(np.unique(numbers))
    side = side_of(
        np.asarray(target_clusters),
        length,
        most_examples=most_examples,
        least_clusters=most_clusters or 0,
    )
    own = held_out.side
    tested = shift_of_sides(
        held_out.seeds.observed.config,
        config,
        (own.rows, side.rows),
        side.counted,
        np.concatenate([own.numbers, own.num_clusters + side.numbers]).astype(np.int32),
        num_clusters=own.num_clusters + side.num_clusters,
        num_permutations=num_permutations,
    )
    return Repair(
        {name: fits.temperatures[name] for name in CALIBRATORS},
        {name: confidence[name] for name in ("none", "temperature", *CALIBRATORS)},
        fits.effective_share,
        fits.balanced,
        fits.separability,
        fits.hard,
        tested,
        smallest_p_value(held_out.num_clusters, num_targets),
        held_out.num_clusters,
        num_targets,
        held_out.num_clusters < len(held_out.common.labels) or num_targets < len(numbers),
        len(held_out.seeds.temperature) - 1 + num_peers,
    )


@jax.jit
def _fit(
    seeds: OfSeed,
    common: OfAll,
    targets: Sample,
    peers: Int[Array, "peers targets"] | None,
    where: Bool[Array, " targets"],
    clusters: Int[Array, " targets"],
) -> tuple[_Fits, dict[str, Float[Array, " seeds"]], Configuration]:
    """Temperatures of all seeds, mean confidences, and the targets' configurations for the test."""

    def one_seed(own: OfSeed, sample: Sample) -> tuple[_Fits, Observed]:
        theirs = observe(sample)
        separable = separability(own.observed.coordinates, theirs.coordinates, target_where=where)
        aims = _aims(own, common, theirs, separable, where, clusters)
        matched = jax.vmap(
            lambda aim: match_aim(theirs.config.log_probs, aim, own.temperature, where)
        )(jnp.stack(list(aims.values())))
        found = dict(zip(aims, matched, strict=True))
        found["configuration_balanced"], share, balanced = _balance(own, common, theirs, where)
        hard = jnp.all(jnp.where(where, jnp.max(sample.routing_weights, axis=-1), 1) > _HARD)
        return _Fits(found, share, balanced, separable, hard), theirs

    fits, theirs = over_seeds(one_seed)(seeds, targets)
    found = dict(fits.temperatures)
    found["safe"] = seeds.temperature
    if len(seeds.temperature) > 1 or peers is not None:
        found["safe"] = _match_agreement(seeds, common, theirs, peers, where)
    # a maximum would ignore NaN
    found["bold"] = jnp.fmax(found["safe"], found["neighbours"])
    usable = {
        name: jnp.where(jnp.isfinite(value), value, seeds.temperature)
        for name, value in found.items()
    }
    given = {"none": jnp.ones_like(seeds.temperature), "temperature": seeds.temperature, **usable}
    confidence = over_seeds(_mean_confidences)(
        theirs.config.log_probs, jnp.stack(list(given.values()), axis=1),
        jnp.broadcast_to(where, theirs.config.log_probs.shape[:2]),
    )  # fmt: skip
    by_name = dict(zip(given, confidence.T, strict=True))
    return fits._replace(temperatures=usable), by_name, theirs.config


def _mean_confidences(
    log_probs: Float[Array, "targets classes"],
    temperatures: Float[Array, " calibrators"],
    where: Bool[Array, " targets"],
) -> Float[Array, " calibrators"]:
    """Mean confidence of one seed at each temperature; rounding does not lift it above 1."""
    found = jax.lax.map(lambda t: mean_confidence(log_probs, t, where=where), temperatures)
    return jnp.minimum(found, 1)


def _aims(
    own: OfSeed,
    common: OfAll,
    theirs: Observed,
    separable: Float[Array, ""],
    where: Bool[Array, " targets"],
    clusters: Int[Array, " targets"],
) -> dict[str, Float[Array, ""]]:
    """Target confidence of each rule on the targets of one seed."""
    num_classes = theirs.config.log_probs.shape[-1]
    scaled = calibration.calibrators.scale_log_probs(theirs.config.log_probs, own.temperature[None])
    confidence = largest_or_nan(jnp.exp(scaled))
    count = jnp.sum(where)
    size = count.astype(confidence.dtype)
    mean = jnp.sum(jnp.where(where, confidence, 0)) / size
    off = jnp.where(where, confidence - mean, 0)
    error = jnp.sqrt(own.variance + jnp.sum(jnp.square(off)) / size**2)
    rows, counted = spread(count, len(where))
    support = neighbour_support(
        theirs.coordinates[rows], theirs.predicted[rows], own.references, common.reference_labels,
        num_classes=num_classes, clusters=clusters[rows], num_clusters=len(where), where=counted,
    )  # fmt: skip
    return {
        "neighbours": neighbour_accuracy(own.support, support, own.confidence),
        "separability": separability_confidence(
            own.confidence, mean, error, separable, num_classes=num_classes
        ),
        "difference_of_confidences": difference_of_confidences(
            own.num_correct / len(common.labels), own.confidence, mean, slope=_SLOPE
        ),
        "average_threshold": share_above(confidence, own.threshold, where=where),
    }


def _balance(
    own: OfSeed, common: OfAll, theirs: Observed, where: Bool[Array, " targets"]
) -> tuple[Float[Array, ""], Float[Array, ""], Bool[Array, ""]]:
    """The temperature on held-out examples with the targets' configurations, and its evidence."""
    solution = configuration_balance(own.observed.features, theirs.features, target_where=where)
    balanced = solution.feasible & solution.converged
    weights = jnp.exp(solution.log_weights)
    fit = calibration.calibrators.fit_temperature(
        with_possible_labels(own.observed.config.log_probs, common.labels),
        common.labels,
        weights=weights,
    )
    temperature = jnp.where(
        balanced & fit.converged, jnp.maximum(fit.temperature, own.temperature), own.temperature
    )
    return temperature, _effective_share(weights, common.clusters), balanced


def _effective_share(
    weights: Float[Array, " examples"], clusters: Int[Array, " examples"]
) -> Float[Array, ""]:
    """Kish's effective number of clusters under weights of their examples, over their number."""
    size = len(weights)
    sums = jax.ops.segment_sum(weights, clusters, size)
    number = (jnp.max(clusters) + 1).astype(sums.dtype)  # they are numbered from 0 without gaps
    return jnp.square(jnp.sum(sums)) / (jnp.sum(jnp.square(sums)) * number)


def _match_agreement(
    seeds: OfSeed,
    common: OfAll,
    theirs: Observed,
    peers: Int[Array, "peers targets"] | None,
    where: Bool[Array, " targets"],
) -> Float[Array, " seeds"]:
    """Temperatures from the agreement of the seeds with one another and with the peers."""
    num_classes = theirs.config.log_probs.shape[-1]
    agreement = agreement_of_seeds(theirs.predicted, peers, num_classes=num_classes, where=where)
    chosen = jax.nn.one_hot(theirs.predicted, num_classes)
    size = jnp.sum(where).astype(chosen.dtype)
    shares = jnp.sum(jnp.where(where[None, :, None], chosen, 0), axis=1) / size
    chance = shares @ common.class_shares
    confidence = jax.vmap(lambda log_probs, t: mean_confidence(log_probs, t, where=where))(
        theirs.config.log_probs, seeds.temperature
    )
    aims = agreement_accuracy(
        common.agreement, agreement, common.confidence, chance, target_confidence=confidence
    )

    def match(
        log_probs: Float[Array, "targets classes"],
        aim: Float[Array, ""],
        temperature: Float[Array, ""],
    ) -> Float[Array, ""]:
        return match_aim(log_probs, aim, temperature, where)

    return over_seeds(match)(theirs.config.log_probs, aims, seeds.temperature)
