"""The examples that calibrators are fitted to, and their standardisation."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import pick_label
from calmoe_jax.calibration.calibrators._masks import distances, margin_of, reach_of


class Examples(NamedTuple):
    """The examples that scores are fitted to.

    Attributes:
        labels: class of each example; 0 where it does not count.
        weight: weight of each example; they sum to 1, or to 0 if no example counts.
        possible: classes that an example may have; all of them where it does not count.
        reach: distance from an example's largest logit beyond which a class is impossible.
        invalid: whether an example that counts cannot be fitted.
    """

    labels: Int[Array, " examples"]
    weight: Float[Array, " examples"]
    possible: Bool[Array, "examples classes"]
    reach: Float[Array, ""]
    invalid: Bool[Array, ""]


def examples(
    logits: Float[Array, "examples classes"],
    labels: Int[Array, " examples"],
    weight: Float[Array, " examples"],
) -> Examples:
    """Determines which examples count, their possible classes, and whether one is invalid.

    Args:
        logits: logits or log probabilities; `-inf`, or a number as low (see `_masks`), for
            impossible classes.
        labels: class of each example.
        weight: weight of each example, not yet normalised.
    """
    total = jnp.sum(weight)
    weight = weight / jnp.where(total == 0, 1, total)
    counted = weight > 0
    true = pick_label(logits, labels)
    strange = jnp.any(jnp.isnan(logits) | jnp.isposinf(logits), axis=-1) | ~jnp.isfinite(true)
    invalid = jnp.any(counted & strange) | jnp.isnan(total)
    sound = counted & ~strange
    labels = jnp.where(sound, labels, 0)
    distance = distances(logits)
    farthest = jnp.max(jnp.where(sound, pick_label(distance, labels), 0), initial=0)
    reach = reach_of(margin_of(logits, sound), farthest)
    impossible = jnp.isneginf(logits) | (distance > reach)
    return Examples(
        labels=labels,
        weight=jnp.where(sound, weight, 0),
        possible=~impossible | ~sound[:, None],
        reach=reach,
        invalid=invalid,
    )


def standardise(
    columns: Float[Array, "examples columns"],
    weight: Float[Array, " examples"],
    known: Bool[Array, "examples columns"],
) -> tuple[Float[Array, "examples columns"], Float[Array, " columns"], Float[Array, " columns"]]:
    """Standardises columns to mean 0 and mean square 1; returns their mean and scale too.

    Args:
        columns: columns, finite where `known`; clipped to an eighth of the largest finite number,
            whose reciprocal is no subnormal number.
        weight: weight of each example; they sum to 1.
        known: which entries count; the others become 0.
    """
    most = jnp.finfo(columns.dtype).max / 8
    columns = jnp.clip(columns, -most, most)
    weight = jnp.where(known, weight[:, None], 0)
    total = jnp.sum(weight, axis=0)
    total = jnp.where(total > 0, total, 1)
    counted = weight > 0
    # relative to the middle of its range a constant column is exactly 0, and nothing overflows
    top = jnp.max(jnp.where(counted, columns, -jnp.inf), axis=0, initial=-jnp.inf)
    bottom = jnp.min(jnp.where(counted, columns, jnp.inf), axis=0, initial=jnp.inf)
    middle = jnp.where(jnp.isfinite(top), top / 2 + bottom / 2, 0)
    centred = jnp.where(counted, columns - middle[None], 0)
    shift = jnp.sum(weight * centred, axis=0) / total
    mean = middle + shift
    centred = jnp.where(counted, centred - shift[None], 0)
    # scaled by the largest entry first, so that no square underflows
    largest = jnp.max(jnp.abs(centred), axis=0, initial=0)
    constant = largest <= 4 * jnp.finfo(columns.dtype).eps * jnp.abs(mean)
    unit = jnp.where(constant, 1, largest)
    square = jnp.sum(weight * jnp.square(centred / unit[None]), axis=0) / total
    scale = jnp.where(constant, 1, unit * jnp.sqrt(square))
    return jnp.where(constant[None], 0, centred / scale[None]), mean, scale
