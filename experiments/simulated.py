"""Shifts made of a task's own training and held-out examples, of which all labels are known.

As in BREEDS (Santurkar et al., 2021): k-means divides each class into four subpopulations; one of
every class is left out of training and of the held-out examples. Targets are mixtures of it and of
fresh examples of the others, from none of it to nothing else, and fresh examples with noise or
faded towards the mean: shifts of every severity, as real ones may have any.
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
        What to train and calibrate on, and targets by name, all of one size; `NO_SHIFT` is none.
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
    held_out = _take(task.calibration, kept[1])
    return dataclasses.replace(task, train=train, calibration=held_out), targets


def _take(split: Split, rows: np.ndarray) -> Split:
    return split.take(rows, split.name, split.kind, split.description)


def _evenly(split: Split, count: int) -> Split:
    return _take(split, np.linspace(0, len(split) - 1, count).round().astype(int))


def _join(first: Split, second: Split) -> Split:
    names = "inputs", "labels", "clusters"
    both = {x: np.concatenate([getattr(first, x), getattr(second, x)]) for x in names}
    return dataclasses.replace(first, **both)


def _replaced(split: Split, inputs: np.ndarray) -> Split:
    kind = split.inputs.dtype
    if kind == np.uint8:
        inputs = np.clip(np.round(inputs), 0, 255)
    return dataclasses.replace(split, inputs=inputs.astype(kind))
