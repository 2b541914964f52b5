"""Streams: the order of examples depends on seed and step alone."""

import jax
import numpy as np
import pytest
from dispatching import exhaustive

from calmoe_jax.data.stream import examples_of_step, steps_of_epoch, stream

pytest.importorskip("grain", reason="needs grain (the data extra)")

EXAMPLES, SIZE = 22, 6
GOLDEN = [152, 898, 833, 723, 271]
SOURCE = [
    {"inputs": {"ids": np.array([i, -i], np.int32), "mask": np.array(i % 2 == 0)}, "label": i % 3}
    for i in range(EXAMPLES)
]


def take(count, **kwargs):
    first = kwargs.get("first_step", 0)
    given = {"seed": 7, "batch_size": SIZE, "process_index": 0, "process_count": 1, **kwargs}
    return list(stream(SOURCE, last_step=first + count, **given))


def numbers(rows):
    """The examples of rows that count."""
    ids = rows.inputs["ids"][:, 0]
    np.testing.assert_array_equal(rows.labels, ids % 3)
    np.testing.assert_array_equal(rows.inputs["mask"], ids % 2 == 0)
    return ids if rows.where is None else ids[rows.where]


@pytest.mark.parametrize("count", [1, 2, 4, *exhaustive(3, 5, 7)])
@pytest.mark.parametrize("drop_remainder", [True, False])
def test_all_processes_together_read_the_batch_of_the_step(count, drop_remainder):
    parts = [
        take(9, process_index=i, process_count=count, drop_remainder=drop_remainder)
        for i in range(count)
    ]
    for step in range(9):
        wanted = examples_of_step(
            step, seed=7, examples=EXAMPLES, batch_size=SIZE, drop_remainder=drop_remainder
        )
        found = np.concatenate([numbers(part[step]) for part in parts])
        np.testing.assert_array_equal(found, wanted)
        assert len({jax.tree.structure(part[step]) for part in parts}) == 1
        assert len({part[step].labels.shape for part in parts}) == 1


@pytest.mark.parametrize("num_threads", [0, 3])
def test_a_resumed_stream_goes_on_bit_equal(num_threads):
    whole = take(12, num_threads=num_threads)
    for first in (0, 5, 11):
        rest = take(12 - first, first_step=first)
        for a, b in zip(jax.tree.leaves(whole[first:]), jax.tree.leaves(rest), strict=True):
            assert (a.dtype, a.tobytes()) == (b.dtype, b.tobytes())


def test_an_epoch_has_every_example_once_and_another_order_each_time():
    steps = steps_of_epoch(EXAMPLES, SIZE, drop_remainder=False)
    assert steps == 4
    found = take(3 * steps, drop_remainder=False)
    orders = [
        np.concatenate([numbers(rows) for rows in found[e * steps : (e + 1) * steps]]).tolist()
        for e in range(3)
    ]
    assert all(sorted(order) == list(range(EXAMPLES)) for order in orders)
    assert len(set(map(tuple, orders))) == 3


def test_seeds_share_no_order():
    """With grain's `seed + epoch`, epoch 1 of a seed would have the order of the next one's 0."""
    orders = {
        tuple(examples_of_step(step, seed=seed, examples=EXAMPLES, batch_size=EXAMPLES))
        for seed in range(4)
        for step in range(4)
    }
    assert len(orders) == 16


def test_the_order_is_that_of_earlier_versions():
    found = examples_of_step(3, seed=7, examples=1000, batch_size=5)
    assert found.tolist() == GOLDEN


def test_each_process_reads_its_own_rows_alone():
    class Watched(list):
        def __getitem__(self, number):
            read.append(number)
            return super().__getitem__(number)

    read = []
    given = {"seed": 7, "batch_size": 8, "num_threads": 0, "last_step": 1}
    found = list(stream(Watched(SOURCE), process_index=1, process_count=4, **given))
    assert sorted(read) == sorted(numbers(found[0]))
    assert len(read) == 2


def test_rows_may_be_chosen():
    whole, chosen = take(2), take(2, rows=[1, 4, 7], filled_to=8)
    for a, b in zip(whole, chosen, strict=True):
        np.testing.assert_array_equal(numbers(b), numbers(a)[[1, 4]])
        np.testing.assert_array_equal(b.where, [True, True, False])


def test_errors_of_the_source_come_with_its_batch():
    class Broken(list):
        def __getitem__(self, number):
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        next(stream(Broken(SOURCE), seed=7, batch_size=2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"first_step": -1}, "first_step must be at least 0"),
        ({"process_index": 2, "process_count": 2}, r"process_index must be in \[0, 2\)"),
        ({"num_threads": 4, "prefetch": 2}, "prefetch must be at least 4"),
    ],
)
def test_arguments_out_of_range_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        stream(SOURCE, **{"seed": 7, "batch_size": 2, **change})
