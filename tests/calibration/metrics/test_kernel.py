"""Kernel calibration errors against loops over all pairs, and the level of the test."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

from calmoe_jax.calibration.metrics import kernel

pytestmark = pytest.mark.exhaustive

jitted_mmce = jax.jit(kernel.maximum_mean_calibration_error)
jitted_skce = jax.jit(kernel.squared_kernel_calibration_error, static_argnames="from_logits")


def with_defaults(size, options):
    """Arrays for the defaults, so that one compilation serves most tests."""
    return {"bandwidth": 0.4, "weights": jnp.ones(size), "where": jnp.ones(size, bool)} | options


def mmce(confidence, outcome, **options):
    options = with_defaults(len(outcome), options)
    return jitted_mmce(confidence, outcome.astype(jnp.float32), **options)


def skce(probs, labels, **options):
    return jitted_skce(probs, labels.astype(jnp.int32), **with_defaults(len(labels), options))


def pairs(size=40, seed=0):
    rng = np.random.RandomState(seed)
    confidence = rng.rand(size)
    confidence[: size // 4] = rng.randint(3, size=size // 4) / 2
    return confidence.astype(np.float32), rng.rand(size) < confidence**2


def forecasts(size=40, classes=3, seed=0):
    rng = np.random.RandomState(seed)
    probs = references.softmax(2 * rng.randn(size, classes))
    return probs.astype(np.float32), rng.randint(classes, size=size)


def mmce_by_loops(confidence, outcome, weights=None, bandwidth=0.4):
    weights = np.ones(len(confidence)) if weights is None else weights
    total = 0.0
    for p, y, w in zip(confidence, outcome, weights, strict=True):
        for q, z, v in zip(confidence, outcome, weights, strict=True):
            total += w * v * (p - y) * (q - z) * math.exp(-abs(p - q) / bandwidth)
    return math.sqrt(max(total, 0)) / sum(weights)


def skce_by_loops(probs, labels, weights=None, bandwidth=0.4):
    probs = np.asarray(probs, np.float64)
    weights = np.ones(len(probs)) if weights is None else weights
    residual = np.eye(probs.shape[1])[labels] - probs
    value = total = 0.0
    for i in range(len(probs)):
        for j in range(i):
            near = math.exp(-((probs[i] - probs[j]) ** 2).sum() / (2 * bandwidth**2))
            value += weights[i] * weights[j] * near * residual[i] @ residual[j]
            total += weights[i] * weights[j]
    return value / total


@pytest.mark.parametrize("bandwidth", [0.4, 0.02, 5.0])
def test_mmce_equals_a_loop_over_pairs(bandwidth):
    confidence, outcome = pairs()
    weights = np.random.RandomState(1).randint(3, size=40).astype(np.float32)
    for given in (None, weights):
        found = mmce(
            jnp.asarray(confidence),
            jnp.asarray(outcome),
            bandwidth=bandwidth,
            weights=jnp.ones(40) if given is None else jnp.asarray(given),
        )
        expected = mmce_by_loops(confidence.astype(float), outcome, given, bandwidth)
        np.testing.assert_allclose(found, expected, rtol=2e-5)


def test_mmce_of_one_level_is_the_gap():
    found = mmce(jnp.full(40, 0.75), jnp.arange(40) < 10)
    np.testing.assert_allclose(found, 0.5, rtol=1e-6)


def test_mmce_gradient_equals_finite_differences():
    rng = np.random.RandomState(2)
    confidence, outcome = rng.rand(12), (rng.rand(12) < 0.5).astype(float)
    weights = rng.rand(12)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(kernel.maximum_mean_calibration_error, argnums=(0, 1)))(
            jnp.asarray(confidence), jnp.asarray(outcome), weights=jnp.asarray(weights)
        )
    for got, expected in zip(
        gradient,
        (
            references.central_difference(
                lambda p: mmce_by_loops(p, outcome, weights), confidence
            ),
            references.central_difference(
                lambda y: mmce_by_loops(confidence, y, weights), outcome
            ),
        ),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


def test_mmce_gradient_is_finite_at_zero_at_ties_and_beside_masked_rows():
    value_and_grad = jax.jit(jax.value_and_grad(kernel.maximum_mean_calibration_error))
    confidence = jnp.array([0.5, 0.5, 0.0, 1.0, jnp.nan])
    where = jnp.arange(5) < 4
    value, gradient = value_and_grad(confidence, jnp.array([1.0, 0.0, 0.0, 1.0, 0.0]), where=where)
    assert value == 0
    assert gradient.tolist() == [0] * 5
    outcome = jnp.array([0.0, 0.0, 0.0, 1.0, 0.0])
    value, gradient = value_and_grad(confidence, outcome, where=where)
    assert jnp.isfinite(gradient).all()
    assert gradient[4] == 0
    lower, _ = value_and_grad(jnp.clip(confidence - 0.1 * gradient, 0, 1), outcome, where=where)
    assert lower < value


@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.exhaustive), 4])
def test_skce_equals_a_loop_over_pairs(classes):
    probs, labels = forecasts(classes=classes)
    weights = np.random.RandomState(1).rand(40).astype(np.float32)
    found = skce(jnp.asarray(probs), jnp.asarray(labels))
    np.testing.assert_allclose(found, skce_by_loops(probs, labels), rtol=1e-4)
    found = skce(
        jnp.asarray(np.log(probs)),
        jnp.asarray(labels),
        bandwidth=0.1,
        weights=jnp.asarray(weights),
        from_logits=True,
    )
    np.testing.assert_allclose(found, skce_by_loops(probs, labels, weights, 0.1), rtol=1e-4)


@pytest.mark.parametrize("side", [pytest.param(1, marks=pytest.mark.exhaustive), 16])
def test_tiles_do_not_matter(side, monkeypatch):
    probs, labels = map(jnp.asarray, forecasts())
    expected = skce(probs, labels)
    monkeypatch.setattr(kernel, "_BLOCK", side)
    found = jax.jit(lambda *args: kernel.squared_kernel_calibration_error(*args))(probs, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_skce_gradient_equals_finite_differences():
    rng = np.random.RandomState(3)
    logits, labels = rng.randn(9, 3), rng.randint(3, size=9)
    masked = np.vstack([logits, np.full((1, 3), np.nan)])
    with jax.enable_x64(True):
        gradient = jax.jit(
            jax.grad(
                lambda z: kernel.squared_kernel_calibration_error(
                    z, jnp.append(labels, 0), where=jnp.arange(10) < 9, from_logits=True
                )
            )
        )(jnp.asarray(masked))
    numeric = references.central_difference(
        lambda z: skce_by_loops(references.softmax(z), labels), logits
    )
    np.testing.assert_allclose(gradient[:9], numeric, rtol=1e-6, atol=1e-9)
    assert (np.asarray(gradient)[9] == 0).all()


def test_skce_takes_memory_of_order_n():
    """With its gradient too: tiles are recomputed in the backward pass."""
    size = 4096
    probs, labels = jnp.full((size, 2), 0.5), jnp.zeros(size, jnp.int32)
    compiled = (
        jax.jit(jax.value_and_grad(kernel.squared_kernel_calibration_error))
        .lower(probs, labels)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < size**2 * 4 / 4


def test_skce_is_unbiased():
    """Over every draw of labels, its mean is the squared error of the true probabilities."""
    probs = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    truth = np.array([0.7, 0.5, 0.5])
    every = np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    chance = np.prod(np.where(every == 0, truth, 1 - truth), axis=1)
    values = jax.jit(
        jax.vmap(kernel.squared_kernel_calibration_error, in_axes=(None, 0))
    )(jnp.asarray(probs, jnp.float32), jnp.asarray(every))  # fmt: skip
    gap = np.stack([truth - probs[:, 0], probs[:, 0] - truth], axis=1)
    expected = np.mean(
        [
            math.exp(-((probs[i] - probs[j]) ** 2).sum() / (2 * 0.16)) * gap[i] @ gap[j]
            for i, j in ((0, 1), (0, 2), (1, 2))
        ]
    )
    np.testing.assert_allclose(chance @ np.asarray(values), expected, rtol=1e-5)


def test_the_top_label_condition_is_two_classes():
    confidence, correct = pairs()
    residual, level = correct - confidence.astype(float), confidence.astype(float)
    expected = np.mean(
        [
            2 * residual[i] * residual[j] * math.exp(-((level[i] - level[j]) ** 2) / 0.16)
            for i in range(40)
            for j in range(i)
        ]
    )
    two = jnp.stack([1 - jnp.asarray(confidence), jnp.asarray(confidence)], axis=-1)
    np.testing.assert_allclose(skce(two, jnp.asarray(correct, jnp.int32)), expected, rtol=1e-4)


def test_masks_leave_out_and_orders_agree():
    probs, labels = map(jnp.asarray, forecasts())
    confidence, outcome = map(jnp.asarray, pairs())
    keep = jnp.arange(40) % 3 != 0
    kept = np.flatnonzero(keep)
    expected = (
        skce_by_loops(probs[kept], labels[kept]),
        mmce_by_loops(*(np.asarray(x, float)[kept] for x in (confidence, outcome))),
    )
    for filler in (0.3, jnp.nan):
        filled = jnp.where(keep[:, None], probs, filler), jnp.where(keep, labels, 99)
        level = jnp.where(keep, confidence, filler)
        for name in ({"where": keep}, {"weights": 0.5 * keep.astype(jnp.float32)}):
            np.testing.assert_allclose(skce(*filled, **name), expected[0], rtol=1e-4)
            np.testing.assert_allclose(mmce(level, outcome, **name), expected[1], rtol=1e-5)
    order = np.random.RandomState(0).permutation(40)
    np.testing.assert_allclose(skce(probs[order], labels[order]), skce(probs, labels), rtol=1e-4)
    np.testing.assert_allclose(
        mmce(confidence[order], outcome[order]), mmce(confidence, outcome), rtol=1e-5
    )


def test_what_is_no_prediction_makes_nan():
    probs, labels = map(jnp.asarray, forecasts())
    confidence, outcome = map(jnp.asarray, pairs())
    for bad in (probs.at[3].set(jnp.nan), probs.at[3, 0].add(0.5), probs.at[3].multiply(-1)):
        assert jnp.isnan(skce(bad, labels))
    for label in (-1, 3):
        assert jnp.isnan(skce(probs, labels.at[3].set(label)))
    for level in (-0.1, 1.1, jnp.nan):
        assert jnp.isnan(mmce(confidence.at[3].set(level), outcome))


def test_nothing_counts():
    probs, labels = map(jnp.asarray, forecasts())
    confidence, outcome = map(jnp.asarray, pairs())
    for where in (jnp.zeros(40, bool), jnp.arange(40) == 5):  # one example makes no pair
        assert jnp.isnan(skce(probs, labels, where=where))
    assert jnp.isnan(mmce(confidence, outcome, where=jnp.zeros(40, bool)))
    np.testing.assert_allclose(
        mmce(confidence, outcome, where=jnp.arange(40) == 5),
        abs(confidence[5] - outcome[5]),
        rtol=1e-6,
    )
    assert jnp.isnan(skce(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)))
    assert jnp.isnan(skce(jnp.ones((1, 3)) / 3, jnp.zeros(1, jnp.int32)))
    assert jnp.isnan(mmce(jnp.zeros(0), jnp.zeros(0)))


def test_mapped_agrees_with_jitted():
    confidence, outcome = map(jnp.asarray, pairs())
    two = jnp.stack([confidence, confidence**2]), jnp.stack([outcome, outcome])
    both = jax.jit(jax.vmap(kernel.maximum_mean_calibration_error))(*two)
    for i in range(2):
        np.testing.assert_allclose(both[i], mmce(two[0][i], outcome), rtol=1e-5)


@pytest.mark.exhaustive  # two hundred programs
def test_eager_agrees_with_jitted():
    probs, labels = map(jnp.asarray, forecasts())
    confidence, outcome = map(jnp.asarray, pairs())
    few = confidence[:3], outcome[:3].astype(jnp.float32)
    np.testing.assert_allclose(
        kernel.maximum_mean_calibration_error(*few), mmce_by_loops(*few), rtol=1e-5
    )
    np.testing.assert_allclose(
        kernel.squared_kernel_calibration_error(probs, labels), skce(probs, labels), rtol=1e-4
    )


def test_computed_in_float32():
    probs = jnp.array([[0.75, 0.25], [0.5, 0.5]] * 5, jnp.bfloat16)
    labels = jnp.arange(10) % 3 % 2
    found = skce(probs, labels)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, skce_by_loops(probs, labels), rtol=1e-4)
    found = mmce(probs[:, 0], labels == 0)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, mmce_by_loops(probs[:, 0], labels == 0), rtol=1e-5)


@functools.partial(jax.jit, static_argnames=("size", "simulations"))
def p_values(power, *, size=40, simulations=1000):
    """P-values of tests where the labels follow a power of the forecasts."""

    def simulation(key):
        forecast_key, label_key, test_key = jax.random.split(key, 3)
        probs = jax.nn.softmax(2 * jax.random.normal(forecast_key, (size, 3)))
        labels = jax.random.categorical(label_key, power * jnp.log(probs))
        return kernel.kernel_test(test_key, probs, labels, num_replicates=99).p_value

    return jax.lax.map(simulation, jax.random.split(jax.random.key(0), simulations))


def test_the_test_holds_its_level_and_has_power():
    found = p_values(1.0)
    # 1000 simulations: the standard error of the share is .007 at .05 and .016 at .5
    assert 0.03 < (found <= 0.05 + 1e-6).mean() < 0.07
    assert 0.45 < (found <= 0.5 + 1e-6).mean() < 0.55
    assert (p_values(0.1) <= 0.05 + 1e-6).mean() > 0.8


def test_statistic_and_p_value_of_labels_drawn_by_hand():
    probs, labels = map(jnp.asarray, forecasts())
    test = jax.jit(functools.partial(kernel.kernel_test, num_replicates=499))
    found = test(jax.random.key(0), probs, labels)
    np.testing.assert_allclose(found.statistic, skce(probs, labels), rtol=1e-4)
    np.testing.assert_allclose(found.p_value * 500, jnp.round(found.p_value * 500), atol=1e-3)
    rng = np.random.RandomState(0)
    drawn = [
        skce(probs, jnp.asarray([rng.choice(3, p=p / p.sum()) for p in np.float64(probs)]))
        for _ in range(500)
    ]
    share = np.mean(np.array(drawn) >= found.statistic)
    # two estimates of 500 draws each: three standard errors of their difference
    assert abs(found.p_value - share) < 3 * math.sqrt(0.5 / 500) + 0.002


def test_very_unequal_weights_do_not_cancel():
    probs, labels = forecasts()
    weights = np.full(40, 1e-9)
    weights[7] = 1
    for scale in (1.0, 1e-25):
        found = skce(
            jnp.asarray(probs),
            jnp.asarray(labels),
            weights=jnp.asarray(scale * weights, jnp.float32),
        )
        np.testing.assert_allclose(found, skce_by_loops(probs, labels, weights), rtol=1e-4)


def test_correct_certain_forecasts_are_no_evidence():
    labels = jnp.arange(10) % 3
    test = jax.jit(functools.partial(kernel.kernel_test, num_replicates=19))
    found = test(jax.random.key(0), jnp.eye(3)[labels], labels)
    assert found.statistic == 0
    assert found.p_value == 1
    found = test(jax.random.key(0), jnp.eye(3)[labels], (labels + 1) % 3)
    np.testing.assert_allclose(found.p_value, 0.05)
    found = test(jax.random.key(0), jnp.eye(3)[labels].at[0].set(jnp.nan), labels)
    assert jnp.isnan(found.statistic)
    assert jnp.isnan(found.p_value)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (
            "bandwidth must be positive",
            lambda: kernel.maximum_mean_calibration_error(jnp.ones(2), jnp.ones(2), bandwidth=0.0),
        ),
        (
            "bandwidth must be positive",
            lambda: kernel.squared_kernel_calibration_error(
                jnp.ones((2, 1)), jnp.zeros(2, jnp.int32), bandwidth=-1.0
            ),
        ),
        (
            "bandwidth must be positive",
            lambda: kernel.kernel_test(
                jax.random.key(0), jnp.ones((2, 1)), jnp.zeros(2, jnp.int32), bandwidth=0.0
            ),
        ),
        (
            "num_replicates must be at least 1",
            lambda: kernel.kernel_test(
                jax.random.key(0), jnp.ones((2, 1)), jnp.zeros(2, jnp.int32), num_replicates=0
            ),
        ),
    ],
)
def test_bad_settings(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_labels_must_be_integers(unchecked):
    with pytest.raises(TypeError, match="labels must be of integers"):
        kernel.squared_kernel_calibration_error(jnp.ones((2, 1)), jnp.zeros(2))
