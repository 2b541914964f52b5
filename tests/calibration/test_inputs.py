"""Invalid predictions become NaN, and on the host an error that names the row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references

import calmoe_jax as cm
from calmoe_jax.calibration._inputs import (
    check_predictions,
    distributions,
    event,
    largest_class,
    probabilities,
)

probabilities_of = jax.jit(probabilities, static_argnames="from_logits")
distributions_of = jax.jit(distributions)

BAD_ROWS = {
    "nan": [0.5, np.nan, 0.5],
    "negative": [1.0, 0.5, -0.5],
    "barely negative": [0.5, 0.5, -1e-6],
    "above one": [1.5, 0.0, 0.0],
    "below the sum": [0.3, 0.3, 0.3],
    "above the sum": [0.4, 0.4, 0.4],
    "infinite": [np.inf, 0.0, 0.0],
    "both infinite": [np.inf, -np.inf, 0.0],
    "empty": [0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_bad_row_is_nan_and_no_other_is(row):
    good = [[0.25, 0.5, 0.25], [0.0, 1.0, 0.0]]
    found = probabilities_of(jnp.array([good[0], row, good[1]], jnp.float32))
    assert jnp.isnan(found[1]).all()
    np.testing.assert_array_equal(found[0], good[0])
    np.testing.assert_array_equal(found[2], good[1])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize(
    "classes", [1, 1000, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (2, 10))]
)
def test_rounded_distributions_are_distributions(dtype, classes):
    with jax.enable_x64(dtype == jnp.float64):
        logits = np.random.RandomState(classes).randn(200, classes) * 5
        logits[:10] = 0
        exact = jnp.asarray(references.softmax(logits), dtype)
        inside = jax.nn.softmax(jnp.asarray(logits, dtype), axis=-1)
        for probs in (exact, inside):
            found = probabilities_of(probs)
            assert found.dtype == (dtype if dtype == jnp.float64 else jnp.float32)
            np.testing.assert_array_equal(found, probs.astype(found.dtype))
        scaled = (0.9 * references.softmax(logits)).astype(np.float32)
        assert not distributions_of(jnp.asarray(scaled).astype(dtype)).any()


def test_rounding_above_one_becomes_one():
    assert probabilities(jnp.array([[1.0000001, 0.0]])).tolist() == [[1.0, 0.0]]
    confidence, _ = event(jnp.array([1.0000001]), jnp.ones(1))
    assert confidence.tolist() == [1.0]
    assert jax.grad(lambda x: event(x, jnp.ones(1))[0].sum())(jnp.ones(1)).tolist() == [1.0]


def test_logits_of_a_row():
    logits = jnp.array(
        [[0.0, -jnp.inf], [-jnp.inf] * 2, [jnp.inf, 0.0], [jnp.nan, 0.0], [5.0, 5.0]]
    )
    found = probabilities_of(logits, from_logits=True)
    np.testing.assert_array_equal(found, [[1, 0], *[[np.nan] * 2] * 3, [0.5, 0.5]])


def test_leading_axes_and_vmap_agree():
    probs = jnp.array([[[0.5, 0.5], [0.5, 0.6]], [[1.0, 0.0], [jnp.nan, 1.0]]])
    assert distributions_of(probs).tolist() == [[True, False], [True, False]]
    np.testing.assert_array_equal(jax.jit(jax.vmap(probabilities))(probs), probabilities_of(probs))
    assert distributions_of(jnp.zeros((0, 3))).shape == (0,)
    assert not distributions_of(jnp.zeros((2, 0))).any()


@pytest.mark.parametrize("value", [-1e-6, -0.5, 1.001, jnp.nan, jnp.inf, -jnp.inf])
def test_an_event_outside_the_unit_interval_is_nan(value):
    good = jnp.array([0.0, 0.5, 1.0])
    for pair in ((good.at[1].set(value), good), (good, good.at[1].set(value))):
        for found in event(*pair):
            np.testing.assert_array_equal(found, [0, np.nan, 1])


def test_outcomes_take_the_dtype_of_the_confidence():
    confidence, outcome = event(jnp.array([0.5], jnp.bfloat16), jnp.array([True]))
    assert confidence.dtype == outcome.dtype == jnp.float32
    assert outcome.tolist() == [1.0]


PROBS = [[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]


def test_good_predictions_pass():
    kinds = [np.asarray(PROBS, kind) for kind in (np.float16, np.float32, np.float64)]
    for probs in (*kinds, jnp.asarray(PROBS), jnp.asarray(PROBS, jnp.bfloat16)):
        check_predictions(probs, np.array([0, 1, 1]), weights=np.array([0.0, 1.0, 2.0]))
    check_predictions(np.zeros((0, 3)), np.zeros(0, int), weights=np.zeros(0))
    check_predictions(np.array([[5.0, -np.inf], [1.0, 2.0]]), np.array([1, 0]), from_logits=True)
    check_predictions(PROBS, [0, 1, 1])


@pytest.mark.parametrize(
    ("kind", "message", "probs", "options"),
    [
        (TypeError, r"probs must be floating-point.*int64", np.ones((3, 1), int), {}),
        (ValueError, r"probs must have shape .* got probs.shape=\(3,\)", np.ones(3), {}),
        (ValueError, r"probs must have shape .* got probs.shape=\(3, 0\)", np.ones((3, 0)), {}),
        (ValueError, r"probs must hold no NaN, got probs\[1\]=", [[1.0], [np.nan], [np.nan]], {}),
        (ValueError, r"probs must be at least 0, got probs\[1\]=", [[1.0, 0], [1.5, -0.5]], {}),
        (ValueError, r"probs must sum to 1 .*probs\[0\] with sum 0.9\.", [[0.5, 0.4]], {}),
        (ValueError, r"probs\[0\] with sum inf", [[np.inf, 0.0]], {}),
        (ValueError, "no NaN where they are logits", [[np.nan, 1]], {"from_logits": True}),
        (ValueError, "no inf where they are logits", [[np.inf, 1]], {"from_logits": True}),
        (ValueError, "a finite logit in every row", [[-np.inf] * 2], {"from_logits": True}),
        (TypeError, "labels must be of integers", PROBS, {"labels": np.zeros(3)}),
        (ValueError, r"labels must have shape \(3,\)", PROBS, {"labels": np.zeros(2, int)}),
        (ValueError, r"in \[0, 2\), got labels\[2\]=2", PROBS, {"labels": np.array([0, 1, 2])}),
        (ValueError, r"in \[0, 2\), got labels\[0\]=-1", PROBS, {"labels": np.array([-1, 1, 2])}),
        (TypeError, "weights must be floating-point", PROBS, {"weights": np.ones(3, int)}),
        (ValueError, r"weights must have shape \(3,\)", PROBS, {"weights": np.ones((3, 1))}),
        (ValueError, r"got weights\[1\]=-1", PROBS, {"weights": np.array([0.0, -1.0, 1.0])}),
        (ValueError, r"got weights\[0\]=nan", PROBS, {"weights": np.array([np.nan, 1.0, 1.0])}),
        (ValueError, r"got weights\[2\]=inf", PROBS, {"weights": np.array([1.0, 1.0, np.inf])}),
    ],
)
def test_bad_predictions_are_named(kind, message, probs, options):
    with pytest.raises(kind, match=message):
        check_predictions(probs, **options)


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_host_and_device_agree_on_what_is_bad(row):
    with pytest.raises(ValueError, match=r"probs\[1\]"):
        check_predictions(np.array([[1.0, 0.0, 0.0], row], np.float32))


def test_largest_class_is_max_argmax_and_validity():
    rows = np.random.RandomState(0).multinomial(8, np.full(5, 0.2), size=50) / 8
    probs = jnp.asarray(np.concatenate([rows, np.pad(list(BAD_ROWS.values()), ((0, 0), (0, 2)))]))
    largest, index, valid = jax.jit(largest_class)(probs.astype(jnp.float32))
    assert valid.tolist() == [True] * 50 + [False] * len(BAD_ROWS)
    assert valid.tolist() == distributions(probs).tolist()
    np.testing.assert_array_equal(largest[:50], rows.max(1))
    np.testing.assert_array_equal(index[:50], rows.argmax(1))  # the first of ties
    assert [x.shape for x in largest_class(jnp.zeros((0, 3)))] == [(0,)] * 3


@pytest.mark.parametrize(
    "classes",
    [
        64,
        103,
        1000,
        *(pytest.param(x, marks=pytest.mark.exhaustive) for x in (1, 33, 100, 5003)),
    ],
)
def test_the_first_of_ties_in_rows_of_any_length(classes):
    """Long rows are reduced in lanes: values that occur often, in every place."""
    rows = np.random.RandomState(0).randint(4, size=(300, classes)).astype(np.float32)
    rows[:100] = np.eye(classes)[np.arange(100) % classes]
    rows[100:200] = 0
    rows[100:200, :: max(1, classes // 3)] = 1
    largest, index, _ = jax.jit(largest_class)(jnp.asarray(rows))
    np.testing.assert_array_equal(largest, rows.max(1))
    np.testing.assert_array_equal(index, rows.argmax(1))
    probs = rows / np.maximum(rows.sum(1, keepdims=True), 1)
    bad = probs.copy()
    bad[np.arange(300), np.arange(300) % classes] = np.resize([np.nan, -1e-6, -np.inf], 300)
    valid = jax.jit(lambda x: largest_class(x)[2])
    np.testing.assert_array_equal(valid(jnp.asarray(probs)), probs.sum(1) > 0.5)
    assert not valid(jnp.asarray(bad)).any()


def test_the_gradient_of_the_largest_is_that_of_its_class():
    probs = jnp.array([[0.4, 0.4, 0.2], [0.0, 0.1, 0.9]])
    weights = jnp.array([2.0, 3.0])
    for batch in (jax.grad, lambda f: jax.jit(jax.jacfwd(f))):
        found = batch(lambda p: jnp.sum(weights * largest_class(p)[0]))(probs)
        assert found.tolist() == [[2, 0, 0], [0, 0, 3]]
    mapped = jax.vmap(largest_class)(jnp.stack([probs, probs[::-1]]))
    assert mapped[1].tolist() == [[0, 2], [2, 0]]


SCORED = (
    "accuracy", "negative_log_likelihood", "brier_score", "confidence_gap",
    "expected_calibration_error", "squared_kernel_calibration_error", "top_label_bins",
    "classwise_bins",
)  # fmt: skip
PAIRED = (
    "smooth_calibration_error", "soft_binned_error", "maximum_mean_calibration_error",
    "brier_decomposition", "equal_mass_bins",
)  # fmt: skip


def example(size=20):
    rng = np.random.RandomState(0)
    logits = jnp.asarray(rng.randn(size, 3), jnp.float32)
    return logits, jnp.asarray(rng.randint(3, size=size), jnp.int32)


@jax.jit
def every_metric(logits, labels, weights, where):
    """All in one program: what takes long is to compile."""
    options = {"weights": weights, "where": where}
    probs = jax.nn.softmax(logits)
    found = {name: getattr(cm.calibration, name)(probs, labels, **options) for name in SCORED}
    pairs = cm.calibration.top_label(probs, labels)
    found |= {name: getattr(cm.calibration, name)(*pairs, **options) for name in PAIRED}
    errors = (
        *(functools.partial(cm.calibration.calibration_error, norm=n) for n in ("l1", "l2", "max")),
        cm.calibration.debiased_calibration_error,
        cm.calibration.debiased_squared_calibration_error,
    )
    for name in ("top_label_bins", "classwise_bins", "equal_mass_bins"):
        found |= {f"{name} {i}": error(found[name]) for i, error in enumerate(errors)}
    return found


def test_negative_weights_that_count_are_never_a_silent_number():
    logits, labels = example()
    weights = jnp.ones(20).at[4].set(-0.5)
    found = every_metric(logits, labels, weights, jnp.ones(20, bool))
    masked = every_metric(logits, labels, weights, jnp.arange(20) != 4)
    for name, value in found.items():
        assert jnp.isnan(jax.tree.leaves(value)[0]).all(), name
        assert jnp.isfinite(jax.tree.leaves(masked[name])[0]).all(), name
