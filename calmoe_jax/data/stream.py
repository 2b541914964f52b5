"""Batches of a source of random access, read ahead by threads (the `data` extra: grain).

Step `s` of a seed has the same examples whatever the number of processes, and whether the stream
began at step 0 or at `s`: which they are is computed, not remembered.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Int, PyTree

from calmoe_jax._checks import check_at_least
from calmoe_jax.data.errors import MissingDataError

_LARGEST = 2**32  # of grain's shuffle, which is of 32 bits


@runtime_checkable
class Source(Protocol):
    """Examples by number: a list of dicts, or `open_records(folder)`."""

    def __len__(self) -> int:
        """Number of examples."""

    def __getitem__(self, number: int) -> Any:
        """`{"inputs": tree of arrays, "label": int}`."""


class Rows(NamedTuple):
    """A process's rows of a batch.

    Attributes:
        inputs: tree of arrays, each with the rows along its first axis.
        labels: class of each row, int32.
        where: rows that count, the others are padding; `None` if all of the batch count.
    """

    inputs: PyTree
    labels: Int[np.ndarray, " rows"]
    where: Bool[np.ndarray, " rows"] | None = None


def examples_of_step(
    step: int, *, seed: int, examples: int, batch_size: int, drop_remainder: bool = True
) -> Int[np.ndarray, " batch"]:
    """Numbers of the examples of a step, over all processes.

    Every epoch has an order of its own, by grain's shuffle, which needs no memory: a permutation of
    `[0, examples)` that is computed number by number, from a hash of seed and epoch. (What grain
    itself does in later epochs, `seed + epoch`, would give epoch 1 of seed 0 the order of epoch 0
    of seed 1.)

    Args:
        step: number of the step, from 0.
        seed: seed of the order, at least 0.
        examples: number of examples, at least 1 and at most 2^32.
        batch_size: examples per step, at least 1; all if there are fewer.
        drop_remainder: whether an epoch leaves out a remainder smaller than a batch; else its last
            step has the remainder alone.

    Returns:
        The numbers in their order; each number once in an epoch, but for the remainder.

    Raises:
        ValueError: for an argument out of range.
        MissingDataError: if grain is not installed.

    Example:
        >>> from calmoe_jax.data.stream import examples_of_step
        >>> steps = [examples_of_step(s, seed=7, examples=6, batch_size=2) for s in range(3)]
        >>> sorted(np.concatenate(steps).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    check_at_least("step", step, 0)
    check_at_least("seed", seed, 0)
    check_at_least("batch_size", batch_size, 1)
    if not 1 <= examples <= _LARGEST:
        raise ValueError(f"examples must be in [1, 2^32], got examples={examples}.")
    size = min(batch_size, examples)
    epoch, places = _places(step, examples, size, drop_remainder)
    return _shuffled(np.asarray(places), seed, epoch, examples)


def steps_of_epoch(examples: int, batch_size: int, *, drop_remainder: bool = True) -> int:
    """Number of steps of an epoch, at least 1.

    Args:
        examples: number of examples, at least 1.
        batch_size: examples per step; all if there are fewer.
        drop_remainder: whether a remainder smaller than a batch is left out.

    Example:
        >>> from calmoe_jax.data.stream import steps_of_epoch
        >>> steps_of_epoch(10, 4), steps_of_epoch(10, 4, drop_remainder=False)
        (2, 3)
    """
    size = min(batch_size, examples)
    return examples // size if drop_remainder else -(-examples // size)


def _places(step: int, examples: int, size: int, drop_remainder: bool) -> tuple[int, range]:
    """The epoch of a step, and the places in it that the step has."""
    epoch, number = divmod(step, steps_of_epoch(examples, size, drop_remainder=drop_remainder))
    return epoch, range(number * size, min((number + 1) * size, examples))


def _shuffled(places: np.ndarray, seed: int, epoch: int, examples: int) -> np.ndarray:
    """The examples at places of an epoch."""
    hashed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    order = _grain().MapDataset.range(examples).shuffle(seed=hashed)
    return np.array([order[place] for place in places.tolist()], np.int64)


def stream(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    process_index: int | None = None,
    process_count: int | None = None,
    rows: Sequence[int] | None = None,
    filled_to: int | None = None,
    first_step: int = 0,
    last_step: int | None = None,
    drop_remainder: bool = True,
    num_threads: int = 4,
    prefetch: int = 8,
) -> Iterator[Rows]:
    """This process's rows of the batches of all steps from `first_step` on.

    The batch of a step is that of `examples_of_step`. It is filled up to a multiple of the
    processes, with rows that do not count; process `p` of `n` has the `p`-th of `n` equal parts,
    and reads no others. To resume, start where it ended.

    Args:
        source: the examples.
        seed: seed of the order, at least 0.
        batch_size: examples per step over all processes, at least 1; all if there are fewer.
        process_index: number of this process; that of JAX by default.
        process_count: number of processes; that of JAX by default.
        rows: places in the batch that this process reads, instead of its part; places beyond the
            batch are filled up.
        filled_to: with `rows`, the places of all processes; by default those up to the last row.
        first_step: step to start at, at least 0.
        last_step: step to end before; without it there is no end.
        drop_remainder: whether an epoch leaves out a remainder smaller than a batch; else it is
            filled up with rows that do not count, so that all batches are of one shape.
        num_threads: threads that read, each a batch; 0 reads none ahead.
        prefetch: batches that are read ahead, at least `num_threads`.

    Returns:
        An iterator; closing it, or its end, ends the threads.

    Raises:
        ValueError: for an argument out of range.
        MissingDataError: if grain is not installed. Errors of the source come when its batch does.

    Example:
        >>> from calmoe_jax.data.stream import stream
        >>> source = [{"inputs": np.full(2, i), "label": i % 2} for i in range(6)]
        >>> steps = stream(source, seed=7, batch_size=4, process_index=1, process_count=2)
        >>> next(steps).inputs.shape
        (2, 2)
    """
    check_at_least("batch_size", batch_size, 1)
    check_at_least("first_step", first_step, 0)
    check_at_least("seed", seed, 0)
    check_at_least("num_threads", num_threads, 0)
    check_at_least("prefetch", prefetch, num_threads)
    if not 1 <= len(source) <= _LARGEST:
        raise ValueError(f"source must hold 1 to 2^32 examples, got {len(source)}.")
    size = min(batch_size, len(source))
    if rows is None:
        rows, total = _part(size, process_index, process_count)
    else:
        total = max(rows, default=-1) + 1 if filled_to is None else filled_to
    # the same on every process and at every step: a batch has one structure
    padded = total > size or not (drop_remainder or len(source) % size == 0)
    end = _LARGEST if last_step is None else last_step
    reader = _Reader(source, seed, size, np.asarray(rows, np.int64), drop_remainder, padded)
    return _read(reader, first_step, max(first_step, end), num_threads, prefetch)


def _part(size: int, index: int | None, count: int | None) -> tuple[range, int]:
    """Places in the batch of one of several processes, and the places of all."""
    count = jax.process_count() if count is None else count
    index = jax.process_index() if index is None else index
    check_at_least("process_count", count, 1)
    if not 0 <= index < count:
        raise ValueError(f"process_index must be in [0, {count}), got process_index={index}.")
    each = -(-size // count)
    return range(index * each, (index + 1) * each), each * count


class _Reader(NamedTuple):
    source: Source
    seed: int
    size: int
    rows: np.ndarray
    drop_remainder: bool
    padded: bool

    def __call__(self, step: int) -> Rows:
        """The rows of a step."""
        count = len(self.source)
        epoch, places = _places(step, count, self.size, self.drop_remainder)
        counted = self.rows < len(places)
        ours = places.start + np.where(counted, self.rows, 0)
        found = self._examples(_shuffled(ours, self.seed, epoch, count))
        inputs = jax.tree.map(lambda *leaves: np.stack(leaves), *(x["inputs"] for x in found))
        labels = np.array([x["label"] for x in found], np.int32)
        return Rows(inputs, labels, counted if self.padded else None)

    def _examples(self, numbers: np.ndarray) -> list[Any]:
        unique, places = np.unique(numbers, return_inverse=True)
        several = getattr(self.source, "__getitems__", None)
        keys = unique.tolist()
        found = several(keys) if several else [self.source[key] for key in keys]
        return [found[place] for place in places]


def _read(reader: _Reader, first: int, end: int, num_threads: int, prefetch: int) -> Iterator[Rows]:
    grain = _grain()
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    steps = grain.MapDataset.range(first, end).map(reader).to_iter_dataset(options)
    found = iter(steps)
    try:
        yield from found
    finally:
        found.close()


def _grain() -> Any:
    try:
        import grain
    except ModuleNotFoundError as error:
        raise MissingDataError(
            "the package grain is needed for streams: pip install 'calmoe_jax[data]'."
        ) from error
    return grain
