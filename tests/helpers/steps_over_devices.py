"""Twenty steps of every objective, on one device or on a mesh, with all that they compute."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from objectives_table import CASES
from small import small_images, small_task

from calmoe_jax._numerics import psum
from calmoe_jax.nn import MLP, MoEClassifier, ResNet18, from_nnx
from calmoe_jax.parallel.processes import whole
from calmoe_jax.training import Batch, init_state, objectives, sharded_training, train_step

TASK, IMAGES = small_task(), small_images()
STEPS = 20
SIZE = 48
OBJECTIVES = {name: case.objective for name, case in CASES.items()}
OBJECTIVES["rectified"] = objectives.rectified(objectives.robust(eta=2.0))
OBJECTIVES["batch_norm"] = objectives.robust(eta=2.0)  # of a ResNet


class Taken(NamedTuple):
    """What steps compute, on the host.

    Attributes:
        logs: `StepLog` of every step, stacked.
        log_weights: the adversary's log weights of every step.
        gradient: the first step's, as the optimiser gets it.
        state: the state at the end.
    """

    logs: NamedTuple
    log_weights: np.ndarray
    gradient: object
    state: object


def batches(task, number=STEPS, size=SIZE):
    """The last third is uneven: padding that leaves some devices less than others."""
    rng = np.random.RandomState(0)
    for step in range(number):
        rows = rng.permutation(len(task.train))[:size]
        where = np.ones(size, bool)
        if step >= 2 * number // 3:
            where[size - 1 - step :] = False
        yield Batch(task.train.inputs[rows], task.train.labels[rows], where)


def take_steps(name, mesh=None, *, wide=False):
    """Takes the steps of a case; on a mesh, of one process or many, every process is told all.

    Args:
        name: a name of `OBJECTIVES`.
        mesh: the devices; one by default. A number is that of a `pmap`.
        wide: whether to compute in float64.
    """
    with jax.enable_x64(wide):
        return _take_steps(name, mesh)


def _take_steps(name, mesh):
    task = IMAGES if name == "batch_norm" else TASK
    network, objective = network_of(task), watched(OBJECTIVES[name])
    # clipping needs the norm of the whole gradient; the trace keeps what comes
    optimizer = optax.chain(
        optax.trace(decay=0.0), optax.clip_by_global_norm(0.5), optax.adam(1e-2)
    )
    statics = {"network": network, "objective": objective, "optimizer": optimizer}
    if mesh is None:
        step = jax.jit(partial(train_step, **statics))
        state = init_state(network, objective, optimizer, jax.random.key(0))
    elif isinstance(mesh, int):
        step = jax.pmap(
            partial(train_step, axis_name="d", **statics), axis_name="d", out_axes=None,
            in_axes=(None, 0, None), devices=jax.devices()[:mesh],
        )  # fmt: skip
        state = init_state(network, objective, optimizer, jax.random.key(0))
    else:
        sharded = sharded_training(network, objective, optimizer, mesh)
        step, state = sharded.step, sharded.init(jax.random.key(0))
    logs, weights, gradient = [], [], None
    for count, batch in enumerate(batches(task)):
        if isinstance(mesh, int):
            batch = jax.tree.map(lambda x: x.reshape(mesh, -1, *x.shape[1:]), batch)
        elif mesh is not None:
            batch = sharded.place(batch)
        state, log = jax.block_until_ready(step(state, batch, jax.random.key(count)))
        logs.append(whole(log))
        weights.append(whole(state.objective_state[1]))
        if gradient is None:
            gradient = whole(state.opt_state[0].trace)
    stacked = jax.tree.map(lambda *x: np.stack(x), *logs)
    return Taken(stacked, np.stack(weights), gradient, whole(state))


def assert_same_steps(name, found, wanted, *, wide=False):
    """Every number of one `Taken` is that of another.

    In float64 nothing differs. In float32 rounding does: batch normalisation and Adam, which divide
    by small deviations, make 3e-5 of it in twenty steps, and nothing else more than 2e-6.
    """
    tolerance = 1e-10 if wide else 1e-4 if name == "batch_norm" else 1e-5
    leaves = jax.tree_util.tree_leaves_with_path(wanted)
    for (path, b), a in zip(leaves, jax.tree.leaves(found), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def network_of(task):
    """A small mixture, all of it of the dtype that JAX's floats have."""
    dtype = jnp.result_type(float)

    def make(rngs):
        if task is TASK:
            backbone = MLP(4, (8,), dtype=dtype, rngs=rngs)
        else:
            backbone = ResNet18(1, stages=1, width=4, dtype=dtype, rngs=rngs)
        return MoEClassifier(backbone, 3, num_experts=3, router_hidden=8, rngs=rngs)

    network = from_nnx(make)

    def init(key):
        return jax.tree.map(
            lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            network.init(key),
        )

    return network._replace(init=init)


def watched(objective, size=SIZE):
    """The objective, with the log weights of the whole batch in its state."""

    def init():
        return objective.init(), jnp.zeros(size)

    def loss(losses, prediction, batch, state, *, axis_name=None):
        value, log_weights, own = objective.loss(
            losses, prediction, batch, state[0], axis_name=axis_name
        )
        return value, log_weights, (own, jax.lax.stop_gradient(gathered(log_weights, axis_name)))

    return objective._replace(init=init, loss=loss)


def gathered(rows, axis_name):
    """The rows of all devices on each."""
    if axis_name is None:
        return rows
    count = jax.lax.psum(1, axis_name)
    places = jax.nn.one_hot(jax.lax.axis_index(axis_name), count, dtype=bool)
    return psum(jnp.where(places[:, None], rows[None], 0), axis_name).reshape(-1)
