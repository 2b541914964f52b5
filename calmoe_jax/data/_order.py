"""An order that looks random and is the same everywhere."""

import hashlib
from collections.abc import Sequence


def hash_order(keys: Sequence[str], seed: int) -> list[int]:
    """A shuffle of positions that depends on the keys and the seed alone.

    Sorting by a hash gives the same order on every platform and with every version of NumPy, and
    a further key does not move the others.
    """
    digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    return sorted(range(len(keys)), key=lambda i: digests[i])
