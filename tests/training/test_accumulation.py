"""A batch in parts has the loss, gradient and log of the whole, for every objective."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dispatching import exhaustive
from objectives_table import CASES
from small import small_task
from trainings import MODEL, network_of

from calmoe_jax.nn import MoEBlocks, MoEClassifier, ViT, from_nnx
from calmoe_jax.parallel import device_mesh
from calmoe_jax.training import Batch, init_state, objectives, sharded_training, train_step

TASK = small_task()
OBJECTIVES = {name: case.objective for name, case in CASES.items()}
OBJECTIVES["rectified"] = objectives.rectified(objectives.robust(eta=2.0))
OBJECTIVES["gate losses"] = objectives.with_gate_losses(
    objectives.robust(eta=2.0), load_balancing=0.1, z_loss=0.1
)
BY_DEFAULT = ("gate losses", "rectified")
OPTIMIZER = optax.sgd(0.3)


def close(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if not jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def steps(network, objective, batch, parts, number=3):
    state = init_state(network, objective, OPTIMIZER, jax.random.key(0))
    step = jax.jit(
        lambda s, b, k: train_step(
            s, b, k, network=network, objective=objective, optimizer=OPTIMIZER, parts=parts
        )
    )
    for i in range(number):
        state, log = step(state, batch, jax.random.key(i))
    return state, log


OTHERS = [(name, 4) for name in sorted(set(OBJECTIVES) - {*BY_DEFAULT})]


@pytest.mark.parametrize(
    ("name", "parts"),
    [*((name, 4) for name in BY_DEFAULT), *exhaustive(*OTHERS, ("rectified", 48), ("robust", 2))],
)
def test_parts_are_the_whole(name, parts):
    # statistics of the gate are of all tokens where none is left out
    where = None if name == "gate losses" else jnp.arange(48) < 41
    batch = Batch(jnp.asarray(TASK.train.inputs[:48]), jnp.asarray(TASK.train.labels[:48]), where)
    network = network_of(TASK, MODEL)
    close(
        steps(network, OBJECTIVES[name], batch, parts), steps(network, OBJECTIVES[name], batch, 1)
    )


@pytest.mark.exhaustive
def test_statistics_of_layers_are_those_of_all_parts():
    moe = MoEBlocks(num_experts=4, noise=0.0)
    network = from_nnx(
        lambda rngs: MoEClassifier(ViT.of_size("tiny", (8, 8, 3), moe=moe, rngs=rngs), 5, rngs=rngs)
    )
    objective = objectives.with_layer_losses(
        objectives.robust(eta=1.0), importance=0.1, load_balancing=0.1, z_loss=0.1
    )
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    batch = Batch(images, jnp.arange(8) % 5)
    close(steps(network, objective, batch, 4, 2), steps(network, objective, batch, 1, 2))


@pytest.mark.exhaustive
def test_over_devices():
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    network, objective = network_of(TASK), objectives.robust(eta=2.0)
    batch = Batch(jnp.asarray(TASK.train.inputs[:48]), jnp.asarray(TASK.train.labels[:48]))
    spread = sharded_training(
        network, objective, OPTIMIZER, device_mesh(jax.devices()[:2]), parts=3
    )
    state = spread.init(jax.random.key(0))
    for i in range(3):
        state, log = spread.step(state, spread.place(batch), jax.random.key(i))
    close((state, log), steps(network, objective, batch, 1))


def test_parts_that_do_not_divide_are_named():
    batch = Batch(jnp.asarray(TASK.train.inputs[:48]), jnp.asarray(TASK.train.labels[:48]))
    with pytest.raises(ValueError, match="parts must divide the 48 examples of a device, got pa"):
        steps(network_of(TASK), objectives.erm(), batch, 5, 1)
