"""One step: the gradient of the objective, on any inputs, on any number of devices."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dispatching import exhaustive
from flax import nnx
from jax.sharding import PartitionSpec as P
from objectives_table import CASES
from small import small_task
from trainings import MODEL, network_of, same_bits, start

import calmoe_jax as cm
from calmoe_jax import mixture, nn
from calmoe_jax.training import Batch, Objective, objectives, train_step

TASK = small_task()
BATCH = Batch(jnp.asarray(TASK.train.inputs), jnp.asarray(TASK.train.labels))
KEY = jax.random.key(3)
OBJECTIVES = {
    **{name: case.objective for name, case in CASES.items()},
    "fgr": objectives.rectified(objectives.erm()),
}


@partial(jax.jit, static_argnames=("network", "objective", "optimizer"))
def stepped(state, batch, *, network, objective, optimizer):
    return train_step(state, batch, KEY, network=network, objective=objective, optimizer=optimizer)


@pytest.mark.exhaustive
@pytest.mark.parametrize("method", ["erm", "robust", "robust_released", "fgr"])
def test_a_step_follows_the_objective_written_out(method):
    network, optimizer = network_of(TASK), optax.sgd(1.0)
    state = start(network, OBJECTIVES[method], optimizer)
    statics = {"network": network, "objective": OBJECTIVES[method], "optimizer": optimizer}
    after, _ = stepped(state, BATCH, **statics)
    gradient = jax.tree.map(lambda a, b: a - b, state.params, after.params)

    def losses(params):
        prediction, _ = network.apply(params, {}, BATCH.inputs, train=True)
        probs = jnp.exp(prediction.expert_log_probs) * prediction.routing.combine_weights[..., None]
        mixed = probs.sum(axis=1)
        return -jnp.log(mixed[jnp.arange(len(mixed)), BATCH.labels]), mixed

    def main(params):
        loss = losses(params)[0]
        if method in ("erm", "fgr"):
            return loss.mean()
        w = jax.nn.softmax(2.0 * loss)
        return (loss * (jax.lax.stop_gradient(w) if method == "robust" else w)).sum()

    expected = jax.grad(main)(state.params)
    if method == "fgr":

        def calibration(params):
            mixed = losses(params)[1]
            right = mixed.argmax(-1) == BATCH.labels
            return cm.calibration.soft_binned_error(mixed.max(-1), right)

        expected = cm.fgr.rectify_gradient(expected, jax.grad(calibration)(state.params))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "driver"),
    [
        ("robust_filtered", "pmap"),
        *exhaustive(
            ("balanced_robust", "shard_map"),
            ("fgr", "shard_map"),
            *((name, "shard_map") for name in ("erm", "robust_filtered", "theirs")),
            *((name, "pmap") for name in ("erm", "balanced_robust", "fgr", "theirs")),
            *(
                (name, "shard_map unchecked")
                for name in ("erm", "robust_filtered", "balanced_robust", "fgr", "theirs")
            ),
        ),
    ],
)
def test_devices_take_the_step_that_one_takes(name, driver):
    """Parameters, log and state after three steps; the batch is sharded, the state is not."""
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    network, optimizer, objective = network_of(TASK), optax.adam(1e-2), OBJECTIVES[name]
    statics = {"network": network, "objective": objective, "optimizer": optimizer}
    state = alone = start(network, objective, optimizer)
    parts = partial(train_step, axis_name="d", **statics)
    if driver == "pmap":
        mapped = jax.pmap(
            parts, axis_name="d", in_axes=(None, 0, None), out_axes=None, devices=jax.devices()[:4]
        )
        batch = jax.tree.map(lambda x: x.reshape(4, -1, *x.shape[1:]), BATCH)
    else:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",))
        mapped = jax.jit(
            jax.shard_map(
                parts, mesh=mesh, in_specs=(P(), P("d"), P()), out_specs=P(),
                check_vma=driver == "shard_map",
            )
        )  # fmt: skip
        batch = BATCH
    for _ in range(3):
        alone, log = stepped(alone, BATCH, **statics)
        state, spread_log = mapped(state, batch, KEY)
    for a, b in zip(
        jax.tree.leaves((state, spread_log)), jax.tree.leaves((alone, log)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["cross_batch_robust", *exhaustive("robust", "fgr")])
def test_the_state_can_be_donated(name):
    network, optimizer, objective = network_of(TASK), optax.adam(1e-2), OBJECTIVES[name]
    statics = {"network": network, "objective": objective, "optimizer": optimizer}
    state = start(network, objective, optimizer)
    kept, _ = stepped(state, BATCH, **statics)
    donating = jax.jit(partial(train_step, **statics), donate_argnums=0)
    gone = jax.tree.map(jnp.copy, state)
    given, _ = donating(gone, BATCH, KEY)  # a buffer that could not be used would warn
    assert same_bits(given, kept)
    assert any(x.is_deleted() for x in jax.tree.leaves(gone))


def test_padding_does_not_count():
    network, optimizer = network_of(TASK), optax.sgd(1.0)
    statics = {"network": network, "objective": OBJECTIVES["robust"], "optimizer": optimizer}
    state = start(network, OBJECTIVES["robust"], optimizer)
    alone, log = stepped(state, Batch(BATCH.inputs[:60], BATCH.labels[:60]), **statics)
    padded = BATCH._replace(
        inputs=BATCH.inputs.at[60:].set(7.0), where=jnp.arange(len(BATCH.labels)) < 60
    )
    with_padding, padded_log = stepped(state, padded, **statics)
    for a, b in zip(
        jax.tree.leaves((alone, log)), jax.tree.leaves((with_padding, padded_log)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


class Reader(nnx.Module):
    """Token ids with a mask, dropout and batch statistics: all that a module may hold."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.gate = nnx.Linear(8, 2, rngs=rngs)
        self.experts = nnx.Linear(8, 6, rngs=rngs)

    def __call__(self, x, *, train):
        counted = x["mask"][..., None].astype(float)
        mean = (self.embed(x["ids"]) * counted).sum(axis=1) / counted.sum(axis=1)
        features = self.norm(mean, use_running_average=not train)
        features = self.drop(features, deterministic=not train)
        log_probs = jax.nn.log_softmax(self.experts(features).reshape(-1, 2, 3))
        return mixture.predict(log_probs, self.gate(features))


@pytest.mark.parametrize("name", ["erm", "fgr"])
def test_tokens_dropout_and_statistics(name):
    network, optimizer, objective = nn.from_nnx(Reader), optax.adam(0.05), OBJECTIVES[name]
    rng = np.random.RandomState(0)
    labels = jnp.arange(30) % 3
    ids = jnp.asarray(rng.randint(3, 11, size=(30, 5))).at[:, 0].set(labels)
    batch = Batch(
        {"ids": ids, "mask": jnp.asarray(rng.rand(30, 5) < 0.7).at[:, 0].set(True)}, labels
    )
    state = start(network, objective, optimizer)
    statics = {"network": network, "objective": objective, "optimizer": optimizer}
    first, log = stepped(state, batch, **statics)
    assert set(first.network_state) == {"norm", "drop"}
    assert not same_bits(first.network_state["norm"], state.network_state["norm"])
    assert int(first.network_state["drop"]["rngs"]["count"]) == 1
    after = first
    for _ in range(60):
        after, log = stepped(after, batch, **statics)
    assert log.accuracy > 0.8
    prediction, same = network.apply(after.params, after.network_state, batch.inputs, train=False)
    assert same_bits(same["norm"], after.network_state["norm"])
    assert (prediction.log_probs.argmax(-1) == labels).mean() > 0.9


def test_images_in_bytes():
    network = network_of(model=MODEL)
    inputs = jnp.asarray(np.random.RandomState(0).randint(256, size=(8, 4)), jnp.uint8)
    params, _ = network.init(KEY)
    ours, _ = network.apply(params, {}, inputs, train=False)
    floats, _ = network.apply(params, {}, inputs.astype(float) / 255, train=False)
    np.testing.assert_allclose(ours.log_probs, floats.log_probs, rtol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["erm", "fgr"])
def test_chosen_experts_alone_train_as_the_masked_dense_ones(name):
    network = network_of(TASK, dataclasses.replace(MODEL, routing="top_k", k=2))
    optimizer, widths = optax.sgd(0.1), []

    def masked(*args, sparse, **kwargs):
        widths.append(sparse)
        return network.apply(*args, sparse=False, **kwargs)

    state = start(network, OBJECTIVES[name], optimizer)
    results = [
        stepped(state, BATCH, network=each, objective=OBJECTIVES[name], optimizer=optimizer)
        for each in (network, network._replace(apply=masked))
    ]
    assert widths
    assert all(widths)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_regret_is_against_all_experts():
    network, seen = network_of(TASK, dataclasses.replace(MODEL, routing="top_k", k=1)), []

    def watched(*args, sparse, **kwargs):
        seen.append(sparse)
        return network.apply(*args, sparse=sparse, **kwargs)

    objective = OBJECTIVES["robust_filtered"]
    state, optimizer = start(network, objective), optax.sgd(1.0)
    watching = network._replace(apply=watched)
    jax.eval_shape(
        lambda s: train_step(
            s, BATCH, KEY, network=watching, objective=objective, optimizer=optimizer
        ),
        state,
    )
    assert seen
    assert not any(seen)


def test_non_finite_values_are_reported():
    network, optimizer = network_of(TASK), optax.sgd(1.0)

    def loss(losses, prediction, batch, state, *, axis_name=None):
        return losses.loss.mean() * jnp.nan, jnp.zeros(len(batch.labels)), state

    mine = Objective(lambda: (), loss)
    state = start(network, mine, optimizer)
    _, log = stepped(state, BATCH, network=network, objective=mine, optimizer=optimizer)
    assert not log.finite
    _, log = stepped(
        state, BATCH, network=network, objective=OBJECTIVES["erm"], optimizer=optimizer
    )
    assert log.finite


def test_steps_that_are_not_finite_are_left_out_where_asked():
    network, objective = network_of(TASK), objectives.cross_batch_robust(eta=2.0)
    optimizer = optax.apply_if_finite(optax.adam(1e-2), 5)
    state = start(network, objective, optimizer)
    step = jax.jit(
        lambda s, b: train_step(
            s, b, KEY, network=network, objective=objective, optimizer=optimizer
        )
    )
    state, log = step(state, BATCH)
    assert log.finite
    after, log = step(state, BATCH._replace(inputs=BATCH.inputs.at[0].set(jnp.nan)))
    assert log.finite
    assert jnp.isnan(log.loss)
    assert after.opt_state.total_notfinite == 1
    kept = after._replace(opt_state=None), state._replace(opt_state=None)
    assert same_bits(*kept)
    assert same_bits(after.opt_state.inner_state, state.opt_state.inner_state)
    again, log = step(after, BATCH)
    assert jnp.isfinite(log.loss)
    assert not same_bits(again.params, after.params)
