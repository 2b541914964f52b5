"""The Flax metric wraps the calibration state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calmoe_jax.calibration import init_state, summarise, update_state
from calmoe_jax.nn.calibration_metric import CalibrationMetric


def batch(seed, size=30):
    rng = np.random.RandomState(seed)
    probs = rng.dirichlet(np.ones(3), size=size).astype(np.float32)
    return jnp.asarray(probs), jnp.asarray(rng.randint(3, size=size))


update = jax.jit(update_state)
compute = jax.jit(summarise)


def state_of(*seeds):
    state = init_state(num_classes=3)
    for seed in seeds:
        state = update(state, *batch(seed))
    return compute(state)


@nnx.jit
def step(metric, probs, labels, **options):
    metric.update(probs=probs, labels=labels, **options)


def assert_same(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.exhaustive
def test_equals_the_state():
    metric = CalibrationMetric(num_classes=3)
    for seed in (0, 1):
        step(metric, *batch(seed))
    assert_same(metric.compute(), state_of(0, 1))
    metric.reset()
    assert metric.compute().weight == 0
    step(metric, *batch(2))
    assert_same(metric.compute(), state_of(2))


def test_logits_weights_and_masks_are_passed_on():
    probs, labels = batch(0)
    where, weights = jnp.arange(30) % 2 == 0, jnp.arange(30.0)
    metric = CalibrationMetric(num_classes=3, num_bins=5, from_logits=True)
    step(metric, jnp.log(probs), labels, weights=weights, where=where)
    state = init_state(num_classes=3, num_bins=5)
    state = update(state, probs, labels, weights=weights, where=where)
    for x, y in zip(metric.compute()[:-1], compute(state)[:-1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4)


def test_updates_inside_nnx_jit_and_beside_other_metrics():
    metrics = nnx.MultiMetric(
        calibration=CalibrationMetric(num_classes=3), loss=nnx.metrics.Average("loss")
    )
    for seed in (0, 1):
        step(metrics, *batch(seed), loss=jnp.float32(2))
    found = metrics.compute()
    assert found["loss"] == 2
    assert_same(found["calibration"], state_of(0, 1))


def test_merges_metrics_and_states():
    metric, other = CalibrationMetric(num_classes=3), CalibrationMetric(num_classes=3)
    step(metric, *batch(0))
    step(other, *batch(1))
    metric.merge(other)
    assert_same(metric.compute(), state_of(0, 1))
    metric.merge(update(init_state(num_classes=3), *batch(2)))
    assert_same(metric.compute(), state_of(0, 1, 2))
