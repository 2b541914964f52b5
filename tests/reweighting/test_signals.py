"""Signals, cross-batch weights and the objectives on the balanced solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive


def test_brier_and_excess_by_hand():
    probs = references.softmax(np.random.RandomState(0).randn(10, 3))
    labels = np.arange(10) % 3
    log_probs = jnp.asarray(np.log(probs), jnp.float32)
    brier = [np.sum((p - np.eye(3)[y]) ** 2) for p, y in zip(probs, labels, strict=True)]
    np.testing.assert_allclose(
        cm.reweighting.brier_signal(log_probs, jnp.asarray(labels)), brier, rtol=1e-5
    )
    losses = -np.log(probs[np.arange(10), labels])
    excess = [loss - references.entropy(p) for loss, p in zip(losses, probs, strict=True)]
    got = cm.reweighting.excess_loss(jnp.asarray(losses, jnp.float32), log_probs)
    np.testing.assert_allclose(got, excess, atol=1e-5)


def test_the_witness_equals_loops_and_bounds_the_error():
    rng = np.random.RandomState(1)
    confidence, correct = rng.uniform(0.3, 1, 60), rng.rand(60) < 0.5
    got = cm.reweighting.calibration_witness(
        jnp.asarray(confidence, jnp.float32), jnp.asarray(correct)
    )
    for i in range(60):
        others = [j for j in range(60) if j % 2 != i % 2]
        near = sum(
            np.exp(-0.5 * ((confidence[i] - confidence[j]) / 0.1) ** 2)
            * (confidence[j] - correct[j])
            for j in others
        )
        np.testing.assert_allclose(got[i], np.sign(near) * (confidence[i] - correct[i]), rtol=1e-5)
    assert got.mean() <= np.abs(confidence - correct).mean()


def test_the_configuration_signal_equals_ridge_regression():
    rng = np.random.RandomState(2)
    features, losses = rng.randn(31, 4) * [1, 10, 0.1, 0] + [0, 5, 0, 2], rng.rand(31)
    got = cm.reweighting.configuration_signal(
        jnp.asarray(losses, jnp.float32), jnp.asarray(features, jnp.float32), ridge=0.2, num_folds=3
    )
    fold = np.arange(31) % 3
    for f in range(3):
        x, y = features[fold != f], losses[fold != f]
        middle, spread = x.mean(0), np.where(x.std(0) > 1e-9, x.std(0), np.inf)
        z = (x - middle) / spread
        slopes = np.linalg.solve(z.T @ z / len(z) + 0.2 * np.eye(4), z.T @ (y - y.mean()) / len(z))
        wanted = y.mean() + (features[fold == f] - middle) / spread @ slopes
        np.testing.assert_allclose(got[fold == f], wanted, rtol=1e-4, atol=1e-5)


def test_no_label_moves_its_own_configuration_signal():
    rng = np.random.RandomState(3)
    losses = jnp.asarray(rng.rand(20), jnp.float32)
    features = jnp.asarray(rng.randn(20, 3), jnp.float32)
    signal = jax.jit(cm.reweighting.configuration_signal)
    moved, before = signal(losses.at[4].set(100.0), features), signal(losses, features)
    np.testing.assert_array_equal(moved[::2], before[::2])
    assert (moved[1::2] != before[1::2]).any()
    masked = signal(
        losses.at[15:].set(jnp.nan), features.at[15:].set(jnp.nan), where=jnp.arange(20) < 15
    )
    np.testing.assert_allclose(masked[:15], signal(losses[:15], features[:15]), rtol=1e-5)


def test_features_of_the_configuration():
    rng = np.random.RandomState(4)
    experts = jnp.asarray(np.log(references.softmax(rng.randn(6, 3, 4))), jnp.float32)
    weights = jnp.asarray(references.softmax(rng.randn(6, 3)), jnp.float32)
    configuration = jax.jit(cm.configuration)
    config = configuration(experts, weights)
    features = jax.jit(cm.mixture.configuration_features)(config)
    assert features.shape == (6, 8 + 3 + 3)
    np.testing.assert_allclose(features[:, 1], config.confidence**2, rtol=1e-6)
    np.testing.assert_allclose(features[:, 5] ** 2, config.disagreement, rtol=1e-5)
    hard = configuration(experts, jax.nn.one_hot(jnp.arange(6) % 3, 3))
    gradient = jax.jit(jax.grad(
        lambda w: cm.mixture.configuration_features(cm.configuration(experts, w)).sum()
    ))(hard.routing_weights)  # fmt: skip
    assert jnp.isfinite(gradient).all()


def test_cross_batch_weights_equal_a_loop():
    rng = np.random.RandomState(5)
    adversary = cm.reweighting.cross_batch_tilt(eta=2.0, decay=0.8, num_strata=2)
    state, partition, number = adversary.init(), np.zeros(2), np.zeros(2)
    for batch in range(6):
        losses, strata = rng.rand(10), rng.randint(2, size=10) * (batch != 3)
        log_weights, state = jax.jit(adversary.update)(
            jnp.asarray(losses, jnp.float32), state, jnp.asarray(strata)
        )
        for g in set(strata):
            number[g] += 1
            keep = min(0.8, 1 - 1 / number[g])
            mean = np.exp(2 * losses[strata == g]).mean()
            partition[g] = keep * partition[g] + (1 - keep) * mean
        wanted = np.exp(2 * losses) / partition[strata] / 10
        np.testing.assert_allclose(jnp.exp(log_weights), wanted, rtol=1e-4)


def test_cross_batch_without_memory_is_the_batch_and_with_one_the_whole():
    losses = jnp.asarray(np.random.RandomState(6).rand(64, 8) * 3, jnp.float32)
    forgetful = cm.reweighting.cross_batch_tilt(eta=1.0, decay=0.0)
    got, _ = forgetful.update(losses[0], forgetful.init())
    np.testing.assert_allclose(
        got, cm.reweighting.tilted_log_weights(losses[0], eta=1.0), atol=1e-5
    )
    adversary = cm.reweighting.cross_batch_tilt(eta=1.0, decay=0.999)
    _, states = jax.lax.scan(
        lambda state, batch: (adversary.update(batch, state)[1],) * 2, adversary.init(), losses
    )
    whole = jax.nn.logsumexp(losses) - jnp.log(losses.size)
    np.testing.assert_allclose(states.log_partition[-1, 0], whole, atol=1e-4)


def test_the_robust_loss_is_the_unconstrained_solve():
    losses = jnp.asarray(np.random.RandomState(7).gamma(2, size=50), jnp.float32)
    solution = cm.reweighting.entropy_balance(losses, eta=2.0)
    assert cm.reweighting.weighted_loss(solution.log_weights, losses) == cm.robust_loss(
        losses, eta=2.0
    )
    relevant = losses > 1
    tilt = cm.reweighting.entropy_balance(losses, eta=2.0, where=relevant)
    filtered = losses.mean() + cm.reweighting.weighted_loss(tilt.log_weights, losses)
    np.testing.assert_allclose(
        cm.robust_filtered_loss(losses, relevant, eta=2.0), filtered, rtol=1e-6
    )


def test_the_balanced_gradient_is_that_of_the_worst_case():
    """Also through constraints that depend on the parameters; detached they would be wrong."""
    rng = np.random.RandomState(8)
    direction, columns = rng.randn(30), rng.randn(30, 2)
    with jax.enable_x64(True):

        def given(t):
            losses = jnp.asarray(rng_losses) + t * jnp.asarray(direction)
            loads = jax.nn.sigmoid(jnp.asarray(columns) * (1 + t))
            return losses, loads

        rng_losses = rng.rand(30)

        def worst(t):
            losses, loads = given(t)
            solution = cm.reweighting.entropy_balance(losses, loads, eta=2.0, tolerance=1e-13)
            w = jnp.exp(solution.log_weights)
            return float(w @ losses - solution.kl / 2.0)

        def loss(t, constant=False):
            losses, loads = given(t)
            if constant:
                loads = jax.lax.stop_gradient(loads)
            return cm.reweighting.balanced_robust_loss(losses, loads, eta=2.0)

        difference = (worst(1e-4) - worst(-1e-4)) / 2e-4
        np.testing.assert_allclose(jax.grad(loss)(0.0), difference, rtol=1e-5)
        assert abs(jax.grad(loss)(0.0, True) - difference) > 1e-4


def test_robust_losses_and_what_they_fall_back_to():
    losses = jnp.asarray(np.random.RandomState(9).gamma(2, size=64), jnp.float32)
    classes = jax.nn.one_hot(jnp.arange(64) % 3, 3)
    impossible = cm.reweighting.balanced_robust_loss(losses, classes, jnp.full(3, 0.5), eta=2.0)
    np.testing.assert_allclose(impossible, losses.mean(), rtol=1e-6)
    balanced = cm.reweighting.balanced_robust_loss(losses, classes, eta=2.0)
    free = cm.robust_loss(losses, eta=2.0)
    assert losses.mean() < balanced < free
    radius = cm.reweighting.radius_of_fraction(0.5)
    solution = cm.reweighting.entropy_balance(losses, radius=radius)
    perplexity = jnp.exp(-jnp.sum(jnp.exp(solution.log_weights) * solution.log_weights))
    np.testing.assert_allclose(perplexity, 32, rtol=1e-3)
    np.testing.assert_allclose(
        cm.reweighting.radius_robust_loss(losses, radius=radius),
        cm.reweighting.weighted_loss(solution.log_weights, losses), rtol=1e-6,
    )  # fmt: skip
    assert (cm.reweighting.radius_robust_loss(losses, radius=0.0) - losses.mean()) < 1e-5


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("fraction", lambda: cm.reweighting.radius_of_fraction(0.0)),
        ("fraction", lambda: cm.reweighting.radius_of_fraction(1.5)),
        (
            "ridge",
            lambda: cm.reweighting.configuration_signal(jnp.ones(3), jnp.ones((3, 1)), ridge=0.0),
        ),
        (
            "num_folds",
            lambda: cm.reweighting.configuration_signal(jnp.ones(3), jnp.ones((3, 1)), num_folds=1),
        ),
        (
            "features must have the axes .*=3 as in losses",
            lambda: cm.reweighting.configuration_signal(jnp.ones(3), jnp.ones((2, 1))),
        ),
        (
            "bandwidth",
            lambda: cm.reweighting.calibration_witness(jnp.ones(3), jnp.ones(3), bandwidth=0.0),
        ),
        ("decay", lambda: cm.reweighting.cross_batch_tilt(eta=1.0, decay=1.0)),
        ("eta", lambda: cm.reweighting.cross_batch_tilt(eta=0.0)),
        ("num_strata", lambda: cm.reweighting.cross_batch_tilt(eta=1.0, num_strata=0)),
    ],
)
def test_bad_input(words, call, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
