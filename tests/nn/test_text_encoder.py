"""The text encoder: against NumPy, and that padding takes part in nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transformer_references
from flax import nnx

from calmoe_jax import nn
from calmoe_jax.training import Batch, init_state, objectives, train_step

pytestmark = pytest.mark.exhaustive

SPARSE = nn.MoEBlocks(num_experts=4, noise=0.0)
MASK = jnp.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 1, 0], [0] * 6], bool)


def encoder(moe=SPARSE, seed=0, **options):
    sizes = {"width": 8, "depth": 2, "heads": 2, "mlp_width": 12, "moe": moe}
    return nn.TextEncoder(20, 6, **{**sizes, "rngs": nnx.Rngs(seed)} | options)


def ids(seed=0, rows=4):
    return jnp.asarray(np.random.RandomState(seed).randint(0, 20, (rows, 6)), jnp.int32)


@pytest.mark.parametrize("sparse", [None, SPARSE])
def test_it_is_the_plain_function(sparse):
    model = encoder(sparse)
    params = transformer_references.arrays(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    some = MASK[:3]
    want, loads = transformer_references.text(
        np.asarray(ids(rows=3)), np.asarray(some), params, heads=2, moe=sparse
    )
    values, layers = jax.jit(model.__call__)({"ids": ids(rows=3), "mask": some})
    np.testing.assert_allclose(values, want, rtol=1e-4, atol=1e-5)
    if sparse is not None:
        np.testing.assert_array_equal(layers.load, loads)


def test_padding_may_hold_anything():
    graph, params = nnx.split(encoder(SPARSE._replace(capacity_factor=0.5, prioritized=True)))

    def loss(params, ids):
        found = nnx.merge(graph, params)({"ids": ids, "mask": MASK})
        return jnp.sum(jnp.sin(found.values[:3])), found

    call = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (_, plain), gradient = call(params, ids())
    assert plain.layers.num_tokens == MASK.sum()
    assert plain.layers.load.sum() == 2 * MASK.sum()
    assert plain.layers.dropped > 0
    assert jnp.isfinite(plain.values).all()
    for other in (ids(1), jnp.full((4, 6), 99), jnp.full((4, 6), -7)):
        (_, found), changed = call(params, jnp.where(MASK, ids(), other))
        for a, b in zip(
            jax.tree.leaves((plain, gradient)), jax.tree.leaves((found, changed)), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_padding_changes_no_text():
    model = encoder()
    short = {"ids": ids()[:, :3], "mask": MASK[:, :3].at[3, 0].set(True)}
    longer = jax.tree.map(lambda x: jnp.pad(x, ((0, 2), (0, 3))), short)
    alone, padded = (jax.jit(model.__call__)(text) for text in (short, longer))
    np.testing.assert_allclose(padded.values[:4], alone.values, rtol=1e-5, atol=1e-5)
    for a, b in zip(alone.layers, padded.layers, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_ids_outside_the_vocabulary_are_seen():
    wrong = ids().at[0, 2].set(20).at[1, 1].set(-1)
    model = encoder(None)
    encode = jax.jit(lambda text: model(text).values)
    found = encode((wrong, MASK))  # a pair is as good as a dictionary
    np.testing.assert_array_equal(jnp.isnan(found).all(axis=1), [True, True, False, False])
    np.testing.assert_array_equal(found[2], encode({"ids": ids(), "mask": MASK})[2])


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"ids must have at most max_length=6 tokens.*\(2, 7\)"):
        encoder()({"ids": jnp.zeros((2, 7), int), "mask": jnp.ones((2, 7), bool)})
    with pytest.raises(ValueError, match="vocab_size must be at least 1"):
        nn.TextEncoder(0, 6, width=8, depth=2, heads=2, mlp_width=8, rngs=nnx.Rngs(0))


@pytest.mark.exhaustive
def test_training_lowers_the_loss():
    network = nn.from_nnx(
        lambda rngs: nn.SingleClassifier(encoder(nn.MoEBlocks(4), rngs=rngs), 2, rngs=rngs)
    )
    inputs = {"ids": ids(rows=16), "mask": jnp.arange(6)[None] < 1 + jnp.arange(16)[:, None] % 6}
    labels = jnp.where(inputs["mask"], inputs["ids"] == 3, False).any(axis=1).astype(jnp.int32)
    labels = labels.at[0].set(1)
    objective = objectives.with_layer_losses(objectives.robust(eta=1.0), importance=0.005)
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = init_state(network, objective, optimizer, jax.random.key(0))

    @jax.jit
    def steps(state):
        def one(state, key):
            return train_step(
                state, Batch(inputs, labels), key, network=network, objective=objective,
                optimizer=optimizer,
            )  # fmt: skip

        return jax.lax.scan(one, state, jax.random.split(jax.random.key(3), 20))

    _, log = steps(state)
    assert log.loss[-1] < 0.7 * log.loss[0]
