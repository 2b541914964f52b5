"""Which classes are impossible: logits of `-inf`, and finite numbers that stand for it.

A class masked with -1e9, or with the lowest number of the dtype, has probability 0 in every format.
But it would decide the scale of the logits, on which a fit depends. So a class is impossible if it
is farther below the largest logit of its example than the *reach*: 750 times the typical
margin (the lower quartile of the differences between the two largest logits), and at least 750
nats. At any temperature up to that margin, or 1 if that is more, its probability is then below
`exp(-745)`, the smallest number of float64.

The reach grows with the logits, and to twice the distance of every true class: a label on a masked
class is a huge loss, never one that is left out.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_MARGINS = 750
# Number of examples whose margins are compared.
_SAMPLE = 256


def margin_of(
    logits: Float[Array, "examples classes"], counted: Bool[Array, " examples"]
) -> Float[Array, ""]:
    """The typical difference between the two largest logits of an example.

    Args:
        logits: logits, not NaN where an example counts.
        counted: which examples count; of many a regular sample is used.

    Returns:
        The lower quartile; that of an example with one possible class is large, or `inf`. So is
        the result where nothing counts.
    """
    stride = max(1, -(-logits.shape[0] // _SAMPLE))
    logits, counted = logits[::stride], counted[::stride]
    if logits.shape[0] == 0 or logits.shape[1] < 2:
        return jnp.full((), jnp.inf, logits.dtype)
    # a constant for gradients
    largest, second = _two_largest(jax.lax.stop_gradient(logits))
    margins = jnp.where(counted, largest - second, jnp.inf)
    # as of a sort, in a third of its time
    smallest = -jax.lax.top_k(-margins, (margins.shape[0] - 1) // 4 + 1)[0]
    return smallest[jnp.maximum(jnp.sum(counted) - 1, 0) // 4]


def _two_largest(
    values: Float[Array, "examples classes"],
) -> tuple[Float[Array, " examples"], Float[Array, " examples"]]:
    """The largest of each row and the next, in one pass."""

    def larger(
        a: tuple[jax.Array, jax.Array], b: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        after = jnp.where(b[1] > a[1], b[1], a[1])
        worse = jnp.where(b[0] > a[0], a[0], b[0])
        return jnp.where(b[0] > a[0], b[0], a[0]), jnp.where(worse > after, worse, after)

    none = jnp.array(-jnp.inf, values.dtype)
    pairs = values, jnp.full_like(values, -jnp.inf)
    largest, second = jax.lax.reduce(pairs, (none, none), larger, (1,))
    return largest, second


def reach_of(
    margin: Float[Array, ""], farthest: float | Float[Array, ""] = 0.0
) -> Float[Array, ""]:
    """The largest distance from the largest logit at which a class is possible.

    Args:
        margin: the typical margin.
        farthest: largest distance of a true class: those masked alike are at about the same.
    """
    farthest = jnp.asarray(farthest, margin.dtype)
    beyond = farthest >= jnp.finfo(margin.dtype).max / 8  # what `distances` is cut off at
    farthest = jnp.where(beyond, jnp.inf, 2 * farthest)
    return jnp.maximum(_MARGINS * jnp.maximum(margin, 1), farthest)


def distances(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch classes"]:
    """How far each logit is below the largest of its row; 0 in rows whose largest is not finite.

    At most an eighth of the largest finite number, whose reciprocal is no subnormal number.
    """
    peak = _peak(logits)
    distance = jnp.minimum(peak - logits, jnp.finfo(logits.dtype).max / 8)
    return jnp.where(jnp.isfinite(peak), distance, 0)


def without_impossible(
    logits: Float[Array, "*batch classes"], reach: Float[Array, ""]
) -> Float[Array, "*batch classes"]:
    """The logits, with `-inf` for the classes beyond the reach."""
    return jnp.where(logits < _peak(logits) - reach, -jnp.inf, logits)


def _peak(logits: Float[Array, "*batch classes"]) -> Float[Array, "*batch 1"]:
    """The largest logit of each row; a constant for gradients."""
    none = jnp.array(-jnp.inf, logits.dtype)
    # not `jnp.max`: three times as fast on CPUs for ten classes, where NaN need not be kept
    peak = jax.lax.reduce(
        jax.lax.stop_gradient(logits), none, lambda a, b: jnp.where(b > a, b, a), (logits.ndim - 1,)
    )
    return peak[..., None]
