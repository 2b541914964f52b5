"""Calibrators against independent libraries: the same optimum, or the reason for a difference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from peers import peer

from calmoe_jax.calibration.calibrators.beta import apply_beta, fit_beta
from calmoe_jax.calibration.calibrators.dirichlet import apply_dirichlet, fit_dirichlet
from calmoe_jax.calibration.calibrators.histogram import (
    apply_histogram_binning,
    fit_histogram_binning,
)
from calmoe_jax.calibration.calibrators.isotonic import apply_isotonic, fit_isotonic
from calmoe_jax.calibration.calibrators.platt import apply_platt, fit_platt
from calmoe_jax.calibration.calibrators.temperature import fit_temperature
from calmoe_jax.calibration.metrics.scores import (
    negative_log_likelihood,
)

pytestmark = pytest.mark.peers

# one shape in float32, the other in float64
CASES = [(200, 3, np.float32), (240, 5, np.float64)]
SEEDS = range(50)
SCALES = (1.0, 8.0, 0.01)


def problem(seed, size, classes, scale=1.0):
    """Logits that depend on the labels, rounded so that some tie; and counts.

    Float32 holds every number, and half of the problems count examples more than once.
    """
    rng = np.random.RandomState(seed)
    logits = np.round(rng.randn(size, classes) * rng.uniform(0.5, 4), seed % 3)
    labels = np.argmax(logits + rng.gumbel(size=logits.shape) * rng.uniform(0.7, 3), axis=-1)
    labels[:classes] = np.arange(classes)
    counts = rng.randint(1, 4, size=size) if seed % 4 > 1 else np.ones(size, int)
    return (logits * scale).astype(np.float32).astype(np.float64), labels, counts


def stacked(size, classes, dtype, scale=1.0):
    many = [problem(seed, size, classes, scale) for seed in SEEDS]
    logits, labels, counts = (np.stack(x) for x in zip(*many, strict=True))
    return [jnp.asarray(x) for x in (logits.astype(dtype), labels, counts.astype(dtype))]


def fits(function, *arrays):
    """Of all problems at once."""
    mapped = jax.jit(jax.vmap(lambda x, y, w: function(x, y, weights=w)))
    return jax.tree.map(np.asarray, mapped(*arrays))


@pytest.mark.parametrize(("size", "classes", "dtype"), CASES)
def test_temperature_equals_scikit_learn(size, classes, dtype):
    """Its class is private, and takes weights; the public interface has the same optimum."""
    calibration = peer("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):  # since 1.8
        pytest.skip("needs scikit-learn's temperature scaling")
    for scale in SCALES:
        with jax.enable_x64(dtype == np.float64):
            found = fits(fit_temperature, *stacked(size, classes, dtype, scale))
        assert found.converged.all()
        for seed in SEEDS:
            logits, labels, counts = problem(seed, size, classes, scale)
            theirs = calibration._TemperatureScaling().fit(logits, labels, counts)
            np.testing.assert_allclose(
                found.temperature[seed], 1 / theirs.beta_, rtol=1e-5, err_msg=f"seed {seed}"
            )


@pytest.mark.parametrize("scale", SCALES)
def test_temperature_equals_probmetrics(scale):
    """Bisection of the slope, in 30 halvings."""
    torch = peer("torch")
    calibrators = peer("probmetrics.calibrators")
    distributions = peer("probmetrics.distributions")
    size, classes, _ = CASES[0]
    found = fits(fit_temperature, *stacked(size, classes, np.float32, scale))
    for seed in SEEDS:
        logits, labels, counts = problem(seed, size, classes, scale)
        rows = np.repeat(np.arange(size), counts)
        theirs = calibrators.get_calibrator("temp-scaling")
        theirs.fit_torch(
            distributions.CategoricalLogits(torch.as_tensor(logits[rows])),
            torch.as_tensor(labels[rows]),
        )
        np.testing.assert_allclose(
            found.temperature[seed], 1 / theirs.invtemp_, rtol=1e-5, err_msg=f"seed {seed}"
        )


@pytest.mark.filterwarnings("ignore:independent is deprecated:DeprecationWarning")
def test_netcal_does_not_move_from_one_in_float32():
    """It differentiates by steps of 1.5e-8, which float32 does not add to 1.

    In float64 it comes within the stopping rule of its search; what it calls temperature is 1 / T.
    """
    scaling = peer("netcal.scaling", distribution="netcal", version="1.4.0")
    logits, labels, _ = problem(0, 2000, 3)
    assert np.float32(1 + np.sqrt(np.finfo(np.float64).eps)) == 1
    found = fit_temperature(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
    assert abs(found.temperature - 1) > 0.1
    probs = scipy.special.softmax(logits, axis=1)
    fine = scaling.TemperatureScaling().fit(probs, labels)
    np.testing.assert_allclose(found.temperature, 1 / fine.temperature[0], rtol=1e-3)
    rough = scaling.TemperatureScaling().fit(probs.astype(np.float32), labels)
    assert rough.temperature[0] == 1


def dirichlet_loss(logits, labels, *, weights):
    fit = fit_dirichlet(logits, labels, weights=weights)
    calibrated = apply_dirichlet(fit, logits)
    return negative_log_likelihood(calibrated, labels, weights=weights), fit


@pytest.mark.parametrize(("size", "classes", "dtype"), CASES)
def test_dirichlet_equals_the_logistic_optimum(size, classes, dtype):
    """Of scikit-learn without a penalty, on log probabilities."""
    linear_model = peer("sklearn.linear_model")
    with jax.enable_x64(dtype == np.float64):
        losses, found = fits(dirichlet_loss, *stacked(size, classes, dtype))
    assert found.converged.all()
    for seed in SEEDS:
        logits, labels, counts = problem(seed, size, classes)
        log_probs = scipy.special.log_softmax(logits, axis=1)
        theirs = linear_model.LogisticRegression(C=np.inf, tol=1e-8, solver="newton-cg")
        theirs.fit(log_probs, labels, sample_weight=counts)
        likelihood = theirs.predict_log_proba(log_probs)[np.arange(size), labels]
        loss = -np.average(likelihood, weights=counts)
        np.testing.assert_allclose(losses[seed], loss, atol=1e-5, err_msg=f"seed {seed}")


def events(seed, size=160):
    """Confidences of float32, some tied and some 0 or 1, with outcomes and counts."""
    rng = np.random.RandomState(seed)
    confidence = rng.beta(*rng.uniform(0.3, 3, size=2), size=size)
    confidence[: size // 4] = rng.randint(17, size=size // 4) / 16
    outcome = rng.rand(size) < rng.uniform(0.1, 0.3) + 0.6 * confidence ** rng.uniform(0.5, 2)
    counts = rng.randint(1, 4, size=size) if seed % 2 else np.ones(size, int)
    return confidence.astype(np.float32).astype(np.float64), outcome, counts


def mapped(function):
    """Of the events of all seeds at once, in float64, with an axis of seeds in front."""
    many = [np.stack(x) for x in zip(*(events(seed) for seed in SEEDS), strict=True)]
    with jax.enable_x64(True):
        arrays = [jnp.asarray(many[0]), jnp.asarray(many[1]), jnp.asarray(many[2], float)]
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(function))(*arrays))


def test_platt_equals_scikit_learn():
    """It minimises the same smoothed loss, to a gradient of 1e-6; its slope has the other sign."""
    fit = getattr(peer("sklearn.calibration"), "_sigmoid_calibration", None)
    if fit is None:
        pytest.skip("needs scikit-learn's private function")

    def calibrated(score, outcome, weights):
        fitted = fit_platt(score, outcome, weights=weights)
        return apply_platt(fitted, score), fitted.converged

    found, converged = mapped(calibrated)
    assert converged.all()
    for seed in SEEDS:
        score, outcome, counts = events(seed)
        slope, offset = fit(score, outcome.astype(float), sample_weight=counts.astype(float))
        theirs = scipy.special.expit(-(slope * score + offset))
        np.testing.assert_allclose(found[seed], theirs, atol=2e-5, err_msg=f"seed {seed}")


def log_loss(probs, outcome, counts):
    likelihood = np.log(np.where(outcome, probs, 1 - probs))
    return -np.average(likelihood, weights=counts)


def test_beta_equals_the_best_logistic_regression_that_does_not_fall():
    """scikit-learn has no bounds: its best fit within them, without one column or both."""
    linear_model = peer("sklearn.linear_model")

    def calibrated(confidence, outcome, weights):
        fitted = fit_beta(confidence, outcome, weights=weights)
        return apply_beta(fitted, confidence), fitted

    found, fitted = mapped(calibrated)
    assert ((fitted.low == 0) | (fitted.high == 0)).any()
    for seed in SEEDS:
        confidence, outcome, counts = events(seed)
        clipped = np.clip(confidence, 2**-52, 1 - 2**-52)
        columns = np.stack([np.log(clipped), -np.log1p(-clipped)], axis=1)
        losses = []
        for chosen in ([0, 1], [0], [1]):
            theirs = linear_model.LogisticRegression(C=np.inf, tol=1e-8, solver="newton-cg")
            theirs.fit(columns[:, chosen], outcome, sample_weight=counts)
            if (theirs.coef_ >= 0).all():
                probs = theirs.predict_proba(columns[:, chosen])[:, 1]
                losses.append(log_loss(probs, outcome, counts))
        rate = np.average(outcome, weights=counts)
        losses.append(log_loss(np.full(len(outcome), rate), outcome, counts))
        loss = log_loss(found[seed], outcome, counts)
        np.testing.assert_allclose(loss, min(losses), atol=1e-6, err_msg=f"seed {seed}")


@pytest.mark.parametrize("num_bins", [15, 16])
def test_histogram_binning_equals_netcal_but_on_edges(num_bins):
    """netcal 1.4.0 fits bins [lo, hi), and then looks up in (lo, hi].

    What lies on an edge gets the probability of the bin below, in which it was not counted. Off the
    edges the values agree, and on them too when it is asked for the next larger number.
    """
    binning = peer("netcal.binning", distribution="netcal", version="1.4.0")

    def calibrated(confidence, outcome, weights):
        fit = fit_histogram_binning(confidence, outcome, weights=weights, num_bins=num_bins)
        return apply_histogram_binning(fit, confidence)

    found = mapped(calibrated)
    edges = np.arange(1, num_bins) / num_bins
    wrong = 0
    for seed in SEEDS:
        confidence, outcome, counts = events(seed)
        theirs = binning.HistogramBinning(bins=num_bins)
        theirs.fit(np.repeat(confidence, counts), np.repeat(outcome, counts).astype(int))
        beyond = theirs.transform(np.nextafter(confidence, 2))
        np.testing.assert_allclose(found[seed], beyond, atol=1e-6, err_msg=f"seed {seed}")
        plain, off = theirs.transform(confidence), ~np.isin(confidence, edges)
        np.testing.assert_allclose(found[seed][off], plain[off], atol=1e-6, err_msg=f"seed {seed}")
        wrong += (abs(found[seed] - plain) > 0.01).any()
    assert wrong == (0 if num_bins == 15 else len(SEEDS))  # sixteenths are on no edge of 15


def test_isotonic_equals_scipy():
    """Ours is fitted by scikit-learn; SciPy pools adjacent violators by its own code, untied."""
    for seed in range(20):
        confidence, outcome, counts = events(seed)
        _, index = np.unique(confidence, return_inverse=True)
        weight = np.bincount(index, counts)
        mean = np.bincount(index, counts * outcome) / weight
        theirs = scipy.optimize.isotonic_regression(mean, weights=weight).x[index]
        given = jnp.asarray(confidence, jnp.float32)
        fit = fit_isotonic(given, jnp.asarray(outcome), weights=jnp.asarray(counts, jnp.float32))
        np.testing.assert_allclose(
            apply_isotonic(fit, given), theirs, atol=1e-6, err_msg=f"seed {seed}"
        )
