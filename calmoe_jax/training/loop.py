"""Trains a recipe: all seeds in one compiled program, epoch after epoch, resumable."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from calmoe_jax._mapping import over_seeds
from calmoe_jax.data import Task
from calmoe_jax.study.config import ModelConfig, TrainConfig, with_defaults
from calmoe_jax.study.methods import Recipe
from calmoe_jax.study.networks import Network, build_network
from calmoe_jax.training.checkpoints import Checkpoints
from calmoe_jax.training.log import MetricsLog
from calmoe_jax.training.step import (
    EpochLog,
    Objective,
    TrainState,
    init_adversary,
    init_key,
    make_epoch,
)

# An expert with less than this part of its fair share of the routing weights is called dead.
_DEAD_SHARE = 0.05


class NonFiniteLossError(Exception):
    """Training met a loss or a parameter that is NaN or infinite."""


class TrainedSeeds(NamedTuple):
    """A recipe after training; every leaf has a leading axis of seeds.

    Attributes:
        network: the classifier.
        state: parameters and statistics.
        importance: share of the routing weights that each expert got in the last epoch.
    """

    network: Network
    state: TrainState
    importance: np.ndarray

    def dead_experts(self) -> list[list[int]]:
        """For each seed, the experts with less than a twentieth of their fair share."""
        fair = 1 / self.importance.shape[1]
        return [np.flatnonzero(row < _DEAD_SHARE * fair).tolist() for row in self.importance]


def train_recipe(
    recipe: Recipe,
    task: Task,
    model: ModelConfig,
    train: TrainConfig,
    seeds: tuple[int, ...],
    *,
    checkpoints: Checkpoints,
    log: MetricsLog,
    on_epoch: Callable[[float], None] = lambda loss: None,
) -> TrainedSeeds:
    """Trains all seeds of a recipe, from its latest checkpoint where there is one.

    The result is bit-equal however often the training was interrupted: batches depend on seed
    and epoch alone, and a checkpoint holds every bit of the state. An interrupt saves one more.

    Args:
        recipe: what to train.
        task: data; the training split is used.
        model: the classifier.
        train: the optimisation.
        seeds: seed numbers.
        checkpoints: where to save.
        log: where a line a seed and epoch goes.
        on_epoch: called after every epoch, with the mean loss over the seeds.

    Returns:
        The trained seeds.

    Raises:
        NonFiniteLossError: at the first non-finite loss, with method, seed, step and checkpoint.
    """
    train = with_defaults(model, train)
    steps = len(task.train) // min(train.batch_size, len(task.train))
    shapes = task.input_spec.shape, len(task.classes), len(task.train)
    program = _program(recipe, model, train, *shapes)
    warm_up = _program(recipe.warm_up(), model, train, *shapes)
    numbers = jnp.array(seeds, jnp.int32)
    inputs, labels = jnp.asarray(task.train.inputs), jnp.asarray(task.train.labels)

    first = checkpoints.latest() or 0
    if first:
        state = checkpoints.restore(first, jax.eval_shape(program.init, numbers))
    else:
        state = program.init(numbers)
    log.forget_after(recipe.name, first)
    epochs_done, saved = first, first
    importance = log.last_importance(recipe.name, seeds) if first == train.epochs else None
    try:
        for epoch in range(first, train.epochs):
            one_epoch = (warm_up if epoch < (train.warmup_epochs or 0) else program).epoch
            new_state, epoch_log = one_epoch(state, numbers, jnp.int32(epoch), inputs, labels)
            epoch_log = jax.tree.map(np.asarray, epoch_log)
            _check_finite(recipe, seeds, epoch, steps, epoch_log, checkpoints.folder, saved)
            log.write(_lines(recipe, seeds, epoch, steps, epoch_log))
            state, epochs_done, importance = new_state, epoch + 1, epoch_log.means.importance
            on_epoch(float(epoch_log.means.loss.mean()))
            if epochs_done % train.checkpoint_every == 0 or epochs_done == train.epochs:
                checkpoints.save(epochs_done, state)
                saved = epochs_done
    except KeyboardInterrupt:
        if epochs_done > saved:
            checkpoints.save(epochs_done, state)
        raise
    return TrainedSeeds(program.network, state, np.asarray(importance))


def _optimizer(train: TrainConfig, num_steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(train.learning_rate, num_steps)
    adamw = optax.adamw(schedule, weight_decay=train.weight_decay)
    if train.clip_norm:
        return optax.chain(optax.clip_by_global_norm(train.clip_norm), adamw)
    return adamw


def _objective(train: TrainConfig) -> Objective:
    return Objective(**{name: getattr(train, name) for name in Objective._fields})


def _init(
    network: Network, optimizer: optax.GradientTransformation, adversary: PyTree, seed: jax.Array
) -> TrainState:
    params, statistics = network.init(init_key(seed))
    return TrainState(params, statistics, optimizer.init(params), adversary)


class _Program(NamedTuple):
    """What is compiled for a recipe.

    Attributes:
        network: the classifier.
        init: seeds to their initial states.
        epoch: `(states, seeds, epoch, inputs, labels)` to new states and logs.
    """

    network: Network
    init: Callable[..., TrainState]
    epoch: Callable[..., tuple[TrainState, EpochLog]]


@lru_cache(maxsize=16)
def _program(
    recipe: Recipe,
    model: ModelConfig,
    train: TrainConfig,
    input_shape: tuple[int, ...],
    num_classes: int,
    num_examples: int,
) -> _Program:
    """Builds a recipe's programs, once: the warm-up of most recipes is the whole of vanilla."""
    network = build_network(
        model, single=recipe.single, input_shape=input_shape, num_classes=num_classes
    )
    batch_size = min(train.batch_size, num_examples)
    optimizer = _optimizer(train, num_examples // batch_size * train.epochs)
    one_seed = make_epoch(network, recipe, _objective(train), optimizer, batch_size=batch_size)

    @jax.jit
    def epoch_of_seeds(
        state: TrainState,
        seeds: jax.Array,
        epoch: jax.Array,
        inputs: jax.Array,
        labels: jax.Array,
    ) -> tuple[TrainState, EpochLog]:
        return over_seeds(lambda s, seed: one_seed(s, seed, epoch, inputs, labels))(state, seeds)

    adversary = init_adversary(recipe, _objective(train))
    init = jax.jit(over_seeds(partial(_init, network, optimizer, adversary)))
    return _Program(network, init, epoch_of_seeds)


def _check_finite(
    recipe: Recipe,
    seeds: tuple[int, ...],
    epoch: int,
    steps: int,
    log: EpochLog,
    folder: Path,
    saved: int,
) -> None:
    for seed, bad_step in zip(seeds, log.bad_step.tolist(), strict=True):
        if bad_step >= 0:
            last = (
                f"the last good checkpoint is {folder / str(saved)}" if saved else "none is saved"
            )
            raise NonFiniteLossError(
                f"method {recipe.name}, seed {seed}: the loss or a parameter is not finite at step "
                f"{epoch * steps + bad_step + 1} (epoch {epoch + 1}); {last}."
            )


def _lines(
    recipe: Recipe, seeds: tuple[int, ...], epoch: int, steps: int, log: EpochLog
) -> list[dict[str, Any]]:
    lines = []
    for i, seed in enumerate(seeds):
        values = {name: value[i].tolist() for name, value in log.means._asdict().items()}
        lines.append(
            {
                "method": recipe.name,
                "seed": seed,
                "epoch": epoch + 1,
                "step": (epoch + 1) * steps,
                **values,
            }
        )
    return lines
