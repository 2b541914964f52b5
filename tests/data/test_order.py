"""Orders by a hash: permutations that are the same in every call and on every machine."""

import numpy as np
import pytest

from calmoe_jax.data._order import hash_order, shuffled


@pytest.mark.parametrize("count", [0, 1, 2, 7, 1000])
def test_a_permutation_in_which_rows_stay_together(count):
    numbers = np.arange(count)
    rows = np.stack([numbers, 3 * numbers + 1], axis=1)
    texts = np.array([f"row {i}" for i in range(count)], object)
    order, pairs, words = shuffled(numbers, rows, texts)
    assert sorted(order.tolist()) == list(range(count))
    np.testing.assert_array_equal(pairs, rows[order])
    assert words.tolist() == [f"row {i}" for i in order]
    assert (order.dtype, pairs.dtype, pairs.shape) == (numbers.dtype, rows.dtype, rows.shape)
    np.testing.assert_array_equal(numbers, np.arange(count))  # what was given is as it was


def test_the_same_order_in_every_call_and_with_anything():
    (order,) = shuffled(np.arange(50))
    np.testing.assert_array_equal(shuffled(np.arange(50))[0], order)
    np.testing.assert_array_equal(shuffled(np.arange(50.0), np.zeros(50))[0], order)
    np.testing.assert_array_equal(shuffled(np.arange(50)[::-1])[0], 49 - order)
    assert order[:8].tolist() == [30, 39, 49, 29, 38, 27, 42, 35]  # SHA-256 of "1:30" is smallest


def test_the_first_of_several_blocks_are_a_random_part():
    """The share of each block in the first n is as if drawn at random."""
    sizes = np.array([700, 200, 100])
    blocks = np.repeat(np.arange(3), sizes)
    (mixed,) = shuffled(blocks)
    for n in (50, 250, 500):
        found = np.bincount(mixed[:n], minlength=3)
        share = sizes / 1000
        deviation = np.sqrt(n * share * (1 - share) * (1000 - n) / 999)
        assert (np.abs(found - n * share) < 3 * deviation).all()


def test_another_seed_is_another_order():
    """So the order of training is not that by which parts were drawn."""
    keys = [str(i) for i in range(300)]
    drawn, mixed = np.array(hash_order(keys, seed=0)), shuffled(np.arange(300))[0]
    assert (drawn == mixed).sum() < 10
    assert abs(np.corrcoef(np.argsort(drawn), np.argsort(mixed))[0, 1]) < 0.2


def test_another_key_leaves_the_order_of_the_others():
    keys = [f"file {i}" for i in range(40)]
    before = [keys[i] for i in hash_order(keys, seed=0)]
    more = [*keys[:20], "new", *keys[20:]]
    after = [more[i] for i in hash_order(more, seed=0)]
    assert [key for key in after if key != "new"] == before
