"""Labels as classes, or as distributions over the classes (soft labels, such as human votes).

A soft label says how probable each class is as the example's label. Every function that takes one
gives the expectation of its value over labels drawn from it, so that rows with a single 1 give what
their classes give, and a row is the average of its votes.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import pick_label
from calmoe_jax.calibration._inputs import probabilities

Labels = Int[Array, " examples"] | Float[Array, "examples classes"]


def at_label(values: Float[Array, "examples classes"], labels: Labels) -> Float[Array, " examples"]:
    """The value of each example's class, or its expectation under a soft label.

    Args:
        values: a value for each class; it does not count where a soft label is 0, even if it is
            infinite or NaN.
        labels: class of each example, or a distribution over the classes.

    Returns:
        The values; NaN where a class is out of range or a row is not a distribution.
    """
    if labels.ndim == 1:
        return pick_label(values, labels)
    share = probabilities(labels).astype(values.dtype)
    return jnp.sum(jnp.where(share == 0, 0, share * values), axis=-1)


def farthest_label(
    distance: Float[Array, "examples classes"], labels: Labels
) -> Float[Array, " examples"]:
    """Distance of the least likely class that an example may be of; 0 where that is not finite."""
    if labels.ndim == 1:
        found = at_label(distance, labels)
    else:
        found = jnp.max(jnp.where(labels > 0, distance, 0), axis=-1)
    return jnp.where(jnp.isfinite(found), found, 0)


def chance_of(
    index: Int[Array, " examples"], labels: Labels
) -> Bool[Array, " examples"] | Float[Array, " examples"]:
    """Whether a class is the example's label, or how probable that is under a soft label."""
    if labels.ndim == 1:
        return index.astype(labels.dtype) == labels
    return pick_label(probabilities(labels), index)


def labelled(labels: Labels, num_classes: int) -> Bool[Array, " examples"]:
    """Which labels are classes, or distributions over them."""
    if labels.ndim == 1:
        return (labels >= 0) & (labels < num_classes)
    return ~jnp.isnan(probabilities(labels)[:, 0])


def not_ignored(
    labels: Labels, where: Bool[Array, " examples"] | None, ignore_label: int | None
) -> Bool[Array, " examples"] | None:
    """The mask of examples that count, without those whose label says that they do not.

    Args:
        labels: class of each example, or a distribution over the classes.
        where: examples that count; all by default.
        ignore_label: label of the examples that do not count; none by default.

    Raises:
        TypeError: if `ignore_label` is given with soft labels.
    """
    if ignore_label is None:
        return where
    if labels.ndim == 2:
        raise TypeError(
            "ignore_label is for labels that are classes; with a distribution over the classes use "
            f"where, got ignore_label={ignore_label} and labels.shape={labels.shape}."
        )
    counted = labels != ignore_label
    return counted if where is None else counted & where
