"""Steps on spread batches give what one device gives, for every objective and an uneven mask."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dispatching import exhaustive
from small import small_task
from trainings import network_of, start

from calmoe_jax.parallel import data_mesh, over_devices
from calmoe_jax.training import Batch, objectives, train_step

TASK = small_task()
INPUTS, LABELS = jnp.asarray(TASK.train.inputs), jnp.asarray(TASK.train.labels)


@pytest.mark.parametrize("where", [*exhaustive(None), np.arange(96) < 70])
def test_a_spread_batch_is_one_batch(where):
    """With padding that leaves the last device less than the others."""
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    statics = {
        "network": network_of(TASK), "objective": objectives.robust(eta=2.0),
        "optimizer": optax.adam(1e-2),
    }  # fmt: skip
    batch = Batch(INPUTS, LABELS, None if where is None else jnp.asarray(where))
    step = partial(train_step, **statics)
    alone = start(statics["network"], statics["objective"], statics["optimizer"])
    spread = jax.tree.map(jnp.copy, alone)
    mapped = over_devices(step, data_mesh(jax.devices()[:4]))
    for number in range(5):
        key = jax.random.key(number)
        alone, log = jax.jit(step)(alone, batch, key)
        spread, spread_log = mapped(spread, batch, key)
    pairs = zip(jax.tree.leaves((alone, log)), jax.tree.leaves((spread, spread_log)), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_a_batch_that_does_not_divide_is_refused():
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    step = over_devices(lambda s, b, k, *, axis_name: (s, ()), data_mesh(jax.devices()[:4]))
    with pytest.raises(ValueError, match="divisible"):
        step(jnp.zeros(()), jnp.ones(6), None)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_two_axes_are_summed_over(kind):
    if len(jax.devices()) < 4:
        pytest.skip("needs four devices")
    kinds = (jax.sharding.AxisType[kind],) * 2
    devices = np.array(jax.devices()[:4]).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("host", "chip"), axis_types=kinds)

    def step(state, batch, key, *, axis_name):
        return state + jax.lax.psum(batch.sum(), axis_name), ()

    batch = jnp.arange(8.0)
    placed = jax.device_put(batch, jax.NamedSharding(mesh, jax.P(("host", "chip"))))
    assert over_devices(step, mesh)(jnp.zeros(()), batch, None)[0] == 28
    assert over_devices(step, mesh)(jnp.zeros(()), placed, None)[0] == 28


@pytest.mark.parametrize("donate", [True, False])
def test_the_old_state_is_given_up_only_if_donated(donate):
    step = over_devices(
        lambda s, b, k, *, axis_name: (s + jax.lax.psum(b.sum(), axis_name), ()),
        data_mesh(jax.devices()[:1]),
        donate=donate,
    )
    state = jax.device_put(jnp.zeros(3), jax.devices()[0])
    step(state, jnp.ones(4), None)
    assert state.is_deleted() == donate
