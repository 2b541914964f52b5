"""Rows of several kinds that lie mixed."""

import numpy as np


def assert_each_half_is_mixed(kinds):
    """Each half holds every kind about as often as half of the rows drawn at random would.

    Four standard deviations are allowed; kinds that lie one after the other are far outside.
    """
    names, numbers = np.unique(kinds, return_inverse=True)
    total, half = len(numbers), len(numbers) // 2
    shares = np.bincount(numbers) / total
    deviations = np.sqrt(half * shares * (1 - shares) * (total - half) / (total - 1))
    for part in (numbers[:half], numbers[total - half :]):
        found = np.bincount(part, minlength=len(names))
        assert (found > 0).all()
        assert (np.abs(found - half * shares) <= 4 * deviations).all(), (names, found)
