"""Dropout in the text encoder: what is dropped, when, and that no two masks are alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from devices import shard_map
from flax import nnx
from trainings import same_bits

from calmoe_jax import nn, training
from calmoe_jax.nn.backbones._transformer import Transformer
from calmoe_jax.training import Batch, init_state, objectives, train_step

IDS = jnp.asarray(np.random.RandomState(0).randint(0, 20, (4, 6)), jnp.int32)
MASK = jnp.array([[1] * 6, [1, 1, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1] * 6], bool)
TEXT = {"ids": IDS, "mask": MASK}
BOTH = {"dropout": 0.3, "attention_dropout": 0.4}


def bert(rngs=None, **options):
    return nn.DistilBERT.of_size("tiny", vocab_size=20, rngs=rngs or nnx.Rngs(0), **options)


def network(**options):
    return nn.from_nnx(lambda rngs: nn.SingleClassifier(bert(rngs, **options), 2, rngs=rngs))


def bare(*, depth=1, width=8, moe=None, **rates):
    """Blocks whose maps are all zero, with nothing normalised at the end."""
    net = Transformer(
        width, depth=depth, heads=2, mlp_width=4, moe=moe, remat="none", dtype=jnp.float32,
        param_dtype=jnp.float32, rngs=nnx.Rngs(0), **rates,
    )  # fmt: skip
    net.norm = None
    nnx.update(net, jax.tree.map(jnp.zeros_like, nnx.state(net, nnx.Param)))
    return net


def in_training(net, x, mask=None):
    return np.asarray(net(x, mask=mask, train=True)[0])


def assert_share(kept, share):
    """The mean of independent zeros and ones is within five deviations of the share."""
    assert abs(kept.mean() - share) < 5 * np.sqrt(share * (1 - share) / kept.size)


def test_without_dropout_nothing_changes():
    plain, zero, some = network(), network(dropout=0.0, attention_dropout=0.0), network(**BOTH)

    def call(net, train):
        apply = jax.jit(net.apply, static_argnames="train")
        return apply(*net.init(jax.random.key(0)), TEXT, train=train)

    params = [net.init(jax.random.key(0))[0] for net in (plain, zero, some)]
    for other in params[1:]:
        jax.tree.map(np.testing.assert_array_equal, params[0], other)  # the same start
    for train in (False, True):
        assert same_bits(call(plain, train), call(zero, train))
    off, state = call(some, train=False)
    assert same_bits(off, call(plain, train=False)[0])
    assert same_bits(state, some.init(jax.random.key(0))[1])


def test_another_mask_at_each_call_and_seed():
    net = network(**BOTH)
    apply = jax.jit(net.apply, static_argnames="train")
    params, state = net.init(jax.random.key(0))
    first, after = apply(params, state, TEXT, train=True)
    second, _ = apply(params, after, TEXT, train=True)
    again, _ = apply(params, state, TEXT, train=True)
    np.testing.assert_array_equal(first.log_probs, again.log_probs)
    assert float(jnp.abs(first.log_probs - second.log_probs).max()) > 1e-3
    assert jax.tree.structure(after) == jax.tree.structure(state)
    _, states = jax.vmap(net.init)(jax.random.split(jax.random.key(0), 2))
    found = jax.vmap(lambda state: apply(params, state, TEXT, train=True)[0].log_probs)(states)
    assert float(jnp.abs(found[0] - found[1]).max()) > 1e-3


def test_what_the_blocks_get_is_dropped():
    found = in_training(bare(dropout=0.25), jnp.ones((64, 8, 8)))
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.75)}
    assert_share(found > 0, 0.75)


@pytest.mark.parametrize("moe", [None, nn.MoEBlocks(4, k=4, noise=0.0)])
def test_outputs_are_dropped_by_another_mask_in_each_layer(moe):
    """Layers add 1 and 100 where they are kept: the sum says where."""
    net = bare(depth=2, dropout=0.25, moe=moe)
    if moe is None:
        net.blocks.mlp.outer.bias[...] = jnp.array([1.0, 100.0])[:, None] * jnp.ones((2, 8))
    else:
        net.blocks.dense.mlp.outer.bias[...] = jnp.ones((1, 8))
        net.blocks.sparse.sparse.experts.b_out[...] = 100 * jnp.ones((1, 4, 8))
    sums = np.rint(0.75 * in_training(net, jnp.zeros((32, 16, 8)))).astype(int)
    layers = sums % 10, sums // 100
    np.testing.assert_array_equal(sums, layers[0] + 100 * layers[1])
    for kept in layers:
        assert set(np.unique(kept)) == {0, 1}
        assert_share(kept, 0.75)
    assert_share(layers[0] & layers[1], 0.75**2)  # independent


@pytest.mark.parametrize("attention", [0.25, 0.5])
def test_weights_of_attention_are_dropped(attention):
    """All weights are alike and all values 1: the output counts the weights that are kept."""
    net = bare(attention_dropout=attention)
    net.blocks.attention.inputs.bias[...] = jnp.concatenate([jnp.zeros(16), jnp.ones(8)])[None]
    net.blocks.attention.output.kernel[...] = jnp.eye(8)[None]
    mask = jnp.broadcast_to(jnp.arange(12) < 9, (64, 12))
    found = in_training(net, jnp.zeros((64, 12, 8)), mask) * 9 * (1 - attention)
    counts = np.rint(found)
    np.testing.assert_allclose(found, counts, atol=1e-4)
    heads = counts.reshape(64, 12, 2, 4)
    np.testing.assert_array_equal(heads, heads[..., :1] * np.ones(4))  # of a head, all numbers
    assert counts.max() <= 9  # padding is not seen
    spread = 5 * np.sqrt(9 * attention * (1 - attention) / heads[..., 0].size)
    assert abs(heads[..., 0].mean() - 9 * (1 - attention)) < spread
    variance = heads[..., 0].var() / (9 * attention * (1 - attention))
    assert 0.85 < variance < 1.15  # of independent weights
    assert (heads[:, :, 0, 0] != heads[:, :, 1, 0]).any()


def test_the_mean_over_masks_is_what_is_not_dropped():
    """Of attention alone, which is linear in its weights."""
    net = Transformer(
        8, depth=1, heads=2, mlp_width=4, moe=None, remat="none", dtype=jnp.float32,
        param_dtype=jnp.float32, rngs=nnx.Rngs(0), attention_dropout=0.3,
    )  # fmt: skip
    net.norm = None
    net.blocks.mlp.outer.kernel[...] = jnp.zeros((1, 4, 8))
    x = jax.random.normal(jax.random.key(1), (1, 6, 8))
    many = jnp.broadcast_to(x, (8000, 6, 8))
    seen = jnp.broadcast_to(jnp.arange(6) < 4, (8000, 6))
    found = in_training(net, many, seen)
    want = np.asarray(net(x, mask=seen[:1])[0])[0]
    error = found.std(axis=0) / np.sqrt(len(found))
    assert (found.std(axis=0) > 0.01).all()
    assert (np.abs(found.mean(axis=0) - want) < 5 * error).all()


@pytest.mark.parametrize("norms", ["before", "after"])
def test_a_share_too_small_to_drop_anything_changes_nothing(norms):
    """So that attention written out is the fused one, texts of padding alone included."""

    def encoder(**rates):
        return nn.TextEncoder(
            20, 6, width=8, depth=2, heads=2, mlp_width=12, norms=norms, rngs=nnx.Rngs(0), **rates
        )

    tiny, plain = encoder(attention_dropout=1e-9), encoder()
    nnx.update(plain, nnx.state(tiny, nnx.Param))
    text = {"ids": IDS, "mask": MASK.at[2].set(False)}
    found, want = tiny(text, train=True).values, plain(text, train=True).values
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)


def test_every_parameter_learns_and_recomputing_draws_the_same():
    gradients = []
    for remat in ("none", "block"):
        net = nn.from_nnx(
            lambda rngs, r=remat: nn.SingleClassifier(bert(rngs, remat=r, **BOTH), 2, rngs=rngs)
        )
        params, state = net.init(jax.random.key(0))

        def loss(params, net=net, state=state):
            return net.apply(params, state, TEXT, train=True)[0].log_probs[:, 0].sum()

        gradients.append(jax.jit(jax.grad(loss))(params))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(gradients[0]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradients)


def test_half_precision():
    found = bert(dtype=jnp.bfloat16, **BOTH)(TEXT, train=True).values
    assert found.dtype == jnp.float32
    assert jnp.isfinite(found).all()


def test_each_device_has_its_own_masks(mesh):
    net = network(**BOTH)
    params, state = net.init(jax.random.key(0))

    def apply(text, params, state):
        prediction, state = net.apply(params, state, text, train=True)
        return prediction.log_probs, state

    specs = jax.P("d"), jax.P()
    mapped = shard_map(apply, mesh=mesh, in_specs=(*specs, jax.P()), out_specs=specs)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (len(mesh.devices), 6)), TEXT)
    found, _ = jax.jit(mapped)(same, params, state)
    assert len(np.unique(np.asarray(found)[:, 0])) == len(mesh.devices)


def test_a_training_goes_on_with_the_same_masks(tmp_path):
    net, optimizer, objective = network(**BOTH), optax.adam(1e-2), objectives.erm()

    @jax.jit
    def step(state):
        batch = Batch(TEXT, jnp.arange(4) % 2)
        return train_step(
            state, batch, jax.random.key(1), network=net, objective=objective, optimizer=optimizer
        )[0]

    first = step(init_state(net, objective, optimizer, jax.random.key(0)))
    checkpoints = training.Checkpoints(tmp_path)
    checkpoints.save(1, first)
    held = checkpoints.restore(1, jax.eval_shape(lambda: first))
    second = step(first)
    assert same_bits(step(held), second)
    # the masks of the first step would lead elsewhere
    rewound = first._replace(
        network_state=init_state(net, objective, optimizer, jax.random.key(0)).network_state
    )
    assert not same_bits(step(rewound).params, second.params)


def test_wrong_shares(unchecked):
    for name in BOTH:
        for share in (-0.1, 1.0, float("nan")):
            with pytest.raises(ValueError, match=rf"{name} must be in \[0, .*got {name}={share}"):
                bert(**{name: share})
