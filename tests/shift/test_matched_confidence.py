"""The temperature at which the mean confidence is as wanted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive


match = jax.jit(cm.shift.match_confidence)


def draw_logits(size, classes=4, seed=0, scale=3.0):
    return (scale * np.random.RandomState(seed).randn(size, classes)).astype(np.float32)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("wanted", [0.3, 0.6, 0.95])
def test_the_matched_temperature_gives_the_wanted_confidence(scale, wanted):
    logits = jnp.asarray(scale * draw_logits(200))
    found = match(logits, wanted)
    assert found.reached
    z = np.asarray(logits, np.float64) / float(found.temperature)
    probs = np.exp(z - z.max(axis=-1, keepdims=True))
    confidence = (probs / probs.sum(axis=-1, keepdims=True)).max(axis=-1).mean()
    np.testing.assert_allclose(confidence, wanted, atol=2e-6)
    np.testing.assert_allclose(found.confidence, wanted, atol=2e-6)


@pytest.mark.parametrize("mask", [-jnp.inf, -1e9, float(jnp.finfo(jnp.float32).min)])
def test_masked_classes_set_no_scale(mask):
    logits = jnp.asarray(draw_logits(60)).at[:, 3].set(mask)
    found = match(logits, 0.6)
    assert found.reached
    np.testing.assert_allclose(found.temperature, match(logits[:, :3], 0.6).temperature, rtol=1e-4)


def test_no_logit_is_too_large():
    logits = jnp.asarray(draw_logits(60)).at[:5, 0].set(3e38)
    found = match(logits, 0.6)
    assert found.reached
    rest = match(logits[5:], (0.6 * 60 - 5) / 55)
    np.testing.assert_allclose(found.temperature, rest.temperature, rtol=1e-4)


def test_the_floor_and_what_cannot_be_reached():
    logits = jnp.asarray(draw_logits(100))
    free = match(logits, 0.9)
    held = match(logits, 0.9, at_least=2 * free.temperature)
    np.testing.assert_allclose(held.temperature, 2 * free.temperature)
    assert not held.reached
    assert held.confidence < 0.9
    tied = match(jnp.zeros((5, 4)), 0.9)
    assert not tied.reached
    np.testing.assert_allclose(tied.confidence, 0.25)
    impossible = jnp.asarray([[0.0, -jnp.inf], [0.0, -jnp.inf]])
    assert not match(impossible, 0.6).reached
    assert not match(logits, 0.1).reached


def test_weights_repeat_and_masks_leave_out():
    logits = draw_logits(30)
    counts = np.random.RandomState(2).randint(3, size=30)
    weighted = match(jnp.asarray(logits), 0.6, weights=jnp.asarray(counts, jnp.float32))
    repeated = match(jnp.asarray(np.repeat(logits, counts, axis=0)), 0.6)
    np.testing.assert_allclose(weighted.temperature, repeated.temperature, rtol=1e-4)
    spoilt = jnp.asarray(logits).at[3:].set(jnp.nan)
    kept = match(spoilt, 0.6, where=jnp.arange(30) < 3)
    np.testing.assert_allclose(
        kept.temperature, match(jnp.asarray(logits[:3]), 0.6).temperature, rtol=1e-4
    )
    assert jnp.isnan(match(spoilt, 0.6).temperature)
    assert jnp.isnan(match(jnp.asarray(logits), jnp.nan).temperature)
    assert jnp.isnan(match(jnp.asarray(logits), 0.6, where=jnp.zeros(30, bool)).temperature)


def test_matching_under_vmap_is_a_loop():
    logits = jnp.asarray(np.stack([draw_logits(50, seed=i) for i in range(3)]))
    wanted = jnp.array([0.4, 0.6, 0.8])
    together = jax.jit(jax.vmap(cm.shift.match_confidence))(logits, wanted)
    for i in range(3):
        np.testing.assert_allclose(
            together.temperature[i], match(logits[i], wanted[i]).temperature, rtol=1e-5
        )
