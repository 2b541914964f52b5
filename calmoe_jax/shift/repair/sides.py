"""The sides of the test for a shift: the examples of a split that it uses, and their clusters."""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int

from calmoe_jax.mixture import Configuration
from calmoe_jax.shift.two_sample import ShiftTest, configuration_shift_test


class Side(NamedTuple):
    """One side of the test, on the host.

    Attributes:
        rows: examples of the split in the test, padded to a fixed number, so that splits share a
            compiled program.
        counted: which of them are real.
        numbers: their clusters, from 0; 0 for padding.
        num_clusters: number of clusters, or an upper bound.
    """

    rows: Int[np.ndarray, " rows"]
    counted: Bool[np.ndarray, " rows"]
    numbers: Int[np.ndarray, " rows"]
    num_clusters: int


def side_of(
    clusters: np.ndarray, length: int, *, most_examples: int, least_clusters: int = 0
) -> Side:
    """Chooses the examples of a side, and numbers their clusters.

    Args:
        clusters: clusters of the real examples, which come first.
        length: number of examples with padding.
        most_examples: largest number of examples, if each is its own cluster; the others are left
            out evenly.
        least_clusters: smallest `num_clusters` to return if clusters hold several examples, so
            that splits share a compiled program.
    """
    own = len(np.unique(clusters))
    independent = own == len(clusters)
    size = min(length, most_examples) if independent else length
    real = min(len(clusters), size)
    rows = np.linspace(0, len(clusters) - 1, real).round().astype(int)
    numbers = np.zeros(size, int)
    numbers[:real] = np.unique(clusters[rows], return_inverse=True)[1]
    return Side(
        np.pad(rows, (0, size - real)),
        np.arange(size) < real,
        numbers,
        size if independent else max(own, least_clusters),
    )


@partial(jax.jit, static_argnames=("num_clusters", "num_permutations"))
def shift_of_sides(
    held_out: Configuration,
    targets: Configuration,
    rows: tuple[Int[Array, " held_out"], Int[Array, " targets"]],
    where: Bool[Array, " targets"],
    clusters: Int[Array, " all"],
    *,
    num_clusters: int,
    num_permutations: int,
) -> ShiftTest:
    """Tests each seed's configurations for a shift.

    Args:
        held_out: configurations of all seeds.
        targets: configurations of the unlabelled examples.
        rows: rows of each side in the test.
        where: which of the targets' rows count.
        clusters: clusters of the rows of both; a cluster with examples on both sides counts once
            on each.
        num_clusters: number of clusters.
        num_permutations: number of permutations.
    """

    def one_seed(of_held_out: Configuration, of_targets: Configuration) -> ShiftTest:
        return configuration_shift_test(
            jax.random.key(0),
            jax.tree.map(lambda x: x[rows[0]], of_held_out),
            jax.tree.map(lambda x: x[rows[1]], of_targets),
            target_where=where,
            clusters=clusters,
            num_clusters=num_clusters,
            num_permutations=num_permutations,
        )

    # the permutations are the same for all seeds: drawn once
    return jax.vmap(one_seed)(held_out, targets)
