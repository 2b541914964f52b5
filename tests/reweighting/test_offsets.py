"""Numbers far from 0: what is left of their digits is used, and results say what they are.

Losses and columns of 1e6 and noise have a resolution of 1/16 in float32. All oracles get the same
float32 numbers, in float64.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from dispatching import exhaustive

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive

rw = cm.reweighting
SIZE, FAR = 600, 1e6


def far_and_near(shape=(SIZE,), seed=0, far=FAR):
    """Float32 numbers far from 0, and the same numbers without the offset; both exact."""
    noise = np.random.RandomState(seed).randn(*shape)
    moved = (far + noise).astype(np.float32)
    return jnp.asarray(moved), jnp.asarray(moved.astype(np.float64) - far, jnp.float32)


balance = jax.jit(rw.entropy_balance)


@pytest.mark.parametrize("size", [SIZE, *exhaustive(70_000)])
@pytest.mark.parametrize("far", [1e2, 1e6, -1e7])
@pytest.mark.parametrize("shifted", [False, True])
def test_columns_far_from_0_are_balanced(far, shifted, size):
    columns, _ = far_and_near((size, 3), far=far)
    signal = jnp.asarray(np.random.RandomState(1).gamma(2, size=size), jnp.float32)
    exact = np.asarray(columns, np.float64)
    targets = jnp.asarray(exact.mean(0) + 0.3, jnp.float32) if shifted else None
    solution = balance(signal, columns, targets, eta=1.0)
    assert solution.converged
    wanted = references.balancing_dual(signal, exact, targets, 1.0)
    np.testing.assert_allclose(np.exp(solution.log_weights).sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(solution.log_weights, wanted, atol=5e-5)
    w = np.exp(np.asarray(solution.log_weights, np.float64))
    target = exact.mean(0) if targets is None else np.asarray(targets, np.float64)
    miss = np.abs(w @ (exact - target) / exact.std(0)).max()
    # what it says is what it is
    assert miss <= 1e-5
    np.testing.assert_allclose(solution.residual, miss, atol=3e-6)


def test_many_columns_far_from_0_are_balanced():
    """The solver that starts from a subset keeps the centre apart from the columns."""
    columns, _ = far_and_near((2**16, 2))
    exact = np.asarray(columns, np.float64)
    signal = columns[:, 0] - FAR
    solution = balance(signal, columns, eta=1.0)
    assert solution.converged
    w = np.exp(np.asarray(solution.log_weights, np.float64))
    assert np.abs(w @ (exact - exact.mean(0)) / exact.std(0)).max() <= 1e-5


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_examples_that_do_not_count_come_first(scale):
    columns, near = far_and_near((SIZE, 2))
    where = jnp.arange(SIZE) >= 3
    spoilt = jnp.where(where[:, None], columns if scale == 1 else near * scale, jnp.nan)
    solution = jax.jit(rw.entropy_balance)(near[:, 0], spoilt, eta=1.0, where=where)
    assert solution.converged
    wanted = references.balancing_dual(near[3:, 0], near[3:], None, 1.0)
    np.testing.assert_allclose(solution.log_weights[3:], wanted, atol=5e-5)


def test_an_outlier_comes_first():
    """Everything is relative to the first example, here 245 standard deviations from the mean."""
    size = 60_000
    column = np.random.RandomState(0).randn(size, 1).astype(np.float32)
    column[0] = 1e6
    signal = jnp.asarray(np.random.RandomState(1).randn(size), jnp.float32)
    solution = balance(signal, jnp.asarray(column), eta=1.0)
    exact = column.astype(np.float64)
    w = np.exp(np.asarray(solution.log_weights, np.float64))
    miss = w @ (exact - exact.mean(0)) / exact.std(0)
    np.testing.assert_allclose(miss, 0, atol=2e-6)


def test_derivatives_at_columns_far_from_0():
    columns, near = far_and_near((40, 2), seed=3)
    signal = jnp.linspace(0, 2, 40)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def slopes(signal, columns):
        return jnp.sum(jnp.exp(rw.entropy_balance(
            signal, columns, eta=1.0, implicit=True
        ).log_weights) * jnp.arange(40.0))  # fmt: skip

    for got, wanted in zip(slopes(signal, columns), slopes(signal, near), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_columns_of_any_scale_are_balanced(scale):
    noise = np.random.RandomState(0).randn(SIZE, 3)
    signal = jnp.asarray(np.random.RandomState(1).gamma(2, size=SIZE), jnp.float32)
    # of one scale, and beside a column of another
    for scales in ([scale] * 3, [1, scale, 1]):
        columns = jnp.asarray(noise * scales, jnp.float32)
        solution = balance(signal, columns, None, eta=1.0)
        assert solution.converged
        exact = np.asarray(columns, np.float64)
        np.testing.assert_allclose(
            solution.log_weights, references.balancing_dual(signal, exact, None, 1.0), atol=1e-4
        )


def test_a_constant_column_far_from_0_does_not_matter():
    signal = jnp.linspace(0, 1, 50)
    for value in (0.1, 1e6 + 0.1, 1e30):
        column = jnp.full((50, 1), value)
        free = balance(signal, None, eta=2.0)
        for targets in (None, column[0]):
            got = balance(signal, column, targets, eta=2.0)
            assert got.converged
            np.testing.assert_allclose(got.log_weights, free.log_weights, atol=1e-5)
        assert not balance(signal, column, column[0] * 1.5, eta=2.0).feasible


TILTS = {
    "tilt": lambda s: rw.tilted_log_weights(s, eta=0.3),
    "kl_penalty": lambda s: rw.kl_penalty(s, eta=0.3),
    "kl_ball": lambda s: rw.kl_ball(s, radius=0.2),
    "chi_square_ball": lambda s: rw.chi_square_ball(s, radius=0.4),
    "chi_square_ball, even": lambda s: rw.chi_square_ball(s, radius=0.01),
    "cvar": lambda s: rw.cvar(s, alpha=0.3),
    "cvar, all": lambda s: rw.cvar(s, alpha=0.999),
}


@pytest.mark.parametrize("name", TILTS)
@pytest.mark.parametrize("far", [FAR, -FAR])
def test_signals_far_from_0_have_the_weights_of_the_near(name, far):
    signal, near = far_and_near(far=far)
    call = jax.jit(TILTS[name])
    got, wanted = call(signal), call(near)
    if name == "tilt":
        np.testing.assert_allclose(got, wanted, atol=1e-5)
        return
    assert got.converged
    np.testing.assert_allclose(jnp.exp(got.log_weights), jnp.exp(wanted.log_weights), atol=1e-6)
    for value in (got.value, got.dual_value):
        # to the last digit of the value
        np.testing.assert_allclose(value, far + np.float64(wanted.value), atol=0.07)


def test_gradients_of_losses_far_from_0():
    losses, near = far_and_near((60,))
    slope = jax.jit(jax.grad(lambda x: rw.robust_loss(x, eta=0.5, detach=False)))
    w = np.exp(0.5 * np.asarray(near, np.float64))
    w /= w.sum()
    wanted = w * (1 + 0.5 * (np.asarray(near) - w @ np.asarray(near)))
    np.testing.assert_allclose(slope(losses), wanted, atol=1e-6)


def test_adversaries_with_state_and_losses_far_from_0():
    losses, near = far_and_near((5, 40))
    parts = jnp.arange(40) % 3
    for adversary in (
        rw.cross_batch_tilt(eta=0.3, decay=0.8, num_strata=3),
        rw.cross_batch_tilt(eta=1.0, decay=0.0, num_strata=3),
        rw.group_dro(num_groups=3, step_size=0.3),
    ):
        cross = hasattr(adversary.init(), "num_updates")

        @jax.jit
        def run(all_losses, adversary=adversary, cross=cross):
            state, found = adversary.init(), []
            for batch in all_losses:
                given = (batch, state, parts) if cross else (batch, parts, state)
                log_weights, state = adversary.update(*given)
                found.append(log_weights)
            return jnp.stack(found)

        np.testing.assert_allclose(run(losses), run(near), atol=2e-5)


def test_the_cross_batch_partition_in_float64():
    losses, _ = far_and_near((6, 30))
    adversary = rw.cross_batch_tilt(eta=0.3, decay=0.7)
    state, log_z = adversary.init(), -np.inf
    for number, batch in enumerate(losses, 1):
        log_weights, state = adversary.update(batch, state)
        scores = np.float64(np.float32(0.3)) * np.asarray(batch, np.float64)
        keep = min(0.7, 1 - 1 / number)
        fresh = np.logaddexp.reduce(scores) - np.log(30) + np.log(1 - keep)
        log_z = fresh if keep == 0 else np.logaddexp(log_z + np.log(keep), fresh)
        np.testing.assert_allclose(log_weights, scores - log_z - np.log(30), atol=2e-5)
        both = np.float64(state.log_partition[0]) + np.float64(state.remainder[0])
        np.testing.assert_allclose(both, log_z, rtol=0, atol=1e-5)


def ridge_by_hand(losses, features, ridge, folds):
    losses, features = (np.asarray(x, np.float64) for x in (losses, features))
    fold, predicted = np.arange(len(losses)) % folds, np.zeros(len(losses))
    for number in range(folds):
        own = fold == number
        x, y = features[~own], losses[~own]
        middle, spread = x.mean(0), x.std(0)
        spread = np.where(spread > 0, spread, np.inf)
        z = (x - middle) / spread
        normal = z.T @ z / len(y) + ridge * np.eye(x.shape[1])
        slopes = np.linalg.solve(normal, z.T @ (y - y.mean()) / len(y))
        predicted[own] = y.mean() + (features[own] - middle) / spread @ slopes
    return predicted


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_the_configuration_signal_of_features_far_from_0_or_of_any_scale(scale):
    features, near = far_and_near((200, 3))
    losses, small = far_and_near((200,), seed=1)
    signal = jax.jit(partial(rw.configuration_signal, num_folds=3))
    for given in (near * scale, features):
        for y in (small, losses):
            got = signal(y, given)
            wanted = ridge_by_hand(y, given, 0.1, 3)
            np.testing.assert_allclose(got - y[0], wanted - np.float64(y[0]), atol=0.07)
        np.testing.assert_allclose(
            signal(small, given), ridge_by_hand(small, given, 0.1, 3), atol=1e-5
        )


def test_the_configuration_signal_does_not_extrapolate_from_rounding_errors():
    features = np.zeros((64, 1), np.float32)
    features[1::4] = 1e-9  # in one fold almost constant, in the other not
    features[0] = 0.5
    losses = jnp.asarray(np.random.RandomState(0).rand(64), jnp.float32)
    assert jnp.abs(rw.configuration_signal(losses, jnp.asarray(features))).max() < 2


def test_the_configuration_signal_without_others_is_the_mean_loss():
    one = rw.configuration_signal(jnp.array([3.0]), jnp.ones((1, 2)))
    assert one.tolist() == [3.0]
    # all that count are of one fold
    losses, where = jnp.arange(6.0), jnp.arange(6) % 3 == 1
    few = rw.configuration_signal(losses, losses[:, None], num_folds=3, where=where)
    assert few[where].tolist() == [2.5, 2.5]


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_configurations_far_from_0_are_balanced(ridge):
    held_out, near = far_and_near((300, 2))
    targets, close = far_and_near((100, 2), seed=4)
    call = jax.jit(partial(cm.shift.configuration_balance, ridge=ridge))
    far, wanted = call(held_out, targets), call(near, close)
    assert far.converged
    np.testing.assert_allclose(far.log_weights, wanted.log_weights, atol=2e-5)


def test_logits_far_from_0_keep_their_confidence():
    logits, near = far_and_near((50, 3))
    mean = jax.jit(cm.shift.mean_confidence)
    np.testing.assert_allclose(mean(logits, 0.3), mean(near, 0.3), rtol=1e-6)
    match = jax.jit(cm.shift.match_confidence)
    np.testing.assert_allclose(
        match(logits, 0.6).temperature, match(near, 0.6).temperature, rtol=1e-5
    )
    assert mean(jnp.array([[1.0, 0.0]]), 1e-37) == 1
