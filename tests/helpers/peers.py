"""Shared by the tests marked `peers`: random problems, and the import of a peer."""

import warnings
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import references


class Shape(NamedTuple):
    """Problems of one shape, so that one compilation serves them."""

    examples: int
    classes: int
    num_bins: int


# sixteenths lie on the edges of 16 bins, and on none of 15 but 0 and 1
SHAPES = (Shape(240, 3, 16), Shape(90, 10, 15))
SEEDS = range(50)


class Problem(NamedTuple):
    """Arrays in float64; `counts` says how often each example is there."""

    probs: np.ndarray
    labels: np.ndarray
    counts: np.ndarray

    def repeated(self):
        """Probabilities and labels for peers without weights."""
        rows = np.repeat(np.arange(len(self.labels)), self.counts)
        return self.probs[rows], self.labels[rows]


def spread(rng, size, classes):
    return references.softmax(rng.randn(size, classes) * 2)


def sharp(rng, size, classes):
    """With a confidence of exactly 1 here and there, and probabilities down to 1e-100."""
    return references.softmax(rng.randn(size, classes) * 40)


def sixteenths(rng, size, classes):
    """Values on edges, ties among the classes, and ties among the examples."""
    return rng.multinomial(16, np.full(classes, 1 / classes), size=size) / 16


def few(rng, size, classes):
    return spread(rng, 5, classes)[rng.randint(5, size=size)]


def certain(rng, size, classes):
    """Probabilities 0 and 1."""
    return np.eye(classes)[rng.randint(classes, size=size)]


def mixed(rng, size, classes):
    parts = [kind(rng, size, classes) for kind in KINDS[:-1]]
    return np.stack(parts)[rng.randint(len(parts), size=size), np.arange(size)]


KINDS = (spread, sharp, sixteenths, few, certain, mixed)


def problem(seed, shape, dtype=np.float64, kinds=KINDS):
    """The problem of a seed; with float32, its numbers are those that float32 can hold.

    Labels follow the probabilities, made less sharp; half of the problems repeat examples.
    """
    rng = np.random.RandomState(seed)
    probs = kinds[seed % len(kinds)](rng, shape.examples, shape.classes)
    blunt = np.cumsum(0.7 * probs + 0.3 / shape.classes, axis=1)
    labels = (rng.rand(shape.examples, 1) > blunt[:, :-1]).sum(1)
    counts = rng.randint(4, size=shape.examples) if seed % 4 > 1 else np.ones(shape.examples, int)
    return Problem(probs.astype(dtype).astype(np.float64), labels, counts)


def stacked(shape, dtype=np.float64, kinds=KINDS):
    """The problems of all seeds, with an axis of problems in front; probabilities as `dtype`."""
    many = [problem(seed, shape, dtype, kinds) for seed in SEEDS]
    probs, labels, counts = (np.stack(x) for x in zip(*many, strict=True))
    return probs.astype(dtype), labels, counts.astype(dtype)


def peer(name, *, distribution=None, version=None) -> ModuleType:
    """Imports a peer, or skips; its warnings on import are ignored.

    Where a test pins what one version gets wrong, `version` skips it for any other.
    """
    if version is not None:
        try:
            installed = metadata.version(distribution or name)
        except metadata.PackageNotFoundError:
            pytest.skip(f"needs {distribution or name}")
        if installed != version:
            pytest.skip(f"says what {name} {version} does, not {installed}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)
