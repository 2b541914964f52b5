"""Small trained mixtures of the embedded tasks, and calibrators of their experts on their views."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax.calibration import calibrators
from calmoe_jax.data import Split, Task
from calmoe_jax.routing.kinds import RoutingKind
from calmoe_jax.shift.repair import usable_temperature
from calmoe_jax.study import RunConfig
from calmoe_jax.study.config import ModelConfig, TrainConfig
from experiments.trained import sample, train_vanilla

EPOCHS = 20
SEEDS = 3


class Outputs(NamedTuple):
    """Predictions of all seeds for a split: of all experts, in their order.

    Attributes:
        log_probs: `[seeds, examples, experts, classes]`.
        routing: weights, 0 where an expert was not chosen, `[seeds, examples, experts]`.
        labels: `[examples]`.
        clusters: `[examples]`.
    """

    log_probs: jax.Array
    routing: jax.Array
    labels: np.ndarray
    clusters: np.ndarray


def trained_outputs(
    task: Task, routing: RoutingKind, splits: tuple[Split, ...], *, epochs: int, seeds: int
) -> tuple[Outputs, ...]:
    """Trains mixtures of one routing kind, and predicts.

    Args:
        task: on which to train.
        routing: as `ModelConfig` has it.
        splits: what to predict.
        epochs: passes over the training examples.
        seeds: number of mixtures.
    """
    config = RunConfig(
        task=task.name, seeds=seeds, model=ModelConfig(routing=routing),
        train=TrainConfig(epochs=epochs, checkpoint_every=epochs),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trained = train_vanilla(task, config, Path(folder))
    return tuple(
        Outputs(*sample(trained, split.inputs), split.labels, split.clusters) for split in splits
    )


# (log_probs, labels, view weights) of one expert's fit to what it makes of log_probs
Calibrate = Callable[
    [jax.Array, jax.Array, jax.Array], Callable[[jax.Array], jax.Array]
]


def _as_they_are(log_probs: jax.Array, labels: jax.Array, view: jax.Array) -> Callable:
    del log_probs, labels, view
    return jnp.exp


def _temperature(log_probs: jax.Array, labels: jax.Array, view: jax.Array) -> Callable:
    found = calibrators.fit_temperature(log_probs, labels, weights=view)
    fit = found._replace(temperature=usable_temperature(found))
    return lambda x: calibrators.apply_temperature(fit, x)


def _vector(log_probs: jax.Array, labels: jax.Array, view: jax.Array) -> Callable:
    fit = calibrators.fit_vector_scaling(log_probs, labels, weights=view)
    return lambda x: calibrators.apply_vector_scaling(fit, x)


def _dirichlet(log_probs: jax.Array, labels: jax.Array, view: jax.Array) -> Callable:
    fit = calibrators.fit_dirichlet(
        jnp.exp(log_probs), labels, off_diagonal=1e-3, intercept=1e-3, weights=view
    )
    return lambda x: calibrators.apply_dirichlet(fit, jnp.exp(x))


def _isotonic(log_probs: jax.Array, labels: jax.Array, view: jax.Array) -> Callable:
    fit = calibrators.fit_classwise_isotonic(jnp.exp(log_probs), labels, weights=view)
    return lambda x: calibrators.apply_classwise_isotonic(fit, jnp.exp(x))


CALIBRATORS: dict[str, Calibrate] = {
    "none": _as_they_are,
    "temperature": _temperature,
    "vector": _vector,
    "dirichlet": _dirichlet,
    "isotonic": _isotonic,
}


def calibrated_experts(
    name: str, held_out: Outputs, seed: int, targets: tuple[Outputs, ...]
) -> list[jax.Array]:
    """Probabilities of one seed's experts, each calibrated on its view of held-out examples.

    Args:
        name: one of `CALIBRATORS`.
        held_out: where to fit.
        seed: position of the seed.
        targets: what to apply the fits to.

    Returns:
        For each target probabilities `[examples, experts, classes]`.
    """
    labels = jnp.asarray(held_out.labels, jnp.int32)
    maps = [
        CALIBRATORS[name](held_out.log_probs[seed, :, k], labels, held_out.routing[seed, :, k])
        for k in range(held_out.routing.shape[-1])
    ]
    return [
        jnp.stack([apply(t.log_probs[seed, :, k]) for k, apply in enumerate(maps)], axis=1)
        for t in targets
    ]
