"""A guess at the correctness of each target, from labelled held-out examples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._checks import check_at_least, check_positive, check_range
from calmoe_jax._numerics import AxisName, all_rows
from calmoe_jax._signatures import checked
from calmoe_jax.shift._logistic import ridge_logistic
from calmoe_jax.shift.estimators._observed import Observed, observe
from calmoe_jax.shift.estimators._statistics import (
    log_odds,
    probability_of_peers,
    supports,
    votes_of_peers,
)
from calmoe_jax.shift.estimators.evidence import Evidence

# Probabilities that count as 0 and 1 in log odds.
_EDGE = 1e-4


@checked
def correctness_model(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    *,
    least: float = 0.5,
    num_neighbours: int = 50,
    penalty: float = 1.0,
    axis_name: AxisName = None,
) -> Float[Array, " targets"]:
    """Probability that each target's prediction is right, as on held-out examples like it.

    A ridge logistic regression of correctness on the log odds of the confidence and, where there
    are peers, of the probability that they give the predicted class, on the share of them that
    predict it, and, where there are coordinates, on the log odds of the share of the nearest
    held-out examples with that label. Under a shift it is no estimate of accuracy; it says which
    targets are more likely wrong than others, which is what makes labels of a few of them tell
    more.

    Args:
        held_out: labelled examples.
        labels: their classes.
        targets: unlabelled examples.
        least: smallest probability to return, in [0, 1): bounds from labels are the narrower, the
            less a single residual can be.
        num_neighbours: neighbours of each example, at least 1; static. They cost
            `targets * examples` cosines; leave out the coordinates for one pass over the data.
        penalty: ridge penalty of each coefficient, in units of an example, above 0.
        axis_name: device axis that both samples are sharded over.

    Returns:
        The probabilities, in `[least, 1]`. NaN for a target that counts and has a NaN, and for all
        without a held-out example or with a NaN or a label out of range in one.

    Raises:
        ValueError: if a constant is out of range, or sizes do not match.

    Example:
        >>> probs = jnp.array([[0.9, 0.1], [0.6, 0.4]] * 40)
        >>> labels = jnp.array([0, 0, 0, 1] * 20)
        >>> found = correctness_model(Evidence(jnp.log(probs)), labels, Evidence(jnp.log(probs)))
        >>> [round(float(x), 2) for x in found[:2]]
        [0.98, 0.52]
    """
    check_range("least", least, 0, 1)
    check_at_least("num_neighbours", num_neighbours, 1)
    check_positive("penalty", penalty)
    own, other = observe(held_out, labels, targets, axis_name)
    columns = [(log_odds(own.confidence, _EDGE), log_odds(other.confidence, _EDGE))]
    if held_out.peers is not None and targets.peers is not None:
        peers = held_out.peers, targets.peers
        given = [probability_of_peers(*x) for x in zip(peers, (own, other), strict=True)]
        votes = [votes_of_peers(*x) for x in zip(peers, (own, other), strict=True)]
        columns += [(log_odds(given[0], _EDGE), log_odds(given[1], _EDGE)), (votes[0], votes[1])]
    if held_out.coordinates is not None and targets.coordinates is not None:
        shares = supports(held_out, labels, targets, own, other, num_neighbours)
        # a neighbour more, half of whose labels are the predicted one: no share is 0 or 1
        smooth = [(share * num_neighbours + 0.5) / (num_neighbours + 1) for share in shares]
        columns += [(log_odds(smooth[0], _EDGE), log_odds(smooth[1], _EDGE))]
    inside, outside = (jnp.stack(x, axis=1) for x in zip(*columns, strict=True))
    probs = _fitted(inside, own, outside, penalty, axis_name)
    unknown = own.unknown | (own.number == 0) | (other.counted & jnp.isnan(other.confidence))
    return jnp.where(unknown, jnp.nan, jnp.clip(probs, least, 1))


def _fitted(
    inside: Float[Array, "examples columns"],
    own: Observed,
    outside: Float[Array, "targets columns"],
    penalty: float,
    axis_name: AxisName,
) -> Float[Array, " targets"]:
    """Probabilities of the targets by the regression on the held-out examples."""
    rows, counted, correct = (all_rows(x, axis_name) for x in (inside, own.counted, own.correct))
    weight = counted.astype(rows.dtype)
    total = jnp.maximum(jnp.sum(weight), 1)
    rows = jnp.where(counted[:, None], rows, 0)
    mean = jnp.sum(rows, axis=0) / total
    off = jnp.where(counted[:, None], rows - mean[None], 0)
    deviation = jnp.sqrt(jnp.sum(jnp.square(off), axis=0) / total)
    scale = jnp.where(deviation > 1e-6, deviation, jnp.inf)
    label = jnp.where(counted, correct, 0)
    beta = ridge_logistic(off / scale[None], label, weight, penalty)
    return jax.nn.sigmoid((outside - mean[None]) / scale[None] @ beta[:-1] + beta[-1])
