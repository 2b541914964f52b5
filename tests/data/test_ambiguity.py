"""Ambiguous examples, and an order that is the same everywhere."""

import numpy as np

from calmoe_jax.data._order import hash_order
from calmoe_jax.data.ambiguity import neighbour_agreement


def test_neighbour_agreement_equals_a_loop():
    rng = np.random.RandomState(0)
    train, labels = rng.randint(0, 6, (60, 3)), rng.randint(0, 4, 60)
    others = rng.randint(0, 6, (20, 3))
    found = neighbour_agreement(train, labels, others, neighbours=7)
    for row, share in zip(others, found, strict=True):
        distances = [sum((a - b) ** 2 for a, b in zip(row, t, strict=True)) for t in train]
        radius = sorted(distances)[6]
        votes = [labels[i] for i, d in enumerate(distances) if d <= radius]
        assert share == max(votes.count(c) for c in range(4)) / len(votes)
    shuffled = rng.permutation(60)
    again = neighbour_agreement(train[shuffled], labels[shuffled], others, neighbours=7)
    assert (again == found).all()


def test_hash_order_is_a_shuffle_that_keeps_its_order():
    keys = [str(i) for i in range(50)]
    order = hash_order(keys, seed=0)
    assert sorted(order) == list(range(50))
    assert order != list(range(50))
    assert hash_order(keys, seed=1) != order
    fewer = hash_order(keys[:-1], seed=0)
    assert fewer == [i for i in order if i != 49]
