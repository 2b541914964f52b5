"""A task small enough to train very fast, with a harmful shift."""

import jax.numpy as jnp
import numpy as np

import calmoe_jax as cm
from calmoe_jax.data import Split, Task, check_task

CLASSES = ("a", "b", "c")


def all_experts(weights):
    """Weights of all experts as a routing with a slot for each."""
    experts = jnp.arange(weights.shape[-1], dtype=jnp.int32)[None]
    return cm.Routing(jnp.broadcast_to(experts, weights.shape), weights)


def split(
    name, kind, size, seed, *, noise=0.7, clusters=None, series=None, position=None, votes=False
):
    rng = np.random.RandomState(seed)
    labels = (np.arange(size) % 3).astype(np.int32)
    centres = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]])
    inputs = centres[labels] + noise * rng.randn(size, 4)
    numbers = np.arange(size) if clusters is None else rng.randint(clusters, size=size)
    return Split(
        name,
        kind,
        inputs.astype(np.float32),
        labels,
        numbers.astype(np.int32),
        name,
        series,
        position,
        np.random.RandomState(seed).dirichlet(np.ones(3) + 8 * np.eye(3)[0], size)
        if votes
        else None,
    )


def small_task(size=96, name="portal"):
    return check_task(
        Task(
            name=name,
            classes=CLASSES,
            train=split("train", "train", size, 0),
            calibration=split("calibration", "calibration", 60, 1),
            evaluation=(
                split("test", "id", 50, 2, clusters=12),
                split("early", "shift", 40, 3, noise=1.0, series="year", position=1.0),
                split("late", "shift", 30, 4, noise=1.5, clusters=6, series="year", position=2.0),
                split("ambiguous", "hard", 20, 5, noise=1.2, votes=True),
            ),
            source="made up",
        )
    )


def small_images(size=64):
    rng = np.random.RandomState(0)

    def images(name, kind, count):
        labels = (np.arange(count) % 3).astype(np.int32)
        inputs = rng.randint(0, 60, (count, 8, 8, 1))
        inputs[np.arange(count), labels * 2, :, 0] += 180
        return Split(
            name, kind, inputs.astype(np.uint8), labels, np.arange(count, dtype=np.int32), name
        )

    return check_task(
        Task(
            name="digits",
            classes=CLASSES,
            train=images("train", "train", size),
            calibration=images("calibration", "calibration", 30),
            evaluation=(images("test", "id", 30), images("other", "shift", 30)),
            source="made up",
        )
    )
