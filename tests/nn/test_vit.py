"""The vision transformer: against NumPy, its counts, its noise, its dtypes, and training it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformer_references
from devices import assert_devices_agree, shard_map
from dispatching import exhaustive
from flax import nnx

import calmoe_jax as cm
from calmoe_jax import moe, nn
from calmoe_jax.training import Batch, init_state, objectives, train_step

SIZE = {"patch_size": 2, "width": 8, "depth": 4, "heads": 2, "mlp_width": 12}
SHAPE = (4, 6, 3)
SPARSE = nn.MoEBlocks(num_experts=4)


def images(number=5, shape=SHAPE):
    return jax.random.normal(jax.random.key(1), (number, *shape))


def vit(moe=None, seed=0, **options):
    return nn.ViT(SHAPE, **{**SIZE, "moe": moe, "rngs": nnx.Rngs(seed)} | options)


def perturbed(module):
    """The module with biases and scales that are not 0 and 1."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    rng = np.random.RandomState(0)
    params = jax.tree.map(lambda x: x + 0.2 * rng.randn(*x.shape).astype(np.float32), params)
    return nnx.merge(graph, params, rest), transformer_references.arrays(nnx.to_pure_dict(params))


@pytest.mark.parametrize(("size", "count"), [("S/16", 22_050_664), ("B/16", 86_567_656)])
def test_counts_of_named_sizes(size, count):
    def classifier():
        rngs = nnx.Rngs(0)
        return nn.SingleClassifier(nn.ViT.of_size(size, (224, 224, 3), rngs=rngs), 1000, rngs=rngs)

    assert nn.count_parameters(nnx.eval_shape(classifier)) == count


def test_the_count_of_a_sparse_one():
    found = [nn.count_parameters(nnx.eval_shape(lambda m=m: vit(m))) for m in (None, SPARSE)]
    mlp, layers = 2 * 8 * 12 + 12 + 8, 2
    assert found[1] - found[0] == layers * (3 * mlp + 4 * 8)


def test_a_dense_one_is_the_plain_function():
    model, params = perturbed(vit())
    want, _ = transformer_references.vit(images(), params, patch=2, heads=2)
    found = jax.jit(model.__call__)(images())
    assert found.layers is None
    np.testing.assert_allclose(found.values, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "capacity"),
    [({"capacity_factor": 1.0}, 18), *exhaustive(({"k": 1}, None), ({"renormalize": True}, None))],
)
def test_a_sparse_one_is_a_loop_over_blocks_tokens_and_experts(options, capacity):
    sparse = SPARSE._replace(**options)
    model, params = perturbed(vit(sparse))
    want, loads = transformer_references.vit(
        images(), params, patch=2, heads=2, moe=sparse, capacity=capacity
    )
    values, layers = jax.jit(model.__call__)(images())
    np.testing.assert_allclose(values, want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layers.load, loads)
    np.testing.assert_array_equal(layers.smooth_load, loads)  # without noise
    np.testing.assert_array_equal(layers.num_tokens, [35, 35])
    over = np.maximum(np.array(loads) - (capacity or np.inf), 0).sum(axis=1)
    np.testing.assert_array_equal(layers.dropped, over)
    assert over.sum() > 0 or capacity is None


@pytest.mark.exhaustive
@pytest.mark.parametrize("sparse", [SPARSE._replace(noise=0.0), *exhaustive((None,))])
def test_recomputing_changes_no_gradient(sparse):
    def gradient(remat):
        graph, params = nnx.split(vit(sparse, remat=remat))

        def loss(params):
            return jnp.sum(jnp.sin(nnx.merge(graph, params)(images(), train=True).values))

        traced = jax.jit(jax.grad(loss)).trace(params)
        return traced.lower().compile()(params), str(traced.jaxpr)

    (kept, text), (again, other) = gradient("none"), gradient("block")
    assert other.count("remat") > text.count("remat")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), kept, again)


@pytest.mark.exhaustive
def test_half_precision_spares_what_needs_more():
    if jax.config.jax_numpy_dtype_promotion == "strict":
        pytest.skip("JAX's own attention mixes bfloat16 and float32")

    def make(rngs):
        return nn.SingleClassifier(vit(SPARSE, dtype=jnp.bfloat16, rngs=rngs), 3, rngs=rngs)

    network = nn.from_nnx(make)
    params, state = network.init(jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    def loss(params, state):
        found, _ = network.apply(params, state, images(), train=True)
        added = moe.importance_loss(found.layers) + moe.smooth_load_loss(found.layers)
        return added - jnp.mean(found.log_probs[:, 0]), found

    traced = jax.jit(jax.grad(loss, has_aux=True)).trace(params, state)
    gradient, found = traced.lower().compile()(params, state)
    assert {x.dtype for x in found.layers} == {jnp.dtype("float32"), jnp.dtype("int32")}
    flat = jax.tree.leaves(gradient)
    assert all(bool(jnp.isfinite(x).all()) for x in flat)
    assert min(float(jnp.abs(x).max()) for x in flat) > 0  # every parameter learns
    text = str(traced.jaxpr)
    assert "bf16[5,7,12]" in text  # the dense MLP
    assert "bf16[35,4]" not in text  # no gate logits
    assert "bf16[5,7,4]" not in text
    assert not re.search(r":bf16\[[\d,]*\] = (exp|log|rsqrt|div)\b", text)  # softmax and norms
    full, half = (
        jax.jit(vit(SPARSE, dtype=dtype).__call__)(images()).values
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.2)


def test_noise_is_of_training_only_and_new_at_each_call():
    network = nn.from_nnx(
        lambda rngs: nn.SingleClassifier(vit(SPARSE._replace(noise=4.0), rngs=rngs), 3, rngs=rngs)
    )
    params, state = network.init(jax.random.key(0))
    apply = jax.jit(network.apply, static_argnames="train")
    first, after = apply(params, state, images(), train=True)
    second, last = apply(params, after, images(), train=True)
    assert jax.tree.structure(state) == jax.tree.structure(last)
    same, _ = apply(params, state, images(), train=True)
    plain, unchanged = apply(params, state, images(), train=False)
    again, _ = apply(params, after, images(), train=False)
    np.testing.assert_array_equal(first.log_probs, same.log_probs)
    np.testing.assert_array_equal(plain.log_probs, again.log_probs)
    assert not np.allclose(first.log_probs, second.log_probs, atol=1e-4)
    assert not np.allclose(first.layers.smooth_load, first.layers.load)
    np.testing.assert_allclose(first.layers.smooth_load.sum(1), 70, rtol=0.1)
    np.testing.assert_array_equal(plain.layers.smooth_load, plain.layers.load)
    assert jax.tree.map(bool, jax.tree.map(jnp.array_equal, state, unchanged)) == jax.tree.map(
        lambda _: True, state
    )
    # the first layer's gate has seen no noise yet
    importance = [p.layers.importance[0] for p in (first, second, plain)]
    np.testing.assert_allclose(importance[0], importance[1], rtol=1e-6)
    np.testing.assert_allclose(importance[0], importance[2], rtol=1e-6)


def test_each_device_has_its_own_noise(mesh):
    def make(rngs):
        return nn.SingleClassifier(vit(SPARSE._replace(noise=4.0), rngs=rngs), 3, rngs=rngs)

    network = nn.from_nnx(make)
    params, state = network.init(jax.random.key(0))

    def apply(x, params, state):
        prediction, state = network.apply(params, state, x, train=True)
        return prediction.log_probs, state

    specs = jax.P("d"), jax.P()
    mapped = shard_map(apply, mesh=mesh, in_specs=(*specs, jax.P()), out_specs=specs)
    same = jnp.broadcast_to(images(1), (len(mesh.devices), *SHAPE))
    found, after = jax.jit(mapped)(same, params, state)  # the new state is alike on all
    assert len(np.unique(np.asarray(found)[:, 0])) == len(mesh.devices)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_layers_reach_every_prediction():
    rngs = nnx.Rngs(0)
    mixture = nn.MoEClassifier(vit(SPARSE), 3, routing_kind="top_k", k=2, rngs=rngs)

    def layers(model, **options):
        return jax.eval_shape(lambda: model(images(), **options).layers)

    for sparse in (False, True):
        assert layers(mixture, sparse=sparse).load.shape == (2, 4)
    assert layers(nn.SingleClassifier(vit(), 3, rngs=rngs)) is None
    assert layers(nn.SingleClassifier(nn.MLP(72, rngs=rngs), 3, rngs=rngs)) is None


def test_wrong_arguments():
    for options, message in (
        ({"patch_size": 4}, r"patch_size must divide height 4 and width 6, got patch_size=4"),
        ({"heads": 3}, r"heads must divide width=8, got heads=3"),
        ({"depth": 3, "moe": SPARSE}, r"depth must be even with sparse layers.*got depth=3"),
        ({"moe": SPARSE._replace(k=5)}, r"k must be in \[1, 4\], got k=5"),
        ({"moe": SPARSE._replace(noise=-1.0)}, r"noise must be non-negative"),
        ({"moe": SPARSE._replace(capacity_factor=0.0)}, r"capacity_factor must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            vit(**options)
    with pytest.raises(ValueError, match=r"x must be images of image_shape=\(4, 6, 3\)"):
        vit()(images(shape=(6, 4, 3)))
    with pytest.raises(ValueError, match=r"size must be one of tiny, .*got size='L/16'"):
        nn.ViT.of_size("L/16", SHAPE, rngs=nnx.Rngs(0))


def task(number=24):
    """Images whose class is the channel that is bright."""
    labels = jnp.arange(number) % 3
    noise = 0.3 * jax.random.normal(jax.random.key(2), (number, 8, 8, 3))
    return Batch(noise + jax.nn.one_hot(labels, 3)[:, None, None], labels)


def tiny(**options):
    sparse = nn.MoEBlocks(4, **options)

    def make(rngs):
        return nn.SingleClassifier(
            nn.ViT.of_size("tiny", (8, 8, 3), moe=sparse, rngs=rngs), 3, rngs=rngs
        )

    return nn.from_nnx(make)


ADDED = {"importance": 0.005, "load": 0.005, "load_balancing": 0.01, "z_loss": 0.001}


@pytest.mark.exhaustive
def test_training_lowers_the_loss():
    network, optimizer = tiny(capacity_factor=1.0, prioritized=True), optax.sgd(0.1, momentum=0.9)
    objective = objectives.with_layer_losses(objectives.robust(eta=1.0), **ADDED)
    state = init_state(network, objective, optimizer, jax.random.key(0))

    @jax.jit
    def steps(state):
        def one(state, key):
            return train_step(
                state, task(), key, network=network, objective=objective, optimizer=optimizer
            )

        return jax.lax.scan(one, state, jax.random.split(jax.random.key(3), 20))

    _, log = steps(state)
    assert log.finite.all()
    assert log.loss[-1] < 0.5 * log.loss[0]


def test_the_losses_are_added():
    network, batch = tiny(), task()
    params, state = network.init(jax.random.key(0))
    prediction, _ = jax.jit(network.apply, static_argnames="train")(
        params, state, batch.inputs, train=True
    )
    plain = objectives.erm()
    losses = losses_of(prediction, batch)
    alone = plain.loss(losses, prediction, batch, ())[0]
    found = objectives.with_layer_losses(plain, **ADDED).loss(losses, prediction, batch, ())[0]
    layers = prediction.layers
    want = alone + 0.005 * (moe.importance_loss(layers) + moe.smooth_load_loss(layers))
    want += 0.01 * moe.mean_load_balancing_loss(layers) + 0.001 * moe.mean_z_loss(layers)
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert objectives.with_layer_losses(plain) is plain
    with pytest.raises(ValueError, match="importance must be non-negative"):
        objectives.with_layer_losses(plain, importance=-1.0)
    bare = prediction._replace(layers=None)
    with pytest.raises(ValueError, match=r"must have the statistics of sparse layers.*layers=None"):
        objectives.with_layer_losses(plain, load=1.0).loss(losses, bare, batch, ())


def losses_of(prediction, batch):
    weights = prediction.routing.combine_weights
    return cm.mixture_losses(prediction.expert_log_probs, weights, batch.labels)


@pytest.mark.exhaustive
def test_a_step_of_shards_is_the_step_of_the_whole():
    network, optimizer = tiny(noise=0.0), optax.sgd(0.1)
    objective = objectives.with_layer_losses(objectives.robust(eta=1.0), **ADDED)
    state = init_state(network, objective, optimizer, jax.random.key(0))

    def step(inputs, labels, *, axis_name=None):
        after, log = train_step(
            state, Batch(inputs, labels), jax.random.key(0), network=network, objective=objective,
            optimizer=optimizer, axis_name=axis_name,
        )  # fmt: skip
        return after.params, log.loss

    assert_devices_agree(step, *task()[:2], atol=1e-5)
