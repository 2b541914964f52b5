"""Trains on a mesh, one seed after the other: batches over all devices, of one process or many."""

import contextlib
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, PyTree

from calmoe_jax._signals import Stopped
from calmoe_jax.parallel.processes import as_peer_lost, is_writer, stop_is_due, whole
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.batches import Batches, InMemory, jax_order
from calmoe_jax.training.in_memory import EpochLog, EpochMeans, data_key, init_key
from calmoe_jax.training.log import MetricsLog
from calmoe_jax.training.sharded import ShardedTraining, sharded_training
from calmoe_jax.training.sharded_checkpoints import ShardedCheckpoints
from calmoe_jax.training.state import StepLog, TrainState
from calmoe_jax.training.trainer import (
    TrainedSeeds,
    Training,
    check_finite,
    log_lines,
)


class Preempted(Stopped):
    """A SIGTERM came to one process; all stopped at one step, of which a checkpoint is written."""


class _Sums(NamedTuple):
    """What an epoch has added up so far; part of a checkpoint, so that it may end anywhere."""

    values: EpochMeans
    bad_step: Float[Array, ""]
    bad_loss: Float[Array, ""]


class _Held(NamedTuple):
    state: TrainState
    sums: _Sums


def train_on_mesh(
    training: Training,
    inputs: PyTree,
    labels: np.ndarray,
    seeds: tuple[int, ...],
    mesh: Mesh,
    *,
    folder: Path,
    log: MetricsLog,
    checkpoint_every: int = 10,
    on_epoch: Callable[[float], None] = lambda loss: None,
    on_step: Callable[[int], None] = lambda step: None,
    say: Callable[[str], None] = print,
) -> TrainedSeeds:
    """Trains all seeds on a mesh, from their latest checkpoints if there are some.

    As `train`, which takes the same batches: the order of examples depends on seed and epoch alone,
    whatever the number of devices and processes. A batch that does not divide by the devices is
    filled up with repeats of its first example that count in nothing but batch normalisation. On
    the same mesh a resumed training is bit-equal.

    Args:
        training: the training to run.
        inputs: inputs of all examples, in the memory of every process.
        labels: labels of all examples.
        seeds: seed numbers.
        mesh: the devices.
        folder: folder of the checkpoints; a subfolder for each seed.
        log: log that gets a line for each seed and epoch, from one process.
        checkpoint_every: epochs between checkpoints.
        on_epoch: called after every epoch, with its mean loss.
        on_step: called before every step, with its number.
        say: prints a line.

    Returns:
        The trained seeds, with states on the host of every process.

    Raises:
        NonFiniteLossError: at the first epoch with a non-finite loss.
        Preempted: if a process got a SIGTERM.
        PeerLostError: if another process has ended.
    """
    batches = InMemory(inputs, labels, jax_order)
    steps = len(batches) // min(training.batch_size, len(batches))
    return train_on_batches(
        training, batches, seeds, mesh,
        folder=folder, log=log, steps_per_checkpoint=checkpoint_every * steps,
        on_epoch=on_epoch, on_step=on_step, say=say,
    )  # fmt: skip


def train_on_batches(
    training: Training,
    batches: Batches,
    seeds: tuple[int, ...],
    mesh: Mesh,
    *,
    folder: Path,
    log: MetricsLog,
    steps_per_checkpoint: int,
    on_epoch: Callable[[float], None],
    on_step: Callable[[int], None],
    say: Callable[[str], None],
) -> TrainedSeeds:
    """The loop of `train_on_mesh` and `train_on_stream`: batches from wherever they come.

    Args:
        training: the training to run.
        batches: the batches of each step.
        seeds: seed numbers.
        mesh: the devices.
        folder: folder of the checkpoints; a subfolder for each seed.
        log: log that gets a line for each seed and epoch, from one process.
        steps_per_checkpoint: steps between checkpoints; the last step has one too.
        on_epoch: called after every epoch, with its mean loss.
        on_step: called before every step, with its number.
        say: prints a line.

    Returns:
        The trained seeds, with states on the host of every process.

    Raises:
        NonFiniteLossError: at the first epoch or checkpoint with a non-finite loss.
        Preempted: if a process got a SIGTERM.
        PeerLostError: if another process has ended.
    """
    size = min(training.batch_size, len(batches))
    programs = {
        # the warm-up returns the objective's state unchanged
        objective: sharded_training(
            training.network,
            objective._replace(init=training.objective.init),
            training.optimizer,
            mesh,
            parts=training.parts,
        )
        for objective in (training.objective, training.warm_up)
    }
    shared = NamedSharding(mesh, P())
    # programs, since only they make arrays on the devices of other processes
    helpers = _Helpers(
        *(jax.jit(each, out_shardings=shared) for each in (_add, _step_key, init_key))
    )
    found = []
    for seed in seeds:
        one = _Seed(
            training, programs, helpers, batches, seed, size,
            ShardedCheckpoints(folder / f"seed-{seed}"), log, steps_per_checkpoint, say,
        )  # fmt: skip
        try:
            found.append(one.run(on_epoch, on_step))
        except jax.errors.JaxRuntimeError as error:
            lost = as_peer_lost(error)
            if lost is None:
                raise
            raise type(lost)(f"{lost}; the latest checkpoint is in {folder}.") from error
        except BaseException:
            if jax.process_count() == 1:  # others may not come to this point
                one.checkpoints.close()
            raise
    states, importance = zip(*found, strict=True)
    stacked = jax.tree.map(lambda *x: _stack(x), *states)
    return TrainedSeeds(training.network, stacked, np.stack(importance))


class _Helpers(NamedTuple):
    """Compiled: sums of an epoch, the key of a step, the key of the initial weights."""

    add: Callable[..., _Sums]
    key: Callable[..., jax.Array]
    first_key: Callable[..., jax.Array]


class _Seed(NamedTuple):
    """The training of one seed."""

    training: Training
    programs: dict[Any, ShardedTraining]
    helpers: "_Helpers"
    batches: Batches
    seed: int
    size: int
    checkpoints: ShardedCheckpoints
    log: MetricsLog
    steps_per_checkpoint: int
    say: Callable[[str], None]

    def run(
        self, on_epoch: Callable[[float], None], on_step: Callable[[int], None]
    ) -> tuple[TrainState, np.ndarray]:
        """Takes all steps that are left; the state and the last epoch's importance."""
        main = self.programs[self.training.objective]
        steps = len(self.batches) // self.size
        first, held = self._start(main)
        name, seed = self.training.name, self.seed
        if is_writer():
            self.log.forget_after(name, first // steps, seed=seed)
        saved, last = first, self.training.epochs * steps
        with contextlib.ExitStack() as stack:
            # a generator, which may read ahead until it is closed
            batches = self.batches.placed(seed, self.size, main.mesh, first)
            stack.callback(getattr(batches, "close", lambda: None))
            for step in range(first, last):
                on_step(step)
                self._stop_if_due(step, held)
                held = self._step(held, next(batches), step, steps)
                done = step + 1
                epoch_ends = done % steps == 0
                save = done % self.steps_per_checkpoint == 0 or done == last
                if epoch_ends or save:
                    epoch_log = self._checked_log(held, step, steps, saved)
                if epoch_ends:
                    if is_writer():
                        self.log.write(log_lines(name, (seed,), step // steps, steps, epoch_log))
                    on_epoch(float(epoch_log.means.loss[0]))
                if save:
                    self.checkpoints.save(done, held)
                    saved = done
        self.checkpoints.close()
        sums = whole(held.sums)
        return whole(held.state), sums.values.importance / steps

    def _stop_if_due(self, step: int, held: _Held) -> None:
        """Raises `Preempted` once the state is saved, where a process got a SIGTERM."""
        if not stop_is_due(step):
            return
        self.checkpoints.save(step, held)
        self.checkpoints.close()
        place = f"; {self.training.name}, seed {self.seed}, is saved at step {step}"
        raise Preempted(signal.SIGTERM, place)

    def _checked_log(self, held: _Held, step: int, steps: int, saved: int) -> EpochLog:
        """The log of the epoch so far; raises where a number was not finite."""
        sums = _means(whole(held.sums), steps)
        found: EpochLog = jax.tree.map(lambda x: np.asarray(x)[None], sums)
        check_finite(
            self.training.name, (self.seed,), step // steps, steps, found,
            self.checkpoints.folder, saved,
        )  # fmt: skip
        return found

    def _start(self, main: ShardedTraining) -> tuple[int, _Held]:
        state = main.state_like()
        experts = jax.eval_shape(
            partial(_importance, self.training.network), state, self._batch_like()
        )
        shared = NamedSharding(main.mesh, P())
        sums = jax.eval_shape(partial(_no_sums, experts.shape))
        like = _Held(
            state,
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shared), sums),
        )
        restored = self.checkpoints.restore(like, self.say)
        if restored is not None:
            return restored
        start = main.init(self.helpers.first_key(np.int32(self.seed)))
        no_sums = jax.jit(partial(_no_sums, experts.shape), out_shardings=shared)
        return 0, _Held(start, no_sums())

    def _step(self, held: _Held, batch: Batch, step: int, steps: int) -> _Held:
        epoch, number = divmod(step, steps)
        warm = epoch < self.training.warmup_epochs
        program = self.programs[self.training.warm_up if warm else self.training.objective]
        key = self.helpers.key(np.int32(self.seed), np.int32(epoch), np.int32(number))
        state, log = program.step(held.state, batch, key)
        sums = self.helpers.add(held.sums, log, np.int32(number))
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            jax.block_until_ready(sums)  # collectives of several steps at once hang there
        return _Held(state, sums)

    def _batch_like(self) -> PyTree:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((self.size, *x.shape), x.dtype), self.batches.input_spec
        )


def _step_key(seed: Array, epoch: Array, number: Array) -> jax.Array:
    """The key of a step, as `train_epoch` has it."""
    return jax.random.fold_in(jax.random.fold_in(data_key(seed), epoch), number)


def _importance(network: Any, state: TrainState, inputs: PyTree) -> jax.Array:
    prediction, _ = network.apply(
        state.params, state.network_state, inputs, train=False, sparse=False
    )
    return prediction.gate_logits[0]


def _no_sums(experts: tuple[int, ...]) -> _Sums:
    zero = jnp.zeros(())
    values = EpochMeans(zero, zero, zero, zero, jnp.zeros(experts))
    return _Sums(values, zero - 1, zero)


def _add(sums: _Sums, log: StepLog, number: Array) -> _Sums:
    """Adds a step; the first one of an epoch begins anew."""
    first = number == 0
    none = _no_sums(log.importance.shape)
    before = jax.tree.map(lambda old, new: jnp.where(first, new, old), sums, none)
    values = jax.tree.map(jnp.add, before.values, EpochMeans(*log[: len(EpochMeans._fields)]))
    bad = ~log.finite & (before.bad_step < 0)
    return _Sums(
        values,
        jnp.where(bad, number.astype(jnp.float32), before.bad_step),
        jnp.where(bad, (~jnp.isfinite(log.loss)).astype(jnp.float32), before.bad_loss),
    )


def _means(sums: _Sums, steps: int) -> EpochLog:
    means = jax.tree.map(lambda x: x / steps, sums.values)
    return EpochLog(means, sums.bad_step.astype(int), sums.bad_loss.astype(bool))


def _stack(leaves: tuple[Any, ...]) -> Any:
    if jnp.issubdtype(leaves[0].dtype, jax.dtypes.prng_key):
        return jnp.stack(leaves)
    return jnp.asarray(np.stack(leaves))
