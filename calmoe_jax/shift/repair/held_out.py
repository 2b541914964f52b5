"""Statistics of the labelled held-out examples, computed once for the repairs of all splits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax import calibration
from calmoe_jax._mapping import over_seeds
from calmoe_jax._signatures import checked
from calmoe_jax.shift.agreement import Agreement, chance_corrected_agreement
from calmoe_jax.shift.confidence import error_threshold, mean_confidence
from calmoe_jax.shift.neighbours import NeighbourSupport, neighbour_support
from calmoe_jax.shift.repair.sample import Observed, Sample, observe
from calmoe_jax.shift.repair.sides import Side, side_of

# Largest number of examples per side for the neighbour search; the others are left out evenly.
_MOST_NEIGHBOURS = 2000


class OfSeed(NamedTuple):
    """Statistics of the held-out examples for each seed, with a leading axis of seeds.

    Attributes:
        temperature: temperature of the aggregate, fitted on them.
        observed: their configurations.
        confidence: mean confidence at the temperature.
        variance: variance of that mean, for independent examples.
        num_correct: number of right predictions of the aggregate.
        threshold: confidence threshold, as from `error_threshold`.
        support: support of the predictions by the labels of neighbours.
        references: coordinates of those neighbours.
    """

    temperature: Float[Array, "*seeds"]
    observed: Observed
    confidence: Float[Array, "*seeds"]
    variance: Float[Array, "*seeds"]
    num_correct: Float[Array, "*seeds"]
    threshold: Float[Array, "*seeds"]
    support: NeighbourSupport
    references: Float[Array, "*seeds neighbours coordinates"]


class OfAll(NamedTuple):
    """Statistics that all seeds share, and those of all seeds together.

    Attributes:
        labels: classes of the examples.
        clusters: their clusters, numbered from 0.
        reference_labels: classes of the examples in the neighbour search.
        class_shares: share of each class among the labels.
        agreement: agreement of each seed with the others and with the peers; NaN with one seed
            and no peer.
        confidence: mean confidence of each seed at its temperature.
    """

    labels: Int[Array, " examples"]
    clusters: Int[Array, " examples"]
    reference_labels: Int[Array, " neighbours"]
    class_shares: Float[Array, " classes"]
    agreement: Agreement
    confidence: Float[Array, " seeds"]


class HeldOut(NamedTuple):
    """Labelled held-out examples, ready to repair for any number of splits.

    Attributes:
        seeds: statistics of each seed.
        common: statistics that the seeds share.
        side: the examples' side of the test for a shift.
        num_clusters: number of clusters of the examples.
        num_peers: number of models beside the seeds that agreement is measured with.
    """

    seeds: OfSeed
    common: OfAll
    side: Side
    num_clusters: int
    num_peers: int


@checked
def prepare(
    sample: Sample,
    labels: np.ndarray,
    clusters: np.ndarray,
    temperature: Float[Array, " seeds"],
    *,
    peers: Int[Array, "peers examples"] | None = None,
    most_examples: int = 1000,
) -> HeldOut:
    """Computes everything that depends only on the held-out examples.

    Args:
        sample: predictions for them.
        labels: their classes.
        clusters: their clusters.
        temperature: of the aggregate, fitted on them.
        peers: classes that further models predict for them, which were trained alike with other
            seeds and whose mixtures are not known; -1 for none. None by default.
        most_examples: examples of the test for a shift, where each is a cluster of its own; the
            others are left out evenly.

    Returns:
        A `HeldOut`, for `fit_to_targets`.

    Example:
        >>> import numpy as np
        >>> rows = jnp.log(jnp.tile(jnp.array([[0.9, 0.1], [0.6, 0.4]]), (1, 60, 1, 1)))
        >>> sample = Sample(rows, jnp.full((1, 60, 2), 0.5))
        >>> labels = (np.arange(60) % 4 == 0).astype(np.int32)
        >>> held_out = prepare(sample, labels, np.arange(60), jnp.ones(1))
        >>> held_out.num_clusters, round(float(held_out.seeds.confidence[0]), 3)
        (60, 0.75)
    """
    numbers = np.unique(clusters, return_inverse=True)[1]
    seeds, common = _prepare(
        sample, jnp.asarray(labels), numbers.astype(np.int32), temperature, peers
    )
    length = sample.routing_weights.shape[1]
    side = side_of(np.asarray(clusters), length, most_examples=most_examples)
    num_peers = 0 if peers is None else len(peers)
    return HeldOut(seeds, common, side, len(np.unique(numbers)), num_peers)


def agreement_of_seeds(
    predicted: Int[Array, "seeds examples"],
    peers: Int[Array, "peers examples"] | None,
    *,
    num_classes: int,
    where: Bool[Array, " examples"] | None = None,
) -> Agreement:
    """Agreement of each seed with the other seeds and with the peers.

    Args:
        predicted: class that each seed predicts for each example.
        peers: the same of further models; they have no agreement of their own.
        num_classes: number of classes.
        where: examples that count; all by default.
    """
    everyone = predicted
    if peers is not None:
        everyone = jnp.concatenate([predicted, peers.astype(predicted.dtype)])
    found = chance_corrected_agreement(everyone, num_classes=num_classes, where=where)
    return Agreement(*(x[: len(predicted)] for x in found))


def spread(
    count: int | Int[Array, ""], size: int
) -> tuple[Int[Array, " rows"], Bool[Array, " rows"]]:
    """Rows of the examples in the neighbour search, spread evenly; and which of them are real.

    Args:
        count: number of real examples.
        size: number of examples with padding.
    """
    most = min(size, _MOST_NEIGHBOURS)
    step = jnp.maximum(jnp.asarray(count, float) / most, 1)
    rows = jnp.floor(jnp.arange(most, dtype=step.dtype) * step).astype(jnp.int32)
    return jnp.minimum(rows, jnp.maximum(count - 1, 0)), rows < count


@jax.jit
def _prepare(
    sample: Sample,
    labels: Int[Array, " examples"],
    clusters: Int[Array, " examples"],
    temperature: Float[Array, " seeds"],
    peers: Int[Array, "peers examples"] | None,
) -> tuple[OfSeed, OfAll]:
    rows, _ = spread(len(labels), len(labels))
    num_classes = sample.expert_log_probs.shape[-1]

    def one_seed(of_seed: Sample, temperature: Float[Array, ""]) -> OfSeed:
        observed = observe(of_seed)
        scaled = calibration.calibrators.scale_log_probs(
            observed.config.log_probs, temperature[None]
        )
        confidence, correct = calibration.top_label(scaled, labels, from_logits=True)
        mean = jnp.mean(confidence)
        references = observed.coordinates[rows]
        support = neighbour_support(
            references, observed.predicted[rows], references, labels[rows],
            num_classes=num_classes, clusters=clusters[rows], num_clusters=len(labels),
            reference_clusters=clusters[rows],
        )  # fmt: skip
        return OfSeed(
            temperature=temperature,
            observed=observed,
            confidence=mean,
            variance=jnp.var(confidence) / len(confidence),
            num_correct=jnp.sum(correct.astype(mean.dtype)),
            threshold=error_threshold(confidence, correct),
            support=support,
            references=references,
        )

    seeds = over_seeds(one_seed)(sample, temperature)
    common = OfAll(
        labels=labels,
        clusters=clusters,
        reference_labels=labels[rows],
        class_shares=jnp.mean(jax.nn.one_hot(labels, num_classes), axis=0),
        agreement=agreement_of_seeds(seeds.observed.predicted, peers, num_classes=num_classes),
        confidence=jax.vmap(mean_confidence)(seeds.observed.config.log_probs, temperature),
    )
    return seeds, common
