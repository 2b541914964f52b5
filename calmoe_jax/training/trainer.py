"""Trains all seeds of an objective in one compiled program, epoch after epoch, resumable."""

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from calmoe_jax._errors import RunError
from calmoe_jax._mapping import over_seeds
from calmoe_jax.nn.network import Network
from calmoe_jax.training.checkpoints import Checkpoints
from calmoe_jax.training.in_memory import EpochLog, init_key, train_epoch
from calmoe_jax.training.log import MetricsLog
from calmoe_jax.training.objective import Objective
from calmoe_jax.training.objectives import erm
from calmoe_jax.training.state import TrainState, init_state

# An expert with less than this fraction of its fair share of the routing weights is called dead.
_DEAD_SHARE = 0.05
_STATELESS = erm()


class NonFiniteLossError(RunError):
    """Training met a loss or a parameter that is NaN or infinite."""


class Training(NamedTuple):
    """A training: network, objective, optimiser and schedule.

    Attributes:
        name: name of the training, of its checkpoints and in the log.
        network: the classifier.
        objective: objective to minimise after the warm-up.
        optimizer: gradients to updates.
        epochs: passes over the data.
        warmup_epochs: the first of them, which minimise `warm_up`.
        batch_size: examples per step; all if there are fewer.
        warm_up: what is minimised first; it must return the objective's state unchanged, as `erm`
            does.
        parts: parts that a batch is computed in, as in `train_step`.
    """

    name: str
    network: Network
    objective: Objective
    optimizer: optax.GradientTransformation
    epochs: int
    warmup_epochs: int = 0
    batch_size: int = 128
    warm_up: Objective = _STATELESS
    parts: int = 1


class TrainedSeeds(NamedTuple):
    """Result of a training; every leaf has a leading axis of seeds.

    Attributes:
        network: the classifier.
        state: the final states.
        importance: share of the routing weights of each expert in the last epoch.
    """

    network: Network
    state: TrainState
    importance: np.ndarray

    @property
    def num_experts(self) -> int:
        """Number of experts; 1 for a single classifier."""
        return int(self.importance.shape[1])

    def dead_experts(self) -> list[list[int]]:
        """For each seed, the experts with less than a twentieth of their fair share."""
        fair = 1 / self.importance.shape[1]
        return [np.flatnonzero(row < _DEAD_SHARE * fair).tolist() for row in self.importance]


def train(
    training: Training,
    inputs: PyTree,
    labels: np.ndarray,
    seeds: tuple[int, ...],
    *,
    checkpoints: Checkpoints,
    log: MetricsLog,
    checkpoint_every: int = 10,
    on_epoch: Callable[[float], None] = lambda loss: None,
    say: Callable[[str], None] = print,
) -> TrainedSeeds:
    """Trains all seeds, from their latest checkpoint if there is one.

    The result is bit-identical however often the training was interrupted: batches depend only on
    seed and epoch, and a checkpoint holds the full state. An interrupt saves a checkpoint.

    Args:
        training: the training to run.
        inputs: inputs of all examples.
        labels: labels of all examples.
        seeds: seed numbers.
        checkpoints: store of the checkpoints.
        log: log that gets a line for each seed and epoch.
        checkpoint_every: epochs between checkpoints.
        on_epoch: called after every epoch, with the mean loss over the seeds.
        say: prints a line.

    Returns:
        The trained seeds.

    Raises:
        NonFiniteLossError: at the first non-finite loss, with its name, seed, step and checkpoint.
    """
    steps = len(labels) // min(training.batch_size, len(labels))
    size = min(training.batch_size, len(labels))
    network, optimizer = training.network, training.optimizer
    main, warm_up = (
        _epoch_program(network, each, optimizer, size, training.parts)
        for each in (training.objective, training.warm_up)
    )
    numbers = jnp.array(seeds, jnp.int32)

    def init(numbers: jax.Array) -> TrainState:
        state = _init_program(network, optimizer)(numbers)
        return state._replace(objective_state=_repeated(training.objective.init(), len(seeds)))

    inputs, classes = jax.tree.map(jnp.asarray, inputs), jnp.asarray(labels)

    restored = checkpoints.restore_latest(jax.eval_shape(init, numbers), say)
    first, state = (0, init(numbers)) if restored is None else restored
    log.forget_after(training.name, first)
    epochs_done, saved = first, first
    importance = log.last_importance(training.name, seeds) if first == training.epochs else None
    try:
        for epoch in range(first, training.epochs):
            one_epoch = warm_up if epoch < training.warmup_epochs else main
            new_state, epoch_log = one_epoch(state, numbers, jnp.int32(epoch), inputs, classes)
            epoch_log = jax.tree.map(np.asarray, epoch_log)
            check_finite(training.name, seeds, epoch, steps, epoch_log, checkpoints.folder, saved)
            log.write(log_lines(training.name, seeds, epoch, steps, epoch_log))
            state, epochs_done, importance = new_state, epoch + 1, epoch_log.means.importance
            on_epoch(float(epoch_log.means.loss.mean()))
            if epochs_done % checkpoint_every == 0 or epochs_done == training.epochs:
                checkpoints.save(epochs_done, state)
                saved = epochs_done
    except KeyboardInterrupt:
        if epochs_done > saved:
            checkpoints.save(epochs_done, state)
        raise
    return TrainedSeeds(network, state, np.asarray(importance))


@lru_cache(maxsize=16)
def _epoch_program(
    network: Network,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    parts: int,
) -> Callable[..., tuple[TrainState, EpochLog]]:
    """An epoch of all seeds, compiled once; vanilla shares the program of the warm-up."""
    one_seed = partial(
        train_epoch,
        network=network, objective=objective, optimizer=optimizer, batch_size=batch_size,
        parts=parts,
    )  # fmt: skip

    @jax.jit
    def epoch_of_seeds(
        state: TrainState, seeds: jax.Array, epoch: jax.Array, inputs: PyTree, labels: jax.Array
    ) -> tuple[TrainState, EpochLog]:
        return over_seeds(lambda s, seed: one_seed(s, seed, epoch, inputs, labels))(state, seeds)

    return epoch_of_seeds


@lru_cache(maxsize=16)
def _init_program(
    network: Network, optimizer: optax.GradientTransformation
) -> Callable[[jax.Array], TrainState]:
    """The initial states of all seeds, for any objective: compiled once per network."""

    @jax.jit
    def init_of_seeds(seeds: jax.Array) -> TrainState:
        start = partial(init_state, network, _STATELESS, optimizer)
        return over_seeds(lambda seed: start(init_key(seed)))(seeds)

    return init_of_seeds


def _repeated(tree: PyTree, times: int) -> PyTree:
    """A tree of arrays repeated along a new leading axis."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (times, *jnp.shape(x))), tree)


def check_finite(
    name: str,
    seeds: tuple[int, ...],
    epoch: int,
    steps: int,
    log: EpochLog,
    folder: Path,
    saved: int,
) -> None:
    """Raises a `NonFiniteLossError` at the first step of an epoch that was not finite.

    Args:
        name: name of the training.
        seeds: seed numbers.
        epoch: number of the epoch, from 0.
        steps: steps of an epoch.
        log: log of the epoch, with a leading axis of seeds.
        folder: folder of the checkpoints.
        saved: number of the latest one, 0 for none.
    """
    bad = zip(seeds, log.bad_step.tolist(), log.bad_loss.tolist(), strict=True)
    for seed, bad_step, bad_loss in bad:
        if bad_step >= 0:
            last = (
                f"the last good checkpoint is {folder / str(saved)}" if saved else "none is saved"
            )
            what = "the objective's loss" if bad_loss else "a number of the state"
            raise NonFiniteLossError(
                f"method {name}, seed {seed}: {what} is not finite at step "
                f"{epoch * steps + bad_step + 1} (epoch {epoch + 1}); {last}."
            )


def log_lines(
    name: str, seeds: tuple[int, ...], epoch: int, steps: int, log: EpochLog
) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` for an epoch; arguments as in `check_finite`."""
    lines = []
    for i, seed in enumerate(seeds):
        values = {field: value[i].tolist() for field, value in log.means._asdict().items()}
        place = {"method": name, "seed": seed, "epoch": epoch + 1, "step": (epoch + 1) * steps}
        lines.append({**place, **values})
    return lines
