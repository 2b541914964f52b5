"""Small trainings on the small task, as tests of training want them."""

import jax
import numpy as np
import optax
from small import small_task

from calmoe_jax import training
from calmoe_jax.study.config import ModelConfig, TrainConfig, with_defaults
from calmoe_jax.study.methods import build_method, warm_up_objective
from calmoe_jax.study.networks import build_network, build_optimizer

SEEDS = (7, 8)
MODEL = ModelConfig(width=8, depth=1, experts=3, router_hidden=8)
TRAIN = TrainConfig(epochs=3, warmup_epochs=1, batch_size=16, checkpoint_every=1)


def network_of(task=None, model=MODEL, *, single=False):
    task = task or small_task()
    return build_network(model, task.train.inputs, single=single, num_classes=len(task.classes))


def training_of(method="robust", task=None, model=MODEL, config=TRAIN):
    """A training of a method of this library."""
    task = task or small_task()
    config = with_defaults(model, config)
    found = build_method(method, config, network_of(task, model, single=True))
    return training.Training(
        found.training, found.network or network_of(task, model), found.objective,
        build_optimizer(config, len(task.train)), config.epochs, config.warmup_epochs,
        config.batch_size, warm_up_objective(config),
    )  # fmt: skip


def train(folder, method="robust", task=None, model=MODEL, config=TRAIN, seeds=SEEDS, **kwargs):
    """Trains a method's seeds in a folder."""
    folder.mkdir(exist_ok=True)
    task = task or small_task()
    return training.train(
        training_of(method, task, model, config), task.train.inputs, task.train.labels, seeds,
        checkpoints=training.Checkpoints(folder / "checkpoints"),
        log=training.MetricsLog(folder / "metrics.jsonl"),
        checkpoint_every=config.checkpoint_every, **kwargs,
    )  # fmt: skip


def start(network, objective, optimizer=None, seed=0):
    """A state to step from."""
    return training.init_state(
        network, objective, optimizer or optax.sgd(1.0), jax.random.key(seed)
    )


def same_bits(a, b):
    """Whether two trees hold the same numbers, keys included."""

    def plain(x):
        is_key = jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if is_key else x)

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(plain(x), plain(y)) for x, y in pairs)
