"""Every metric against loops, scikit-learn and the laws they share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import sklearn.metrics

import calmoe_jax as cm
from calmoe_jax import calibration
from calmoe_jax.calibration import calibration_error, classwise_bins, top_label_bins
from calmoe_jax.calibration.metrics.scores import log_losses

SCORES = ("accuracy", "negative_log_likelihood", "brier_score", "confidence_gap")
ERRORS = ("expected", "classwise")


def eager(probs, labels, num_bins=15, **options):
    scores = {name: getattr(calibration, name)(probs, labels, **options) for name in SCORES}
    options["num_bins"] = num_bins
    return scores | {
        "expected": calibration.expected_calibration_error(probs, labels, **options),
        "classwise": calibration_error(classwise_bins(probs, labels, **options)),
    }


jitted = jax.jit(eager, static_argnames=("num_bins", "from_logits"))


def metrics_of(probs, labels, weights=None, where=None, **options):
    """With arrays for the defaults, so that one compilation serves most tests."""
    weights = jnp.ones(labels.shape, jnp.float32) if weights is None else weights
    where = jnp.ones(labels.shape, bool) if where is None else where
    return jitted(probs, labels, weights=weights, where=where, **options)


def oracle(probs, labels, num_bins):
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    confidence, correct = references.top_label(probs, labels)
    by_class = [
        references.calibration_error(column, labels == c, num_bins=num_bins)
        for c, column in enumerate(probs.T)
    ]
    return {
        "accuracy": correct.mean(),
        "negative_log_likelihood": references.negative_log_likelihood(probs, labels),
        "brier_score": references.brier_score(probs, labels),
        "confidence_gap": confidence.mean() - correct.mean(),
        "expected": references.calibration_error(confidence, correct, num_bins=num_bins),
        "classwise": by_class,
    }


def problem(seed=0, size=60, classes=4):
    """Rows of sixteenths with ties among the classes, one-hot rows, and rows of anything."""
    rng = np.random.RandomState(seed)
    probs = references.softmax(rng.randn(size, classes) * 2)
    probs[:20] = rng.multinomial(16, np.full(classes, 1 / classes), size=20) / 16
    labels = rng.randint(classes, size=size)
    labels[:20] = [rng.choice(np.flatnonzero(row)) for row in probs[:20]]
    probs[20:30] = np.eye(classes)[labels[20:30]]
    return jnp.asarray(probs, jnp.float32), jnp.asarray(labels)


def assert_same(found, expected, rtol=1e-5, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=rtol, atol=atol, err_msg=name)


def assert_nan(found):
    for name, value in found.items():
        assert jnp.isnan(value).all(), name


@pytest.mark.parametrize("classes", [1, pytest.param(2, marks=pytest.mark.exhaustive), 4])
def test_equals_a_loop(classes):
    probs, labels = problem(classes, classes=classes)
    # sixteenths lie on the edges of 16 bins
    assert_same(metrics_of(probs, labels, num_bins=16), oracle(probs, labels, 16))
    if classes == 4:
        assert_same(metrics_of(probs, labels), oracle(probs, labels, 15))


def test_top_label_takes_the_lower_of_tied_classes():
    probs, labels = problem()
    top_label = jax.jit(cm.calibration.top_label, static_argnames="from_logits")
    confidence, correct = top_label(probs, labels)
    expected = references.top_label(probs.tolist(), labels.tolist())
    np.testing.assert_allclose(confidence, expected[0])
    assert correct.tolist() == expected[1].tolist()
    tied = jnp.array([[0.4, 0.4, 0.2]])
    assert top_label(tied, jnp.array([0]))[1].tolist() == [True]
    assert top_label(tied, jnp.array([1]))[1].tolist() == [False]
    confidence, _ = top_label(jnp.log(tied) + 5.0, jnp.array([0]), from_logits=True)
    np.testing.assert_allclose(confidence, [0.4], rtol=1e-6)


@pytest.mark.parametrize("from_logits", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_bins_of_the_top_label(from_logits):
    probs, labels = problem()
    options = {"weights": jnp.arange(60.0), "where": jnp.arange(60) % 3 != 0, "num_bins": 7}
    found = jax.jit(
        lambda p, y: cm.calibration.top_label_bins(p, y, from_logits=from_logits, **options)
    )(probs, labels)
    pairs = jax.jit(lambda p, y: calibration.top_label(p, y, from_logits=from_logits))
    expected = jax.jit(lambda *pair: calibration.reliability_bins(*pair, **options))(
        *pairs(probs, labels)
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    error = metrics_of(probs, labels, from_logits=from_logits, **options)
    np.testing.assert_allclose(calibration_error(found), error["expected"], rtol=1e-5)


def test_weights_repeat_and_masks_leave_out():
    probs, labels = problem()
    times = np.random.RandomState(1).randint(4, size=60)
    where = np.arange(60) % 3 != 0
    weights = jnp.asarray(times, jnp.float32)
    for w, mask, count in (
        (weights, jnp.asarray(where), np.where(where, times, 0)),
        (weights, None, times),
        (None, jnp.asarray(where), where.astype(int)),
    ):
        rows = np.repeat(np.arange(60), count)
        found = metrics_of(probs, labels, weights=w, where=mask)
        assert_same(found, oracle(probs[rows], labels[rows], 15))


@pytest.mark.parametrize("from_logits", [False, True])
def test_nan_counts_only_where_it_has_weight(from_logits):
    scored = functools.partial(metrics_of, from_logits=from_logits)
    probs, labels = problem()
    poisoned, kept = probs.at[3].set(jnp.nan), jnp.arange(60) != 3
    clean = scored(probs, labels, where=kept)
    assert all(jnp.isfinite(value).all() for value in clean.values())
    assert_same(scored(poisoned, labels, where=kept), clean, rtol=0, atol=0)
    assert_same(scored(poisoned, labels, weights=kept.astype(jnp.float32)), clean)
    for label in range(4):
        assert_nan(scored(poisoned, labels.at[3].set(label)))


def test_logits_need_an_explicit_flag():
    probs, labels = problem()
    expected = metrics_of(probs, labels)  # no sixteenth lies on an inner edge of 15 bins
    for shift in (0.0, 3.0):
        found = metrics_of(jnp.log(probs) + shift, labels, from_logits=True)
        assert_same(found, expected, rtol=1e-4)


def test_nothing_counts():
    probs, labels = problem()
    assert_nan(metrics_of(jnp.zeros((0, 3)), jnp.zeros(0, jnp.int32)))
    assert_nan(metrics_of(probs, labels, where=jnp.zeros(60, bool)))
    assert_nan(metrics_of(probs, labels, weights=jnp.zeros(60)))


def test_order_of_examples_does_not_matter():
    probs, labels = problem()
    order = np.random.RandomState(0).permutation(60)
    assert_same(metrics_of(probs[order], labels[order]), metrics_of(probs, labels))


@pytest.mark.exhaustive  # two hundred programs
def test_eager_agrees_with_jitted():
    probs, labels = problem()
    assert_same(eager(probs, labels), metrics_of(probs, labels))


def test_mapped_equals_a_loop():
    probs, labels = problem()
    probs, labels = probs.reshape(3, 20, 4), labels.reshape(3, 20)
    mapped = jax.jit(jax.vmap(eager))(probs, labels)
    for i in range(3):
        assert_same({k: v[i] for k, v in mapped.items()}, metrics_of(probs[i], labels[i]))


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.exhaustive)]
)
def test_computed_in_float32(dtype):
    probs, labels = problem()
    rough = metrics_of(probs.astype(dtype), labels)
    assert all(value.dtype == jnp.float32 for value in rough.values())
    # in float32 the rounded rows would not sum to one
    assert_same(rough, oracle(probs.astype(dtype).astype(jnp.float32), labels, 15))


@pytest.mark.parametrize("label", [-1, 4, 1000])
def test_labels_out_of_range(label):
    probs, labels = problem()
    where = jnp.arange(60) != 7
    strange = labels.at[7].set(label)
    assert_nan(metrics_of(probs, strange))
    assert_nan(metrics_of(probs, strange, from_logits=True))
    assert_same(metrics_of(probs, strange, where=where), metrics_of(probs, labels, where=where))


@pytest.mark.parametrize("classes", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_proper_scores_equal_scikit_learn(classes):
    rng = np.random.RandomState(classes)
    probs = references.softmax(rng.randn(50, classes) * 3)
    labels, weights = rng.randint(classes, size=50), rng.rand(50)
    with jax.enable_x64(True):
        found = metrics_of(jnp.asarray(probs), jnp.asarray(labels), weights=jnp.asarray(weights))
        likelihood = sklearn.metrics.log_loss(
            labels, probs, labels=range(classes), sample_weight=weights
        )
        np.testing.assert_allclose(found["negative_log_likelihood"], likelihood, rtol=1e-12)
        columns = [
            sklearn.metrics.brier_score_loss(
                labels == c, probs[:, c], pos_label=True, sample_weight=weights
            )
            for c in range(classes)
        ]
        np.testing.assert_allclose(found["brier_score"], sum(columns), rtol=1e-12)
        if classes == 2:
            np.testing.assert_allclose(found["brier_score"], 2 * columns[0], rtol=1e-12)


def test_certainty():
    right, wrong = jnp.arange(3), jnp.array([1, 2, 0])
    for name, value in metrics_of(jnp.eye(3), right).items():
        assert (value == (1 if name == "accuracy" else 0)).all(), name
    found = metrics_of(jnp.eye(3), wrong)
    assert found["accuracy"] == 0
    assert found["negative_log_likelihood"] == jnp.inf
    assert found["brier_score"] == 2
    assert found["confidence_gap"] == 1
    assert found["expected"] == 1
    far = jnp.array([[0.0, -1e4]])
    of_logits = jax.jit(functools.partial(calibration.negative_log_likelihood, from_logits=True))
    assert of_logits(far, jnp.array([1])) == 1e4


@pytest.mark.parametrize("num_bins", [1, 15])
def test_calibrated_by_construction(num_bins):
    """Each row once per class, with the class's probability as weight."""
    probs = problem()[0][::4]
    rows, weights = jnp.repeat(probs, 4, axis=0), probs.ravel()
    labels = jnp.tile(jnp.arange(4), 15)
    found = metrics_of(rows, labels, weights=weights, num_bins=num_bins)
    for name in ("confidence_gap", *ERRORS):
        np.testing.assert_allclose(found[name], 0, atol=1e-6, err_msg=name)
    sharpened = metrics_of(2 * jnp.log(rows), labels, weights=weights, from_logits=True)
    assert sharpened["confidence_gap"] > 0.05
    for name in ERRORS:
        assert (sharpened[name] > 0.02).all(), name


def test_error_of_a_calibrated_sample_falls_with_its_size():
    rng = np.random.RandomState(0)
    probs = references.softmax(rng.randn(90_000, 3))
    labels = (rng.rand(90_000, 1) > probs.cumsum(1)[:, :2]).sum(1)
    errors = [
        metrics_of(
            jnp.asarray(probs, jnp.float32),
            jnp.asarray(labels),
            where=jnp.arange(90_000) < size,
        )["expected"]
        for size in (100, 3_000, 90_000)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_gap_bounds_the_error_from_below(seed):
    probs, labels = problem(seed)
    coarse, fine = (metrics_of(probs, labels, num_bins=b) for b in (1, 15))
    gap = abs(coarse["confidence_gap"])
    np.testing.assert_allclose(coarse["expected"], gap, rtol=1e-5)
    assert fine["expected"] >= gap - 1e-6


@pytest.mark.parametrize("name", ["expected_calibration_error", "top_label_bins", "classwise_bins"])
@pytest.mark.parametrize("num_bins", [0, -1])
def test_too_few_bins(name, num_bins):
    with pytest.raises(ValueError, match=f"num_bins must be at least 1, got num_bins={num_bins}"):
        getattr(calibration, name)(jnp.ones((1, 2)), jnp.array([0]), num_bins=num_bins)


def test_classwise_bins_are_those_of_the_columns():
    probs, labels = problem()
    weights, where = jnp.arange(60.0), jnp.arange(60) % 3 != 0
    found = jax.jit(classwise_bins)(probs, labels, weights=weights, where=where)
    bins_of = jax.jit(cm.calibration.reliability_bins)
    for c in range(4):
        column = bins_of(probs[:, c], labels == c, weights=weights, where=where)
        for ours, theirs in zip(found, column, strict=True):
            np.testing.assert_allclose(ours[c], theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "row",
    [[0.5, 0.5, 0.5, 0.0], [0.6, 0.6, -0.2, 0.0], [0.2, 0.2, 0.2, 0.2], [0, 0, 0, 0], [1, 1, 1, 1]],
)
def test_a_row_that_is_no_distribution_makes_nan(row):
    probs, labels = problem()
    strange, where = probs.at[7].set(jnp.array(row, jnp.float32)), jnp.arange(60) != 7
    assert_nan(metrics_of(strange, labels))
    assert_same(metrics_of(strange, labels, where=where), metrics_of(probs, labels, where=where))


@pytest.mark.parametrize("dtype", [jnp.float32, bool])
@pytest.mark.parametrize(
    "name",
    [*SCORES, "expected_calibration_error", "top_label_bins", "classwise_bins", "top_label"],
)
def test_labels_must_be_integers(name, dtype, unchecked):
    with pytest.raises(TypeError, match=r"labels must be of integers.*, got labels\.dtype="):
        getattr(calibration, name)(jnp.full((2, 3), 1 / 3), jnp.zeros(2, dtype))


def test_gradients_flow_through_the_largest_probability():
    probs, labels = jnp.array([[0.7, 0.3], [0.2, 0.8], [1.0, 0.0]]), jnp.array([1, 1, 0])
    error = functools.partial(cm.calibration.expected_calibration_error, num_bins=1)
    found = jax.jit(jax.grad(error))(probs, labels)
    # mean gap is (0.7 - 0.2 + 0) / 3 > 0
    np.testing.assert_allclose(found, [[1 / 3, 0], [0, 1 / 3], [1 / 3, 0]], rtol=1e-6)
    certain = jax.jit(jax.grad(cm.calibration.brier_score))(probs, jnp.array([1, 1, 1]))[2]
    np.testing.assert_allclose(certain, [2 / 3, -2 / 3], rtol=1e-6)


@pytest.mark.parametrize("from_logits", [False, True])
def test_gradients_leave_out_what_does_not_count(from_logits):
    """Also where the row that does not count has no gradient, or none that is a number."""
    probs, labels = problem()
    labels, kept = labels.at[3].set(1), jnp.arange(60) != 3
    given = jnp.log(probs + 0.01) if from_logits else probs

    def values(given):
        options = {"where": kept, "from_logits": from_logits}
        bins = top_label_bins(given, labels, **options)
        found = eager(given, labels, **options)
        found["classwise"] = jnp.mean(found["classwise"])
        return found | {
            "l2": calibration_error(bins, norm="l2"),
            "max": calibration_error(bins, norm="max"),
            "debiased": calibration.debiased_calibration_error(bins),
            "debiased squared": calibration.debiased_squared_calibration_error(bins),
        }

    slopes = jax.jit(jax.jacrev(values))  # of all in one program
    clean = slopes(given.at[3].set(given[40]))
    assert all(jnp.isfinite(slope).all() for slope in clean.values())
    lowest = -jnp.inf if from_logits else 0.0
    for row in ([jnp.nan] * 4, [lowest] * 4, [jnp.inf] * 4, [1.0, lowest, 0.0, 0.0]):
        assert_same(slopes(given.at[3].set(jnp.array(row, given.dtype))), clean, rtol=1e-7)


def test_no_log_loss_is_below_0_and_none_of_a_certain_mistake_is_finite():
    rounded = jnp.array([[1.0005, 0.0], [1 - 5e-4, 0.0]])
    losses_of = jax.jit(log_losses)
    losses = losses_of(rounded, jnp.array([0, 0]))
    np.testing.assert_allclose(losses, [0, 5e-4], rtol=1e-3)
    given = jnp.array([[0.0, 1.0], [0.5, 0.5]])
    found = losses_of(given, jnp.array([0, 2]))
    assert found[0] == jnp.inf
    assert jnp.isnan(found[1])
