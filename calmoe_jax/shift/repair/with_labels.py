"""Temperatures for targets of which a few are labelled: certified, and combined with a guess."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._numerics import AxisName, example_weights
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import largest_class
from calmoe_jax.shift.agreement import SAFE_MARGIN
from calmoe_jax.shift.confidence import mean_confidence
from calmoe_jax.shift.estimators import Evidence, neighbours, seed_agreement
from calmoe_jax.shift.few_labels.correctness import correctness_model
from calmoe_jax.shift.few_labels.gap import confidence_gap_sequence
from calmoe_jax.shift.few_labels.prior import label_free_prior, posterior_gap
from calmoe_jax.shift.repair.temperatures import match_aim


class LabelFreeGaps(NamedTuple):
    """Gaps between confidence and accuracy on the targets, estimated without their labels.

    Attributes:
        safe: by the agreement of peers alone; 0 without peers.
        bold: the larger of that and what the labels of neighbours say; the former without
            coordinates.
    """

    safe: Float[Array, ""]
    bold: Float[Array, ""]


class LabelledRepair(NamedTuple):
    """Temperatures for the targets, relative to the one that is in the evidence, and why.

    Attributes:
        certified: lowers confidence by as much as the labels show, never more; at least 1.
        combined: lowers it by the posterior median of the gap, within the bounds; at least 1.
        estimate: the labels' estimate of the gap, mean confidence minus accuracy.
        standard_error: its standard error.
        lower: lower bound of the gap.
        upper: its upper bound.
        label_free: gaps estimated without labels.
        posterior: posterior median of the gap, within the bounds.
        confidence: mean confidence on the targets before the repair.
        num_labels: number of labelled units.
    """

    certified: Float[Array, ""]
    combined: Float[Array, ""]
    estimate: Float[Array, ""]
    standard_error: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    label_free: LabelFreeGaps
    posterior: Float[Array, ""]
    confidence: Float[Array, ""]
    num_labels: Int[Array, ""]


@checked
def label_free_gaps(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    axis_name: AxisName = None,
) -> LabelFreeGaps:
    """Gaps between confidence and accuracy on the targets, estimated without their labels.

    Args:
        held_out: labelled examples, at the temperature fitted on them.
        labels: their classes.
        targets: the targets, at the same temperature.
        axis_name: device axis that both samples are sharded over.

    Returns:
        A `LabelFreeGaps`, of at least 0: unlabelled examples are weak evidence that a model should
        be more confident. An estimate that is NaN counts as no gap.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.1, 0.9]] * 4))
        >>> held_out = Evidence(log_probs, peers=log_probs[None])
        >>> targets = Evidence(log_probs, peers=log_probs[None].at[:, :2].set(log_probs[:2][::-1]))
        >>> label_free_gaps(held_out, jnp.array([0, 1] * 4), held_out).safe
        Array(0., dtype=float32)
    """
    confidence = mean_confidence(targets.log_probs, 1.0, where=targets.where, axis_name=axis_name)
    gaps = [jnp.zeros_like(confidence)]
    if held_out.peers is not None and targets.peers is not None:
        found = seed_agreement(held_out, labels, targets, margin=SAFE_MARGIN, axis_name=axis_name)
        gaps.append(confidence - found.accuracy)
    safe = _largest(gaps)
    if held_out.coordinates is not None and targets.coordinates is not None:
        found = neighbours(held_out, labels, targets, axis_name=axis_name)
        gaps.append(confidence - found.accuracy)
    return LabelFreeGaps(safe, _largest(gaps))


@checked
def repair_with_labels(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    target_labels: Int[Array, " targets"],
    drawn: Int[Array, " draws"],
    *,
    correctness: Float[Array, " targets"] | None = None,
    label_free: LabelFreeGaps | None = None,
    weights: Float[Array, " targets"] | None = None,
    units: Int[Array, " targets"] | None = None,
    num_units: int | None = None,
    chances: Float[Array, " units"] | None = None,
    level: float = 0.9,
    planned: int = 50,
    axis_name: AxisName = None,
) -> LabelledRepair:
    """Temperatures for targets of which a few are labelled.

    The labels give an unbiased estimate of the gap between mean confidence and accuracy, and
    bounds of it that hold at every number of labels (`confidence_gap_sequence`, with
    `correctness_model` as the guess). The certified temperature lowers the mean confidence by the
    lower bound: with probability `level` at no time by more than the gap. The combined one lowers
    it by the posterior median under a prior from label-free estimates (`label_free_prior`), clipped
    to the bounds: it closes more of the gap, on trust in them.

    Args:
        held_out: labelled examples, at the temperature fitted on them.
        labels: their classes.
        targets: the targets, at the same temperature.
        target_labels: class of each target that was labelled; read for drawn units only, -1 (or
            anything outside the classes) where it is not known.
        drawn: the units that were labelled, in the order in which they were drawn; -1 for padding.
        correctness: guess at the correctness of each target, made before the labels; by default
            that of `correctness_model`. Give the one that `chances` were made from.
        label_free: gaps estimated without labels; by default those of `label_free_gaps`.
        weights: non-negative weight of each target; 1 by default.
        units: unit of each target, in `[0, num_units)`, where clusters are drawn whole; by default
            each target is one.
        num_units: number of units; static, and given with `units`.
        chances: chance of each unit to be drawn, as from `label_chances`; equal ones by default.
        level: level of each of the two bounds, in (0, 1).
        planned: number of labels at which the bounds shall be best, at least 1.
        axis_name: device axis that both samples are sharded over; draws are the same on all devices
            (see `confidence_gap_sequence`).

    Returns:
        A `LabelledRepair`. Without labels the certified temperature is 1, and the combined one
        that of the safe label-free estimate. Temperatures and bounds are NaN where draws cannot be
        used (see `confidence_gap_sequence`) or a number that counts is NaN.

    Raises:
        ValueError: if a number is out of range, or sizes do not match.

    Example:
        >>> held_out = Evidence(jnp.log(jnp.array([[0.9, 0.1]] * 100)))
        >>> labels = (jnp.arange(100) % 10 == 0).astype(jnp.int32)
        >>> target_labels = jnp.arange(200) % 2
        >>> found = repair_with_labels(
        ...     held_out, labels, held_out._replace(log_probs=jnp.tile(held_out.log_probs, (2, 1))),
        ...     target_labels, jnp.arange(50),
        ... )
        >>> bool(1 < found.certified < found.combined), round(float(found.estimate), 2)
        (True, 0.4)

    References:
        Angelopoulos et al., Prediction-powered inference, 2023; Garg et al., Leveraging Unlabeled
        Data to Predict Out-of-Distribution Performance, 2022, for temperatures from an estimated
        accuracy. The two rules are ours.
    """
    if correctness is None:
        correctness = correctness_model(held_out, labels, targets, axis_name=axis_name)
    if label_free is None:
        label_free = label_free_gaps(held_out, labels, targets, axis_name=axis_name)
    confidence, predicted, _ = largest_class(jax.nn.softmax(targets.log_probs, axis=-1))
    num_classes = targets.log_probs.shape[-1]
    known = (target_labels >= 0) & (target_labels < num_classes)
    right = (predicted.astype(target_labels.dtype) == target_labels).astype(confidence.dtype)
    found = confidence_gap_sequence(
        confidence, jnp.where(known, right, jnp.nan), drawn, correctness=correctness,
        weights=weights, where=targets.where, units=units, num_units=num_units, chances=chances,
        level=level, planned=planned, axis_name=axis_name,
    )  # fmt: skip
    last = jax.tree.map(lambda x: x[-1], found)
    counted = example_weights(confidence.shape, weights, targets.where, confidence.dtype)
    mean = mean_confidence(targets.log_probs, 1.0, weights=counted, axis_name=axis_name)
    prior = label_free_prior(*label_free)
    gap = posterior_gap(last.estimate, last.standard_error, prior).median
    number = jnp.sum(drawn >= 0)
    gap = jnp.where(number == 0, label_free.safe, jnp.clip(gap, last.lower, last.upper))

    def lowered(by: Float[Array, ""]) -> Float[Array, ""]:
        aim = mean - jnp.maximum(by, 0)
        found = match_aim(
            targets.log_probs, aim, jnp.ones_like(mean), weights=counted, axis_name=axis_name
        )
        # nothing is lowered by a search that ends a digit above 1
        return jnp.where(by <= 0, 1, found)

    certified, combined = jax.lax.map(lowered, jnp.stack([last.lower, gap]))
    return LabelledRepair(
        certified=certified, combined=combined, **last._asdict(), label_free=label_free,
        posterior=gap, confidence=mean, num_labels=number,
    )  # fmt: skip


def _largest(gaps: list[Float[Array, ""]]) -> Float[Array, ""]:
    # a maximum would ignore NaN in some places and spread it in others
    return jnp.max(jnp.where(jnp.isnan(jnp.stack(gaps)), 0, jnp.stack(gaps)))
