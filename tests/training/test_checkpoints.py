"""Checkpoints give back every bit, keys included, and keep the two latest."""

import jax
import jax.numpy as jnp
from small import small_images
from trainings import same_bits, train

from calmoe_jax import training
from calmoe_jax.study.config import ModelConfig
from calmoe_jax.training import TrainState
from calmoe_jax.training.sharded_checkpoints import ShardedCheckpoints


def test_checkpoints_restore_every_bit(tmp_path):
    checkpoints = training.Checkpoints(tmp_path / "c")
    assert checkpoints.latest() is None
    model = ModelConfig(backbone="resnet18", stages=1, width=4, experts=2, router_hidden=4)
    state = train(tmp_path, "vanilla", task=small_images(), model=model).state
    for epochs in (1, 2, 3):
        checkpoints.save(epochs, state)
    assert checkpoints.latest() == 3
    assert same_bits(checkpoints.restore(3, jax.eval_shape(lambda: state)), state)
    assert sorted(p.name for p in (tmp_path / "c").iterdir() if p.name.isdigit()) == ["2", "3"]
    assert any(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(state.network_state))


def test_random_keys_are_kept(tmp_path):
    state = TrainState(
        {"w": jnp.ones(3)}, {"drop": {"key": jax.random.split(jax.random.key(3), 2)}}, (), ()
    )
    checkpoints = training.Checkpoints(tmp_path)
    checkpoints.save(1, state)
    held = checkpoints.restore(1, jax.eval_shape(lambda: state))
    assert same_bits(held, state)
    assert held.network_state["drop"]["key"].dtype == state.network_state["drop"]["key"].dtype


def test_random_keys_are_kept_on_a_mesh(tmp_path):
    state = {"key": jax.random.key(3), "x": jnp.arange(4.0)}
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    checkpoints = ShardedCheckpoints(tmp_path)
    checkpoints.save(5, state)
    checkpoints.wait()
    step, found = checkpoints.restore(like, print)
    checkpoints.close()
    assert step == 5
    assert same_bits(found, state)
    assert found["key"].dtype == state["key"].dtype  # a key, not its data
