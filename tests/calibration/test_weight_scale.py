"""Weights are relative: multiplying all of them changes nothing but what is called their sum."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm
from calmoe_jax.calibration import calibrators, intervals
from calmoe_jax.calibration.metrics import smooth

SIZE, CLASSES, EXPERTS = 120, 3, 2
cal = cm.calibration


@functools.cache
def arrays():
    rng = np.random.RandomState(0)
    logits = (2 * rng.randn(SIZE, CLASSES)).astype(np.float32)
    labels = np.argmax(logits / 2 + rng.gumbel(size=logits.shape), -1)
    experts = (2 * rng.randn(SIZE, EXPERTS, CLASSES)).astype(np.float32)
    routing = rng.dirichlet(np.ones(EXPERTS), SIZE).astype(np.float32)
    return tuple(map(jnp.asarray, (logits, labels, experts, routing)))


@functools.cache
def pairs():
    logits, labels, _, _ = arrays()
    return cal.top_label(logits, labels, from_logits=True)


def weights_of(scale):
    weights = np.random.RandomState(1).uniform(0.2, 2, SIZE).astype(np.float32)
    weights[::7] = 0
    return jnp.asarray(weights * np.float32(scale))


def of_logits(function, **options):
    logits, labels, _, _ = arrays()
    return lambda w: function(logits, labels, weights=w, from_logits=True, **options)


def of_pairs(function, **options):
    return lambda w: function(*pairs(), weights=w, **options)


def of_bins(function, **options):
    return lambda w: function(cal.reliability_bins(*pairs(), weights=w), **options)


def of_experts(function):
    _, labels, experts, routing = arrays()
    return lambda w: function(experts, routing, labels, weights=w, from_logits=True)


def of_clusters(function):
    def found(w):
        bins = intervals.cluster_bins(
            *pairs(), jnp.arange(SIZE) % 30, num_clusters=30, weights=w, num_bins=5
        )
        return function(jax.random.key(0), bins)

    return found


def fitted(fit, apply):
    logits, labels, _, _ = arrays()
    return lambda w: apply(fit(logits, labels, weights=w), logits)


def of_event(fit, apply):
    return lambda w: apply(fit(*pairs(), weights=w), pairs()[0])


def of_gate(w):
    _, labels, experts, routing = arrays()
    gate = 3 * jnp.log(routing)
    fit = calibrators.fit_gate_temperature(gate, experts, labels, weights=w)
    return fit.temperature, fit.loss


def of_state(w):
    """In two batches, the second with the weights of the first at a millionth."""
    logits, labels, _, _ = arrays()
    state = cal.init_state(num_classes=CLASSES)
    for factor in (1, 1e-6):
        state = cal.update_state(state, logits, labels, weights=w * factor, from_logits=True)
    return cal.summarise(state)._replace(weight=0, bins=0)


def of_devices(w):
    """On two devices of different weight."""
    logits, labels, _, _ = (x.reshape(2, SIZE // 2, *x.shape[1:]) for x in arrays())
    w = w.reshape(2, -1) * jnp.array([[1.0], [1e-6]])

    def on_each(logits, labels, w):
        state = cal.init_state(num_classes=CLASSES)
        state = cal.update_state(state, logits, labels, weights=w, from_logits=True)
        soft = smooth.soft_binned_error(
            *cal.top_label(logits, labels, from_logits=True), weights=w, axis_name="devices"
        )
        summary = cal.summarise(cal.psum_state(state, "devices"))
        return summary._replace(weight=0, bins=0), soft

    return jax.vmap(on_each, axis_name="devices")(logits, labels, w)


METRICS = {
    "accuracy": of_logits(cal.accuracy),
    "nll": of_logits(cal.negative_log_likelihood),
    "brier": of_logits(cal.brier_score),
    "gap": of_logits(cal.confidence_gap),
    "binary nll": of_pairs(cal.binary_log_loss),
    "binary brier": of_pairs(cal.binary_brier_score),
    "multilabel": lambda w: cal.calibration_error(
        cal.multilabel_bins(pairs()[0][:, None], pairs()[1][:, None], weights=w)
    ),
    "ece": lambda w: cal.expected_calibration_error(
        jax.nn.softmax(arrays()[0]), arrays()[1], weights=w
    ),
    "l1": of_bins(cal.calibration_error),
    "l2": of_bins(cal.calibration_error, norm="l2"),
    "max": of_bins(cal.calibration_error, norm="max"),
    "debiased": of_bins(cal.debiased_calibration_error),
    "debiased squared": of_bins(cal.debiased_squared_calibration_error),
    "curve": of_bins(cal.reliability_curve),
    "murphy": of_bins(cal.murphy_decomposition),
    "reweighting": of_bins(cal.worst_reweighting, alpha=0.3),
    "interval": of_bins(lambda b: intervals.calibration_error(jax.random.key(0), b)),
    "classwise": lambda w: cal.debiased_calibration_error(
        cal.classwise_bins(arrays()[0], arrays()[1], weights=w, from_logits=True)
    ),
    "equal mass": lambda w: cal.debiased_calibration_error(
        cal.equal_mass_bins(*pairs(), weights=w)
    ),
    "five parts": of_pairs(cal.brier_decomposition),
    "corp": of_pairs(cal.corp_decomposition),
    "smooth": of_pairs(cal.smooth_calibration_error),
    "null level": lambda w: cal.smooth_null_level(
        jax.random.key(0), pairs()[0], weights=w, num_replicates=5
    ),
    "soft": of_pairs(cal.soft_binned_error),
    "mmce": of_pairs(cal.maximum_mean_calibration_error),
    "skce": of_logits(cal.squared_kernel_calibration_error),
    "kernel test": of_logits(functools.partial(cal.kernel_test, jax.random.key(0))),
    "groups": lambda w: cal.worst_group(
        arrays()[0], arrays()[1], jnp.arange(SIZE) % 3, num_groups=3, weights=w, from_logits=True
    ),
    "statistic": lambda w: cal.gap_by_statistic(pairs()[0], *pairs(), weights=w, num_groups=4),
    "experts": lambda w: of_experts(cal.expert_calibration)(w),
    "expert bins": lambda w: cal.debiased_calibration_error(of_experts(cal.expert_bins)(w)),
    "mixture": of_experts(cal.mixture_calibration),
    "identity": of_experts(cal.disagreement_identity),
    "state": of_state,
    "devices": of_devices,
    "mean": lambda w: intervals.mean(jax.random.key(0), pairs()[0], weights=w),
    "scores": lambda w: intervals.scores(
        jax.random.key(0), *arrays()[:2], weights=w, from_logits=True
    ),
    "clusters": of_clusters(intervals.clustered_calibration_error),
    "pairs of clusters": of_clusters(
        lambda key, bins: intervals.squared_error_difference(
            key, bins, bins._replace(residual=bins.residual / 2)
        )
    ),
    "a cluster": of_clusters(lambda _, bins: cal.debiased_squared_calibration_error(bins)),
    "temperature": fitted(calibrators.fit_temperature, calibrators.apply_temperature),
    "vector": fitted(calibrators.fit_vector_scaling, calibrators.apply_vector_scaling),
    "matrix": fitted(
        functools.partial(calibrators.fit_matrix_scaling, off_diagonal=0.01, intercept=0.01),
        calibrators.apply_matrix_scaling,
    ),
    "dirichlet": fitted(calibrators.fit_dirichlet, calibrators.apply_dirichlet),
    "ensemble": fitted(
        calibrators.fit_ensemble_temperature, calibrators.apply_ensemble_temperature
    ),
    "gate": of_gate,
    "beta": of_event(calibrators.fit_beta, calibrators.apply_beta),
    "histogram": of_event(calibrators.fit_histogram_binning, calibrators.apply_histogram_binning),
    "violators": of_event(calibrators.pool_adjacent_violators, calibrators.apply_isotonic),
    "isotonic": of_event(calibrators.fit_isotonic, calibrators.apply_isotonic),
}
ON_HOST = ("corp", "isotonic")
# what is left to the exhaustive suite: made of others
MADE_OF_OTHERS = (
    "accuracy", "brier", "gap", "max", "l2", "classwise", "null level", "kernel test", "scores",
    "dirichlet", "matrix", "expert bins", "pairs of clusters", "groups", "equal mass", "gate",
    "beta", "histogram",
)  # fmt: skip


@functools.cache
def compiled(name):
    pairs()  # before they would be traced
    return METRICS[name] if name in ON_HOST else jax.jit(METRICS[name])


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.exhaustive] * (name in MADE_OF_OTHERS))
        for name in METRICS
    ],
)
def test_the_scale_of_weights_does_not_matter(name):
    """Platt's targets are smoothed by counts, and so are left out."""
    expected = compiled(name)(weights_of(1))
    assert all(np.isfinite(x).any() for x in jax.tree.leaves(expected))
    for scale in (1e-30, 1e-18, 1e-9, 1e9, 1e18, 1e30):
        found = compiled(name)(weights_of(scale))
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-6, err_msg=str(scale))


def test_all_public_functions_with_weights_are_here():
    modules = cal, calibrators, intervals
    found = [f for module in modules for _, f in inspect.getmembers(module, callable)]
    public = [f for f in found if not isinstance(f, type)]
    weighted = [f.__name__ for f in public if "weights" in inspect.signature(f).parameters]
    source = inspect.getsource(inspect.getmodule(test_the_scale_of_weights_does_not_matter))
    # smoothed by counts; of a user's own statistic; without a result; made of others here
    left_out = {"fit_platt", "statistic", "check_predictions", "top_label_bins",
                "score_differences", "fit_classwise_isotonic"}  # fmt: skip
    missing = [name for name in weighted if name not in left_out and name not in source]
    assert missing == []
