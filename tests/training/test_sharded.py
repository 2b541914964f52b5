"""Training on a mesh gives what one device gives: objectives, uneven batches, clipping, FGR."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dispatching import exhaustive
from steps_over_devices import OBJECTIVES, TASK, assert_same_steps, take_steps
from trainings import network_of

from calmoe_jax.nn import MoEBlocks, MoEClassifier, ViT, from_nnx
from calmoe_jax.parallel import device_mesh
from calmoe_jax.training import Batch, init_state, objectives, sharded_training, train_step

BY_DEFAULT = ("robust", "rectified")


def devices(number):
    if len(jax.devices()) < number:
        pytest.skip(f"needs {number} devices")
    return jax.devices()[:number]


CASE = [(name, (2, 2), False) for name in BY_DEFAULT]
OTHERS = [(name, shape, False) for shape in ((1, 1), (2, 1), (4, 1), (4, 2)) for name in BY_DEFAULT]
OTHERS += [(name, (2, 2), False) for name in OBJECTIVES if name not in BY_DEFAULT]
OTHERS += [(name, (4, 1), True) for name in OBJECTIVES]


@pytest.mark.parametrize(("name", "shape", "wide"), [*CASE, *exhaustive(*OTHERS)])
def test_twenty_steps_are_those_of_one_device(name, shape, wide):
    mesh = device_mesh(devices(shape[0] * shape[1]), expert_shards=shape[1])
    found, wanted = take_steps(name, mesh, wide=wide), take_steps(name, wide=wide)
    assert_same_steps(name, found, wanted, wide=wide)


@pytest.mark.exhaustive
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "batch_norm"])
def test_twenty_steps_under_pmap_are_those_of_one_device(name, wide):
    """But for batch normalisation, which is then by device."""
    found, wanted = take_steps(name, len(devices(4)), wide=wide), take_steps(name, wide=wide)
    assert_same_steps(name, found, wanted, wide=wide)


def sparse_network(expert_axis=None, exchange="all_to_all", num_experts=4):
    moe = MoEBlocks(num_experts=num_experts, noise=0.0, expert_axis=expert_axis, exchange=exchange)
    return from_nnx(
        lambda rngs: MoEClassifier(ViT.of_size("tiny", (8, 8, 3), moe=moe, rngs=rngs), 5, rngs=rngs)
    )


IMAGES = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
LAYERED = objectives.with_layer_losses(
    objectives.robust(eta=1.0), importance=0.01, load_balancing=0.01, z_loss=0.001
)


@pytest.mark.parametrize(
    ("exchange", "shape"),
    [
        ("all_to_all", (2, 2)),
        *exhaustive(("ring", (2, 2)), ("ring", (1, 4)), ("all_to_all", (2, 4))),
    ],
)
def test_experts_over_devices_train_as_on_one(exchange, shape):
    """Every expert's own parameters, after steps whose gradient is clipped by its whole norm."""
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    mesh = device_mesh(devices(shape[0] * shape[1]), expert_shards=shape[1])
    spread = sharded_training(sparse_network("expert", exchange), LAYERED, optimizer, mesh)
    statics = {"network": sparse_network(), "objective": LAYERED, "optimizer": optimizer}
    one = jax.jit(lambda s, b, k: train_step(s, b, k, **statics))
    alone = init_state(statics["network"], LAYERED, optimizer, jax.random.key(0))
    state = spread.init(jax.random.key(0))
    batch = Batch(IMAGES, jnp.arange(16) % 5)
    for number in range(4):
        key = jax.random.key(number)
        alone, log = one(alone, batch, key)
        state, spread_log = spread.step(state, spread.place(batch), key)
        np.testing.assert_allclose(spread_log.loss, log.loss, rtol=1e-5)
    paths = jax.tree_util.tree_leaves_with_path(alone.params)
    experts = 0
    for (path, wanted), found in zip(paths, jax.tree.leaves(state.params), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5, err_msg=name)
        if "experts" in name and "transformer" in name:
            experts += 1
            assert found.addressable_shards[0].data.shape[1] == 4 // shape[1]
    assert experts == 4


def test_more_shards_than_experts_are_named():
    mesh = device_mesh(devices(4), expert_shards=4)
    network = sparse_network("expert", num_experts=2)
    with pytest.raises(ValueError, match=r"a divisor of the 2 experts of .*b_in along 'expert'"):
        sharded_training(network, objectives.erm(), optax.sgd(1.0), mesh)
    with pytest.raises(ValueError, match="mesh must have the axis 'elsewhere'"):
        sharded_training(sparse_network("elsewhere"), objectives.erm(), optax.sgd(1.0), mesh)


def test_a_batch_that_does_not_divide_is_named():
    mesh = device_mesh(devices(4))
    training = sharded_training(network_of(TASK), objectives.erm(), optax.sgd(1.0), mesh)
    state = training.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"batch must have a multiple of 4 examples.*got 6"):
        training.step(state, Batch(jnp.ones((6, 4)), jnp.zeros(6, int)), jax.random.key(0))


def test_meshes_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="expert_shards must divide the 4 devices, got expert_sha"):
        device_mesh(devices(4), expert_shards=3)
    explicit = jax.make_mesh((4,), ("data",), devices=devices(4))
    with pytest.raises(ValueError, match="mesh must have axes of type Auto"):
        sharded_training(network_of(TASK), objectives.erm(), optax.sgd(1.0), explicit)


def test_what_a_checkpoint_is_restored_into():
    training = sharded_training(
        network_of(TASK), objectives.erm(), optax.adam(1.0), device_mesh(devices(2))
    )
    state, like = training.init(jax.random.key(0)), training.state_like()
    assert jax.tree.structure(state) == jax.tree.structure(like)
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        assert (leaf.shape, leaf.dtype) == (shape.shape, shape.dtype)
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
