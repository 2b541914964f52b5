"""What estimators compute from evidence: predictions, means with their variances, missing parts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_same_size, check_where
from calmoe_jax._numerics import AxisName, at_least_float32, psum
from calmoe_jax.calibration._inputs import largest_class
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence


class Observed(NamedTuple):
    """Predictions of a model for a sample.

    Attributes:
        probs: class probabilities.
        confidence: the largest; NaN where a row is no distribution or a label is no class.
        predicted: its class; the lower one of a tie, and -1 where there is none.
        correct: 1 where that is the label, else 0; NaN without labels.
        counted: examples that count.
        number: how many they are, on all devices.
        unknown: whether one that counts has a NaN.
        axis_name: device axis that the examples are sharded over.
    """

    probs: Float[Array, "examples classes"]
    confidence: Float[Array, " examples"]
    predicted: Int[Array, " examples"]
    correct: Float[Array, " examples"]
    counted: Bool[Array, " examples"]
    number: Float[Array, ""]
    unknown: Bool[Array, ""]
    axis_name: AxisName


class Mean(NamedTuple):
    """A mean over the examples that count, and its variance.

    Attributes:
        value: the mean.
        variance: variance of the mean, for independent examples.
    """

    value: Float[Array, ""]
    variance: Float[Array, ""]


def observe(
    held_out: Evidence, labels: Int[Array, " examples"], targets: Evidence, axis_name: AxisName
) -> tuple[Observed, Observed]:
    """Predictions for both samples.

    Raises:
        ValueError: if sizes or masks do not match.
    """
    check_same_size(
        "targets.log_probs", targets.log_probs, 1, held_out.log_probs.shape[1],
        "the held-out classes",
    )  # fmt: skip
    check_same_size("labels", labels, 0, len(held_out.log_probs), "the held-out examples")
    return (
        _observe("held_out", held_out, labels, axis_name),
        _observe("targets", targets, None, axis_name),
    )


def _observe(
    name: str, evidence: Evidence, labels: Int[Array, " examples"] | None, axis_name: AxisName
) -> Observed:
    logits = at_least_float32(evidence.log_probs)
    check_where(f"{name}.where", evidence.where, logits.shape[:1])
    counted = jnp.ones(len(logits), bool) if evidence.where is None else evidence.where
    probs = jax.nn.softmax(jnp.where(counted[:, None], logits, 0), axis=-1)
    confidence, predicted, valid = largest_class(probs)
    correct = jnp.full_like(confidence, jnp.nan)
    if labels is not None:
        valid &= ~counted | ((labels >= 0) & (labels < logits.shape[1]))
        correct = (predicted.astype(labels.dtype) == labels).astype(confidence.dtype)
    for part in (evidence.peers, evidence.coordinates):
        if part is not None:
            # of a row each sum is NaN if a number is
            sums = jnp.sum(part, axis=-1)
            valid &= ~(jnp.isnan(sums) if sums.ndim == 1 else jnp.isnan(sums).any(axis=0))
    number = psum(jnp.sum(counted), axis_name).astype(confidence.dtype)
    unknown = psum(jnp.sum(counted & ~valid), axis_name) > 0
    confidence = jnp.where(valid, jnp.minimum(confidence, 1), jnp.nan)
    return Observed(
        probs,
        confidence,
        jnp.where(valid, predicted, -1),
        correct,
        counted,
        number,
        unknown,
        axis_name,
    )


def total(values: Float[Array, "examples ..."], seen: Observed) -> Float[Array, "..."]:
    """Sum over the examples that count, on all devices."""
    counted = seen.counted.reshape((-1,) + (1,) * (values.ndim - 1))
    return psum(jnp.sum(jnp.where(counted, values, 0), axis=0), seen.axis_name)


def mean(values: Float[Array, " examples"], seen: Observed) -> Mean:
    """Mean over the examples that count, with its variance."""
    value = total(values, seen) / seen.number
    return Mean(value, total(jnp.square(values - value), seen) / jnp.square(seen.number))


def class_shares(classes: Int[Array, " examples"], seen: Observed) -> Float[Array, " classes"]:
    """Share of each class among the examples that count."""
    num_classes = seen.probs.shape[1]
    chosen = jax.nn.one_hot(classes, num_classes, dtype=seen.probs.dtype)
    return total(chosen, seen) / seen.number


def chance_level(
    held_out: Observed, labels: Int[Array, " examples"], targets: Observed
) -> Float[Array, ""]:
    """Accuracy of the targets' predictions if labels were independent of them."""
    return class_shares(targets.predicted, targets) @ class_shares(labels, held_out)


def required(
    field: str, held_out: Evidence, targets: Evidence
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """A field of both samples.

    Raises:
        ValueError: if one lacks it, or they differ in peers, or in coordinates.
    """
    own, other = getattr(held_out, field), getattr(targets, field)
    for name, array in (("held_out", own), ("targets", other)):
        if array is None:
            raise ValueError(f"{name}.{field} must be given for this estimator, got None.")
    axis = 0 if field == "peers" else 1
    check_same_size(f"targets.{field}", other, axis, own.shape[axis], f"the held-out {field}")
    return own, other


def as_estimate(
    accuracy: Float[Array, ""],
    variance: Float[Array, ""] | None,
    held_out: Observed,
    targets: Observed,
) -> AccuracyEstimate:
    """The estimate, clipped to [0, 1]; NaN without examples, or with a NaN in one that counts."""
    unknown = held_out.unknown | targets.unknown | (held_out.number == 0) | (targets.number == 0)
    accuracy = jnp.where(unknown, jnp.nan, jnp.clip(accuracy, 0, 1))
    error = jnp.full_like(accuracy, jnp.nan)
    if variance is not None:
        error = jnp.sqrt(jnp.maximum(variance, 0))
    return AccuracyEstimate(accuracy, jnp.where(jnp.isnan(accuracy), jnp.nan, error))
