"""Training on a mesh with data that does not fit in memory."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from calmoe_jax._checks import check_at_least
from calmoe_jax.data.stream import Rows, Source, stream
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.batches import filled_size, own_rows, place
from calmoe_jax.training.log import MetricsLog
from calmoe_jax.training.on_mesh import train_on_batches
from calmoe_jax.training.trainer import TrainedSeeds, Training


class Streamed(NamedTuple):
    """Batches of a source of random access, in the order of `calmoe_jax.data.stream`.

    Attributes:
        source: the examples.
        num_threads: threads that read, each a batch; 0 reads none ahead.
        prefetch: batches that are read ahead, at least `num_threads`.
    """

    source: Source
    num_threads: int = 4
    prefetch: int = 8

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.source)

    @property
    def input_spec(self) -> PyTree:
        """Shapes and dtypes of an example's inputs."""
        found = getattr(self.source, "input_spec", None)
        if found is not None:
            return found
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.source[0]["inputs"]
        )

    def placed(self, seed: int, size: int, mesh: Mesh, first: int) -> Iterator[Batch]:
        """As `Batches.placed`; this process reads the rows of its own devices."""
        total = filled_size(size, mesh)
        ours = own_rows(total, mesh)
        steps = stream(
            self.source, seed=seed, batch_size=size, rows=ours.tolist(), filled_to=total,
            first_step=first, num_threads=self.num_threads, prefetch=self.prefetch,
        )  # fmt: skip
        with contextlib.closing(steps):  # type: ignore[type-var]  # a generator
            for rows in steps:
                yield _placed(rows, ours, total, mesh)


def _placed(rows: Rows, ours: np.ndarray, total: int, mesh: Mesh) -> Batch:
    def one(values: np.ndarray) -> jax.Array:
        def of_slice(index: slice) -> np.ndarray:
            return values[np.searchsorted(ours, np.arange(total)[index])]

        return place(of_slice, values, total, mesh)

    return Batch(*jax.tree.map(one, rows))


def train_on_stream(
    training: Training,
    source: Source,
    seeds: tuple[int, ...],
    mesh: Mesh,
    *,
    folder: Path,
    log: MetricsLog,
    steps_per_checkpoint: int,
    num_threads: int = 4,
    prefetch: int = 8,
    on_epoch: Callable[[float], None] = lambda loss: None,
    on_step: Callable[[int], None] = lambda step: None,
    say: Callable[[str], None] = print,
) -> TrainedSeeds:
    """Trains all seeds on a mesh, from their latest checkpoints, on data that is read as it goes.

    As `train_on_mesh`, but no process holds the data: each reads the examples of its own devices,
    ahead of the step that needs them. The order of examples is that of `calmoe_jax.data.stream`,
    which depends on seed and step alone, whatever the number of devices and processes. A
    remainder smaller than a batch is left out of an epoch. On the same mesh a resumed training is
    bit-equal, also from the middle of an epoch.

    Args:
        training: the training to run.
        source: the examples, by number: `open_records(folder)`, say.
        seeds: seed numbers, at least 0.
        mesh: the devices.
        folder: folder of the checkpoints; a subfolder for each seed.
        log: log that gets a line for each seed and epoch, from one process.
        steps_per_checkpoint: steps between checkpoints, at least 1; the last step has one too.
        num_threads: threads that read, each a batch; 0 reads none ahead.
        prefetch: batches that are read ahead, at least `num_threads`.
        on_epoch: called after every epoch, with its mean loss.
        on_step: called before every step, with its number.
        say: prints a line.

    Returns:
        The trained seeds, with states on the host of every process.

    Raises:
        ValueError: for an argument out of range.
        MissingDataError: if grain is not installed.
        NonFiniteLossError: at the first epoch or checkpoint with a non-finite loss.
        Preempted: if a process got a SIGTERM.
        PeerLostError: if another process has ended.

    Example:
        >>> import optax
        >>> from pathlib import Path
        >>> from calmoe_jax import nn
        >>> from calmoe_jax.data.records import open_records, write_records
        >>> from calmoe_jax.parallel import device_mesh
        >>> from calmoe_jax.training import MetricsLog, Training, objectives, train_on_stream
        >>> examples = [{"inputs": np.full(2, i % 2, np.float32), "label": i % 2} for i in range(8)]
        >>> write_records("eight", examples, classes=("a", "b"), quiet=True)
        >>> network = nn.from_nnx(
        ...     lambda rngs: nn.MoEClassifier(nn.MLP(2, (4,), rngs=rngs), 2, rngs=rngs))
        >>> training = Training(
        ...     "erm", network, objectives.erm(), optax.sgd(0.5), epochs=1, batch_size=4)
        >>> trained = train_on_stream(
        ...     training, open_records("eight"), (0,), device_mesh(jax.devices()[:1]),
        ...     folder=Path("checkpoints"), log=MetricsLog(Path("log.jsonl")),
        ...     steps_per_checkpoint=2)
        >>> trained.num_experts
        4
    """
    check_at_least("steps_per_checkpoint", steps_per_checkpoint, 1)
    return train_on_batches(
        training, Streamed(source, num_threads, prefetch), seeds, mesh,
        folder=folder, log=log, steps_per_checkpoint=steps_per_checkpoint,
        on_epoch=on_epoch, on_step=on_step, say=say,
    )  # fmt: skip
