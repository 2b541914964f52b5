"""Extreme parameters, weights of any scale, NaN and ids out of range: right, or said not to be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dispatching import exhaustive
from scipy.optimize import brentq
from scipy.special import logsumexp

import calmoe_jax as cm
from calmoe_jax.reweighting._solver.units import units

pytestmark = pytest.mark.exhaustive

rw = cm.reweighting


def relative(s):
    """Signals below the largest, in units of the range, and the range."""
    unit = np.ptp(s) or 1.0
    return (s - s.max()) / unit, unit


def log_mean_exp(d, q, eta):
    below = q @ np.expm1(eta * d)
    return np.log1p(below) if below > -0.5 else logsumexp(eta * d, b=q)


def kl_penalty(s, q, eta):
    d, unit = relative(s)
    eta = eta * unit
    return s.max() + unit * (log_mean_exp(d, q, eta) / eta if eta > 1e-12 else q @ d)


def kl_ball(s, q, radius):
    d, unit = relative(s)
    if radius >= -np.log(q[d == 0].sum()):
        return s.max()

    def tilted(log_eta):
        ratio = np.exp(log_eta) * d - log_mean_exp(d, q, np.exp(log_eta))
        return q @ (ratio * np.exp(ratio) - np.expm1(ratio)), q @ (np.exp(ratio) * d)

    if radius < 1e-25:
        return q @ s
    eta = brentq(lambda x: tilted(x)[0] - radius, -60, 60, xtol=1e-13, rtol=1e-13, maxiter=500)
    return s.max() + unit * tilted(eta)[1]


def chi_square_ball(s, q, radius):
    d, unit = relative(s)
    mean, spread = q @ d, np.sqrt(q @ (d - q @ d) ** 2)
    if (1 + 2 * radius) * q[d == 0].sum() >= 1 or spread == 0:
        return s.max()
    if radius == 0 or mean - spread / np.sqrt(2 * radius) <= -1:
        return s.max() + unit * (mean + np.sqrt(2 * radius) * spread)

    def above(nu):
        return np.maximum(d - nu, 0)

    def off(nu):
        return q @ above(nu) ** 2 - (1 + 2 * radius) * (q @ above(nu)) ** 2

    w = q * above(brentq(off, -1, np.unique(d)[-2], xtol=1e-15))
    return s.max() + unit * (w @ d) / w.sum()


def cvar(s, q, alpha):
    left, value = 1.0, 0.0
    for i in np.argsort(-s):
        taken = min(q[i] / alpha, left)
        value, left = value + taken * s[i], left - taken
    return value


SETS = {
    "kl_penalty": (kl_penalty, "eta", [0.0, 1e-30, 1e-10, 1e-4, 1.0, 1e4, 1e30]),
    "kl_ball": (kl_ball, "radius", [0.0, 1e-30, 1e-12, 1e-8, 1e-4, 0.3, 5.0, 1e30]),
    "chi_square_ball": (chi_square_ball, "radius", [0.0, 1e-30, 1e-9, 1e-7, 1e-4, 0.4, 5.0, 1e30]),
    "cvar": (cvar, "alpha", [1.0, 1 - 1e-7, 0.999, 0.5, 0.3, 1 / 40, 1e-3, 1e-30]),
}
DRAW = np.random.RandomState(0).randn(40)
SIGNALS = {
    "plain": DRAW,
    "equal": np.full(40, 3.0),
    "ties": np.round(DRAW),
    "two values": np.repeat([0.0, 1.0], 20),
    "outlier": np.append(DRAW[:39], 1e6),
    "small": DRAW * 1e-30,
    "large": DRAW * 1e30,
}
WEIGHTS = {"even": np.ones(40), "uneven": np.random.RandomState(1).rand(40) + 0.2}


def program(name):
    key = SETS[name][1]
    function = getattr(rw, name)
    return jax.jit(lambda s, value, **options: function(s, **{key: value}, **options))


PROGRAMS = {name: program(name) for name in SETS}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("signal", SIGNALS)
def test_sets_at_extreme_parameters(name, signal):
    oracle, _, values = SETS[name]
    s = SIGNALS[signal].astype(np.float32)
    unit = np.ptp(s.astype(np.float64)) or 1.0
    for weights in WEIGHTS.values():
        q = weights.astype(np.float32)
        base = q.astype(np.float64) / q.astype(np.float64).sum()
        for value in values:
            case = PROGRAMS[name](jnp.asarray(s), jnp.float32(value), weights=jnp.asarray(q))
            wanted = oracle(s.astype(np.float64), base, np.float64(np.float32(value)))
            close = {"rtol": 2e-7, "atol": 3e-5 * unit}
            assert case.converged, value
            np.testing.assert_allclose(case.value, wanted, **close, err_msg=f"{value}")
            np.testing.assert_allclose(case.dual_value, wanted, **close, err_msg=f"{value}")
            w = np.exp(np.asarray(case.log_weights, np.float64))
            np.testing.assert_allclose(w.sum(), 1, rtol=1e-5)
            if name != "kl_penalty":
                reached = w @ (s.astype(np.float64) - wanted)
                np.testing.assert_allclose(reached, 0, atol=4e-5 * unit, err_msg=f"{value}")


def test_one_example_has_all_the_weight():
    for name, (_, _, values) in SETS.items():
        for value in values:
            case = PROGRAMS[name](jnp.array([2.0]), jnp.float32(value))
            assert case.log_weights.tolist() == [0.0]
            assert case.value == case.dual_value == 2
            assert case.converged


@pytest.mark.parametrize("name", SETS)
def test_sets_with_nan_and_infinities(name):
    call = partial(PROGRAMS[name], value=jnp.float32(0.3))
    s, q = (jnp.asarray(x, jnp.float32) for x in (DRAW, WEIGHTS["uneven"]))
    others = jnp.arange(40) != 7
    clean = call(s, weights=q, where=others)
    spoilt = s.at[7].set(jnp.nan)
    for same in (
        call(spoilt, weights=q, where=others),
        call(spoilt, weights=q.at[7].set(0)),
        call(s, weights=q.at[7].set(jnp.nan), where=others),
        call(s.at[7].set(-jnp.inf), weights=q),
    ):
        assert same.converged
        np.testing.assert_allclose(same.value, clean.value, rtol=1e-6)
        np.testing.assert_allclose(jnp.exp(same.log_weights), jnp.exp(clean.log_weights), atol=1e-6)
    for bad in (
        call(spoilt, weights=q),
        call(s, weights=q.at[7].set(jnp.nan)),
        call(s, weights=q.at[7].set(-1)),
    ):
        assert jnp.isnan(bad.log_weights).all()
        assert jnp.isnan(bad.value)
        assert jnp.isnan(bad.dual_value)
        assert not bad.converged
    nothing = call(s, weights=q * 0)
    assert (nothing.log_weights == -jnp.inf).all()
    assert not nothing.converged
    assert call(s.at[7].set(jnp.inf), weights=q).value == jnp.inf


SCALED = {
    "tilt": lambda s, q: rw.tilted_log_weights(s, eta=1.5, weights=q),
    "kl_penalty": lambda s, q: rw.kl_penalty(s, eta=1.5, weights=q).log_weights,
    "kl_ball": lambda s, q: rw.kl_ball(s, radius=0.3, weights=q).log_weights,
    "chi_square_ball": lambda s, q: rw.chi_square_ball(s, radius=0.1, weights=q).log_weights,
    "cvar": lambda s, q: rw.cvar(s, alpha=0.3, weights=q).log_weights,
    "balance": lambda s, q: (
        rw.entropy_balance(s, jnp.stack([s**2, jnp.sin(s)], axis=1), eta=1.0, weights=q).log_weights
    ),
    "configurations": lambda s, q: (
        cm.shift.configuration_balance(
            s[:, None], s[:9, None] + 0.3, weights=q, target_weights=q[:9]
        ).log_weights
    ),
    "mean confidence": lambda s, q: cm.shift.mean_confidence(
        jnp.stack([s, 0 * s], axis=1), 1.0, weights=q
    ),
    "matched confidence": lambda s, q: (
        cm.shift.match_confidence(jnp.stack([s, 0 * s], axis=1), 0.7, weights=q).temperature
    ),
    "threshold": lambda s, q: cm.shift.error_threshold(jax.nn.sigmoid(s), s > 0, weights=q),
}


@pytest.mark.parametrize("name", SCALED)
def test_weights_are_relative(name):
    s, q = (jnp.asarray(x, jnp.float32) for x in (DRAW, WEIGHTS["uneven"]))
    call = jax.jit(SCALED[name])
    wanted = jnp.exp(call(s, q))
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(jnp.exp(call(s, q * scale)), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("eta", [0.0, 1e-30, 1e-6, 1e2, 1e30])
def test_the_balance_at_extreme_inverse_temperatures(eta):
    columns = np.random.RandomState(2).randn(40, 2).astype(np.float32)
    solution = balance_at(jnp.asarray(DRAW, jnp.float32), jnp.asarray(columns), jnp.float32(eta))
    w = np.exp(np.asarray(solution.log_weights, np.float64))
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-5)
    exact = columns.astype(np.float64)
    miss = np.abs(w @ (exact - exact.mean(0)) / exact.std(0)).max()
    # where it does not converge it says so, and by how much
    assert bool(solution.converged) == (miss <= 1e-5)
    np.testing.assert_allclose(solution.residual, miss, rtol=1e-3, atol=1e-5)
    if eta <= 1e-6:
        assert solution.converged
        np.testing.assert_allclose(w, 1 / 40, rtol=1e-5)


balance_at = jax.jit(lambda s, a, eta: rw.entropy_balance(s, a, eta=eta))


def test_far_targets_are_not_met_and_said_not_to_be():
    columns = jnp.asarray(np.random.RandomState(2).randn(40, 2), jnp.float32)
    for far in (1e3, 1e10, 1e30):
        solution = rw.entropy_balance(jnp.zeros(40), columns, jnp.full(2, far), eta=1.0)
        assert not solution.converged
        assert solution.residual > 1


def test_nan_is_not_feasible():
    solution = rw.entropy_balance(jnp.array([1.0, jnp.nan]), eta=1.0)
    assert not solution.feasible
    assert not solution.converged


def test_many_examples_without_constraints():
    s = jnp.asarray(np.random.RandomState(0).gamma(2, size=2**16), jnp.float32)
    case = jax.jit(partial(rw.kl_ball, radius=0.3))(s)
    assert case.converged
    q = np.full(2**16, 2.0**-16)
    np.testing.assert_allclose(case.value, kl_ball(np.asarray(s, np.float64), q, 0.3), rtol=2e-5)


@pytest.mark.parametrize("size", [1_000_000, *exhaustive(10_000_000)])
def test_sums_of_many_examples(size):
    losses = np.random.RandomState(0).gamma(2, size=size).astype(np.float32)
    exact = losses.astype(np.float64)
    w = np.exp(exact - exact.max())
    w /= w.sum()
    log_weights = rw.tilted_log_weights(jnp.asarray(losses), eta=1.0)
    np.testing.assert_allclose(log_weights, np.log(w), atol=4e-6)
    case = rw.kl_penalty(jnp.asarray(losses), eta=1.0)
    np.testing.assert_allclose(case.effective_sample_size, 1 / (w @ w), rtol=5e-6)
    np.testing.assert_allclose(case.value, np.log(np.mean(np.exp(exact))), rtol=1e-6)
    part = np.arange(size) % 2
    means = [exact[part == g].mean() for g in range(2)]
    adversary = rw.group_dro(num_groups=2, step_size=1.0)
    _, state = adversary.update(jnp.asarray(losses), jnp.asarray(part), adversary.init())
    np.testing.assert_allclose(state.log_weights, means - np.logaddexp(*means), atol=2e-6)


def test_units_of_columns():
    rng = np.random.RandomState(0)
    for size in (500, 2**16):
        rows = (rng.randn(size, 4) * [1, 1e-3, 50, 0] + [0, 1e3, -1e6, 0.1]).astype(np.float32)
        share = rng.rand(size).astype(np.float32)
        share[: size // 3], rows[: size // 3] = 0, 0  # values that do not count
        found = jax.jit(units)(jnp.asarray(rows), jnp.asarray(share))
        exact, q = rows.astype(np.float64), share.astype(np.float64) / share.astype(float).sum()
        mean = q @ exact
        deviation = np.sqrt(q @ (exact - mean) ** 2)
        got = np.float64(found.pivot) + np.float64(found.mean)
        np.testing.assert_array_less(np.abs(got - mean)[:3] / deviation[:3], 2e-6)
        np.testing.assert_allclose(found.deviation[:3], deviation[:3], rtol=1e-4)
        assert found.constant.tolist() == [False, False, False, True]


# ids out of range


def adversaries():
    groups, cross = (
        rw.group_dro(num_groups=2, step_size=1.0),
        rw.cross_batch_tilt(eta=1.0, num_strata=2),
    )
    return {
        "group_dro": lambda losses, ids, where: groups.update(losses, ids, groups.init(), where),
        "cross_batch": lambda losses, ids, where: cross.update(losses, cross.init(), ids, where),
    }


@pytest.mark.parametrize("name", ["group_dro", "cross_batch"])
@pytest.mark.parametrize("outside", [-1, 2, -(2**31), 2**31 - 1])
def test_an_id_out_of_range_gives_nan_where_it_counts(name, outside):
    update = jax.jit(adversaries()[name])
    losses, ids = jnp.arange(6.0), jnp.array([0, 1, 0, 1, 0, 1])
    everything, others = jnp.ones(6, bool), jnp.arange(6) != 2
    log_weights, _ = update(losses, ids.at[2].set(outside), everything)
    assert jnp.isnan(log_weights[2])
    assert jnp.isnan(rw.weighted_loss(log_weights, losses))
    spoilt = update(losses.at[2].set(jnp.nan), ids.at[2].set(outside), others)
    clean = update(losses, ids, others)
    jax.tree.map(np.testing.assert_array_equal, spoilt, clean)
    assert jnp.isfinite(clean[0][others]).all()
    assert clean[0][2] == -jnp.inf
    of_nan, state = update(losses.at[2].set(jnp.nan), ids, everything)
    assert jnp.isnan(of_nan[2])
    assert jnp.isnan(jax.tree.leaves(state)[0][0])


def test_labels_out_of_range_give_nan():
    log_probs = jnp.log(jnp.full((4, 2), 0.5))
    found = rw.brier_signal(log_probs, jnp.array([-1, 0, 1, 2]))
    assert jnp.isnan(found).tolist() == [True, False, False, True]
