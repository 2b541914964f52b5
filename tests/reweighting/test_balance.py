"""Entropy balancing against solvers in float64, and the laws of its solution."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from devices import shard_map
from dispatching import exhaustive
from hypothesis import given, settings
from hypothesis import strategies as st

import calmoe_jax as cm
from calmoe_jax.reweighting import tilted_log_weights
from calmoe_jax.reweighting._solver.linear import solve_semidefinite

STATICS = ("implicit", "tolerance", "max_steps", "axis_name", "implementation")
balance = jax.jit(cm.reweighting.entropy_balance, static_argnames=STATICS)


def problem(n=60, m=4, seed=0):
    """Of one size where nothing speaks for another: each size is a program to compile."""
    rng = np.random.RandomState(seed)
    return rng.randn(n), rng.randn(n, m) * rng.uniform(0.1, 10, m) + rng.randn(m)


def arrays(*values, dtype=jnp.float32):
    return [jnp.asarray(x, dtype) for x in values]


def check(solution, constraints, targets=None, *, base=None, tolerance=2e-5):
    """The conditions that every converged solution must fulfil."""
    assert solution.converged
    assert solution.feasible
    w = np.exp(np.asarray(solution.log_weights, np.float64))
    q = np.full(len(w), 1 / len(w)) if base is None else np.asarray(base) / np.sum(base)
    a = np.asarray(constraints, np.float64)
    b = q @ a if targets is None else targets
    spread = np.sqrt(q @ (a - q @ a) ** 2)
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(
        (w @ (a - b)) / np.where(spread > 1e-9, spread, 1), 0, atol=tolerance
    )
    np.testing.assert_allclose(solution.effective_sample_size, 1 / np.sum(w**2), rtol=1e-4)
    positive = w > 0
    kl = np.sum(w[positive] * np.log(w[positive] / q[positive]))
    np.testing.assert_allclose(solution.kl, kl, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("eta", "weighted"),
    [
        (0.1, False),
        (2.0, True),
        *exhaustive((0.1, True), (2.0, False), (15.0, False), (15.0, True)),
    ],
)
def test_it_equals_two_other_solvers(eta, weighted):
    s, a = problem()
    weights = np.random.RandomState(1).rand(60) if weighted else None
    with jax.enable_x64(True):
        given = arrays(s, a, dtype=jnp.float64)
        q = None if weights is None else jnp.asarray(weights)
        solution = balance(*given, eta=eta, weights=q)
        assert solution.converged
        log_weights = np.asarray(solution.log_weights)
        gap = float(solution.duality_gap)
    exact = references.balancing_dual(s, a, None, eta, weights)
    np.testing.assert_allclose(log_weights, exact, atol=1e-6)
    primal, value = references.entropy_balance(s, a, None, eta, weights)
    base = np.ones(60) if weights is None else weights
    base = base / base.sum()
    w = np.exp(log_weights)
    ours = w @ s - np.sum(w * (log_weights - np.log(base))) / eta
    assert abs(gap) < 1e-8
    assert ours >= value - 1e-8
    np.testing.assert_allclose(ours, value, atol=1e-6)
    np.testing.assert_allclose(np.exp(primal), w, atol=1e-3)


@pytest.mark.parametrize(("n", "m"), [(60, 4), *exhaustive((500, 8))])
def test_float32_is_the_rounded_float64(n, m):
    s, a = problem(n, m)
    solution = balance(*arrays(s, a), eta=2.0)
    np.testing.assert_allclose(
        solution.log_weights, references.balancing_dual(s, a, None, 2.0), atol=2e-5
    )
    check(solution, a)


@pytest.mark.parametrize("shift", [0.1, 0.4])
def test_targets_are_met(shift):
    _, a = problem()
    targets = a.mean(0) + shift * a.std(0)
    solution = balance(jnp.zeros(60), *arrays(a, targets), eta=1.0)
    check(solution, a, targets)


def test_without_constraints_it_is_the_tilt_to_the_last_bit():
    s = jnp.asarray(problem()[0], jnp.float32)
    where = jnp.arange(60) % 3 > 0
    weights = jnp.linspace(0.1, 1, 60)
    tilt = jax.jit(partial(tilted_log_weights, eta=2.0))
    for options in ({}, {"where": where}, {"weights": weights, "where": where}):
        got = balance(s, eta=2.0, **options)
        wanted = tilt(s, **options)
        np.testing.assert_array_equal(got.log_weights, wanted)
        assert got.converged


def test_a_partition_is_a_tilt_within_each_part():
    s = jnp.asarray(problem()[0], jnp.float32)
    part = jnp.arange(60) ** 2 % 7 % 4  # of sizes that differ
    solution = balance(s, jax.nn.one_hot(part, 4), eta=3.0)
    wanted = sum(
        jnp.where(part == g, tilted_log_weights(s, eta=3.0, where=part == g), 0)
        + jnp.where(part == g, jnp.log(jnp.mean(part == g)), 0)
        for g in range(4)
    )
    np.testing.assert_allclose(solution.log_weights, wanted, atol=2e-6)
    check(solution, jax.nn.one_hot(part, 4))


def test_base_weights_may_be_scaled_and_may_mask():
    s, a = arrays(*problem())
    weights = jnp.where(jnp.arange(60) < 45, jnp.linspace(1, 2, 60), 0)
    by_weight = balance(s, a, eta=2.0, weights=weights)
    scaled = balance(s, a, eta=2.0, weights=weights * 1000)
    masked = balance(
        s.at[45:].set(jnp.nan),
        a.at[45:].set(jnp.nan),
        eta=2.0,
        weights=jnp.linspace(1, 2, 60),
        where=jnp.arange(60) < 45,
    )
    alone = balance(s[:45], a[:45], eta=2.0, weights=weights[:45])
    weightless = balance(s.at[45:].set(jnp.nan), a.at[45:].set(jnp.nan), eta=2.0, weights=weights)
    for other in (scaled, masked, weightless):
        np.testing.assert_allclose(other.log_weights, by_weight.log_weights, atol=1e-5)
    assert (by_weight.log_weights[45:] == -jnp.inf).all()
    np.testing.assert_allclose(alone.log_weights, by_weight.log_weights[:45], atol=1e-5)


def test_a_ridge_relaxes_the_targets():
    s, a = problem()
    solution = balance(*arrays(s, a), eta=2.0, ridge=0.3)
    primal, _ = references.entropy_balance(s, a, None, 2.0, ridge=0.3)
    assert solution.converged
    np.testing.assert_allclose(jnp.exp(solution.log_weights), np.exp(primal), atol=1e-4)
    far = balance(*arrays(s, a, np.full(4, 1000.0)), eta=2.0, ridge=0.3)
    assert far.feasible


def test_a_slack_is_used_up_where_it_binds():
    s, a = arrays(*problem())
    exact, loose = (balance(s, a, eta=2.0, slack=x) for x in (0.0, 0.05))
    assert loose.converged
    w = jnp.exp(loose.log_weights)
    off = (w @ a - a.mean(0)) / a.std(0)
    assert (jnp.abs(off) <= 0.05 + 1e-5).all()
    binding = loose.potentials != 0
    np.testing.assert_allclose(jnp.abs(off[binding]), 0.05, atol=1e-5)
    assert (jnp.sign(off[binding]) == jnp.sign(loose.potentials[binding])).all()
    assert w @ s > jnp.exp(exact.log_weights) @ s
    back = balance(s, a, eta=2.0, slack=jnp.full(4, 100.0), start=jnp.ones(4))
    assert back.converged
    assert (back.potentials == 0).all()
    free = balance(s, a, eta=2.0, slack=100.0)
    np.testing.assert_allclose(free.log_weights, tilted_log_weights(s, eta=2.0), atol=1e-5)


@pytest.mark.parametrize("radius", [1e-3, 0.25, 1.0])
@pytest.mark.parametrize("constrained", [False, True])
def test_a_radius_is_hit(radius, constrained):
    s, a = arrays(*problem())
    solution = balance(s, a if constrained else None, radius=radius)
    assert solution.converged
    np.testing.assert_allclose(solution.kl, radius, rtol=1e-4)
    again = balance(s, a if constrained else None, eta=float(solution.eta))
    np.testing.assert_allclose(solution.log_weights, again.log_weights, atol=2e-4)


def test_an_unreachable_radius_and_a_radius_of_0():
    s, a = arrays(*problem())
    beyond = balance(s, radius=100.0)
    assert beyond.converged
    np.testing.assert_allclose(beyond.kl, np.log(60), rtol=1e-4)
    assert jnp.argmax(beyond.log_weights) == jnp.argmax(s)
    at_rest = balance(s, a, radius=0.0)
    assert at_rest.converged
    np.testing.assert_allclose(at_rest.log_weights, -np.log(60), atol=1e-5)
    too_small = balance(s, a, a.mean(0) + 0.5 * a.std(0), radius=1e-4)
    assert not too_small.feasible
    assert not too_small.converged


def test_the_divergence_grows_with_eta():
    s, a = arrays(*problem())
    kls = [float(balance(s, a, eta=eta).kl) for eta in (0.1, 0.5, 1.0, 3.0, 10.0)]
    assert kls == sorted(kls)


def test_collinear_and_constant_columns():
    s, a = problem(60, 2)
    classes = np.eye(3)[np.arange(60) % 3]
    more = np.concatenate([a, a[:, :1] + a[:, 1:2], classes, np.ones((60, 2))], axis=1)
    few = np.concatenate([a, classes[:, 1:]], axis=1)
    solution = balance(*arrays(s, more), eta=2.0)
    check(solution, more)
    np.testing.assert_allclose(
        solution.log_weights, balance(*arrays(s, few), eta=2.0).log_weights, atol=3e-5
    )


@pytest.mark.parametrize(
    ("columns", "targets"),
    [
        (np.linspace(0, 1, 60)[:, None], [1.5]),
        (np.ones((60, 1)), [2.0]),
        (np.eye(4)[np.arange(60) % 4], [0.3, 0.3, 0.3, 0.3]),
        (np.random.RandomState(0).randn(60, 4), [3.0] * 4),
    ],
    ids=["outside", "constant", "classes", "corner"],
)
def test_targets_that_cannot_be_met_are_proved_so(columns, targets):
    s = jnp.asarray(problem()[0], jnp.float32)
    solution = balance(s, *arrays(columns, targets), eta=1.0)
    assert not solution.feasible
    assert not solution.converged
    assert jnp.isfinite(solution.log_weights).all()
    assert solution.residual > 0.01


def test_a_potential_that_is_not_needed_gets_to_zero():
    s, a = arrays(*problem())
    few = balance(s, a[:, :3], eta=2.0)
    left_alone = jnp.abs(jnp.exp(few.log_weights) @ (a[:, 3] - a[:, 3].mean())) / a[:, 3].std()
    slack = jnp.zeros(4).at[3].set(1.2 * left_alone)
    exact = balance(s, a, eta=2.0)
    assert exact.potentials[3] != 0
    solution = balance(s, a, eta=2.0, slack=slack, start=exact.potentials)
    assert solution.converged
    assert solution.potentials[3] == 0
    np.testing.assert_allclose(solution.log_weights, few.log_weights, atol=1e-4)


def test_a_slack_makes_what_cannot_be_met_feasible():
    column = jnp.linspace(0, 1, 60)[:, None]
    beyond = jnp.array([1.1])
    assert not balance(jnp.zeros(60), column, beyond, eta=1.0).feasible
    solution = balance(jnp.zeros(60), column, beyond, eta=1.0, slack=1.0)
    assert solution.feasible
    assert solution.converged


def test_edges_of_size():
    s, a = arrays(*problem(8, 12))
    one = balance(s[:1], a[:1], eta=2.0)
    assert one.log_weights.tolist() == [0.0]
    assert one.converged
    few = balance(s, a, eta=2.0)  # as many constraints as determine the weights
    assert few.feasible
    np.testing.assert_allclose(few.log_weights, -np.log(8), atol=1e-3)
    none = balance(s[:0], a[:0], eta=2.0)
    assert none.log_weights.shape == (0,)
    masked = balance(s, a, eta=2.0, where=jnp.zeros(8, bool))
    assert (masked.log_weights == -jnp.inf).all()
    for empty in (none, masked):
        assert not empty.feasible
        assert not empty.converged
        assert empty.effective_sample_size == 0


@pytest.mark.parametrize("scale", [1e-30, 1e5, 1e30])
def test_signals_of_any_size(scale):
    s, a = arrays(*problem(100, 3))
    for options in ({"eta": 2.0}, {"radius": 0.5}):
        solution = balance(s * scale, a, **options)
        assert not jnp.isnan(solution.log_weights).any()
        np.testing.assert_allclose(jnp.exp(solution.log_weights).sum(), 1, rtol=1e-4)
        assert 1 - 1e-4 <= solution.effective_sample_size <= 100.01
    np.testing.assert_allclose(solution.kl, 0.5, rtol=1e-3)


def test_infinite_and_missing_signals():
    s, a = arrays(*problem())
    without = balance(s.at[:5].set(-jnp.inf), a, a[5:].mean(0), eta=2.0)
    cut = balance(s[5:], a[5:], eta=2.0)
    assert (without.log_weights[:5] == -jnp.inf).all()
    np.testing.assert_allclose(without.log_weights[5:], cut.log_weights, atol=1e-5)
    # the same weights, of base weights 55 / 60 as large
    np.testing.assert_allclose(without.kl, cut.kl + np.log(60 / 55), atol=1e-5)
    first = balance(s.at[3].set(jnp.inf), eta=2.0)
    assert first.log_weights[3] == 0
    nan = balance(s.at[3].set(jnp.nan), a, eta=2.0)
    assert jnp.isnan(nan.log_weights).all()
    assert not nan.converged


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shift=st.floats(-100, 100),
    factor=st.floats(0.01, 1000),
    offset=st.floats(-50, 50),
)
def test_invariances(seed, shift, factor, offset):
    s, a = problem(seed=seed)
    order = np.random.RandomState(seed).permutation(60)
    base = balance(*arrays(s, a), eta=1.5)
    moved = balance(*arrays(s + shift, a * factor + offset), eta=1.5)
    mixed = balance(*arrays(s[order], a[order]), eta=1.5)
    check(base, a)
    # rounding of the signal's offset, and of the columns'
    noise = 3e-5 * (1 + abs(shift)) + 1e-4 * (1 + abs(offset) / factor) / 10
    np.testing.assert_allclose(moved.log_weights, base.log_weights, atol=noise)
    np.testing.assert_allclose(mixed.log_weights, base.log_weights[order], atol=5e-5)
    np.testing.assert_allclose(moved.potentials * factor, base.potentials, atol=noise, rtol=1e-3)


def test_columns_far_from_zero():
    s, a = problem()
    near, far = (balance(*arrays(s, a / 10 + x), eta=2.0) for x in (0, 1990.0))
    assert far.converged
    np.testing.assert_allclose(near.log_weights, far.log_weights, atol=5e-3)


@pytest.mark.parametrize("options", [{"eta": 2.0}, *exhaustive({"radius": 0.3})])
def test_many_examples(options):
    """The solver that starts from a subset of the examples, and keeps Hessians."""
    rng = np.random.RandomState(0)
    n = 70_000
    a = rng.randn(n, 3) + np.array([0, 5, -100])
    s = rng.randn(n) + a[:, 0]
    targets = a.mean(0) + np.array([0.2, 0.1, -0.1])
    solution = balance(*arrays(s, a, targets), **options)
    check(solution, a, targets)
    exact = references.balancing_dual(s, a, targets, float(solution.eta))
    np.testing.assert_allclose(solution.log_weights, exact, atol=3e-4)


def test_many_examples_with_an_uninformative_subset():
    n = 2**16
    rare = np.zeros((n, 1))
    rare[1::1000] = 1
    s = np.random.RandomState(0).randn(n)
    solution = balance(*arrays(s, rare), eta=1.0)
    check(solution, rare)
    rare[1::2000] = -1  # of mean 0, which is its value in the part
    assert (rare[::16] == 0).all()
    check(balance(*arrays(s + rare[:, 0], rare), eta=1.0), rare)
    hidden = balance(*arrays(s, rare), eta=1.0, where=jnp.arange(n) % 16 > 0)
    assert hidden.converged


def test_a_start_saves_steps():
    s, a = arrays(*problem())
    cold = balance(s, a, eta=2.0)
    warm = balance(s + 0.01, a, eta=2.02, start=cold.potentials)
    assert warm.num_steps < cold.num_steps
    constant = jnp.concatenate([a, jnp.ones((60, 1))], axis=1)
    again = balance(s, constant, eta=2.0, start=jnp.append(cold.potentials, 0))
    assert again.num_steps < cold.num_steps
    wrong = balance(s, a, eta=2.0, start=jnp.full(4, jnp.nan))
    np.testing.assert_allclose(wrong.log_weights, cold.log_weights, atol=1e-5)
    far = balance(s, a, eta=2.0, start=jnp.full(4, 1e6))
    assert far.converged


@pytest.mark.parametrize(
    "options", [{"radius": 0.3}, *exhaustive({"eta": 2.0}, {"eta": 2.0, "ridge": 0.2})]
)
def test_implicit_derivatives_equal_finite_differences(options):
    s, a = problem(12, 2)
    rng = np.random.RandomState(3)
    targets, weights, probe = a.mean(0) + 0.1, rng.rand(12) + 0.5, rng.randn(12)
    with jax.enable_x64(True):

        def value(s, a, targets, weights):
            solution = cm.reweighting.entropy_balance(
                s, a, targets, weights=weights, implicit=True, tolerance=1e-12, **options
            )
            return jnp.sum(jnp.exp(solution.log_weights) * probe)

        given = arrays(s, a, targets, weights, dtype=jnp.float64)
        gradients = jax.jit(jax.grad(value, argnums=(0, 1, 2, 3)))(*given)
        plain = jax.jit(value)
        for number, gradient in enumerate(gradients):
            for index in ((0,) * given[number].ndim, (1,) * given[number].ndim):

                def moved(step, number=number, index=index):
                    changed = list(given)
                    changed[number] = changed[number].at[index].add(step)
                    return float(plain(*changed))

                difference = (moved(1e-5) - moved(-1e-5)) / 2e-5
                np.testing.assert_allclose(gradient[index], difference, rtol=2e-4, atol=1e-7)


def test_by_default_the_solution_is_a_constant():
    s, a = arrays(*problem())

    def value(s, a):
        return jnp.sum(jnp.exp(cm.reweighting.entropy_balance(s, a, eta=2.0).log_weights) * s)

    by_signal, by_constraints = jax.grad(value, argnums=(0, 1))(s, a)
    np.testing.assert_allclose(by_signal, jnp.exp(balance(s, a, eta=2.0).log_weights), rtol=1e-4)
    assert (by_constraints == 0).all()
    through = jax.grad(lambda s: jnp.sum(
        cm.reweighting.entropy_balance(s, eta=1.0, implicit=True).log_weights * a[:, 0]
    ))(s)  # fmt: skip
    direct = jax.grad(lambda s: jnp.sum(jax.nn.log_softmax(s) * a[:, 0]))(s)
    np.testing.assert_allclose(through, direct, rtol=1e-5, atol=1e-6)


def test_vmap_and_scan_are_loops():
    many = [arrays(*problem(seed=seed)) for seed in range(5)]
    s, a = (jnp.stack(x) for x in zip(*many, strict=True))
    alone = jnp.stack([balance(*each, eta=2.0).log_weights for each in many])
    mapped = jax.jit(jax.vmap(lambda s, a: cm.reweighting.entropy_balance(s, a, eta=2.0)))(s, a)
    np.testing.assert_allclose(mapped.log_weights, alone, atol=1e-5)
    assert mapped.converged.all()
    _, scanned = jax.lax.scan(
        lambda start, x: (
            (found := cm.reweighting.entropy_balance(*x, radius=0.3, start=start)).potentials,
            found.kl
        ),
        jnp.zeros(4, s.dtype), (s, a),
    )  # fmt: skip
    np.testing.assert_allclose(scanned, 0.3, rtol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (jnp.float64, {"eta": 2.0}),
        (jnp.float32, {"radius": 0.3}),
        *exhaustive((jnp.float32, {"eta": 2.0}), (jnp.float64, {"radius": 0.3})),
    ],
)
def test_devices_give_what_one_gives(dtype, options, mesh):
    size = 24 * len(mesh.devices)
    s, a = problem(size, 3)
    where = np.arange(size) % 24 < np.arange(size) // 24 * 7 + 2  # uneven, and few on the first
    spec = jax.sharding.PartitionSpec("d")
    with jax.enable_x64(dtype == jnp.float64):
        given = [*arrays(s, a, dtype=dtype), jnp.asarray(where)]
        tolerance = 1e-6 if dtype == jnp.float32 else 1e-12

        def call(s, a, where, axis_name=None):
            return cm.reweighting.entropy_balance(
                s, a, where=where, axis_name=axis_name, tolerance=tolerance, **options
            )

        one = jax.jit(call)(*given)
        out = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), one)._replace(log_weights=spec)
        sharded = shard_map(
            partial(call, axis_name="d"), mesh=mesh, in_specs=(spec, spec, spec), out_specs=out
        )
        several = jax.jit(sharded)(*given)
        assert several.converged
        close = {"atol": 1e-5} if dtype == jnp.float32 else {"atol": 1e-10}
        if "radius" in options:
            close = {"atol": close["atol"] * 30}  # the radius is met to 1e-5, relative
        np.testing.assert_allclose(several.log_weights, one.log_weights, **close)
        np.testing.assert_allclose(several.kl, one.kl, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 5, 40])
def test_semidefinite_systems(size):
    rng = np.random.RandomState(size)
    root = rng.randn(size, size)
    matrix = root @ root.T * np.outer(s := 10.0 ** rng.uniform(-3, 3, size), s)
    right = rng.randn(size) * s
    with jax.enable_x64(True):
        given = jnp.asarray(matrix), jnp.asarray(right), jnp.ones(size, bool)
        x = jax.jit(solve_semidefinite)(*given)
        np.testing.assert_allclose(x, np.linalg.solve(matrix, right), rtol=1e-6)
    some = np.arange(size) % 2 == 0
    got = jax.jit(solve_semidefinite)(*arrays(root @ root.T, rng.randn(size)), jnp.asarray(some))
    assert (np.asarray(got)[~some] == 0).all()


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("exactly one of eta and radius", {"eta": None}),
        ("exactly one of eta and radius", {"radius": 1.0}),
        ("eta must be", {"eta": -1.0}),
        ("radius must be", {"eta": None, "radius": -1.0}),
        ("ridge must be", {"ridge": -1.0}),
        ("slack must be", {"slack": -1.0}),
        ("max_steps must be", {"max_steps": 0}),
        ("tolerance must be", {"tolerance": 0.0}),
        ("weights must have the axes .*=5 as in signal", {"weights": jnp.ones(4)}),
        ("targets must have the axes .*m=2 as in constraints", {"targets": jnp.ones(3)}),
        ("start must have the axes .*m=2 as in constraints", {"start": jnp.ones(3)}),
        ("constraints must .* examples=5 as in signal", {"constraints": jnp.ones((4, 2))}),
        ("constraints must be given with targets", {"constraints": None, "targets": jnp.ones(2)}),
        ("slack must be 0", {"implicit": True, "slack": 0.1}),
        ("implementation='cuda'", {"implementation": "cuda"}),
    ],
)
def test_bad_input(words, change, unchecked):
    arguments = {"constraints": jnp.ones((5, 2)), "eta": 1.0} | change
    with pytest.raises(ValueError, match=words):
        cm.reweighting.entropy_balance(jnp.arange(5.0), **arguments)
