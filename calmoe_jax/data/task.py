"""A task: where to train, where to calibrate, and where confidence is put to the test."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["train", "calibration", "id", "shift", "hard"]


class DataError(Exception):
    """Data that cannot be used; the message says which, why and what to do."""


class MissingDataError(DataError):
    """A file that a task needs is not there."""


class CorruptDataError(DataError):
    """A file is there but cannot be read, or holds what it must not."""


@dataclass(frozen=True)
class Split:
    """Labelled examples of one origin.

    Attributes:
        name: unique within its task.
        kind: `train`, `calibration` (held out from training, never a test set), `id` (the same
            law as training), `shift` (another law) or `hard` (a difficult part of the id split).
        inputs: features `[n, d]` float32, or images `[n, height, width, channels]` uint8.
        labels: class of each example, int32.
        clusters: examples of one cluster are dependent (the same survey, say) and are resampled
            together by the bootstrap; int32.
        description: one line for people.
        series: the ordered family that the split is a member of (`"year"`, `"blur"`), if any.
        position: its place in the family: a year, a severity.
    """

    name: str
    kind: Kind
    inputs: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray
    description: str
    series: str | None = None
    position: float | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def num_clusters(self) -> int:
        """Number of distinct clusters."""
        return len(np.unique(self.clusters))

    def take(self, rows: np.ndarray, name: str, kind: Kind, description: str) -> "Split":
        """The split of the given rows (indices or a mask), under another name."""
        return Split(
            name, kind, self.inputs[rows], self.labels[rows], self.clusters[rows], description
        )


@dataclass(frozen=True)
class Task:
    """A classification problem with named shifts.

    Attributes:
        name: what `calmoe run` calls it.
        classes: names of the classes; labels index them.
        train: examples to train on.
        calibration: examples held out from training, to fit temperatures on.
        evaluation: the id split first, then shifts in their order, then hard subsets.
        source: where the data is from, and its licence.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    calibration: Split
    evaluation: tuple[Split, ...]
    source: str

    @property
    def splits(self) -> tuple[Split, ...]:
        """All splits: train, calibration, then those of evaluation."""
        return (self.train, self.calibration, *self.evaluation)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""
        return self.train.inputs.shape[1:]

    @property
    def holds_images(self) -> bool:
        """Whether inputs are images, of shape `[height, width, channels]`."""
        return len(self.input_shape) == 3


def check_task(task: Task) -> Task:
    """Returns the task, or raises `CorruptDataError` where it cannot be trained or scored.

    Every split holds examples; inputs of one shape and type, and finite; labels inside the
    classes; one cluster number a row; names unique; the training split has every class.
    """
    names = [split.name for split in task.splits]
    for name in names:
        if names.count(name) > 1:
            raise CorruptDataError(f"task {task.name}: two splits are named {name!r}.")
    for split in task.splits:
        where = f"task {task.name}, split {split.name!r}"
        if len(split) == 0:
            raise CorruptDataError(f"{where}: a split must hold examples, got 0.")
        if not (len(split.inputs),) == split.labels.shape == split.clusters.shape:
            raise CorruptDataError(
                f"{where}: inputs, labels and clusters must be of one length, got "
                f"{len(split.inputs)}, {split.labels.shape} and {split.clusters.shape}."
            )
        if split.inputs.shape[1:] != task.input_shape or split.inputs.dtype != np.dtype(
            np.uint8 if task.holds_images else np.float32
        ):
            raise CorruptDataError(
                f"{where}: inputs must be {task.input_shape} and uint8 images or float32 features, "
                f"got {split.inputs.shape[1:]} {split.inputs.dtype}."
            )
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(task.classes):
            raise CorruptDataError(
                f"{where}: labels must be in [0, {len(task.classes) - 1}], got {low} to {high}."
            )
        if not np.isfinite(split.inputs).all():
            raise CorruptDataError(f"{where}: inputs must be finite, got NaN or infinity.")
    absent = sorted(set(range(len(task.classes))) - set(task.train.labels.tolist()))
    if absent:
        raise CorruptDataError(
            f"task {task.name}: the training split has no example of "
            f"{', '.join(task.classes[c] for c in absent)}."
        )
    return task


def hash_order(keys: Sequence[str], seed: int) -> list[int]:
    """A shuffle of positions that depends on the keys and the seed alone.

    Sorting by a hash gives the same order on every platform and with every version of NumPy, and
    a further key does not move the others.
    """
    digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    return sorted(range(len(keys)), key=lambda i: digests[i])


def neighbour_agreement(
    train_inputs: np.ndarray, train_labels: np.ndarray, inputs: np.ndarray, *, neighbours: int = 25
) -> np.ndarray:
    """How much the training examples that look most alike agree on a label.

    For every row: the share of the most frequent label among the training rows that are at most
    as far (Euclidean) as the `neighbours`-th nearest one. All that tie with it are counted, so
    the order of the rows does not matter. Inputs must be whole numbers: distances are then exact,
    and the result is the same on every platform.
    """
    train = train_inputs.reshape(len(train_inputs), -1).astype(np.float64)
    others = inputs.reshape(len(inputs), -1).astype(np.float64)
    one_hot = np.eye(int(train_labels.max()) + 1)[train_labels]
    nearest = min(neighbours, len(train)) - 1
    train_squares = np.sum(train**2, axis=1)
    shares = []
    for rows in np.array_split(others, max(1, len(others) // 500)):
        squares = np.sum(rows**2, axis=1)[:, None] - 2 * rows @ train.T + train_squares
        radius = np.partition(squares, nearest, axis=1)[:, nearest]
        votes = (squares <= radius[:, None]).astype(np.float64) @ one_hot
        shares.append(votes.max(axis=1) / votes.sum(axis=1))
    return np.concatenate(shares)


def ambiguous_subset(
    train: Split, test: Split, keys: tuple[np.ndarray, np.ndarray], *, below: float = 0.7
) -> Split:
    """The hard subset: test examples whose training look-alikes disagree on the label.

    The analogue, for data with one label an example, of the annotators' disagreement that defines
    CIFAR-10H's hard subset (largest share below 0.7).

    Args:
        train: the training split.
        test: the in-distribution test split.
        keys: whole-number descriptions of the examples of both, to measure likeness by.
        below: the share of the most frequent label under which an example is ambiguous.
    """
    agreement = neighbour_agreement(keys[0], train.labels, keys[1])
    return test.take(
        agreement < below,
        "ambiguous",
        "hard",
        f"test examples whose 25 nearest training examples agree to less than {below:.0%}",
    )
