"""Small trained mixtures of the embedded tasks, their experts calibrated on their views, by halves.

The calibration split and the in-distribution test split are one pool, divided in two by clusters:
what is fitted on one half is measured on the other, both ways.
"""

import tempfile
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax.calibration import calibrators
from calmoe_jax.data import resolve_task
from calmoe_jax.routing.kinds import RoutingKind
from calmoe_jax.shift.repair import usable_temperature
from calmoe_jax.study import RunConfig
from calmoe_jax.study.config import ModelConfig, TrainConfig
from experiments.trained import sample, train_vanilla

CALIBRATORS = ("none", "temperature", "vector")
SEEDS = 3
EPOCHS = {"portal": 20, "digits": 100}


class Pool(NamedTuple):
    """Predictions of all seeds for the pool: of all experts, in their order.

    Attributes:
        log_probs: `[seeds, examples, experts, classes]`.
        routing: weights, 0 where an expert was not chosen, `[seeds, examples, experts]`.
        labels: `[examples]`.
        clusters: numbered from 0, `[examples]`.
        half: 0 or 1, the same for all examples of a cluster, `[examples]`.
    """

    log_probs: np.ndarray
    routing: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray
    half: np.ndarray


@lru_cache
def trained_pool(name: str, routing: RoutingKind, *, epochs: int, seeds: int) -> Pool:
    """Trains mixtures of one routing kind, and predicts the pool.

    Args:
        name: of an embedded task.
        routing: dense, top_k (two experts) or hard.
        epochs: passes over the training examples.
        seeds: number of mixtures.
    """
    task = resolve_task(name, None)
    config = RunConfig(
        task=name, seeds=seeds, model=ModelConfig(routing=routing),
        train=TrainConfig(epochs=epochs, checkpoint_every=epochs),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trained = train_vanilla(task, config, Path(folder))
    splits = task.calibration, task.evaluation[0]
    outputs = [sample(trained, split.inputs) for split in splits]
    names = [(i, c) for i, split in enumerate(splits) for c in split.clusters.tolist()]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    clusters = np.array([numbers[name] for name in names])
    return Pool(
        *(np.concatenate([np.asarray(x) for x in parts], axis=1)
          for parts in zip(*outputs, strict=True)),
        np.concatenate([split.labels for split in splits]).astype(np.int32),
        clusters,
        clusters % 2,
    )  # fmt: skip


@partial(jax.jit, static_argnames="calibrator")
def _calibrated(
    log_probs: jax.Array, views: jax.Array, labels: jax.Array, *, calibrator: str
) -> jax.Array:
    def one(given: tuple[jax.Array, jax.Array]) -> jax.Array:
        scores, view = given
        if calibrator == "none":
            return jnp.exp(scores)
        if calibrator == "temperature":
            found = calibrators.fit_temperature(scores, labels, weights=view)
            found = found._replace(temperature=usable_temperature(found))
            return calibrators.apply_temperature(found, scores)
        fit = calibrators.fit_vector_scaling(scores, labels, weights=view)
        return calibrators.apply_vector_scaling(fit, scores)

    return jax.lax.map(one, (log_probs, views))


def calibrated(pool: Pool, calibrator: str) -> np.ndarray:
    """Experts' probabilities, each calibrated on its routing-weighted view of one half.

    Args:
        pool: predictions.
        calibrator: one of `CALIBRATORS`, fitted to each expert with its routing weights.

    Returns:
        Probabilities `[halves, seeds, examples, experts, classes]`, by the half that was fitted.
    """
    shape = pool.log_probs.shape
    # a fit for each seed and expert
    rows = np.moveaxis(pool.log_probs, 2, 1).reshape(-1, shape[1], shape[3])
    views = np.moveaxis(pool.routing, 2, 1).reshape(-1, shape[1])
    halves = []
    for half in (0, 1):
        fitted = np.float32(pool.half == half)
        found = _calibrated(rows, views * fitted, pool.labels, calibrator=calibrator)
        found = np.asarray(found).reshape(shape[0], shape[2], shape[1], shape[3])
        halves.append(np.moveaxis(found, 1, 2))
    return np.stack(halves)


def mixed(probs: np.ndarray, routing: np.ndarray) -> np.ndarray:
    """The aggregate, `[..., examples, classes]`, in 64 bits.

    Args:
        probs: of the experts, `[..., examples, experts, classes]`.
        routing: their weights.
    """
    total = np.einsum("...nk,...nkc->...nc", np.float64(routing), np.float64(probs))
    return total / total.sum(-1, keepdims=True)
