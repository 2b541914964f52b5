"""`checkify` finds nothing wrong in correct calls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import public_calls
import pytest
from dispatching import exhaustive, normal
from jax.experimental import checkify

import calmoe_jax as cm
from calmoe_jax.moe import ExpertParams

pytestmark = pytest.mark.exhaustive

CHECKS = checkify.index_checks | checkify.nan_checks | checkify.div_checks
BY_DEFAULT = ("route", "calibration.expected_calibration_error", "reweighting.cvar")
# JAX has no rule for them: scatters and while loops under `vmap`, updates of slices, and
# `checkpoint` of a function with checks within (0.10.2 to 0.12).
NO_RULE = {
    "calibration.classwise_bins", "calibration.expert_bins", "calibration.expert_calibration",
    "calibration.kernel_test", "calibration.mixture_calibration",
    "calibration.multilabel_bins", "calibration.squared_kernel_calibration_error",
    "calibration.update_state",
    "calibration.calibrators.fit_beta", "calibration.calibrators.fit_expert_temperatures",
    "calibration.intervals.bootstrap_counts", "calibration.intervals.cluster_bins",
    "calibration.intervals.clustered_calibration_error", "calibration.intervals.mean",
    "calibration.intervals.score_differences", "calibration.intervals.scores",
    "calibration.intervals.squared_error_difference", "calibration.intervals.statistic",
    "fgr.dct_filter", "shift.configuration_shift_test",
    "shift.estimators.confidence_conditional_by_peers", "shift.estimators.density_ratio",
    "shift.estimators.separability", "shift.separability",
}  # fmt: skip
# A NaN, or a division by zero, that a mask then takes out.
MASKED = {
    "calibration.gap_by_statistic", "calibration.calibrators.fit_dirichlet",
    "calibration.calibrators.fit_matrix_scaling", "calibration.calibrators.fit_platt",
    "calibration.calibrators.fit_vector_scaling", "reweighting.balanced_robust_loss",
    "reweighting.entropy_balance", "reweighting.kl_ball", "reweighting.radius_robust_loss",
    "shift.configuration_balance", "shift.estimators.conditional_drop",
    "shift.estimators.confidence_conditional", "shift.estimators.neighbours",
    "shift.estimators.seed_agreement", "shift.label_free_gaps", "shift.neighbour_accuracy",
    "shift.repair_with_labels",
}  # fmt: skip


def reported(function, *args):
    """What `checkify` reports of a call."""
    return checkify.checkify(jax.jit(function), errors=CHECKS)(*args)[0].get()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "options",
    [
        {"k": 2},
        {"k": 1, "capacity": 3},
        *exhaustive({"k": 2, "renormalize": False}, {"k": 2, "scores": "sigmoid", "capacity": 3}),
    ],
    ids=str,
)
def test_the_layer_and_its_derivatives(options):
    sizes = (4, 3, 5), (4, 5, 3), (4, 5), (4, 3)
    params = ExpertParams(*(jnp.asarray(normal(i, *size)) for i, size in enumerate(sizes)))
    x, gate_logits = normal(5, 16, 3), normal(6, 16, 4)
    gate_logits[3, 1] = gate_logits[4, 1:] = -np.inf
    where = np.arange(16) != 7

    def loss(x, gate_logits, params):
        out = cm.sparse_layer(x, gate_logits, params, where=where, **options)
        balance = cm.moe.load_balancing_loss(out.routed) + cm.moe.router_z_loss(out.routed)
        return jnp.sum(jnp.sin(out.output)) + balance

    arrays = jnp.asarray(x), jnp.asarray(gate_logits), params
    tangents = jax.tree.map(jnp.ones_like, arrays)

    def every(*arrays):
        return jax.grad(loss, (0, 1, 2))(*arrays), jax.jvp(loss, arrays, tangents)

    assert reported(every, *arrays) is None


@pytest.mark.parametrize("layout", [{}, {"capacity": 1}, {"block_size": 4}], ids=str)
def test_plans(layout):
    indices = np.int32([[0, 1], [-1, 1], [1, 3], [1, 0]])
    function = functools.partial(cm.plan_dispatch, num_experts=3, **layout)
    assert reported(function, indices) is None


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in BY_DEFAULT else pytest.mark.exhaustive)
        for name, function in public_calls.calls().items()
        if name not in NO_RULE | MASKED and function.__name__ not in public_calls.ON_HOST
    ],
)
def test_public_functions(name):
    function = public_calls.calls()[name]
    arrays, statics = public_calls.call_of(function)
    assert reported(public_calls.bound(function, statics), arrays) is None
