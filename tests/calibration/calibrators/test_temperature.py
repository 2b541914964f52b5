"""Temperatures against scipy and scikit-learn, and what happens where no optimum exists."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.special

import calmoe_jax as cm

fit_of = jax.jit(cm.calibration.calibrators.fit_temperature)
fit_experts = jax.jit(cm.calibration.calibrators.fit_expert_temperatures)


def problem(seed=0, size=40, classes=4, scale=1.0):
    """Logits that depend on the labels, `scale` times too sharp."""
    rng = np.random.RandomState(seed)
    logits = rng.randn(size, classes) * 2
    noise = rng.gumbel(size=(size, classes)) * rng.uniform(0.5, 3)
    return (logits * scale).astype(np.float32), np.argmax(logits + noise, axis=-1)


def loss(log_t, logits, labels):
    """The mean log loss in float64."""
    scaled = np.asarray(logits, np.float64) * np.exp(-log_t)
    return -np.mean(scipy.special.log_softmax(scaled, axis=-1)[np.arange(len(labels)), labels])


def assert_same(fit, other, rtol=1e-4):
    np.testing.assert_allclose(fit.temperature, other.temperature, rtol=rtol)
    np.testing.assert_array_equal(fit.converged, other.converged)
    np.testing.assert_array_equal(fit.at_bound, other.at_bound)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_scipy_and_converges_quickly(dtype):
    with jax.enable_x64(dtype == np.float64):
        for seed in range(50):
            logits, labels = problem(seed, scale=10 ** np.random.RandomState(seed).uniform(-2, 2))
            fit = fit_of(jnp.asarray(logits, dtype), jnp.asarray(labels))
            assert fit.temperature.dtype == dtype
            expected = references.temperature(logits, labels)
            rtol = 1e-7 if dtype == np.float64 else 1e-5
            np.testing.assert_allclose(fit.temperature, expected, rtol=rtol)
            assert fit.converged
            assert not fit.at_bound
            assert 0 < fit.num_steps <= 8
            assert 0 <= fit.residual <= 10 * np.finfo(dtype).eps


def test_slope_vanishes():
    with jax.enable_x64(True):
        for seed in range(5):
            logits, labels = problem(seed)
            fit = fit_of(jnp.asarray(logits, jnp.float64), jnp.asarray(labels))
            at = functools.partial(loss, logits=logits, labels=labels)
            optimum = np.log(fit.temperature)
            slope = references.central_difference(at, optimum, step=1e-5)
            np.testing.assert_allclose(slope, 0, atol=1e-9)
            assert at(optimum) < min(at(optimum - 0.01), at(optimum + 0.01))
            elsewhere = jnp.asarray(logits, jnp.float64) * fit.temperature
            assert abs(fit_of(elsewhere, jnp.asarray(labels)).residual) < 1e-9


@pytest.mark.parametrize("factor", [8.0, 0.01, 1e-12, 1e12])
def test_scaling_the_logits_scales_the_temperature(factor):
    logits, labels = map(jnp.asarray, problem())
    fit, scaled = fit_of(logits, labels), fit_of(logits * factor, labels)
    np.testing.assert_allclose(scaled.temperature, factor * fit.temperature, rtol=1e-5)
    assert scaled.converged
    shifted = fit_of(logits + jnp.arange(40.0)[:, None], labels)
    np.testing.assert_allclose(shifted.temperature, fit.temperature, rtol=1e-4)


def test_equals_scikit_learn():
    calibration = pytest.importorskip("sklearn.calibration")
    frozen = pytest.importorskip("sklearn.frozen")
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.RandomState(0)
    features, labels = rng.randn(300, 5), rng.randint(3, size=300)
    features[:, 0] += labels
    model = linear_model.LogisticRegression(C=1e3).fit(features[:30], labels[:30])
    rest, truth = features[30:], labels[30:]
    try:
        theirs = calibration.CalibratedClassifierCV(
            frozen.FrozenEstimator(model), method="temperature", ensemble=False
        ).fit(rest, truth)
    except ValueError as error:  # before 1.8
        pytest.skip(str(error))
    logits = jnp.asarray(model.decision_function(rest), jnp.float32)
    fit = fit_of(logits, jnp.asarray(truth))
    assert fit.temperature > 1.2
    ours = cm.calibration.calibrators.apply_temperature(fit, logits)
    np.testing.assert_allclose(ours, theirs.predict_proba(rest), atol=1e-4)


def test_weighted_equals_scipy_of_repeated():
    logits, labels = problem()
    times = np.random.RandomState(1).randint(4, size=40)
    where = np.arange(40) % 3 != 0
    rows = np.repeat(np.arange(40), np.where(where, times, 0))
    expected = references.temperature(logits[rows], labels[rows])
    given, weights, mask = jnp.asarray(logits), jnp.asarray(times, jnp.float32), jnp.asarray(where)
    fit = fit_of(given, jnp.asarray(labels), weights=weights, where=mask)
    np.testing.assert_allclose(fit.temperature, expected, rtol=1e-4)
    assert fit.converged
    assert_same(fit_of(given, jnp.asarray(labels), weights=weights * 1e-12, where=mask), fit)


def test_every_example_right_wants_no_temperature():
    logits, _ = map(jnp.asarray, problem())
    fit = fit_of(logits, jnp.argmax(logits, axis=-1))
    assert fit.at_bound
    assert not fit.converged
    assert 0 < fit.temperature < 1e-3
    assert cm.calibration.calibrators.apply_temperature(fit, logits).max(-1).min() > 0.999


def test_unjustified_confidence_puts_the_temperature_at_the_upper_bound():
    logits, _ = map(jnp.asarray, problem())
    fit = fit_of(logits, jnp.argmin(logits, axis=-1))
    assert fit.at_bound
    assert not fit.converged
    assert fit.temperature > 1e3
    np.testing.assert_allclose(
        cm.calibration.calibrators.apply_temperature(fit, logits), 1 / 4, atol=1e-3
    )
    at = functools.partial(loss, logits=logits, labels=np.argmin(logits, axis=-1))
    slope = references.central_difference(at, np.log(float(fit.temperature)), step=1e-4)
    np.testing.assert_allclose(fit.residual, abs(slope), rtol=1e-3)


def test_a_bound_that_would_raise_the_loss_is_not_applied():
    """A mask that counts at a high temperature; a low one that is high for the unsure examples."""
    masked = np.tile(np.array([0, 0.1, -1e3], np.float32), (40, 1))
    never = fit_of(jnp.asarray(masked), jnp.zeros(40, int))
    assert never.temperature == 1
    impossible = fit_of(jnp.asarray(masked).at[:, 2].set(-jnp.inf), jnp.zeros(40, int))
    assert impossible.at_bound
    assert impossible.temperature > 1e3
    right = np.where(np.arange(40)[:, None] < 4, 0.1, 1e5) * np.array([[1, 0]], np.float32)
    always = fit_of(jnp.asarray(right, jnp.float32), jnp.zeros(40, int))
    assert always.temperature == 1
    for fit in (never, always):
        assert not (fit.converged | fit.at_bound)


def test_nothing_to_fit_leaves_the_temperature_at_one():
    logits, labels = map(jnp.asarray, problem())
    for fit in (
        fit_of(logits[:, :1], jnp.zeros(40, jnp.int32)),
        fit_of(jnp.full((40, 4), 5.0), labels),
    ):
        assert fit.temperature == 1
        assert not fit.converged
        assert not fit.at_bound
        assert fit.residual == 0


def test_impossible_classes_are_left_out():
    logits, labels = problem(classes=3)
    given = jnp.asarray(np.concatenate([logits, np.full((40, 1), -np.inf)], axis=1), jnp.float32)
    fit = fit_of(given, jnp.asarray(labels))
    np.testing.assert_allclose(fit.temperature, references.temperature(logits, labels), rtol=1e-4)
    assert fit.converged
    assert (cm.calibration.calibrators.apply_temperature(fit, given)[:, 3] == 0).all()
    # confidence never justified among the classes that are possible
    never = fit_of(given, jnp.argmin(given[:, :3], axis=-1))
    assert never.at_bound
    assert never.temperature > 1e3
    # each example has its own possible classes
    each = np.array([[0, 1, 1, 1], [0, -2, -np.inf, -np.inf]], np.float32)
    fit = fit_of(jnp.asarray(each), jnp.array([0, 0]))
    np.testing.assert_allclose(
        fit.temperature, references.temperature(each, np.array([0, 0])), rtol=1e-5
    )


def test_an_optimum_outside_the_search_is_at_bound():
    each = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    odds = 4e-6  # the optimum, 1 / odds, is a quarter of a million times the scale
    weights = jnp.array([0.5 + odds / 4, 0.5 - odds / 4])
    fit = fit_of(each, jnp.array([0, 1]), weights=weights)
    assert fit.at_bound
    assert not fit.converged


def test_a_row_of_huge_logits_that_is_right_changes_nothing():
    logits, labels = problem()
    logits[0] *= 1e9
    labels[0] = np.argmax(logits[0])
    fit = fit_of(jnp.asarray(logits), jnp.asarray(labels))
    expected = references.temperature(logits[1:], labels[1:])
    np.testing.assert_allclose(fit.temperature, expected, rtol=1e-5)
    assert fit.converged


def test_converged_only_where_the_digits_allow_it():
    """Two examples that nearly cancel: the optimum, near 1 / gap, drowns in rounding."""
    gaps = np.logspace(-4, -2, 50)
    logits = np.stack([[[1 + gap, 0], [1, 0]] for gap in gaps])
    labels = jnp.tile(jnp.array([0, 1]), (50, 1))
    many = jax.jit(jax.vmap(cm.calibration.calibrators.fit_temperature))
    rough = many(jnp.asarray(logits, jnp.float32), labels)
    assert not rough.at_bound.any()
    assert 0 < rough.converged.sum() < 50
    with jax.enable_x64(True):
        fine = many(jnp.asarray(logits), labels)
        assert fine.converged.all()
        np.testing.assert_allclose(fine.temperature, 1 / gaps, rtol=0.02)


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.exhaustive)]
)
def test_computed_in_float32(dtype):
    logits, labels = map(jnp.asarray, problem())
    rough = logits.astype(dtype)
    fit = fit_of(rough, labels)
    assert fit.temperature.dtype == jnp.float32
    assert_same(fit, fit_of(rough.astype(jnp.float32), labels), rtol=1e-6)
    probs = cm.calibration.calibrators.apply_temperature(fit, rough)
    assert probs.dtype == jnp.float32
    np.testing.assert_allclose(
        probs,
        cm.calibration.calibrators.apply_temperature(fit, rough.astype(jnp.float32)),
        rtol=1e-6,
    )
    assert (
        cm.calibration.calibrators.scale_log_probs(rough, jnp.ones(40, dtype)).dtype == jnp.float32
    )


def test_applying_equals_a_loop():
    rng = np.random.RandomState(0)
    logits, labels = rng.randn(30, 3, 4) * 3, rng.randint(4, size=30)
    logits[0] = [1.0, 1.0, -np.inf, 0.0]
    given = jnp.asarray(logits, jnp.float32)
    fits = fit_experts(given, jnp.asarray(labels))
    probs = cm.calibration.calibrators.apply_expert_temperatures(fits, given)
    for k, t in enumerate(np.asarray(fits.temperature, np.float64)):
        expected = references.softmax(logits[:, k] / t)
        np.testing.assert_allclose(probs[:, k], expected, rtol=1e-5, atol=1e-7)
        one = jax.tree.map(lambda x, k=k: x[k], fits)
        np.testing.assert_allclose(
            cm.calibration.calibrators.apply_temperature(one, given[:, k]),
            expected,
            rtol=1e-5,
            atol=1e-7,
        )
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(jnp.argmax(probs, -1), jnp.argmax(given, -1))
    each = jnp.asarray(rng.rand(30, 1) + 0.5, jnp.float32)
    logs = cm.calibration.calibrators.scale_log_probs(given, each)
    expected = scipy.special.log_softmax(logits / np.asarray(each)[..., None], axis=-1)
    np.testing.assert_allclose(logs, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("routed", [False, True])
def test_experts_are_fitted_one_by_one(routed):
    rng = np.random.RandomState(1)
    logits, labels = problem()
    logits = np.stack([s * logits + rng.randn(40, 4) for s in (0.3, 1, 2, 5)], axis=1)
    weights = references.softmax(rng.randn(40, 4))
    weights[:, 2] = 0  # an expert that the router never chooses
    where = rng.rand(40) < 0.8
    given, mask = jnp.asarray(logits, jnp.float32), jnp.asarray(where)
    routing = jnp.asarray(weights, jnp.float32) if routed else None
    fits = fit_experts(given, jnp.asarray(labels), routing_weights=routing, where=mask)
    for k in range(4):
        view = jnp.ones(40) if routing is None else routing[:, k]
        one = fit_of(given[:, k], jnp.asarray(labels), weights=view, where=mask)
        assert_same(jax.tree.map(lambda x, k=k: x[k], fits), one, rtol=1e-5)
        if routed and k == 2:
            assert fits.temperature[k] == 1
            assert not fits.converged[k]
        else:
            expected = references.temperature(logits[:, k], labels, np.asarray(view) * where)
            np.testing.assert_allclose(fits.temperature[k], expected, rtol=1e-4)
            assert fits.converged[k]


def test_the_derivative_of_the_temperature_equals_differences():
    with jax.enable_x64(True):
        logits, labels = problem()
        logits, labels = jnp.asarray(logits, jnp.float64), jnp.asarray(labels)
        weights = jnp.asarray(np.random.RandomState(0).rand(40)).at[3].set(0.0)

        @jax.jit
        def temperature(logits, weights):
            return cm.calibration.calibrators.fit_temperature(
                logits, labels, weights=weights
            ).temperature

        by_logits, by_weights = jax.jit(jax.grad(temperature, argnums=(0, 1)))(logits, weights)
        step = 1e-5
        for i, j in [(0, 0), (3, 2), (7, 1), (39, 3)]:
            change = jnp.zeros_like(logits).at[i, j].set(step)
            up, down = temperature(logits + change, weights), temperature(logits - change, weights)
            np.testing.assert_allclose(by_logits[i, j], (up - down) / (2 * step), atol=1e-8)
        for i in (0, 3, 5):  # also of an example without weight
            change = jnp.zeros_like(weights).at[i].set(step)
            up, here = temperature(logits, weights + change), temperature(logits, weights)
            np.testing.assert_allclose(by_weights[i], (up - here) / step, rtol=1e-4)
        # T scales with the logits, and does not know the weights' sum
        value, along = jax.jvp(temperature, (logits, weights), (logits, weights))
        np.testing.assert_allclose(along, value, rtol=1e-9)
        np.testing.assert_allclose(jnp.sum(by_weights * weights), 0, atol=1e-9)


def test_second_derivatives_of_the_temperature():
    with jax.enable_x64(True):
        logits, labels = problem()
        logits, labels = jnp.asarray(logits, jnp.float64), jnp.asarray(labels)

        def temperature(logits):
            return cm.calibration.calibrators.fit_temperature(logits, labels).temperature

        slope = jax.jit(jax.grad(temperature))
        along = jax.jit(lambda z, v: jax.jvp(jax.grad(temperature), (z,), (v,))[1])
        # T(s z) = s T(z): the gradient does not change along z
        np.testing.assert_allclose(along(logits, logits), 0, atol=1e-9)
        change = jnp.asarray(np.random.RandomState(1).randn(*logits.shape))
        step = 1e-5
        expected = (slope(logits + step * change) - slope(logits - step * change)) / (2 * step)
        assert jnp.abs(expected).max() > 1e-3
        np.testing.assert_allclose(along(logits, change), expected, atol=1e-8)


def test_a_loss_after_the_fit_is_differentiable():
    """Only through the temperature: the loss that it minimises does not see it move."""
    logits, labels = map(jnp.asarray, problem())

    def mean_loss(logits, through):
        fit = cm.calibration.calibrators.fit_temperature(
            logits if through else jax.lax.stop_gradient(logits), labels
        )
        return cm.calibration.negative_log_likelihood(
            jnp.log(cm.calibration.calibrators.apply_temperature(fit, logits)),
            labels,
            from_logits=True,
        )

    slope = jax.jit(jax.grad(mean_loss), static_argnums=1)
    np.testing.assert_allclose(slope(logits, True), slope(logits, False), atol=1e-6)
    assert jnp.abs(slope(logits, True)).max() > 1e-3
    many = jax.vmap(lambda z: slope(z, True))(jnp.stack([logits, 2 * logits]))
    np.testing.assert_allclose(many[0], slope(logits, True), atol=1e-6)
    np.testing.assert_allclose(2 * many[1], many[0], atol=1e-6)


def test_derivatives_leave_out_what_does_not_count():
    logits, labels = map(jnp.asarray, problem())
    where = jnp.arange(40) != 3

    @jax.jit
    @jax.grad
    def slope(logits, labels):
        return cm.calibration.calibrators.fit_temperature(logits, labels, where=where).temperature

    clean = slope(logits.at[:, 3].set(-jnp.inf), jnp.minimum(labels, 2))
    assert (clean[:, 3] == 0).all()
    for filler in (jnp.nan, jnp.inf, -jnp.inf):
        given = logits.at[:, 3].set(-jnp.inf).at[3].set(filler)
        np.testing.assert_allclose(slope(given, jnp.minimum(labels, 2)), clean, atol=1e-6)
    right = slope(logits, jnp.argmax(logits, axis=-1))
    np.testing.assert_array_equal(right, 0)  # at a bound
    assert jnp.isnan(slope(logits.at[5, 0].set(jnp.nan), labels)).any()


def test_many_examples_start_from_a_subset():
    rng = np.random.RandomState(0)
    size = 70_000
    logits = rng.randn(size, 3) * 2
    labels = np.argmax(logits + 2 * rng.gumbel(size=(size, 3)), axis=-1)
    given, truth = jnp.asarray(logits, jnp.float32), jnp.asarray(labels)
    fit = fit_of(given, truth, weights=jnp.ones(size))
    assert fit.converged
    assert fit.num_steps <= 4
    np.testing.assert_allclose(
        fit.temperature, references.temperature(np.asarray(given), labels), rtol=1e-5
    )
    # every sixteenth example is uninformative, or misleading
    some = np.arange(size) % 16 == 0
    without = references.temperature(np.asarray(given), labels, ~some)
    fit = fit_of(given, truth, weights=jnp.asarray(~some, jnp.float32))
    np.testing.assert_allclose(fit.temperature, without, rtol=1e-5)
    misled = np.where(some, np.argmax(logits, axis=-1), labels)
    fit = fit_of(given, jnp.asarray(misled), weights=jnp.ones(size))
    assert fit.converged
    np.testing.assert_allclose(
        fit.temperature, references.temperature(np.asarray(given), misled), rtol=1e-5
    )
