"""Bins of equal weight, with ties handled independently of the order of the examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least
from calmoe_jax._numerics import example_weights
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration.metrics.binning import ReliabilityBins, sums_by_bin


@checked
def equal_mass_bins(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_bins: int = 15,
) -> ReliabilityBins:
    """Sorts examples by confidence into bins of about equal weight, and sums each bin.

    Examples with the same confidence stay together: the group goes where its weighted mid-rank
    falls. With the weight `a` below the group, `g` in it and `w` in all, bin `b` of `B` holds the
    groups with `b / B <= (a + g / 2) / w < (b + 1) / B`. Hence the sums do not depend on the order
    of the examples, an example of weight 2 is two of weight 1, and without ties the bins differ
    by at most one example. `equal_mass_bins(*top_label(probs, labels))` are those of the predicted
    class (top-label).

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability where that is known.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        num_bins: number of bins, at least 1; static under `jax.jit`.

    Returns:
        The sums, lowest confidences first. With large groups of ties bins may be empty or hold
        more than their share. A confidence or outcome outside [0, 1], or NaN, that counts makes
        every sum NaN. The cost is that of sorting.

    Raises:
        ValueError: if `num_bins` is less than 1.

    Example:
        >>> confidence = jnp.array([0.9, 0.6, 0.8, 0.8, 0.8, 0.7])
        >>> equal_mass_bins(confidence, jnp.ones(6), num_bins=2).weight
        Array([2., 4.], dtype=float32)

    References:
        Nguyen and O'Connor, Posterior Calibration and Exploratory Analysis for Natural Language
        Processing Models, 2015 (bins of equal mass); Nixon et al., Measuring Calibration in Deep
        Learning, 2019.
    """
    check_at_least("num_bins", num_bins, 1)
    confidence, outcome = event(confidence, outcome)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    # examples that do not count have weight 0, and so affect no mid-rank
    level, weight, outcome = jax.lax.sort(
        (confidence, weight, outcome), num_keys=1, is_stable=False
    )
    middle, total = middle_weights(level, weight)
    index = mass_index(middle, total, num_bins)
    return sums_by_bin(index, level, outcome, weights=weight, num_bins=num_bins)


def mass_index(
    middle: Float[Array, " examples"], total: Float[Array, ""], num_bins: int
) -> Int[Array, " examples"]:
    """The bin `b` with `b total <= num_bins middle < (b + 1) total`."""
    scaled = middle * num_bins
    guess = jnp.nan_to_num(jnp.floor(scaled / jnp.where(total == 0, 1, total)))
    # the quotient is rounded (XLA multiplies by a reciprocal); the products decide
    above, below = scaled >= (guess + 1) * total, scaled < guess * total
    exact = guess + above.astype(guess.dtype) - below.astype(guess.dtype)
    return jnp.clip(exact, 0, num_bins - 1).astype(jnp.int32)


def middle_weights(
    level: Float[Array, " examples"], weight: Float[Array, " examples"]
) -> tuple[Float[Array, " examples"], Float[Array, ""]]:
    """Weight below the middle of each level's group of ties, and in total; for sorted levels."""
    size = level.shape[0]
    if size == 0:
        return weight, jnp.zeros((), weight.dtype)
    place = jnp.arange(size, dtype=jnp.int32)
    new = jnp.concatenate([jnp.ones(1, bool), level[1:] != level[:-1]])
    last = jnp.concatenate([new[1:], jnp.ones(1, bool)])
    first = jax.lax.cummax(jnp.where(new, place, 0))
    end = jax.lax.cummin(jnp.where(last, place, size - 1), reverse=True)
    sums = jnp.cumsum(weight)
    below = jnp.where(first == 0, 0, sums[jnp.maximum(first - 1, 0)])
    return (below + sums[end]) / 2, sums[-1]
