"""The estimator from the cost of transporting predictions to the classes' known shares."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import AxisName, psum
from calmoe_jax._signatures import checked
from calmoe_jax.shift.estimators._observed import (
    Observed,
    as_estimate,
    class_shares,
    mean,
    observe,
    total,
)
from calmoe_jax.shift.estimators.evidence import AccuracyEstimate, Evidence

# The smoothing of the minimum over classes: its first value, how often it is halved, and the Newton
# steps at each value at most, until shares of classes are met to the last of these numbers.
_FIRST, _HALVINGS, _MOST_STEPS, _CLOSE = 0.25, 11, 25, 2e-6


class _Search(NamedTuple):
    potentials: Float[Array, " classes"]
    off: Float[Array, ""]
    steps: Int[Array, ""]


@checked
def optimal_transport(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    axis_name: AxisName = None,
) -> AccuracyEstimate:
    """One less the least cost of giving the targets labels in the held-out shares (COT).

    `1 - W - (c_h - a_h)`, with `c_h` and `a_h` the mean confidence and accuracy on held-out
    examples, and `W` the least mean of `|p_i - e_y|_1 / 2 = 1 - p_iy` over all assignments of
    classes to targets, fractions allowed, in which every class gets its share among the held-out
    labels. It is never above `difference_of_confidences`, and equal to it if the predicted classes
    have those shares; it is misled if the targets' true shares are others.

    `W` is found from its dual, `max_u sum_y q_y u_y + mean_i min_y (1 - p_iy - u_y)`: by Newton
    steps on one number for each class, with a minimum that is smoothed less and less. The value is
    the dual's own at the numbers found, without smoothing: a lower bound of the cost, and within
    1.2e-4 times the logarithm of the number of classes of it. The cost is about a hundred passes
    over the targets, at most 300.

    Args:
        held_out: labelled examples.
        labels: their classes.
        targets: unlabelled examples.
        axis_name: device axis that both samples are sharded over.

    Returns:
        An `AccuracyEstimate`, with a standard error to first order, for independent examples. NaN
        without an example, or for a NaN or a label out of range in one that counts.

    Raises:
        ValueError: if sizes do not match.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]] * 2))
        >>> labels = jnp.array([0, 1, 0, 1])
        >>> one_class = Evidence(log_probs.at[:].set(log_probs[0]))
        >>> round(float(optimal_transport(Evidence(log_probs), labels, one_class).accuracy), 3)
        0.65

    References:
        Lu et al., Characterizing Out-of-Distribution Error via Optimal Transport, 2023. Genevay et
        al., Stochastic Optimization for Large-scale Optimal Transport, 2016, for the dual.
    """
    own, other = observe(held_out, labels, targets, axis_name)
    shares = class_shares(labels, own)
    potentials = _potentials(other, shares)
    kept = jnp.where((shares > 0)[None], other.probs - 1 + potentials[None], -jnp.inf)
    cost = mean(-jnp.max(kept, axis=-1), other)
    moved = shares @ potentials + cost.value
    inside = (labels >= 0) & (labels < len(shares))
    of_label = potentials[jnp.where(inside, labels, 0)]
    # the potentials are an optimum: to first order they do not move with the examples
    held = mean(own.correct - own.confidence - of_label, own)
    gap = mean(own.confidence - own.correct, own).value
    return as_estimate(1 - moved - gap, held.variance + cost.variance, own, other)


def _potentials(seen: Observed, shares: Float[Array, " classes"]) -> Float[Array, " classes"]:
    """Maximises the dual of the transport, with less and less smoothing.

    Damped by the third derivative's bound, which the second's times the step's range is, so that
    no line search is needed (Bach, Self-concordant analysis for logistic regression, 2010).
    """
    there = shares > 0
    used = jnp.where(seen.counted[:, None], seen.probs, 0)

    def climb(smoothing: Float[Array, ""], start: Float[Array, " classes"]) -> Array:
        def step(old: _Search) -> _Search:
            scores = jnp.where(there[None], (used + old.potentials[None]) / smoothing, -jnp.inf)
            given = jax.nn.softmax(scores, axis=-1)
            given = jnp.where(seen.counted[:, None], given, 0)
            met = total(given, seen) / seen.number
            products = jnp.einsum("ic,id->cd", given, given, precision="highest")
            spread = jnp.diag(met) - psum(products, seen.axis_name) / seen.number
            # flat along a constant, and without this where no example is between two classes
            ridge = 1e-6 + 1e-3 * (1 - there.astype(met.dtype))
            off = jnp.where(there, shares - met, 0)
            move = jnp.linalg.solve(spread + jnp.diag(ridge), off)
            move = jnp.where(there, move - jnp.mean(move, where=there), 0)
            size = jnp.max(move, where=there, initial=0) - jnp.min(move, where=there, initial=0)
            damped = jnp.where(size > 1e-3, jnp.log1p(size) / jnp.maximum(size, 1e-3), 1)
            moved = old.potentials + smoothing * damped * move
            return _Search(moved, jnp.max(jnp.abs(off)), old.steps + 1)

        def unfinished(search: _Search) -> Bool[Array, ""]:
            return (search.off > _CLOSE) & (search.steps < _MOST_STEPS)

        begin = _Search(start, jnp.asarray(jnp.inf, start.dtype), jnp.asarray(0))
        return jax.lax.while_loop(unfinished, step, begin).potentials

    def halve(i: Int[Array, ""], potentials: Float[Array, " classes"]) -> Array:
        return climb(_FIRST * jnp.exp2(-i.astype(potentials.dtype)), potentials)

    start = jnp.zeros_like(shares)
    return jax.lax.fori_loop(0, _HALVINGS + 1, halve, start)
