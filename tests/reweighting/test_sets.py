"""Worst-case weights against closed forms, linear and general programs, and their duals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from devices import shard_map

import calmoe_jax as cm

# compiled once for each shape: outside `jit`, loops are compiled for each call
SETS = {
    "kl_penalty": jax.jit(partial(cm.reweighting.kl_penalty, eta=1.5), static_argnames="axis_name"),
    "kl_ball": jax.jit(partial(cm.reweighting.kl_ball, radius=0.3), static_argnames="axis_name"),
    "chi_square_ball": jax.jit(
        partial(cm.reweighting.chi_square_ball, radius=0.4), static_argnames="axis_name"
    ),
    "cvar": jax.jit(partial(cm.reweighting.cvar, alpha=0.3), static_argnames="axis_name"),
}


def draw(size=40, seed=0):
    rng = np.random.RandomState(seed)
    return jnp.asarray(rng.randn(size), jnp.float32), jnp.asarray(rng.rand(size) + 0.2, jnp.float32)


def oracle(name, s, q):
    """The best weights by a general solver in float64."""
    s, q = np.asarray(s, np.float64), np.asarray(q, np.float64)
    q = q / q.sum()
    if name == "cvar":
        found = scipy.optimize.linprog(
            -s, A_eq=np.ones((1, len(s))), b_eq=[1], bounds=[(0, x / 0.3) for x in q]
        )
        return found.x, -found.fun

    def kl(w):
        return np.sum(w * np.log(np.maximum(w, 1e-300) / q))

    rules = [{"type": "eq", "fun": lambda w: w.sum() - 1}]
    value = lambda w: w @ s  # noqa: E731
    if name == "kl_penalty":
        value = lambda w: w @ s - kl(w) / 1.5  # noqa: E731
    elif name == "kl_ball":
        rules.append({"type": "ineq", "fun": lambda w: 0.3 - kl(w)})
    else:
        rules.append({"type": "ineq", "fun": lambda w: 0.4 - np.sum(q * (w / q - 1) ** 2) / 2})
    found = scipy.optimize.minimize(
        lambda w: -value(w), q, bounds=[(1e-12, 1)] * len(s), constraints=rules, method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )  # fmt: skip
    return found.x, -found.fun


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", list(SETS))
def test_the_worst_case_equals_a_general_solver(name):
    s, q = draw()
    case = SETS[name](s, weights=q)
    w, value = oracle(name, s, q)
    assert case.converged
    np.testing.assert_allclose(case.value, value, atol=2e-4)
    np.testing.assert_allclose(jnp.exp(case.log_weights), w, atol=3e-3)
    np.testing.assert_allclose(case.dual_value, case.value, atol=1e-4)


@pytest.mark.peers
@pytest.mark.parametrize("name", list(SETS))
def test_the_worst_case_equals_cvxpy(name):
    cvxpy = pytest.importorskip("cvxpy")
    s, q = (np.asarray(x, np.float64) for x in draw(100))
    q = q / q.sum()
    w = cvxpy.Variable(100)
    kl = cvxpy.sum(cvxpy.kl_div(w, q))
    rules, penalty = [w >= 0, cvxpy.sum(w) == 1], 0
    if name == "kl_penalty":
        penalty = kl / 1.5
    elif name == "kl_ball":
        rules.append(kl <= 0.3)
    elif name == "chi_square_ball":
        rules.append(cvxpy.sum_squares(cvxpy.multiply(w / q - 1, np.sqrt(q))) / 2 <= 0.4)
    else:
        rules.append(w <= q / 0.3)
    program = cvxpy.Problem(cvxpy.Maximize(s @ w - penalty), rules)
    value = program.solve(solver=cvxpy.CLARABEL)
    case = SETS[name](jnp.asarray(s, jnp.float32), weights=jnp.asarray(q, jnp.float32))
    np.testing.assert_allclose(case.value, value, atol=2e-5)
    np.testing.assert_allclose(jnp.exp(case.log_weights), w.value, atol=1e-4)


@pytest.mark.parametrize("name", list(SETS))
def test_laws_of_every_set(name):
    s, q = draw()
    call = SETS[name]
    case = call(s, weights=q)
    w = jnp.exp(case.log_weights)
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(case.effective_sample_size, 1 / jnp.sum(w**2), rtol=1e-4)
    assert jnp.sum(q * s) / jnp.sum(q) <= case.value <= s.max()
    order = np.random.RandomState(1).permutation(40)
    mixed = call(s[order], weights=q[order])
    np.testing.assert_allclose(jnp.exp(mixed.log_weights), w[order], atol=1e-5)
    some = jnp.arange(40) < 24
    masked = call(s.at[24:].set(jnp.nan), weights=q, where=some)
    np.testing.assert_allclose(
        jnp.exp(masked.log_weights[:24]), jnp.exp(call(s[:24], weights=q[:24]).log_weights),
        atol=1e-5,
    )  # fmt: skip
    assert (masked.log_weights[24:] == -jnp.inf).all()
    both = jax.vmap(SETS[name])(jnp.stack([s, -s]))
    np.testing.assert_allclose(both.value[1], call(-s).value, atol=1e-5)
    nothing = call(s, weights=q, where=jnp.zeros(40, bool))
    assert (nothing.log_weights == -jnp.inf).all()
    assert not nothing.converged


@pytest.mark.parametrize("name", list(SETS))
def test_equal_signals_and_one_example(name):
    even = SETS[name](jnp.full(40, 3.0))
    np.testing.assert_allclose(jnp.exp(even.log_weights), 1 / 40, rtol=1e-5)
    np.testing.assert_allclose(even.value, 3, rtol=1e-5)
    one = SETS[name](jnp.array([2.0]))
    assert jnp.exp(one.log_weights[0]) == 1
    assert not jnp.isnan(SETS[name](draw()[0] * 1e30).log_weights).any()
    gone = SETS[name](jnp.array([1.0, -jnp.inf, 2.0]))
    assert gone.log_weights[1] == -jnp.inf
    assert gone.converged


@pytest.mark.parametrize("name", list(SETS))
def test_the_gradient_of_the_dual_value_is_the_weights(name):
    s, _ = draw()
    w = jnp.exp(SETS[name](s).log_weights)
    for i in (int(jnp.argmax(s)), int(jnp.argmin(s)), 3):
        step = 1e-2
        high, low = (SETS[name](s.at[i].add(x)).value for x in (step, -step))
        np.testing.assert_allclose((high - low) / (2 * step), w[i], atol=3e-3)


def test_ties_at_the_quantile_share_by_weight():
    s = jnp.array([1.0, 2.0, 2.0, 3.0, -0.0, 0.0])
    weights = jnp.array([1.0, 1.0, 3.0, 1.0, 1.0, 1.0])
    w = jnp.exp(cm.reweighting.cvar(s, alpha=0.375, weights=weights).log_weights)
    np.testing.assert_allclose(w, [0, 1 / 6, 0.5, 1 / 3, 0, 0], atol=1e-6)
    assert (
        jnp.exp(cm.reweighting.cvar(s, alpha=1.0).log_weights).round(5).tolist()
        == [pytest.approx(1 / 6, abs=1e-5)] * 6
    )


def test_a_large_chi_square_radius_takes_the_largest_alone():
    case = cm.reweighting.chi_square_ball(jnp.array([1.0, 5.0, 5.0, 2.0]), radius=100.0)
    np.testing.assert_allclose(jnp.exp(case.log_weights), [0, 0.5, 0.5, 0])
    none = cm.reweighting.chi_square_ball(jnp.array([1.0, 5.0]), radius=0.0)
    np.testing.assert_allclose(jnp.exp(none.log_weights), 0.5)


@pytest.mark.parametrize("name", list(SETS))
def test_devices_give_what_one_gives(name, mesh):
    s, q = draw()
    spec = jax.sharding.PartitionSpec("d")
    one = SETS[name](s, weights=q)
    out = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), one)._replace(log_weights=spec)
    several = jax.jit(
        shard_map(
            lambda s, q: SETS[name](s, weights=q, axis_name="d"),
            mesh=mesh, in_specs=(spec, spec), out_specs=out,
        )
    )(s, q)  # fmt: skip
    np.testing.assert_allclose(jnp.exp(several.log_weights), jnp.exp(one.log_weights), atol=1e-5)
    np.testing.assert_allclose(several.value, one.value, rtol=1e-5)


def test_group_dro_equals_a_loop():
    rng = np.random.RandomState(0)
    adversary = cm.reweighting.group_dro(num_groups=4, step_size=0.7)
    state, log_q = adversary.init(), np.log(np.full(4, 0.25))
    for _ in range(5):
        losses, groups = rng.rand(12), rng.randint(3, size=12)  # one group never comes
        log_weights, state = jax.jit(adversary.update)(
            jnp.asarray(losses, jnp.float32), jnp.asarray(groups), state
        )
        for g in range(3):
            if (groups == g).any():
                log_q[g] += 0.7 * losses[groups == g].mean()
        log_q -= np.log(np.exp(log_q).sum())
        present = [g for g in range(4) if (groups == g).any()]
        total = sum(np.exp(log_q[g]) for g in present)
        wanted = [np.exp(log_q[g]) / total / (groups == g).sum() for g in groups]
        np.testing.assert_allclose(jnp.exp(log_weights), wanted, rtol=1e-5)
        np.testing.assert_allclose(state.log_weights, log_q, atol=1e-5)
    empty, _ = adversary.update(jnp.ones(3), jnp.zeros(3, jnp.int32), state, jnp.zeros(3, bool))
    assert (empty == -jnp.inf).all()


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("alpha", lambda: cm.reweighting.cvar(jnp.ones(3), alpha=0.0)),
        ("alpha", lambda: cm.reweighting.cvar(jnp.ones(3), alpha=1.5)),
        ("radius", lambda: cm.reweighting.chi_square_ball(jnp.ones(3), radius=-1.0)),
        ("radius", lambda: cm.reweighting.kl_ball(jnp.ones(3), radius=-1.0)),
        ("eta", lambda: cm.reweighting.kl_penalty(jnp.ones(3), eta=0.0)),
        (
            "weights must have the axes",
            lambda: cm.reweighting.cvar(jnp.ones(3), alpha=0.5, weights=jnp.ones(2)),
        ),
        ("num_groups", lambda: cm.reweighting.group_dro(num_groups=0, step_size=1.0)),
        ("step_size", lambda: cm.reweighting.group_dro(num_groups=2, step_size=0.0)),
    ],
)
def test_bad_input(words, call, unchecked):
    with pytest.raises(ValueError, match=words):
        call()
