"""Where the batches of a training on a mesh come from: the seam between its loop and its data."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from calmoe_jax.parallel.sharded import batch_sharding
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.in_memory import data_key


@runtime_checkable
class Batches(Protocol):
    """The batches of a training.

    An epoch has `len(self) // size` steps. Which examples a step has may depend on the seed, the
    step and the size alone, so that a resumed training is an uninterrupted one.
    """

    def __len__(self) -> int:
        """Number of examples."""

    @property
    def input_spec(self) -> PyTree:
        """A `jax.ShapeDtypeStruct` for each array of an example's inputs."""

    def placed(self, seed: int, size: int, mesh: Mesh, first: int) -> Iterator[Batch]:
        """The batches of all steps from `first` on, without end, placed on the mesh."""


class InMemory(NamedTuple):
    """Batches of examples that every process holds.

    Attributes:
        inputs: inputs of all examples.
        labels: labels of all examples.
        order: `(seed, epoch, examples) -> order`: the examples of an epoch.
    """

    inputs: PyTree
    labels: np.ndarray
    order: Callable[[int, int, int], np.ndarray]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def input_spec(self) -> PyTree:
        """Shapes and dtypes of an example's inputs."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.inputs)

    def placed(self, seed: int, size: int, mesh: Mesh, first: int) -> Iterator[Batch]:
        """As `Batches.placed`."""
        steps = len(self) // size
        epoch, number = divmod(first, steps)
        while True:
            order = self.order(seed, epoch, len(self))
            for start in range(number * size, steps * size, size):
                yield self._batch(order[start : start + size], mesh)
            epoch, number = epoch + 1, 0

    def _batch(self, rows: np.ndarray, mesh: Mesh) -> Batch:
        """The rows as a batch: each process places those of its own devices."""
        total = filled_size(len(rows), mesh)
        counted = np.arange(total) < len(rows)
        rows = np.concatenate([rows, rows[:1].repeat(total - len(rows))])

        def placed(values: Any) -> jax.Array:
            return place(lambda index: values[rows[index]], values, total, mesh)

        where = None
        if not counted.all():
            where = place(lambda index: counted[index], counted, total, mesh)
        return Batch(jax.tree.map(placed, self.inputs), placed(self.labels), where)


def jax_order(seed: int, epoch: int, number: int) -> np.ndarray:
    """The order of an epoch, as `train_epoch` has it; on this host alone.

    Args:
        seed: the seed.
        epoch: number of the epoch, from 0.
        number: number of examples.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        key = jax.random.fold_in(data_key(jnp.int32(seed)), epoch)
        return np.asarray(jax.random.permutation(key, number))


def filled_size(size: int, mesh: Mesh) -> int:
    """Rows of a batch that is filled up to divide by the devices.

    Args:
        size: rows that count.
        mesh: the devices.
    """
    return size + -size % mesh.size


def place(rows_of: Callable[[Any], np.ndarray], like: Any, total: int, mesh: Mesh) -> jax.Array:
    """An array of a batch on a mesh; this process gives the rows of its own devices.

    Args:
        rows_of: the rows of a slice of the batch.
        like: an array with the same shape after the first axis.
        total: rows of the batch.
        mesh: the devices.
    """

    def of_device(index: Any) -> np.ndarray:
        return rows_of(index[0])

    shape = (total, *like.shape[1:])
    return jax.make_array_from_callback(shape, batch_sharding(mesh), of_device)


def own_rows(total: int, mesh: Mesh) -> np.ndarray:
    """Places in a batch whose devices are of this process, ascending.

    Args:
        total: rows of the batch.
        mesh: the devices.
    """
    found = batch_sharding(mesh).addressable_devices_indices_map((total,)).values()
    rows = [np.arange(total)[index] for index in found if index is not None]
    return np.sort(np.concatenate(rows))
