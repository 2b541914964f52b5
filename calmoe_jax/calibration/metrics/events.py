"""Binary and multilabel predictions: the probability of one event, or of several at once.

A binary classifier gives one number an example, and a multilabel one a number for each of several
events that do not exclude one another; neither has rows that sum to 1. `reliability_bins` and
`smooth_calibration_error` take the probability of one event as it is; here are the scores of it,
bins for several events, and the two-class form for functions of class probabilities. For the scores
of several events `jax.vmap` one event's over the second axis.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import at_least_float32, log_or_neginf
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration.metrics.binning import ReliabilityBins, reliability_bins
from calmoe_jax.calibration.metrics.scores import mean_of

_Outcome = Float[Array, " examples"] | Bool[Array, " examples"]


@checked
def two_classes(
    probs: Float[Array, " examples"], *, from_logits: bool = False
) -> Float[Array, "examples 2"]:
    """Probabilities of an event as those of two classes: `(1 - p, p)`, class 1 being the event.

    Args:
        probs: probability of the event, in [0, 1] (or its log odds, with `from_logits`).
        from_logits: whether `probs` holds log odds; the result then holds log probabilities,
            accurate for both classes.

    Returns:
        A row of two for each example, at least float32; NaN where the probability is invalid.

    Example:
        >>> two_classes(jnp.array([0.25]))
        Array([[0.75, 0.25]], dtype=float32)
    """
    if from_logits:
        odds = at_least_float32(probs)
        return jnp.stack([jax.nn.log_sigmoid(-odds), jax.nn.log_sigmoid(odds)], axis=-1)
    confidence, _ = event(probs, jnp.zeros(probs.shape, bool))
    return jnp.stack([1 - confidence, confidence], axis=-1)


@checked
def binary_log_loss(
    probs: Float[Array, " examples"],
    outcome: _Outcome,
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    from_logits: bool = False,
) -> Float[Array, ""]:
    """Mean log loss of the probability of an event: `-y log p - (1 - y) log (1 - p)`, in nats.

    Args:
        probs: probability of the event, in [0, 1] (or its log odds, with `from_logits`).
        outcome: whether the event happened, or its probability.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        from_logits: whether `probs` holds log odds; give those where `p` rounds to 0 or 1.

    Returns:
        The mean, at least 0; `inf` where what happened had probability 0; NaN where nothing counts,
        or an example that counts is invalid.

    Example:
        >>> binary_log_loss(jnp.array([0.5, 1.0]), jnp.array([False, True])).round(4)
        Array(0.3466, dtype=float32)

    References:
        Good, Rational Decisions, 1952.
    """
    if from_logits:
        odds = at_least_float32(probs)
        likely, unlikely = jax.nn.log_sigmoid(odds), jax.nn.log_sigmoid(-odds)
        valid, happened = event(jnp.where(jnp.isnan(odds), jnp.nan, 0.5), outcome)
    else:
        valid, happened = event(probs, outcome)
        likely, unlikely = log_or_neginf(valid), log_or_neginf(1 - valid)
    losses = -(_times(happened, likely) + _times(1 - happened, unlikely))
    return mean_of(jnp.where(jnp.isnan(valid), jnp.nan, losses), weights, where)


@checked
def binary_brier_score(
    probs: Float[Array, " examples"],
    outcome: _Outcome,
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> Float[Array, ""]:
    """Mean squared error of the probability of an event, `(p - y)^2`.

    Args:
        probs: probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability: the expectation over outcomes drawn
            with it is then taken.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        The score, in [0, 1]: half of `brier_score` of the two classes. NaN where nothing counts, or
        an example that counts is invalid.

    Example:
        >>> binary_brier_score(jnp.array([0.5, 1.0]), jnp.array([False, True]))
        Array(0.125, dtype=float32)

    References:
        Brier, Verification of Forecasts Expressed in Terms of Probability, 1950.
    """
    confidence, happened = event(probs, outcome)
    squares = jnp.square(confidence - happened) + happened * (1 - happened)
    return mean_of(squares, weights, where)


@checked
def multilabel_bins(
    probs: Float[Array, "examples events"],
    outcomes: Float[Array, "examples events"] | Bool[Array, "examples events"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int = 15,
) -> ReliabilityBins:
    """Reliability sums of several events that do not exclude one another.

    Args:
        probs: probability of each event, in [0, 1]; rows need not sum to 1.
        outcomes: whether each event happened, or its probability.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of equal-width bins, `[lo, hi)` with the last closed.

    Returns:
        Sums `[events, bins]` (see `reliability_bins`); every function of bins gives a value for
        each event.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> probs, outcomes = jnp.array([[0.75, 0.5]]), jnp.array([[True, True]])
        >>> cm.calibration.calibration_error(multilabel_bins(probs, outcomes))
        Array([0.25, 0.5 ], dtype=float32)
    """

    def one(confidence: Float[Array, " examples"], outcome: _Outcome) -> ReliabilityBins:
        return reliability_bins(
            confidence, outcome, weights=weights, where=where, num_bins=num_bins
        )

    return jax.vmap(one, in_axes=1)(probs, outcomes)


def _times(share: Float[Array, " examples"], logs: jax.Array) -> Float[Array, " examples"]:
    """The product, with 0 times infinity 0."""
    return jnp.where(share == 0, 0, share * logs)
