"""Classes masked with a hugely negative finite logit are impossible; labels on them still count."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.optimize
import scipy.special
from dispatching import exhaustive

from calmoe_jax.calibration import calibrators as c
from calmoe_jax.calibration.calibrators import _newton, gate, temperature

SIZE, CLASSES, EXPERTS = 400, 4, 3
LOWEST = float(np.finfo(np.float32).min)
MASKS = [
    -1e9,
    *(pytest.param(x, marks=pytest.mark.exhaustive) for x in (-2e3, -1e4, -1e6, -1e30)),
    LOWEST,
]


def problem(size=SIZE, seed=0, factor=1.0):
    """Logits twice too sharp, which classes are masked, and labels among the others."""
    rng = np.random.RandomState(seed)
    logits = rng.randn(size, CLASSES) * 3
    masked = rng.rand(size, CLASSES) < 0.4
    masked[np.arange(size), np.argmax(logits, -1)] = False  # one is left
    truth = np.where(masked, -np.inf, logits / 2) + rng.gumbel(size=logits.shape)
    return (logits * factor).astype(np.float32), masked, np.argmax(truth, -1)


def with_mask(logits, masked, mask):
    return jnp.asarray(np.where(masked, np.float32(mask), logits))


def experts_of(size):
    rng = np.random.RandomState(1)
    return jnp.asarray(rng.randn(size, CLASSES, EXPERTS) * 2, jnp.float32)


def fit_experts(logits, labels, weights):
    view = jnp.stack([weights, 1 - weights / 2], axis=-1)
    return c.fit_expert_temperatures(
        jnp.stack([logits, logits / 2], axis=1), labels, routing_weights=view
    )


def fit_gate(logits, labels, weights):
    experts = experts_of(len(labels))
    return c.fit_gate_temperature(logits, experts, labels, weights=weights)


def gate_labels(logits, masked, factor=0.5):
    """Labels of the mixture that the router's logits, times a factor, give."""
    routing = references.softmax(np.where(masked, -np.inf, factor * logits))
    outputs = references.softmax(np.asarray(experts_of(len(logits))))
    mixed = np.einsum("nk,nkc->nc", routing, outputs)
    drawn = np.random.RandomState(0).gumbel(size=mixed.shape)
    return np.argmax(np.log(mixed) + drawn, -1)


# how to fit each, and how to apply it to the logits of the fit
TABLE = {
    "temperature": (c.fit_temperature, c.apply_temperature),
    "experts": (
        fit_experts,
        lambda fit, x: c.apply_expert_temperatures(fit, jnp.stack([x, x / 2], axis=1)),
    ),
    "vector": (c.fit_vector_scaling, c.apply_vector_scaling),
    "matrix": (c.fit_matrix_scaling, c.apply_matrix_scaling),
    "dirichlet": (c.fit_dirichlet, c.apply_dirichlet),
    "ensemble": (c.fit_ensemble_temperature, c.apply_ensemble_temperature),
    "gate": (fit_gate, c.apply_gate_temperature),
}


@functools.cache
def compiled(name):
    fit, apply = TABLE[name]

    def both(logits, labels, weights):
        found = fit(logits, labels, weights=weights)
        return found, apply(found, logits)

    return jax.jit(both)


def found(name, logits, labels, weights=None):
    weights = np.ones(len(labels)) if weights is None else weights
    return compiled(name)(logits, jnp.asarray(labels), jnp.asarray(weights, jnp.float32))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", TABLE)
def test_a_finite_mask_is_an_infinite_one(name, mask):
    logits, masked, labels = problem()
    if name == "gate":  # whose labels are not those of the router's logits
        labels = gate_labels(logits, masked)
    weights = np.random.RandomState(2).randint(1, 3, SIZE) / 2
    fit, probs = found(name, with_mask(logits, masked, mask), labels, weights)
    expected, wanted = found(name, with_mask(logits, masked, -np.inf), labels, weights)
    assert np.all(expected.converged)
    for ours, theirs in zip(fit, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert expected.reach < 1e4 if "reach" in fit._fields else True
    np.testing.assert_allclose(probs, wanted, atol=1e-6)
    shown = np.broadcast_to(masked[:, None] if probs.ndim == 3 else masked, probs.shape)
    np.testing.assert_array_equal(np.asarray(probs)[shown], 0)


@pytest.mark.parametrize("factor", [1e-3, 1e12])
def test_masks_are_told_from_logits_by_their_margins(factor):
    """Logits of any size are logits: none of these is a mask, and the masks still are."""
    logits, masked, labels = problem(factor=factor)
    mask = -1e9 * max(factor, 1)
    fit, _ = found("temperature", with_mask(logits, masked, mask), labels)
    expected = references.temperature(np.where(masked, -np.inf, logits / factor), labels)
    np.testing.assert_allclose(fit.temperature, factor * expected, rtol=1e-4)
    assert fit.converged
    whole = references.temperature(logits / factor, labels)
    fit, _ = found("temperature", jnp.asarray(logits), labels)
    np.testing.assert_allclose(fit.temperature, factor * whole, rtol=1e-4)


def best_temperature(logits, labels):
    """By a scan and Brent's method in float64, where scipy's logsumexp knows huge numbers."""
    logits = np.asarray(logits, np.float64)

    def loss(log_t):
        scaled = scipy.special.log_softmax(logits * np.exp(-log_t), axis=-1)
        return -np.mean(scaled[np.arange(len(labels)), labels])

    grid = np.arange(-3, 90, 0.25)
    near = grid[np.argmin([loss(x) for x in grid])]
    return np.exp(scipy.optimize.minimize_scalar(loss, (near - 0.3, near, near + 0.3)).x), loss


@pytest.mark.parametrize("mask", [-2e3, -1e6, -1e9, -1e30])
def test_a_label_on_a_masked_class_is_a_huge_loss(mask):
    """It is not left out: the temperature rises until the class is possible."""
    logits, masked, labels = problem()
    shown = np.where(masked, np.float32(mask), logits)
    shown[0, labels[0]] = mask
    fit, probs = found("temperature", jnp.asarray(shown), labels)
    expected, loss = best_temperature(shown, labels)
    assert loss(0) > loss(np.log(expected)) + 1
    np.testing.assert_allclose(fit.temperature, expected, rtol=1e-4)
    assert fit.converged
    assert probs[0, labels[0]] > 1e-6


@pytest.mark.parametrize("name", ["temperature", "vector", "matrix", "ensemble"])
def test_a_label_on_the_lowest_number_is_finite(name):
    """And the training loss is far below that of the logits as they are, which is 1e35 nats."""
    logits, masked, labels = problem()
    shown = np.where(masked, np.float32(LOWEST), logits)
    shown[0, labels[0]] = LOWEST
    fit, probs = found(name, jnp.asarray(shown), labels)
    parameters = fit._replace(reach=0) if "reach" in fit._fields else fit  # inf: all are possible
    assert all(np.isfinite(x).all() for x in parameters)
    assert -np.mean(np.log(np.asarray(probs)[np.arange(SIZE), labels])) < 10


def test_half_of_them_is_masked_by_rows():
    """Rows with a single possible class say nothing, and do not decide what a margin is."""
    logits, masked, labels = problem()
    masked[: SIZE // 2] = True
    masked[np.arange(SIZE // 2), labels[: SIZE // 2]] = False
    fit, _ = found("temperature", with_mask(logits, masked, -1e9), labels)
    rows = slice(SIZE // 2, None)
    expected = references.temperature(np.where(masked, -np.inf, logits)[rows], labels[rows])
    np.testing.assert_allclose(fit.temperature, expected, rtol=1e-4)


def test_the_derivative_is_that_of_an_infinite_mask():
    logits, masked, labels = problem()

    def log_t(logits, weights):
        return jnp.log(c.fit_temperature(logits, jnp.asarray(labels), weights=weights).temperature)

    gradient = jax.jit(jax.grad(log_t, argnums=(0, 1)))
    ours, theirs = (
        gradient(with_mask(logits, masked, mask), jnp.ones(SIZE)) for mask in (-1e9, -np.inf)
    )
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-7)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-7)
    assert np.abs(ours[0]).max() > 1e-4


def nll(probs, labels):
    return -np.mean(np.log(np.asarray(probs, np.float64)[np.arange(len(labels)), labels]))


@pytest.mark.parametrize("name", ["temperature", "vector", *exhaustive("matrix", "ensemble")])
def test_a_search_that_ends_at_a_higher_loss_is_not_applied(name, monkeypatch):
    """Broken searches: far from the optimum, and not converged."""
    logits, _, labels = problem()

    def astray(moments, start, low, high, idle, near):
        return temperature.search_root_of_old(moments, start, low, high, idle, near)._replace(
            at=jnp.asarray(-6.0)
        )

    monkeypatch.setattr(temperature, "search_root_of_old", temperature.search_root, raising=False)
    monkeypatch.setattr(temperature, "search_root", astray)
    monkeypatch.setattr(_newton, "_MAX_STEPS", 1)
    given = jnp.asarray(logits) / 2  # calibrated as it is
    fit_of, apply = TABLE[name]
    fit = fit_of(given, jnp.asarray(labels))
    assert not fit.converged
    assert not fit.at_bound
    raw = nll(jax.nn.softmax(given), labels)
    assert nll(apply(fit, given), labels) <= raw + 1e-6
    if name != "ensemble":  # whose mixing is still fitted
        np.testing.assert_allclose(apply(fit, given), jax.nn.softmax(given), atol=1e-6)


def test_a_gate_that_ends_at_a_higher_loss_is_not_applied(monkeypatch):
    logits, _, _ = problem()
    monkeypatch.setattr(gate, "_LOG_RANGE", 0.0)  # the grid is the scale of the logits alone
    experts, truth = experts_of(SIZE), gate_labels(logits, False, factor=1.0)
    fit = c.fit_gate_temperature(jnp.asarray(logits), experts, jnp.asarray(truth))
    assert fit.temperature == 1
    assert not fit.converged
    assert not fit.at_bound
    mixed = jnp.einsum("nk,nkc->nc", jax.nn.softmax(logits), jax.nn.softmax(experts))
    np.testing.assert_allclose(fit.loss, nll(mixed, truth), rtol=1e-5)
