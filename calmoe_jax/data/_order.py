"""A pseudo-random order that is the same on every platform."""

import hashlib
from collections.abc import Sequence


def hash_order(keys: Sequence[str], seed: int) -> list[int]:
    """A shuffle of positions that depends only on the keys and the seed.

    Sorting by a hash gives the same order on every platform and with every version of NumPy, and
    an additional key does not change the order of the others.
    """
    digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    return sorted(range(len(keys)), key=lambda i: digests[i])
