"""Shifts made of a task's own training and held-out examples, of which all labels are known.

As in BREEDS (Santurkar et al., 2021): k-means divides each class into four subpopulations; one of
every class is left out of training and of the held-out examples. Targets are mixtures of it and of
fresh examples of the others, from none of it to nothing else, and fresh examples with noise, faded
towards the mean, with features missing, with other shares of the classes, or chosen because their
neighbours' labels differ: shifts of every severity, as real ones may have any, and subsets that are
hard without one.
"""

import dataclasses

import numpy as np

from calmoe_jax.data import Split, Task

SUBPOPULATIONS = 4  # of each class
NO_SHIFT = "none"
# Share of the clusters left to train on that are kept fresh instead: one in so many.
_FRESH = 4
_MOST_TARGETS = 3000
_NEW = (0.0, 0.25, 0.5, 0.75, 1.0)  # shares of what was left out
_NOISE = (0.25, 0.5, 1.0)  # standard deviations, in those of each feature
_KEPT = (0.75, 0.5, 0.25)  # of the distance to the mean
_MISSING = (0.25, 0.5)  # shares of the features
_PRIOR = (0.5, 1.0)  # exponents: classes have shares as of 1, ..., C to their power
_HARD = (0.5, 0.25)  # shares of the examples whose neighbours' labels differ most
_NEIGHBOURS = 20
FAMILIES = (NO_SHIFT, "new", "noise", "faded", "missing", "prior", "hard")


def subpopulations(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Subpopulation of each training and each held-out example; 0 is the largest of its class."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    splits = task.train, task.calibration
    rows = np.concatenate([x.inputs.reshape(len(x), -1) for x in splits]).astype(np.float32)
    labels = np.concatenate([x.labels for x in splits])
    if rows.shape[1] > 50:
        rows = PCA(50, random_state=0).fit_transform(rows)
    numbers = np.zeros(len(rows), int)
    for label in range(len(task.classes)):
        some = labels == label
        found = KMeans(SUBPOPULATIONS, n_init=3, random_state=0).fit_predict(rows[some])
        rank = np.argsort(np.argsort(-np.bincount(found, minlength=SUBPOPULATIONS)))
        numbers[some] = rank[found]
    return numbers[: len(task.train)], numbers[len(task.train) :]


def leave_out(
    task: Task, numbers: tuple[np.ndarray, np.ndarray], number: int
) -> tuple[Task, dict[str, Split]]:
    """The task without a subpopulation of each class, and shifts from it.

    Args:
        task: the task.
        numbers: subpopulations of its training and its held-out examples.
        number: which to leave out.

    Returns:
        What to train and calibrate on, and targets by name; `NO_SHIFT` is none.
    """
    _, cluster = np.unique(task.train.clusters, return_inverse=True)
    fresh = cluster % _FRESH == _FRESH - 1
    kept = [x != number for x in numbers]
    train = _take(task.train, np.flatnonzero(kept[0] & ~fresh))
    others = _take(task.train, np.flatnonzero(kept[0] & fresh))
    new = _join(_take(task.train, np.flatnonzero(~kept[0])), _take(task.calibration, ~kept[1]))
    size = min(len(others), len(new), _MOST_TARGETS)
    targets = {}
    for share in _NEW:
        count = round(share * size)
        mixed = _join(_evenly(others, size - count), _evenly(new, count))
        targets[f"{share:.0%} new" if share else NO_SHIFT] = mixed
    plain = _evenly(others, size)
    mean, scale = (f(train.inputs.astype(np.float32), axis=0) for f in (np.mean, np.std))
    for level in _NOISE:
        noise = np.random.RandomState(0).standard_normal(plain.inputs.shape) * scale
        targets[f"noise {level}"] = _replaced(plain, plain.inputs + level * noise)
    for share in _KEPT:
        targets[f"faded to {share}"] = _replaced(plain, mean + share * (plain.inputs - mean))
    for share in _MISSING:
        gone = np.random.RandomState(0).random_sample(plain.inputs.shape) < share
        targets[f"missing {share}"] = _replaced(plain, np.where(gone, mean, plain.inputs))
    for power in _PRIOR:
        targets[f"prior {power}"] = _of_shares(others, len(task.classes), power, size)
    ranked = np.argsort(-_doubt(train, others), kind="stable")
    for share in _HARD:
        targets[f"hard {share}"] = _take(others, np.sort(ranked[: round(share * len(others))]))
    held_out = _take(task.calibration, kept[1])
    return dataclasses.replace(task, train=train, calibration=held_out), targets


def family(name: str) -> str:
    """The family of a shift, by its name."""
    return next(kind for kind in FAMILIES if kind in name)


def _of_shares(split: Split, num_classes: int, power: float, size: int) -> Split:
    """As many examples of each class as a power of its number asks for."""
    wanted = np.arange(1, num_classes + 1.0) ** power
    counts = np.bincount(split.labels, minlength=num_classes)
    scale = min(np.min(counts / wanted), size / wanted.sum())
    rows = [
        np.flatnonzero(split.labels == label)[: int(scale * wanted[label])]
        for label in range(num_classes)
    ]
    return _take(split, np.sort(np.concatenate(rows)))


def _doubt(train: Split, split: Split) -> np.ndarray:
    """Share of each example's nearest training examples that have another label."""
    from sklearn.decomposition import PCA
    from sklearn.neighbors import NearestNeighbors

    rows = [x.inputs.reshape(len(x), -1).astype(np.float32) for x in (_evenly_most(train), split)]
    if rows[0].shape[1] > 50:
        reduce = PCA(50, random_state=0).fit(rows[0])
        rows = [reduce.transform(x) for x in rows]
    near = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(rows[0])
    index = near.kneighbors(rows[1], return_distance=False)
    return np.mean(_evenly_most(train).labels[index] != split.labels[:, None], axis=1)


def _evenly_most(split: Split) -> Split:
    return _evenly(split, min(len(split), 4 * _MOST_TARGETS))


def _take(split: Split, rows: np.ndarray) -> Split:
    return split.take(rows, split.name, split.kind, split.description)


def _evenly(split: Split, count: int) -> Split:
    return _take(split, np.linspace(0, len(split) - 1, count).round().astype(int))


def _join(first: Split, second: Split) -> Split:
    names = ["inputs", "labels", "clusters"]
    if first.soft_labels is not None:
        names.append("soft_labels")
    both = {x: np.concatenate([getattr(first, x), getattr(second, x)]) for x in names}
    return dataclasses.replace(first, **both)


def _replaced(split: Split, inputs: np.ndarray) -> Split:
    kind = split.inputs.dtype
    if kind == np.uint8:
        inputs = np.clip(np.round(inputs), 0, 255)
    return dataclasses.replace(split, inputs=inputs.astype(kind))
