"""Scores of an aggregate with intervals, and what a temperature changes."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import calibration, mixture
from calmoe_jax.audit.logs import Logs, log_arrays
from calmoe_jax.audit.results import Change, Estimate, Scores
from calmoe_jax.calibration.intervals import Interval, ScoreIntervals
from calmoe_jax.calibration.metrics.scores import squared_distances
from calmoe_jax.shift import repair


class Scored(NamedTuple):
    """Labelled examples, ready to be scored.

    Attributes:
        log_probs: log probabilities of the aggregate.
        labels: classes, or distributions over them.
        clusters: cluster of each example, from 0.
        num_clusters: number of clusters; `None` if each example is its own.
        weights: weight of each example; `None` if all are equal.
    """

    log_probs: jax.Array
    labels: jax.Array
    clusters: jax.Array
    num_clusters: int | None
    weights: jax.Array | None


def prepare(logs: Logs, aggregate: jax.Array | None = None) -> Scored:
    """Labelled examples as `scores` takes them.

    Args:
        logs: labelled examples. Targets that were drawn for labelling with unequal probabilities
            count in inverse proportion to them, as in a mean over all targets.
        aggregate: log probabilities of the aggregate, if already computed.
    """
    numbers = np.unique(logs.clusters, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    labels = logs.labels if logs.label_probs is None else logs.label_probs
    weights = None
    drawn = logs.drawn_probability
    if drawn is not None and np.isfinite(drawn).all():
        weights = jnp.asarray(drawn.min() / drawn, jnp.float32)
    return Scored(
        mixture.mix_log_probs(*log_arrays(logs)) if aggregate is None else aggregate,
        jnp.asarray(labels, jnp.int32 if labels.ndim == 1 else jnp.float32),
        jnp.asarray(numbers, jnp.int32),
        None if count == len(numbers) else count,
        weights,
    )


def scores(examples: Scored, temperature: float) -> Scores:
    """Scores of the aggregate at a temperature, with intervals.

    Args:
        examples: as from `prepare`.
        temperature: of the aggregate.
    """
    found, ece, plain_ece = _score(
        examples.log_probs, examples.labels, jnp.full(1, temperature, jnp.float32),
        examples.clusters, examples.weights, examples.num_clusters,
    )  # fmt: skip
    named = {name: _estimate(value) for name, value in found._asdict().items()}
    return Scores(**named, ece=plain(plain_ece), debiased_ece=_estimate(ece))


def changes(examples: Scored, temperatures: dict[str, float]) -> dict[str, Change]:
    """What each temperature changes, from none and from the held-out one, in pairs.

    Args:
        examples: as from `prepare`.
        temperatures: by calibrator; `temperature` is the held-out one.
    """

    def change(value: float, before: float) -> Estimate:
        pair = jnp.asarray([[value], [before]], jnp.float32)
        return _estimate(
            _change(
                examples.log_probs, examples.labels, pair, examples.clusters, examples.weights,
                examples.num_clusters,
            )
        )  # fmt: skip

    inside = temperatures["temperature"]
    return {
        name: Change(change(value, 1.0), change(value, inside))
        for name, value in temperatures.items()
    }


def fit_temperature(
    examples: Scored,
) -> tuple[calibration.calibrators.TemperatureFit, int, float | None]:
    """The temperature of labelled examples, where an impossible label counts as unlikely.

    Args:
        examples: as from `prepare`.

    Returns:
        The fit; the number of labels of probability 0; and the probability that they count as, or
        `None` if there are none.
    """
    log_probs, labels = examples.log_probs, examples.labels
    shares = (
        labels if labels.ndim == 2 else jnp.arange(log_probs.shape[-1])[None] == labels[:, None]
    )
    none = jnp.isneginf(log_probs) & (shares > 0)
    number = int(none.any(axis=-1).sum())
    least = repair.least_log_prob(log_probs)
    fit = calibration.calibrators.fit_temperature(jnp.where(none, least, log_probs), labels)
    return fit, number, float(jnp.exp(least)) if number else None


@partial(jax.jit, static_argnums=5)
def _score(
    mixed: jax.Array,
    labels: jax.Array,
    temperature: jax.Array,
    clusters: jax.Array,
    weights: jax.Array | None,
    num_clusters: int | None,
) -> tuple[ScoreIntervals, Interval, jax.Array]:
    """Intervals; examples are independent if there is no number of clusters."""
    log_probs = calibration.calibrators.scale_log_probs(mixed, temperature)
    key = jax.random.key(0)
    ece = calibration.expected_calibration_error(
        log_probs, labels, weights=weights, from_logits=True
    )
    if num_clusters is None:
        scores = calibration.intervals.scores(
            key, log_probs, labels, weights=weights, from_logits=True
        )
        bins = calibration.top_label_bins(log_probs, labels, weights=weights, from_logits=True)
        return scores, calibration.intervals.calibration_error(key, bins), ece
    scores = calibration.intervals.scores(
        key, log_probs, labels, weights=weights, from_logits=True, clusters=clusters,
        num_clusters=num_clusters,
    )  # fmt: skip
    confidence, correct = calibration.top_label(log_probs, labels, from_logits=True)
    bins = calibration.intervals.cluster_bins(
        confidence, correct, clusters, num_clusters=num_clusters, weights=weights
    )
    return scores, calibration.intervals.clustered_calibration_error(key, bins), ece


@partial(jax.jit, static_argnums=5)
def _change(
    mixed: jax.Array,
    labels: jax.Array,
    temperatures: jax.Array,
    clusters: jax.Array,
    weights: jax.Array | None,
    num_clusters: int | None,
) -> Interval:
    """The difference of Brier scores at two temperatures, the first minus the second."""
    after, before = (
        squared_distances(
            calibration.calibrators.scale_log_probs(mixed, temperature), labels, from_logits=True
        )
        for temperature in temperatures
    )
    return calibration.intervals.mean(
        jax.random.key(0), after - before, weights=weights, num_clusters=num_clusters,
        clusters=None if num_clusters is None else clusters,
    )  # fmt: skip


def _estimate(interval: Interval) -> Estimate:
    return Estimate(**{name: plain(x) for name, x in interval._asdict().items()})


def plain(value: Any) -> Any:
    """Converts numbers for JSON; those that are not finite become `None`.

    Args:
        value: a number or an array.
    """
    array = np.asarray(value, np.float64)
    if array.ndim:
        return [plain(x) for x in array]
    return float(array) if np.isfinite(array) else None
