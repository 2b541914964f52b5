"""Statistics of single examples that say more of their correctness than confidence does."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from calmoe_jax._numerics import row_positions
from calmoe_jax.shift.estimators._observed import Observed, required
from calmoe_jax.shift.estimators.evidence import Evidence
from calmoe_jax.shift.estimators.seeds import predicted_by_peers
from calmoe_jax.shift.neighbours import neighbour_shares


def supports(
    held_out: Evidence,
    labels: Int[Array, " examples"],
    targets: Evidence,
    own: Observed,
    other: Observed,
    num_neighbours: int,
) -> tuple[Float[Array, " examples"], Float[Array, " targets"]]:
    """Share of neighbours with the predicted label, of both samples; no example is its own."""
    references, points = required("coordinates", held_out, targets)
    position = row_positions(len(labels), own.axis_name)
    among_themselves = neighbour_shares(
        references, own.predicted, references, labels, clusters=position,
        reference_clusters=position, reference_where=own.counted,
        num_neighbours=num_neighbours, axis_name=own.axis_name,
    )  # fmt: skip
    of_targets = neighbour_shares(
        points, other.predicted, references, labels, reference_where=own.counted,
        num_neighbours=num_neighbours, axis_name=own.axis_name,
    )  # fmt: skip
    return among_themselves, of_targets


def probability_of_peers(
    peers: Float[Array, "peers examples classes"], seen: Observed
) -> Float[Array, " examples"]:
    """Mean probability that the peers give the predicted class."""
    probs = jnp.mean(jax.nn.softmax(peers.astype(seen.probs.dtype), axis=-1), axis=0)
    index = jnp.maximum(seen.predicted, 0)[:, None]
    return jnp.minimum(jnp.take_along_axis(probs, index, axis=1)[:, 0], 1)


def votes_of_peers(
    peers: Float[Array, "peers examples classes"], seen: Observed
) -> Float[Array, " examples"]:
    """Share of the peers that predict the predicted class."""
    same = predicted_by_peers(peers, seen) == seen.predicted[None]
    return jnp.mean(same.astype(seen.probs.dtype), axis=0)


def log_odds(probability: Float[Array, " examples"], edge: float) -> Float[Array, " examples"]:
    """Log odds of probabilities, of which those below and above an edge count as at it."""
    inside = jnp.clip(probability, edge, 1 - edge)
    return jnp.log(inside) - jnp.log1p(-inside)
