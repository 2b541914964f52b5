"""The gate's temperature against a fine search, and what happens where none is best."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.optimize

from calmoe_jax.calibration.calibrators import gate

pytestmark = pytest.mark.exhaustive

compiled = jax.jit(gate.fit_gate_temperature)


def fit_of(logits, experts, labels, weights=None, where=None):
    size = len(labels)
    weights = jnp.ones(size) if weights is None else jnp.asarray(weights, jnp.float32)
    where = jnp.ones(size, bool) if where is None else jnp.asarray(where)
    given = (jnp.asarray(x, jnp.float32) for x in (logits, experts))
    return compiled(*given, jnp.asarray(labels), weights=weights, where=where)


def problem(seed=0, scale=1.0, experts=3):
    """A router that is `scale` times too sure of which expert is right."""
    rng = np.random.RandomState(seed)
    logits, outputs = rng.randn(300, experts) * 1.5, rng.randn(300, experts, 4) * 2
    chosen = np.argmax(logits + rng.gumbel(size=(300, experts)), axis=-1)
    labels = np.argmax(outputs[np.arange(300), chosen] + rng.gumbel(size=(300, 4)), axis=-1)
    return logits * scale, outputs, labels


def loss(log_t, logits, experts, labels, weights=None):
    with np.errstate(over="ignore"):
        routing = references.softmax(logits / np.exp(log_t))
    mixed = np.sum(routing[..., None] * references.softmax(experts), axis=1)
    return np.average(-np.log(mixed[np.arange(len(labels)), labels]), weights=weights)


@pytest.mark.parametrize("scale", [1.0, 8.0, 0.01])
def test_equals_a_fine_search(scale):
    for seed in range(4):
        logits, experts, labels = problem(seed, scale)
        fit = fit_of(logits, experts, labels)
        assert fit.converged
        assert not fit.at_bound
        assert fit.residual < 1e-5
        grid = np.linspace(-8, 8, 801) + np.log(scale)
        losses = [loss(t, logits, experts, labels) for t in grid]
        around = grid[np.argmin(losses)]
        found = scipy.optimize.minimize_scalar(
            loss, bracket=(around - 0.1, around, around + 0.1), args=(logits, experts, labels)
        )
        np.testing.assert_allclose(fit.temperature, np.exp(found.x), rtol=2e-4)
        np.testing.assert_allclose(fit.loss, found.fun, atol=1e-6)
        np.testing.assert_allclose(
            gate.apply_gate_temperature(fit, jnp.asarray(logits, jnp.float32)),
            references.softmax(logits / float(fit.temperature)),
            atol=1e-6,
        )


def test_the_slope_vanishes_at_double_precision():
    with jax.enable_x64(True):
        logits, experts, labels = problem()
        fit = compiled(*map(jnp.asarray, (logits, experts, labels)))
        assert fit.temperature.dtype == jnp.float64
        assert fit.converged
        slope = references.central_difference(
            lambda t: loss(t, logits, experts, labels), np.log(float(fit.temperature)), step=1e-5
        )
        np.testing.assert_allclose(slope, 0, atol=1e-9)


def test_the_best_of_several_minima_is_found():
    """Half of the examples want a hard choice at one scale, half a softer one at another."""
    sizes = np.repeat([1.0, 300.0], 150)
    logits = np.stack([sizes, np.zeros(300)], axis=1)
    sharp, blunt = np.log([0.9, 0.1]), np.log([0.2, 0.8])
    experts = np.broadcast_to(np.stack([sharp, blunt]), (300, 2, 2))
    rng = np.random.RandomState(0)
    labels = np.concatenate([rng.rand(150) < 0.75, rng.rand(150) < 0.2]).astype(int)
    fit = fit_of(logits, experts, labels)
    losses = [loss(t, logits, experts, labels) for t in np.linspace(-8, 12, 2001)]
    assert fit.loss <= np.min(losses) + 1e-5


def test_a_router_that_is_always_right_has_temperature_at_the_lower_bound():
    logits, experts, _ = problem()
    top = np.argmax(logits, axis=-1)
    labels = np.argmax(experts[np.arange(300), top], axis=-1)
    others = np.where(np.eye(3, dtype=bool)[top][..., None], experts, -5 * experts)
    fit = fit_of(logits, others, labels)
    assert fit.at_bound
    assert not fit.converged
    assert fit.temperature < 1e-2
    wrong = fit_of(-logits, others, labels)
    assert wrong.at_bound
    assert wrong.temperature > 1e2


def test_experts_that_are_not_chosen_do_not_count():
    logits, experts, labels = problem()
    more = np.concatenate([logits, np.full((300, 1), -np.inf)], axis=1)
    others = np.concatenate([experts, np.full((300, 1, 4), np.nan)], axis=1)
    fit, without = fit_of(more, others, labels), fit_of(logits, experts, labels)
    assert fit.converged
    np.testing.assert_allclose(fit.temperature, without.temperature, rtol=1e-4)


def test_edges():
    logits, experts, labels = problem()
    for fit in (
        fit_of(np.zeros((300, 3)), experts, labels),
        fit_of(logits[:, :1], experts[:, :1], labels),
    ):
        assert fit.temperature == 1
        assert not fit.converged
        assert not fit.at_bound
        assert fit.residual == 0
    impossible = experts.copy()
    impossible[3, :, 0] = -np.inf
    outputs = experts.copy()
    outputs[3, 0, 0] = np.nan
    assert jnp.isnan(fit_of(logits, outputs, labels).temperature)
    truth = labels.copy()
    truth[3] = 0
    fit = fit_of(logits, impossible, truth)
    assert jnp.isnan(fit.temperature)
    assert not fit.converged
