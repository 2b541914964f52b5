"""A task: splits to train on, to calibrate on, and to evaluate on."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax
import numpy as np
from jaxtyping import PyTree

Kind = Literal["train", "calibration", "id", "shift", "hard", "part"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Split:
    """Labelled examples of one origin.

    Attributes:
        name: unique within its task.
        kind: `train`, `calibration` (held out from training, never a test set), `id` (the same
            distribution as training), `shift` (another one), `hard` (a difficult part of the id
            split) or `part` (any other part of it: the easy examples, those of one origin). A part
            has columns of its own in a report and enters no mean, as its examples count in the
            id split already.
        inputs: an array, or a tree of arrays (a dict, say), whose first axis is the example:
            features `[n, d]` float32, images `[n, height, width, channels]` uint8, or token ids
            `[n, length]` int32 with masks of bools.
        labels: class of each example, integers.
        clusters: examples of one cluster are dependent (the same survey, say) and are resampled
            together by the bootstrap; integers. Each example is its own cluster by default.
        description: a one-line description.
        series: the ordered family that the split is a member of (`"year"`, `"blur"`), if any.
        position: its place in the family: a year, a severity.
        soft_labels: `[n, classes]` shares of the people who chose each class, where several people
            labelled each example; each row sums to 1. The most chosen class need not be the label.
            `None` where there are no votes.
    """

    name: str
    kind: Kind
    inputs: PyTree
    labels: np.ndarray
    clusters: np.ndarray = None  # type: ignore[assignment]  # an array once it is made
    description: str = ""
    series: str | None = None
    position: float | None = None
    soft_labels: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Converts arrays to NumPy; each example is its own cluster by default."""
        labels = np.asarray(self.labels)
        clusters = self.clusters
        if clusters is None:
            clusters = np.arange(labels.size, dtype=np.int32).reshape(labels.shape)  # type: ignore[unreachable]
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "clusters", np.asarray(clusters))
        if self.soft_labels is not None:
            object.__setattr__(self, "soft_labels", np.asarray(self.soft_labels))

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    @property
    def num_clusters(self) -> int:
        """Number of distinct clusters."""
        return len(np.unique(self.clusters))

    def take(self, rows: np.ndarray, name: str, kind: Kind, description: str) -> "Split":
        """The split of the given rows (indices or a mask), under another name."""
        inputs = jax.tree.map(lambda leaf: leaf[rows], self.inputs)
        return Split(
            name=name,
            kind=kind,
            inputs=inputs,
            labels=self.labels[rows],
            clusters=self.clusters[rows],
            description=description,
            soft_labels=None if self.soft_labels is None else self.soft_labels[rows],
        )


@dataclass(frozen=True)
class Task:
    """A classification problem with named shifts.

    Attributes:
        name: name of the task for `calmoe run`.
        classes: names of the classes; labels index them.
        train: examples to train on.
        calibration: examples held out from training, to fit temperatures on.
        evaluation: the id split first, then shifts in their order, then hard subsets and parts.
        source: origin of the data, and its licence.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    calibration: Split
    evaluation: tuple[Split, ...]
    source: str = ""

    @property
    def splits(self) -> tuple[Split, ...]:
        """All splits: train, calibration, then those of evaluation."""
        return (self.train, self.calibration, *self.evaluation)

    @property
    def input_spec(self) -> PyTree:
        """Shape and type of one example: a `jax.ShapeDtypeStruct` for each array of the inputs."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), self.train.inputs
        )

    @property
    def holds_images(self) -> bool:
        """Whether inputs are one array of images, `[height, width, channels]` each."""
        return len(getattr(self.input_spec, "shape", ())) == 3
