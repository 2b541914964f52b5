"""The bootstrap over clusters: how far a value would move with other data of the same kind."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from calmoe_jax._checks import check_at_least


def bootstrap_counts(
    key: jax.Array, num_clusters: int, *, num_replicates: int = 1000
) -> Float[Array, "replicates clusters"]:
    """How often each cluster is drawn in each replicate of the bootstrap.

    A replicate draws as many clusters as there are, with replacement. Sums over a replicate's
    examples are then `counts @ sums_per_cluster`; use the same counts for two models, and the
    difference of their values is paired.

    Args:
        key: random key.
        num_clusters: number of clusters, at least 1; examples are their own clusters where they
            are independent.
        num_replicates: number of replicates, at least 1.

    Returns:
        Whole numbers as float32; every row sums to `num_clusters`.

    Raises:
        ValueError: if a number is less than 1.

    Example:
        >>> bootstrap_counts(jax.random.key(0), 5, num_replicates=2).sum(axis=1)
        Array([5., 5.], dtype=float32)

    References:
        Efron, Bootstrap Methods, 1979; for clusters Field and Welsh, 2007.
    """
    check_at_least("num_clusters", num_clusters, 1)
    check_at_least("num_replicates", num_replicates, 1)
    drawn = jax.random.randint(key, (num_replicates, num_clusters), 0, num_clusters)
    return jax.vmap(lambda row: jnp.zeros(num_clusters).at[row].add(1.0))(drawn)
