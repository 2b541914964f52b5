"""Statistics of sparse layers and their losses against NumPy, and over devices."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.stats
from devices import assert_devices_agree
from dispatching import close, exhaustive, normal

import calmoe_jax as cm
from calmoe_jax import moe

SCALE = 0.7


def inputs(tokens=16, experts=5):
    logits, noise = normal(1, tokens, experts), SCALE * normal(2, tokens, experts)
    return logits, noise, np.arange(tokens) % 3 != 1


@partial(jax.jit, static_argnames=("k", "capacity"))
def statistics(logits, noise=None, where=None, *, k=2, capacity=None):
    noisy = logits if noise is None else logits + noise
    routed = cm.route(noisy, where=where, k=k, capacity=capacity)
    return moe.layer_statistics(logits, routed, noise, where=where, noise_scale=SCALE)


def chance(logits, noise, e, k):
    """Probability that expert `e` is chosen when its noise is drawn anew."""
    others = sorted((logits + noise)[[j for j in range(len(logits)) if j != e]])[::-1]
    if k > len(others):
        return 1.0
    return scipy.stats.norm.sf((others[k - 1] - logits[e]) / SCALE)


def oracle(logits, noise, where, k, capacity):
    """Sums by loops over tokens."""
    experts = logits.shape[1]
    importance, load, smooth, squares, entropy = np.zeros(experts), [0] * experts, 0, 0, 0
    smooth = np.zeros(experts)
    for t in np.flatnonzero(where):
        probs = references.softmax(logits[t])
        importance += probs
        noisy = logits[t] + (0 if noise is None else noise[t])
        for e in references.top_k_row(noisy, k)[0]:
            load[e] += 1
        if noise is not None:
            smooth += [chance(logits[t].astype(float), noise[t], e, k) for e in range(experts)]
        squares += math.log(sum(math.exp(v) for v in logits[t])) ** 2
        entropy += references.entropy(probs)
    dropped = 0 if capacity is None else sum(max(n - capacity, 0) for n in load)
    smooth = load if noise is None else smooth
    return moe.LayerStatistics(importance, load, smooth, squares, entropy, dropped, sum(where))


@pytest.mark.parametrize(
    ("noisy", "masked", "k", "capacity"),
    [(True, True, 2, 3), (False, False, 2, None), *exhaustive((True, False, 1, 2))],
)
def test_the_sums(noisy, masked, k, capacity):
    logits, noise, where = inputs()
    noise = noise if noisy else None
    counted = where if masked else np.ones(16, bool)
    want = oracle(logits, noise, counted, k, capacity)
    dirty = np.where(counted[:, None], logits, np.nan)
    found = statistics(dirty, noise, where if masked else None, k=k, capacity=capacity)
    jax.tree.map(lambda a, b: close(a, np.asarray(b), rtol=1e-5, atol=1e-5), found, want)


def test_the_smooth_load_is_the_share_of_draws():
    logits, noise, _ = inputs(tokens=1)
    found = statistics(logits, noise, k=2).smooth_load
    draws = np.random.RandomState(3).randn(20_000) * SCALE
    for e in range(5):
        values = np.repeat((logits + noise), len(draws), axis=0)
        values[:, e] = logits[0, e] + draws
        share = np.mean((values > values[:, e : e + 1]).sum(axis=1) < 2)
        assert abs(share - found[e]) < 0.015


def test_masked_experts_and_all_experts():
    logits, noise, _ = inputs()
    logits[:, 4] = -np.inf
    logits[0, 1:] = -np.inf
    found = statistics(logits, noise, k=2)
    assert found.smooth_load[4] == 0 == found.importance[4]
    alone = statistics(logits[:1], noise[:1], k=2)  # no other expert to compete with
    np.testing.assert_array_equal(alone.smooth_load, [1, 0, 0, 0, 0])
    everyone = statistics(logits[1:], noise[1:], k=5)
    np.testing.assert_array_equal(everyone.smooth_load, [15, 15, 15, 15, 0])


def test_a_token_that_cannot_be_routed_is_seen():
    logits, noise, _ = inputs()
    logits[3, 2] = np.nan
    found = statistics(logits, noise)
    for values in (found.importance, found.smooth_load, found.entropy, found.squared_logsumexp):
        assert np.isnan(values).all()


def layers_of(logits, noise, where=None):
    """Two layers, the second with other logits."""
    each = [statistics(x, noise, where) for x in (logits, jnp.flip(2 * logits, axis=1))]
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def variation(values):
    return np.mean([np.var(row) / np.mean(row) ** 2 for row in np.asarray(values, float)])


def test_the_losses():
    logits, noise, where = inputs()
    layers = layers_of(logits, noise, where)
    close(moe.importance_loss(layers), variation(layers.importance), rtol=1e-5)
    close(moe.smooth_load_loss(layers), variation(layers.smooth_load), rtol=1e-5)
    squares = np.asarray(layers.squared_logsumexp) / where.sum()
    close(moe.mean_z_loss(layers), squares.mean(), rtol=1e-5)
    routed = cm.route(logits, where=where, k=2)
    one = moe.layer_statistics(logits, routed, where=where)
    close(moe.mean_load_balancing_loss(one), moe.load_balancing_loss(routed), rtol=1e-5)
    close(moe.mean_z_loss(one), moe.router_z_loss(routed), rtol=1e-5)


def test_gradients_of_the_losses():
    logits, noise, where = (x[:6] for x in inputs())

    def by_loops(x):
        parts = oracle(x, noise, where, 2, None)
        return variation([parts.importance]) + variation([parts.smooth_load])

    def loss(x):
        layer = statistics(x, noise, where)
        return moe.importance_loss(layer) + moe.smooth_load_loss(layer)

    want = references.central_difference(by_loops, logits)
    close(jax.jit(jax.grad(loss))(logits), want, rtol=1e-3, atol=1e-4)


def test_no_token_and_balance():
    logits, noise, _ = inputs()
    layers = layers_of(logits, noise, np.zeros(16, bool))
    losses = (moe.importance_loss, moe.smooth_load_loss, moe.mean_load_balancing_loss)
    for loss in (*losses, moe.mean_z_loss):
        assert loss(layers) == 0
    summary = moe.summarise_layers(layers)
    assert not summary.dead.any()
    assert (summary.load_shares == 0).all()
    even = layers._replace(
        importance=jnp.ones((2, 5)), smooth_load=jnp.ones((2, 5)),
        load=jnp.ones((2, 5), int), num_tokens=jnp.full(2, 5),
    )  # fmt: skip
    assert [float(loss(even)) for loss in losses] == [0, 0, 1]


def test_the_summary():
    logits, noise, _ = inputs()
    layers = layers_of(logits, noise)._replace(
        load=jnp.array([[100, 96, 1, 3, 0], [40, 40, 40, 40, 40]]), dropped=jnp.array([50, 0]),
        entropy=jnp.array([8.0, 4.0]),
    )  # fmt: skip
    summary = moe.summarise_layers(layers)
    np.testing.assert_allclose(summary.share_dropped, [0.25, 0])
    np.testing.assert_allclose(summary.mean_entropy, [0.5, 0.25])
    close(summary.load_shares[0], np.array([100, 96, 1, 3, 0]) / 200)
    dead = [[False, False, True, False, True], [False] * 5]  # the fair share is 40 slots
    np.testing.assert_array_equal(summary.dead, dead)


def test_shards_give_the_whole():
    logits, noise, where = (jnp.asarray(x) for x in inputs())

    def everything(logits, noise, where, *, axis_name=None):
        layers = layers_of(logits, noise, where)
        losses = (moe.importance_loss, moe.smooth_load_loss, moe.mean_load_balancing_loss)
        values = [loss(layers, axis_name=axis_name) for loss in (*losses, moe.mean_z_loss)]
        return values, moe.summarise_layers(layers, axis_name=axis_name)

    assert_devices_agree(everything, logits, noise, where)
