"""Part of (f): hard routing less another on the same examples, at shifts of one size.

Intervals of two mixtures may overlap though one is better on nearly every draw of the examples, and
at one strength the shifts of two mixtures differ in size. So each direction is weighted by
`exp(s z)` with the `s` at which the chi-square radius is that of the others, and the difference has
an interval of its own, in which both mixtures see the same survey periods drawn. It is that of the
squared calibration error, for which the library knows a valid interval of differences (see
`intervals.squared_error_difference`). Mixtures of several seeds and directions count together, in
every draw: what they have in common is not averaged away. The seeds are taken as they are.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax.calibration import ReliabilityBins, intervals

RADII = (0.0, 1.0, 4.0)
NUM_REPLICATES = 2000
_BISECTIONS = 60
_STEEPEST = 64.0


def radius_of(weights: np.ndarray) -> float:
    """The chi-square radius of weights, `E[w^2] / E[w]^2 - 1`.

    Args:
        weights: of the examples.
    """
    return float(np.mean(weights**2) / np.mean(weights) ** 2 - 1)


def strength_of(z: np.ndarray, radius: float) -> float:
    """The strength s at which weights `exp(s z)` have a radius, which grows with s.

    Args:
        z: of the examples.
        radius: at least 0.

    Raises:
        ValueError: if no strength of at most 64 has that radius.
    """

    def at(strength: float) -> float:
        return radius_of(np.exp(strength * (z - z.max())))

    low, high = 0.0, _STEEPEST
    if at(high) < radius:
        raise ValueError(f"radius must be one that z reaches, {at(high):.3g}, got {radius}.")
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle) >= radius else (middle, high)
    return high if radius > 0 else 0.0


@partial(jax.jit, static_argnames="num_clusters")
def _side_by_side(
    confidence: jax.Array, correct: jax.Array, weights: jax.Array, clusters: jax.Array,
    *, num_clusters: int,
) -> ReliabilityBins:  # fmt: skip
    """Bins of every mixture beside each other: their squared error is the mean of the mixtures'."""

    def one(given: tuple[jax.Array, ...]) -> ReliabilityBins:
        return intervals.cluster_bins(
            given[0], given[1], clusters, num_clusters=num_clusters,
            weights=given[2] / jnp.mean(given[2]),
        )  # fmt: skip

    found = jax.lax.map(one, (confidence, correct, weights))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(num_clusters, -1), found)


def difference(
    first: tuple[np.ndarray, ...], second: tuple[np.ndarray, ...], clusters: np.ndarray,
    *, num_replicates: int = NUM_REPLICATES,
) -> dict[str, float]:  # fmt: skip
    """Squared calibration error of some mixtures less that of others, a mean over each.

    Args:
        first: confidence of the predicted class, whether it is right, and weight, each
            `[mixtures, examples]`.
        second: the same of the others.
        clusters: of the examples, numbered from 0.
        num_replicates: of the bootstrap over clusters.

    Returns:
        The estimate and its 95 % interval.
    """
    size = int(clusters.max()) + 1
    bins = [
        _side_by_side(*(jnp.asarray(x, jnp.float32) for x in some), clusters, num_clusters=size)
        for some in (first, second)
    ]
    found = intervals.squared_error_difference(
        jax.random.key(0), *bins, num_replicates=num_replicates
    )
    return {"difference": float(found.value), "low": float(found.low), "high": float(found.high)}


def against(
    rows: dict[str, dict[float, tuple[np.ndarray, ...]]], clusters: np.ndarray,
    *, chosen: str = "hard", num_replicates: int = NUM_REPLICATES,
) -> list[dict[str, Any]]:  # fmt: skip
    """A routing less each of the others, at every radius.

    Args:
        rows: by routing and radius, as for `difference`.
        clusters: of the examples.
        chosen: the routing.
        num_replicates: of the bootstrap over clusters.
    """
    found = []
    for radius, ours in rows[chosen].items():
        less = {
            name: difference(ours, theirs[radius], clusters, num_replicates=num_replicates)
            for name, theirs in rows.items()
            if name != chosen
        }
        found.append({"radius": radius, "less": less})
    return found


def beyond(lines: list[dict[str, Any]]) -> tuple[int, int, int]:
    """How often the first routing is better beyond the interval, worse, and of how many.

    Args:
        lines: by `against`.
    """
    found = [x for line in lines for x in line["less"].values()]
    return sum(x["high"] < 0 for x in found), sum(x["low"] > 0 for x in found), len(found)
