"""The tilt and the objectives built on it, with their gradients, against loops and laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

import calmoe_jax as cm

DETACH = pytest.mark.parametrize("detach", [True, False])


@functools.partial(jax.jit, static_argnames="detach")
def objectives(losses, relevant, eta, detach, where=None):
    """Values and gradients of the three objectives."""
    options = {"eta": eta, "detach": detach, "where": where}
    return (
        jax.value_and_grad(cm.erm_loss)(losses, where=where),
        jax.value_and_grad(cm.robust_loss)(losses, **options),
        jax.value_and_grad(cm.robust_filtered_loss)(losses, relevant, **options),
    )


def oracle(losses, relevant, eta, detach):
    losses, relevant = np.asarray(losses, np.float64), np.asarray(relevant)
    size = len(losses)
    return (
        (losses.mean(), np.full(size, 1 / size)),
        (references.robust(losses, eta)[0], references.robust_gradient(losses, eta, detach)),
        (
            references.robust_filtered(losses, relevant, eta),
            references.robust_filtered_gradient(losses, relevant, eta, detach),
        ),
    )


tilt = jax.jit(cm.reweighting.tilted_log_weights)


def problem(seed=0, size=16):
    rng = np.random.RandomState(seed)
    return jnp.asarray(rng.gamma(0.7, size=size), jnp.float32), jnp.asarray(rng.rand(size) < 0.5)


def assert_same(found, expected, rtol=1e-5, atol=1e-7):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol)


@DETACH
@pytest.mark.parametrize("eta", [0.1, 2.0, 20.0])
def test_values_and_gradients_equal_loops(eta, detach):
    for seed in range(3):
        losses, relevant = problem(seed)
        found = objectives(losses, relevant, eta, detach)
        assert_same(found, oracle(losses, relevant, eta, detach), atol=1e-7 * max(1, eta))
        none = objectives(losses, jnp.zeros(16, bool), eta, detach)
        assert_same(none[2], (2 * losses.mean(), np.full(16, 2 / 16)))
        everyone = objectives(losses, jnp.ones(16, bool), eta, detach)
        assert_same(everyone[2], jax.tree.map(jnp.add, everyone[0], everyone[1]))


@DETACH
def test_gradients_equal_finite_differences(detach):
    losses, relevant = problem()
    eta = 2.0

    def worst_case(x):
        """What the detached gradient is the gradient of, up to a constant (Danskin)."""
        return np.log(np.mean(np.exp(eta * x))) / eta

    def robust(x):
        return worst_case(x) if detach else references.robust(x, eta)[0]

    def filtered(x):
        return x.mean() + robust(x[np.asarray(relevant)])

    with jax.enable_x64(True):
        given = jnp.asarray(losses, jnp.float64)
        found = objectives(given, relevant, eta, detach)
    for (_, gradient), by_hand in zip(found, (np.mean, robust, filtered), strict=True):
        numeric = references.central_difference(by_hand, losses)
        np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-9)


def test_only_the_attached_gradient_unfits_easy_examples():
    losses, relevant = jnp.array([0.0, 0.1, 3.0]), jnp.ones(3, bool)
    value, attached = objectives(losses, relevant, 2.0, False)[1]
    assert ((attached < 0) == (losses < value - 1 / 2.0)).all()
    assert (attached[:2] < 0).all()
    assert (objectives(losses, relevant, 2.0, True)[1][1] > 0).all()


@DETACH
@pytest.mark.parametrize("filler", [100.0, np.nan, np.inf, -np.inf])
def test_masks_leave_out(filler, detach):
    losses, relevant = problem()
    where = jnp.arange(16) % 3 != 0
    filled = jnp.where(where, losses, filler)
    found = objectives(filled, relevant, 2.0, detach, where)
    expected = oracle(losses[where], relevant[where], 2.0, detach)
    for (value, gradient), (by_hand, slope) in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, by_hand, rtol=1e-5)
        np.testing.assert_allclose(gradient[where], slope, rtol=1e-5, atol=1e-7)
        assert (gradient[~where] == 0).all()
    weights = tilt(filled, eta=2.0, where=where)
    assert (weights[~where] == -jnp.inf).all()
    assert_same(jnp.exp(weights[where]), references.robust(losses[where], 2.0)[1])


@DETACH
def test_nothing_or_only_one_counts(detach):
    losses, relevant = problem()
    for nothing in (
        objectives(losses, relevant, 2.0, detach, jnp.zeros(16, bool)),
        objectives(jnp.full(16, jnp.nan), relevant, 2.0, detach, jnp.zeros(16, bool)),
    ):
        assert_same(nothing, ((0, np.zeros(16)),) * 3)
    assert_same(objectives(jnp.zeros(0), jnp.zeros(0, bool), 2.0, detach), ((0, np.zeros(0)),) * 3)
    assert (tilt(losses, eta=2.0, where=jnp.zeros(16, bool)) == -jnp.inf).all()
    assert tilt(jnp.zeros(0), eta=2.0).shape == (0,)
    single = objectives(jnp.array([1.5]), jnp.array([True]), 2.0, detach)
    assert_same(single, ((1.5, [1.0]), (1.5, [1.0]), (3.0, [2.0])))


def test_eta_goes_from_the_mean_to_the_maximum():
    losses, relevant = problem()
    for detach in (True, False):
        _, (value, gradient), _ = objectives(losses, relevant, 1e-6, detach)
        np.testing.assert_allclose(value, losses.mean(), rtol=1e-5)
        np.testing.assert_allclose(gradient, 1 / 16, rtol=1e-4)
        _, (value, gradient), _ = objectives(losses, relevant, 1e4, detach)
        np.testing.assert_allclose(value, losses.max(), rtol=1e-6)
        # 1 + eta (L - J) amplifies the rounding of J
        most = np.arange(16) == losses.argmax()
        np.testing.assert_allclose(gradient, most, atol=1e-6 if detach else 0.01)
    values = [objectives(losses, relevant, eta, True)[1][0] for eta in (0.01, 0.1, 1.0, 10.0)]
    assert all(np.diff(values) > 0)


def test_the_tilt_maximises_its_objective():
    """`<w, s> - KL(w || uniform) / eta` at its maximum, `(1 / eta) log mean exp(eta s)`."""
    signal = np.asarray(problem()[0], np.float64)
    eta, rng = 2.0, np.random.RandomState(0)

    def price(w):
        return w @ signal - np.sum(w * np.log(w * len(w))) / eta

    weights = np.exp(np.asarray(tilt(jnp.asarray(signal, jnp.float32), eta=eta), np.float64))
    weights /= weights.sum()
    best = np.log(np.mean(np.exp(eta * signal))) / eta
    np.testing.assert_allclose(price(weights), best, rtol=1e-9)
    for other in rng.dirichlet(np.ones(16), size=50):
        assert price(other) < best


def test_constants_and_orders_do_not_matter():
    signal, relevant = problem()
    weights = tilt(signal, eta=2.0)
    np.testing.assert_allclose(jnp.exp(weights).sum(), 1, rtol=1e-6)
    for constant in (-5.0, 0.5, 100.0):
        np.testing.assert_allclose(tilt(signal + constant, eta=2.0), weights, atol=1e-4)
    order = np.random.RandomState(0).permutation(16)
    np.testing.assert_allclose(tilt(signal[order], eta=2.0), weights[order], rtol=1e-6)
    for detach in (True, False):
        whole = objectives(signal, relevant, 2.0, detach)
        shuffled = objectives(signal[order], relevant[order], 2.0, detach)
        for (value, gradient), (other, slope) in zip(whole, shuffled, strict=True):
            assert_same((other, slope), (value, gradient[order]))


@pytest.mark.parametrize(
    ("signal", "weights"),
    [
        ([1e30, -1e30, 0.0, 1e30], [0.5, 0, 0, 0.5]),
        ([-1e30, -1e30, -1e30, -2e30], [1 / 3, 1 / 3, 1 / 3, 0]),
        ([np.inf, 1.0, np.inf, -np.inf], [0.5, 0, 0.5, 0]),
        ([3e38, 1.0, np.inf, 0.0], [0, 0, 1, 0]),  # eta times it would overflow
        ([3e38, 1.0, -3e38, 0.0], [1, 0, 0, 0]),
        ([-np.inf, 0.0, 0.0, -np.inf], [0, 0.5, 0.5, 0]),
        ([-np.inf] * 4, [0] * 4),
        ([np.nan, 0.0, 1.0, 2.0], [np.nan] * 4),
        ([np.nan, np.inf, 1.0, 2.0], [np.nan] * 4),
        ([np.nan, -np.inf, -np.inf, -np.inf], [np.nan] * 4),
    ],
)
def test_extreme_signals(signal, weights):
    given = jnp.asarray(signal, jnp.float32)
    np.testing.assert_allclose(jnp.exp(tilt(given, eta=2.0)), weights, rtol=1e-6)
    value = objectives(given, jnp.ones(4, bool), 2.0, True)[1][0]
    if np.isnan(signal).any():
        assert jnp.isnan(value)
    elif np.isposinf(signal).any():
        assert value == jnp.inf
    elif not np.isneginf(signal).all():
        np.testing.assert_allclose(value, np.max(signal), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_computed_in_float32(dtype):
    losses, relevant = problem()
    rough = losses.astype(dtype)
    found = objectives(rough, relevant, 2.0, True)
    exact = objectives(rough.astype(jnp.float32), relevant, 2.0, True)
    for (value, gradient), (expected, slope) in zip(found, exact, strict=True):
        assert value.dtype == jnp.float32
        assert gradient.dtype == dtype
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(
            gradient.astype(jnp.float32), slope, rtol=float(jnp.finfo(dtype).eps)
        )
    assert tilt(rough, eta=2.0).dtype == jnp.float32


def test_relevance_is_above_either_threshold():
    regret = jnp.array([0.0, 1e-6, 2e-6, 0.0, 0.0, jnp.nan, jnp.nan, 1.0])
    disagreement = jnp.array([0.0, 0.01, 0.0, 0.011, 0.01, 0.0, 1.0, jnp.nan])
    found = cm.reweighting.routing_relevance(regret, disagreement)
    assert found.tolist() == [False, False, True, True, False, False, True, True]
    strict = cm.reweighting.routing_relevance(
        regret, disagreement, regret_threshold=0.5, disagreement_threshold=0.5
    )
    assert strict.tolist() == [False] * 6 + [True, True]
    anything = cm.reweighting.routing_relevance(
        regret, disagreement, regret_threshold=0.0, disagreement_threshold=0.0
    )
    assert anything.tolist() == [False, True, True, True, True, False, True, True]


@DETACH
def test_transforms_agree(detach):
    losses, relevant = problem()
    eager = (
        cm.erm_loss(losses),
        cm.robust_loss(losses, eta=2.0, detach=detach),
        cm.robust_filtered_loss(losses, relevant, eta=2.0, detach=detach),
    )
    assert_same(eager, [value for value, _ in objectives(losses, relevant, 2.0, detach)])
    assert_same(
        cm.reweighting.tilted_log_weights(losses, eta=2.0), tilt(losses, eta=2.0), atol=1e-6
    )
    losses, relevant = losses.reshape(4, 4), relevant.reshape(4, 4)
    mapped = jax.vmap(lambda x, r: objectives(x, r, 2.0, detach))(losses, relevant)
    for i in range(4):
        one = objectives(losses[i], relevant[i], 2.0, detach)
        assert_same(jax.tree.map(lambda x, i=i: x[i], mapped), one)


@DETACH
@pytest.mark.parametrize("filler", [0.0, np.nan, 1e30])
def test_uneven_shards_give_the_objectives_of_the_full_batch(filler, detach):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    losses, _ = problem(3)
    where = jnp.arange(16) < 9  # shards hold 4, 4, 1 and 0 examples
    relevant = jnp.arange(16) % 8 < 2  # shards hold 2, 0, 1 and 0 relevant ones
    losses = jnp.where(where, losses, filler)
    spec = jax.P("data")

    def values(x, r, w):
        options = {"where": w, "axis_name": "data"}
        tilted = options | {"eta": 2.0, "detach": detach}
        nobody = jnp.zeros_like(r)
        return (
            cm.erm_loss(x, **options),
            cm.robust_loss(x, **tilted),
            cm.robust_filtered_loss(x, r, **tilted),
            cm.robust_filtered_loss(x, nobody, **tilted),
        )

    sharded = jax.shard_map(values, mesh=mesh, in_specs=(spec,) * 3, out_specs=jax.P())
    found = jax.jit(sharded)(losses, relevant, where)
    gradients = jax.jit(jax.jacrev(sharded))(losses, relevant, where)
    whole = objectives(losses, relevant, 2.0, detach, where)
    whole += (objectives(losses, jnp.zeros(16, bool), 2.0, detach, where)[2],)
    assert_same((found, gradients), tuple(zip(*whole, strict=True)))
    shaped = [x.reshape(4, 4) for x in (losses, relevant, where)]
    for mapped, value in zip(jax.pmap(values, axis_name="data")(*shaped), found, strict=True):
        np.testing.assert_allclose(mapped, np.full(4, value), rtol=1e-6)


def test_weights_of_shards_are_the_weights_of_the_whole():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("data")
    sharded = jax.jit(
        jax.shard_map(
            lambda s, w: cm.reweighting.tilted_log_weights(s, eta=2.0, where=w, axis_name="data"),
            mesh=mesh,
            in_specs=(spec, spec),
            out_specs=spec,
        )
    )
    signal, where = problem()[0], jnp.arange(16) < 9
    for given in (signal, signal * 1e30, signal.at[jnp.array([1, 8])].set(jnp.inf)):
        expected = tilt(given, eta=2.0, where=where)
        np.testing.assert_allclose(sharded(given, where), expected, rtol=1e-5, atol=1e-6)
    assert jnp.isnan(sharded(signal.at[8].set(jnp.nan), where)[where]).all()
    assert (sharded(signal, jnp.zeros(16, bool)) == -jnp.inf).all()


@pytest.mark.parametrize("eta", [0.0, -1.5, float("inf"), float("nan")])
def test_bad_eta(eta):
    losses, relevant = problem()
    for call in (
        cm.reweighting.tilted_log_weights,
        cm.robust_loss,
        functools.partial(cm.robust_filtered_loss, relevant=relevant),
    ):
        with pytest.raises(ValueError, match=f"eta must be positive and finite, got eta={eta}"):
            call(losses, eta=eta)


@pytest.mark.parametrize("name", ["regret_threshold", "disagreement_threshold"])
def test_bad_thresholds(name):
    with pytest.raises(ValueError, match=f"{name} must be non-negative .*, got {name}=-0.1"):
        cm.reweighting.routing_relevance(jnp.zeros(1), jnp.zeros(1), **{name: -0.1})
