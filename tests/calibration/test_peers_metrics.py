"""Metrics against independent libraries: 100 random problems with ties, edges, zeros and ones.

netcal and torchmetrics sort into [lo, hi) bins as we do, uncertainty-calibration into (lo, hi].
Peers do not take weights: they get examples repeated, we get the counts. Where a peer is wrong, the
test says why, and shows it by undoing the error.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from peers import SEEDS, SHAPES, peer, problem, spread, stacked

from calmoe_jax.calibration import (
    brier_score,
    calibration_error,
    classwise_bins,
    debiased_calibration_error,
    debiased_squared_calibration_error,
    equal_mass_bins,
    expected_calibration_error,
    maximum_mean_calibration_error,
    negative_log_likelihood,
    reliability_bins,
    smooth_calibration_error,
    top_label,
    top_label_bins,
)

pytestmark = pytest.mark.peers

DTYPES = (np.float32, np.float64)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@functools.cache
def computed(values, shape, dtype):
    """A dictionary of our values, with an axis of the problems of a shape in front."""
    with jax.enable_x64(dtype == np.float64):
        mapped = jax.jit(jax.vmap(functools.partial(values, num_bins=shape.num_bins)))
        found = mapped(*map(jnp.asarray, stacked(shape, dtype)))
        return jax.tree.map(lambda x: np.asarray(x, np.float64), found)


def errors(probs, labels, weights, num_bins):
    options = {"weights": weights, "num_bins": num_bins}
    bins = top_label_bins(probs, labels, **options)
    confidence, correct = top_label(probs, labels)
    by_class = calibration_error(classwise_bins(probs, labels, **options))
    mirrored = reliability_bins(1 - confidence, ~correct, **options)
    return {
        "l1": expected_calibration_error(probs, labels, **options),
        "l2": calibration_error(bins, norm="l2"),
        "max": calibration_error(bins, norm="max"),
        "classes": by_class,
        "classwise": jnp.mean(by_class),
        "mirrored": calibration_error(mirrored),
        "bins below 1": top_label_bins(probs, labels, where=confidence < 1, **options),
        "bins at 1": top_label_bins(probs, labels, where=confidence == 1, **options),
    }


def scores(probs, labels, weights, num_bins):
    return {
        "brier": brier_score(probs, labels, weights=weights),
        "log loss": negative_log_likelihood(probs, labels, weights=weights),
    }


def pairs(given):
    """Confidence, and whether it was right, of the repeated examples."""
    return references.top_label(*given.repeated())


def each_problem(shape, dtype):
    for seed in SEEDS:
        given = problem(seed, shape, dtype)
        yield seed, given, *pairs(given)


def assert_equal(ours, theirs, seed, atol=1e-6):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol, err_msg=f"seed {seed}")


def test_the_problems_hold_ties_edges_zeros_and_ones():
    assert len(SHAPES) * len(SEEDS) == 100
    held = {"tied classes": 0, "tied examples": 0, "inner edges": 0, "ones": 0, "zeros": 0}
    for shape in SHAPES:
        for _, given, confidence, _ in each_problem(shape, np.float64):
            top = np.sort(given.probs, axis=1)
            held["tied classes"] += (top[:, -1] == top[:, -2]).any()
            held["tied examples"] += len(np.unique(confidence)) < len(confidence)
            edges = np.arange(1, shape.num_bins) / shape.num_bins
            held["inner edges"] += np.isin(confidence, edges).any()
            held["ones"] += (given.probs == 1).any()
            held["zeros"] += (given.probs == 0).any()
    assert min(held.values()) >= 15, held


@each_shape
@each_dtype
def test_equal_width_errors_equal_netcal(shape, dtype):
    netcal = peer("netcal.metrics")
    found = computed(errors, shape, dtype)
    error, largest = netcal.ECE(bins=shape.num_bins), netcal.MCE(bins=shape.num_bins)
    for seed, given, confidence, correct in each_problem(shape, dtype):
        correct = correct.astype(int)
        assert_equal(found["l1"][seed], error.measure(confidence, correct), seed)
        assert_equal(found["max"][seed], largest.measure(confidence, correct), seed)
        probs, labels = given.repeated()
        if len(np.unique(labels)) > 2:  # with two it takes the problem for a binary one
            assert_equal(found["l1"][seed], error.measure(probs, labels), seed)


@each_shape
@each_dtype
def test_classwise_errors_equal_netcal(shape, dtype):
    error = peer("netcal.metrics").ECE(bins=shape.num_bins)
    found = computed(errors, shape, dtype)
    for seed in SEEDS:
        probs, labels = problem(seed, shape, dtype).repeated()
        theirs = [error.measure(p, (labels == c).astype(int)) for c, p in enumerate(probs.T)]
        assert_equal(found["classes"][seed], theirs, seed)
        assert_equal(found["classwise"][seed], np.mean(theirs), seed)


def test_netcal_puts_three_tenths_below_three_tenths():
    """Its edges are those of `linspace`, of which the third of ten is an ulp above 3/10."""
    netcal = peer("netcal.metrics", distribution="netcal", version="1.4.0")
    levels, outcome = np.array([0.25, 0.3]), np.array([0, 1])
    theirs = netcal.ECE(bins=10).measure(levels, outcome)
    np.testing.assert_allclose(theirs, abs(levels - outcome).sum() / 2 - 0.25)  # one bin
    with jax.enable_x64(True):
        bins = reliability_bins(jnp.asarray(levels), jnp.asarray(outcome == 1), num_bins=10)
        error = calibration_error(bins)
    np.testing.assert_allclose(error, (0.25 + 0.7) / 2)  # two


@each_shape
@each_dtype
def test_errors_equal_uncertainty_calibration(shape, dtype):
    """Its bins are (lo, hi]: ours of one minus the confidence. Off the edges both are the same."""
    theirs = peer("calibration")
    found = computed(errors, shape, dtype)
    same = 0
    for seed, given, confidence, _ in each_problem(shape, dtype):
        probs, labels = given.repeated()
        error = theirs.get_ece(probs, labels, num_bins=shape.num_bins)
        edges = np.arange(1, shape.num_bins) / shape.num_bins
        if not np.isin(confidence, edges).any():
            same += 1
            assert_equal(found["l1"][seed], error, seed)
            square = theirs.lower_bound_scaling_ce(
                probs, labels, p=2, debias=False, num_bins=shape.num_bins,
                binning_scheme=theirs.get_equal_prob_bins, mode="top-label",
            )  # fmt: skip
            assert_equal(found["l2"][seed], square, seed)
        assert_equal(found["mirrored"][seed], error, seed)
        if not np.isin(probs, edges).any():
            classwise = theirs.get_ece(probs, labels, num_bins=shape.num_bins, mode="marginal")
            assert_equal(found["classwise"][seed], classwise, seed)
    assert same >= 10


def with_ones_apart(below, at):
    """The sums with a bin more, for the confidence of exactly 1."""
    parts = [np.append(x, y[:, -1:], axis=1) for x, y in zip(below, at, strict=True)]
    return type(below)(*(jnp.asarray(x, jnp.float32) for x in parts))


@each_shape
def test_errors_equal_torchmetrics_but_for_a_confidence_of_one(shape):
    """torchmetrics 1.9.0 gives a confidence of exactly 1 a bin of its own.

    `bucketize` puts what equals the last edge past it (issue 3510 of torchmetrics). Where there is
    no such confidence the values agree; where there is, they do once our sums are taken apart.
    Problems are in float32, to which it rounds everything.
    """
    torch = peer("torch")
    functional = peer(
        "torchmetrics.functional.classification", distribution="torchmetrics", version="1.9.0"
    )
    found = computed(errors, shape, np.float32)
    apart = with_ones_apart(found["bins below 1"], found["bins at 1"])
    right = wrong = 0
    for norm in ("l1", "l2", "max"):
        undone = calibration_error(apart, norm=norm)
        for seed, given, confidence, _ in each_problem(shape, np.float32):
            probs, labels = map(torch.as_tensor, given.repeated())
            theirs = functional.multiclass_calibration_error(
                probs, labels, num_classes=shape.classes, n_bins=shape.num_bins, norm=norm
            ).item()
            if (confidence == 1).any():
                assert_equal(undone[seed], theirs, seed)
                wrong += abs(theirs - found[norm][seed]) > 1e-3
            else:
                right += 1
                assert_equal(found[norm][seed], theirs, seed)
    assert right >= 30
    assert wrong >= 5


@pytest.mark.parametrize("name", ["netcal", "uncertainty-calibration", "torchmetrics", "relplot"])
def test_who_is_right_about_a_confidence_of_one(name):
    """One bin holds 0.95 (right) and 1.0 (wrong): the error is |0.975 - 0.5|."""
    confidence, outcome = np.array([0.95, 1.0]), np.array([1, 0])
    error = calibration_error(
        reliability_bins(jnp.asarray(confidence), jnp.asarray(outcome, jnp.float32), num_bins=10)
    )
    np.testing.assert_allclose(error, 0.475, rtol=1e-6)
    if name == "netcal":
        theirs = peer("netcal.metrics").ECE(bins=10).measure(confidence, outcome)
    elif name == "uncertainty-calibration":
        theirs = peer("calibration").get_ece(confidence, outcome, num_bins=10)
    elif name == "relplot":
        relplot = peer("relplot", version="1.0.3")
        theirs = relplot.metrics.binnedECE(confidence, outcome.astype(float), nbins=10)
    else:
        torch = peer("torch")
        functional = peer(
            "torchmetrics.functional.classification", distribution="torchmetrics", version="1.9.0"
        )
        theirs = functional.binary_calibration_error(
            torch.as_tensor(confidence), torch.as_tensor(outcome), n_bins=10
        ).item()
    # 0.525 = (|0.95 - 1| + |1 - 0|) / 2: two bins where there should be one
    expected = 0.475 if name in ("netcal", "uncertainty-calibration") else 0.525
    np.testing.assert_allclose(theirs, expected, rtol=1e-6)


@each_shape
@each_dtype
def test_proper_scores_equal_scikit_learn(shape, dtype):
    metrics = peer("sklearn.metrics")
    found = computed(scores, shape, dtype)
    compared = 0
    for seed in SEEDS:
        given = problem(seed, shape, dtype)
        # rows that sum to 1 to rounding of float32 are warned about
        probs = given.probs / given.probs.sum(1, keepdims=True)
        options = {"labels": range(shape.classes), "sample_weight": given.counts}
        brier = metrics.brier_score_loss(given.labels, probs, scale_by_half=False, **options)
        assert_equal(found["brier"][seed], brier, seed)
        true = probs[np.arange(len(probs)), given.labels]
        if true[given.counts > 0].min() > 1e-12:
            compared += 1
            likelihood = metrics.log_loss(given.labels, probs, **options)
            np.testing.assert_allclose(found["log loss"][seed], likelihood, rtol=1e-5, atol=1e-6)
        elif true[given.counts > 0].min() == 0:
            assert found["log loss"][seed] == math.inf
    assert compared >= 5


def test_scikit_learn_clips_the_log_loss_of_what_was_called_impossible():
    """At the resolution of the dtype, so that infinity becomes 36 nats."""
    metrics = peer("sklearn.metrics")
    probs, labels = np.array([[1.0, 0.0]]), np.array([1])
    assert negative_log_likelihood(jnp.asarray(probs), jnp.asarray(labels)) == math.inf
    clipped = metrics.log_loss(labels, probs, labels=[0, 1])
    np.testing.assert_allclose(clipped, -math.log(np.finfo(np.float64).eps))


def smooth(confidence, outcome, bandwidth):
    """At the bandwidth of its own choice, and at another."""
    own = smooth_calibration_error(confidence, outcome)
    given = smooth_calibration_error(confidence, outcome, bandwidth=bandwidth)
    return own.value, given.value


def mirrored_convolution(kernel, values, eval_points):
    """relplot's, with a mirror image also of what lies on the mirror, and the kernel's tails."""
    values = values.copy()
    values[[0, -1]] *= 2
    distance = np.linspace(-1, 1, 2 * eval_points - 1)
    tails = np.exp(-0.5 * (distance / kernel.sigma) ** 2) / (np.sqrt(2 * np.pi) * kernel.sigma)
    mirrored = np.concatenate([values[:0:-1], values, values[-2::-1]])
    return np.convolve(mirrored, tails, "valid")


def test_smooth_errors_equal_relplot(monkeypatch):
    """To 3e-5 once what relplot 1.0.3 rounds is finer, and its walls are walls.

    * It averages over 200 points, of which the two ends should count half: 5e-4; here it has 8000.
    * It stops its search at the multiple of 2^-10 above the fixed point: 3e-4; here at 2^-20.
    * What lies on 0 or 1 has no mirror image, and counts half; and its kernel ends at 1/2, where
      a bandwidth of .2 is not done: up to .02, so that there the values agree once both are mended,
      and not before.
    """
    relplot = peer("relplot", version="1.0.3")
    monkeypatch.setattr(relplot.config, "smECE_mesh_pts", 8000)
    search = relplot.metrics.search_param
    monkeypatch.setattr(
        relplot.metrics, "search_param", lambda below, start, refine: search(below, start, 20)
    )
    kernel = relplot.kernels.ReflectedGaussianKernel
    jitted = jax.jit(jax.vmap(smooth))
    inside = halved = 0
    for shape in SHAPES:
        many = [problem(seed, shape, np.float32) for seed in SEEDS]
        pairs = [references.top_label(x.probs, x.labels) for x in many]
        pairs = [(np.asarray(p), np.asarray(y, float)) for p, y in pairs]
        theirs = np.array([relplot.smECE(p, y) for p, y in pairs])
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "convolve", mirrored_convolution)
            mended, width = np.array([relplot.smECE(p, y, return_width=True) for p, y in pairs]).T
        confidence, outcome = (np.stack(x).astype(np.float32) for x in zip(*pairs, strict=True))
        own, fixed = jitted(*map(jnp.asarray, (confidence, outcome, width.astype(np.float32))))
        np.testing.assert_allclose(fixed, mended, rtol=0, atol=3e-5)
        np.testing.assert_allclose(own, mended, rtol=0, atol=3e-5)
        walled = (np.minimum(confidence, 1 - confidence) < 1e-3).any(1)
        np.testing.assert_allclose(own[~walled], theirs[~walled], rtol=0, atol=3e-5)
        inside += (~walled).sum()
        halved += (abs(theirs - own) > 1e-3).sum()
    assert inside >= 30
    assert halved >= 20


def mean_embedding(probs, labels, weights, num_bins):
    confidence, correct = top_label(probs, labels)
    return {"mmce": maximum_mean_calibration_error(confidence, correct, weights=weights)}


@each_shape
def test_kernel_errors_equal_netcal(shape):
    error = peer("netcal.metrics").MMCE()
    found = computed(mean_embedding, shape, np.float64)
    for seed in SEEDS:
        theirs = error.measure(*problem(seed, shape).repeated())
        assert_equal(found["mmce"][seed], theirs, seed, atol=1e-7)


@pytest.mark.parametrize("num_bins", [10, 15])
def test_debiased_errors_equal_uncertainty_calibration(num_bins):
    """It debiases by the variance of outcomes, we by that of residuals: here they are the same.

    Confidences lie in the middle of their bins. Its squared error is exact, and never below 0; for
    the other it redraws outcomes 1000 times, with n in place of n - 1, where we have a closed form.
    """
    theirs = peer("calibration")
    size = 3000

    def debiased(confidence, outcome):
        bins = reliability_bins(confidence, outcome, num_bins=num_bins)
        return (
            debiased_calibration_error(bins),
            debiased_squared_calibration_error(bins),
            calibration_error(bins),
        )

    rng = np.random.RandomState(0)
    levels = (rng.randint(num_bins, size=(20, size)) + 0.5) / num_bins
    outcomes = rng.rand(20, size) < np.linspace(1, 0.7, 20)[:, None] * levels
    jitted = jax.jit(jax.vmap(debiased))
    expected, squared, plain = jitted(jnp.asarray(levels, jnp.float32), jnp.asarray(outcomes))
    np.random.seed(0)  # noqa: NPY002 (it draws from the global state)
    for i, (level, outcome) in enumerate(zip(levels, outcomes.astype(int), strict=True)):
        root = theirs.lower_bound_scaling_ce(
            level, outcome, p=2, debias=True, num_bins=num_bins,
            binning_scheme=theirs.get_equal_prob_bins,
        )  # fmt: skip
        np.testing.assert_allclose(max(squared[i], 0), root**2, atol=1e-6)
        redrawn = theirs.get_ece(level, outcome, debias=True, num_bins=num_bins)
        np.testing.assert_allclose(expected[i], redrawn, atol=1e-3)
    assert (plain - expected).max() > 0.005  # what they agree on is more than their noise


@each_shape
def test_equal_mass_errors_equal_netcal_and_uncertainty_calibration(shape):
    """Where no examples tie and bins divide them; elsewhere each has a rule of its own."""
    calibration, netcal = peer("calibration"), peer("netcal.metrics")
    assert shape.examples % shape.num_bins == 0
    with jax.enable_x64(True):
        probs, labels, _ = map(jnp.asarray, stacked(shape, kinds=(spread,)))

        def error(probs, labels):
            event = top_label(probs, labels)
            return calibration_error(equal_mass_bins(*event, num_bins=shape.num_bins))

        found = np.asarray(jax.jit(jax.vmap(error))(probs, labels))
    equal_mass = netcal.ECE(bins=shape.num_bins, equal_intervals=False)
    for seed in SEEDS:
        given = problem(seed, shape, kinds=(spread,))
        theirs = calibration.get_ece_em(given.probs, given.labels, num_bins=shape.num_bins)
        assert_equal(found[seed], theirs, seed)
        confidence, correct = references.top_label(given.probs, given.labels)
        assert_equal(found[seed], equal_mass.measure(confidence, correct.astype(int)), seed)


def test_netcal_has_no_equal_mass_for_ties():
    """Most of its quantiles fall on the same value, and bins of no width are refused."""
    netcal = peer("netcal.metrics", distribution="netcal", version="1.4.0")
    confidence = np.where(np.arange(100) < 90, 0.8, 0.95)
    outcome = np.arange(100) % 2
    with pytest.raises(ValueError, match="numerically 0"):
        netcal.ECE(bins=15, equal_intervals=False).measure(confidence, outcome)
    bins = equal_mass_bins(jnp.asarray(confidence), jnp.asarray(outcome == 1), num_bins=15)
    np.testing.assert_allclose(calibration_error(bins), 0.9 * 0.3 + 0.1 * 0.45, rtol=1e-5)
