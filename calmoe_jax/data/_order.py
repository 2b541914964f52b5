"""A pseudo-random order that is the same on every platform."""

import hashlib
from collections.abc import Sequence

import numpy as np


def hash_order(keys: Sequence[str], seed: int) -> list[int]:
    """A shuffle of positions that depends only on the keys and the seed.

    Sorting by a hash gives the same order on every platform and with every version of NumPy, and
    an additional key does not change the order of the others.
    """
    digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    return sorted(range(len(keys)), key=lambda i: digests[i])


def shuffled(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arrays of the same length, their rows in one order by a hash of their numbers.

    Rows that lie domain by domain, or class by class, are then mixed: the first of them are a
    random part.
    """
    order = np.array(hash_order([str(i) for i in range(len(arrays[0]))], seed=1), int)
    return tuple(array[order] for array in arrays)
