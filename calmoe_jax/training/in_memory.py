"""An epoch over data that fits in memory: one scan of `train_step`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from calmoe_jax.nn.network import Network
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.objective import Objective
from calmoe_jax.training.state import StepLog, TrainState
from calmoe_jax.training.step import train_step


class EpochMeans(NamedTuple):
    """Means over the steps of an epoch; see `StepLog`."""

    loss: Float[Array, ""]
    nll: Float[Array, ""]
    accuracy: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    importance: Float[Array, " experts"]


class EpochLog(NamedTuple):
    """Log of an epoch.

    Attributes:
        means: means over the steps.
        bad_step: first step of the epoch with a non-finite loss or state; -1 if none.
        bad_loss: whether it was the loss.
    """

    means: EpochMeans
    bad_step: Int[Array, ""]
    bad_loss: Bool[Array, ""]


def init_key(seed: Int[Array, ""]) -> jax.Array:
    """The key of a seed's initial weights.

    Args:
        seed: the seed.
    """
    return jax.random.split(jax.random.key(seed))[0]


def data_key(seed: Int[Array, ""]) -> jax.Array:
    """The key of a seed's batches, independent of the key of its weights.

    Args:
        seed: the seed.
    """
    return jax.random.split(jax.random.key(seed))[1]


def train_epoch(
    state: TrainState,
    seed: Int[Array, ""],
    epoch: Int[Array, ""],
    inputs: PyTree,
    labels: Int[Array, " examples"],
    *,
    network: Network,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    parts: int = 1,
) -> tuple[TrainState, EpochLog]:
    """Trains on every example once, in batches.

    The order of the examples depends only on the seed and the epoch, so that all methods see the
    same batches, and a resumed run the same as an uninterrupted one. A remainder smaller than a
    batch is left out of the epoch.

    Args:
        state: state before the epoch.
        seed: seed of the order.
        epoch: number of the epoch, from 0.
        inputs: inputs of all examples.
        labels: labels of all examples.
        network: the classifier.
        objective: objective to minimise.
        optimizer: gradients to updates.
        batch_size: examples per step, at most the number of examples.
        parts: parts that a batch is computed in, as in `train_step`.
    """
    key = jax.random.fold_in(data_key(seed), epoch)
    steps = len(labels) // batch_size
    order = jax.random.permutation(key, len(labels))[: steps * batch_size]

    def step(
        state: TrainState, given: tuple[Int[Array, ""], Int[Array, " batch"]]
    ) -> tuple[TrainState, StepLog]:
        number, rows = given
        batch = Batch(jax.tree.map(lambda x: x[rows], inputs), labels[rows])
        return train_step(
            state, batch, jax.random.fold_in(key, number),
            network=network, objective=objective, optimizer=optimizer, parts=parts,
        )  # fmt: skip

    numbers = jnp.arange(steps, dtype=jnp.int32)
    state, logs = jax.lax.scan(step, state, (numbers, order.reshape(steps, batch_size)))
    bad_step = jnp.where(logs.finite.all(), -1, jnp.argmin(logs.finite).astype(jnp.int32))
    means = EpochMeans(*(jnp.mean(values, axis=0) for values in logs[: len(EpochMeans._fields)]))
    return state, EpochLog(means, bad_step, ~jnp.isfinite(logs.loss[bad_step]))
