"""The disagreement identity: splits a mixture's miscalibration by its experts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import at_least_float32, example_weights, pick_label
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import probabilities
from calmoe_jax.calibration.diagrams import mean_and_error
from calmoe_jax.calibration.metrics.experts import computed
from calmoe_jax.mixture import mix

_ExpertProbs = Float[Array, "examples experts classes"]
_Routing = Float[Array, "examples experts"]
_Labels = Int[Array, " examples"]
_Weights = Float[Array, " examples"] | None
_Where = Bool[Array, " examples"] | None


class DisagreementIdentity(NamedTuple):
    """Miscalibration of a mixture, split into disagreement and miscalibration of its experts.

    `aggregate = disagreement + sum_k view_k`, for any data.

    Attributes:
        aggregate: `E <F, e_Y - F>`: 0 for a calibrated aggregate; above 0 if it is under-confident,
            averaged over classes by their probability (the top-label gap of confidence may have
            either sign).
        disagreement: `E sum_k r_k |f_k - F|^2`, 0 or more.
        difference: `aggregate - disagreement`: 0 if every expert is calibrated on its
            routing-weighted view.
        standard_error: standard error of the difference, for independent examples.
        view: `E r_k <f_k, e_Y - f_k>` of each expert: 0 if it is calibrated on its view, below 0 if
            it is over-confident there. They sum to the difference.
        view_error: standard error of each expert's view.
    """

    aggregate: Float[Array, ""]
    disagreement: Float[Array, ""]
    difference: Float[Array, ""]
    standard_error: Float[Array, ""]
    view: Float[Array, " experts"]
    view_error: Float[Array, " experts"]


@checked
def disagreement_identity(
    expert_probs: _ExpertProbs,
    routing_weights: _Routing,
    labels: _Labels,
    *,
    weights: _Weights = None,
    where: _Where = None,
    from_logits: bool = False,
) -> DisagreementIdentity:
    """Splits a mixture's miscalibration into disagreement and miscalibration of its experts.

    For every example with label y and routing weights that sum to one,

        <F, e_y - F> = sum_k r_k |f_k - F|^2 + sum_k r_k <f_k, e_y - f_k>.

    If every expert is calibrated on its routing-weighted view (in the canonical or classwise
    sense), the last sum has mean 0, and `E <F, e_Y - F>` is the experts' disagreement: then the
    aggregate is calibrated only if the experts agree. A `difference` within two or three standard
    errors of 0 is consistent with calibrated experts; otherwise `view` shows which experts are
    miscalibrated, and whether their errors add to the disagreement or cancel it.

    Args:
        expert_probs: each expert's class probabilities (or logits, with `from_logits`).
        routing_weights: non-negative weight of each expert. Rows that do not sum to one are
            allowed: the disagreement is then `E[sum_k r_k |f_k|^2 - |F|^2]` (the same for rows
            that do), which may be negative, and the parts still sum.
        labels: class of each example, in `[0, classes)`.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `expert_probs` holds logits or log probabilities; the experts'
            probabilities are mixed, not their logits.

    Returns:
        A `DisagreementIdentity`; means over the weights. For hard routing the disagreement is 0.
        NaN if no example counts, or if one that counts has NaN, a row that is not a distribution, a
        negative routing weight or a label outside the classes; standard errors are NaN for a
        single example. An expert may be NaN where its weight is 0.

    Example:
        >>> probs = jnp.array([[[0.0, 1.0], [0.5, 0.5]]])
        >>> found = disagreement_identity(probs, jnp.array([[0.5, 0.5]]), jnp.array([1]))
        >>> found.aggregate, found.disagreement, found.view
        (Array(0.125, dtype=float32), Array(0.125, dtype=float32), Array([0., 0.], dtype=float32))
    """
    routing = at_least_float32(routing_weights)
    routing = jnp.where(routing < 0, jnp.nan, routing)
    probs = computed(probabilities(expert_probs, from_logits=from_logits), routing)
    weight = example_weights(labels.shape, weights, where, probs.dtype)
    aggregate = mix(probs, routing)
    square = jnp.sum(jnp.square(aggregate), axis=-1)
    left = pick_label(aggregate, labels) - square
    distance = jnp.sum(jnp.square(probs - aggregate[:, None, :]), axis=-1)
    right = jnp.sum(routing * distance, axis=-1) + (1 - jnp.sum(routing, axis=-1)) * square
    true = pick_label(probs, jnp.broadcast_to(labels[:, None], probs.shape[:2]))
    view = routing * (true - jnp.sum(jnp.square(probs), axis=-1))
    _, error = mean_and_error(left - right, weight)
    view_mean, view_error = jax.vmap(mean_and_error, in_axes=(1, None))(view, weight)
    left_mean, right_mean = (mean_and_error(side, weight)[0] for side in (left, right))
    return DisagreementIdentity(
        aggregate=left_mean,
        disagreement=right_mean,
        difference=left_mean - right_mean,
        standard_error=error,
        view=view_mean,
        view_error=view_error,
    )
