"""Exact populations of experts: what softening and moving configurations do."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.optimize
from expert_calibration import results_of

pytestmark = pytest.mark.exhaustive


def population_results(rows):
    """Of one size for all, so that they share a compilation; no level lies on an edge."""
    mass, routing, ones, truth = (np.array(x, np.float64) for x in zip(*rows, strict=True))
    missing = 80 - len(rows)
    probs = np.pad(np.stack([1 - ones, ones], axis=-1), ((0, missing), (0, 0), (0, 0)))
    routing = np.pad(routing, ((0, missing), (0, 0)))
    weights = np.pad(np.stack([mass * (1 - truth), mass * truth]), ((0, 0), (0, missing))).ravel()
    labels = np.repeat([0, 1], 80)
    with jax.enable_x64(True):
        found = results_of(
            jnp.asarray(np.tile(probs, (2, 1, 1))),
            jnp.asarray(np.tile(routing, (2, 1))),
            jnp.asarray(labels),
            jnp.asarray(weights),
            num_bins=97,
        )
        assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(found))
        return jax.tree.map(np.asarray, found)


def first_counterexample(v):
    return [
        (0.5 * (v if soft else 1 - v), (0.6, 0.4) if soft else (1.0, 0.0), (p, 0.5), p)
        for p in (0.1, 0.9)
        for soft in (0, 1)
    ]


@pytest.mark.parametrize("v", [0.0, 0.1, 0.5, 0.9])
def test_softening_the_router(v):
    """Calibrated experts; the aggregate's error is .16 P(soft), the disagreement .0768 P(soft)."""
    found = population_results(first_counterexample(v))
    mixture, identity = found["mixture"], found["identity"]
    for part in (mixture.top_label, mixture.classwise):
        np.testing.assert_allclose(part.aggregate, 0.16 * v, atol=1e-14)
        np.testing.assert_allclose(part.gap, 0.16 * v, atol=1e-14)
        np.testing.assert_allclose(part.expert_mean, 0, atol=1e-14)
        np.testing.assert_allclose(part.experts, [0, 0 if v else math.nan], atol=1e-14)
    np.testing.assert_allclose(mixture.load, [1 - 0.4 * v, 0.4 * v])
    np.testing.assert_allclose(mixture.router_confidence, 1 - 0.4 * v)
    entropy = references.entropy([0.6, 0.4])
    np.testing.assert_allclose(mixture.routing_entropy, v * entropy, atol=1e-14)
    np.testing.assert_allclose(identity.aggregate, 0.0768 * v, atol=1e-14)
    np.testing.assert_allclose(identity.disagreement, 0.0768 * v, atol=1e-14)
    np.testing.assert_allclose(identity.view, [0, 0], atol=1e-14)
    # argmax routing: expert 1 sees all, and nothing is wrong
    np.testing.assert_allclose(found["region"].top_label, [0, math.nan], atol=1e-14)
    np.testing.assert_allclose(found["region"].load, [1, 0])
    # the theorem's bound, for the two classes together
    assert 2 * mixture.classwise.aggregate >= 2 * identity.disagreement - 1e-15


@pytest.mark.parametrize("g", [0.1, 4 / 9, 0.9])
def test_moving_configurations(g):
    """Experts calibrated on their views throughout, an aggregate that never is."""
    rows = [
        (g / 2, (0.75, 0.25), (0.9, 0.5), 0.9),
        (g / 2, (0.75, 0.25), (0.1, 0.5), 0.1),
        ((1 - g) / 2, (0.8, 0.2), (0.77, 0.92), 0.72),
        ((1 - g) / 2, (0.2, 0.8), (0.77, 0.92), 0.97),
    ]
    found = population_results(rows)
    mixture, identity = found["mixture"], found["identity"]
    rest = (1 - g) / 2 * 0.08
    # levels .2, .8 and .89 of class 1; in the predicted class .2 is .8 as well
    np.testing.assert_allclose(
        mixture.classwise.aggregate, g / 2 * 0.1 + abs(g / 2 * 0.1 - rest) + rest, atol=1e-14
    )
    np.testing.assert_allclose(mixture.top_label.aggregate, abs(g * 0.1 - rest) + rest, atol=1e-14)
    for part in (mixture.top_label, mixture.classwise):
        np.testing.assert_allclose(part.experts, 0, atol=1e-14)
        np.testing.assert_allclose(part.gap, part.aggregate, atol=1e-14)
    # r_1 r_2 (f_1 - f_2)^2, for both columns
    expected = 2 * (g * 0.1875 * 0.16 + (1 - g) * 0.16 * 0.0225)
    np.testing.assert_allclose(identity.disagreement, expected, rtol=1e-12)
    np.testing.assert_allclose(identity.aggregate, expected, rtol=1e-12)
    np.testing.assert_allclose(identity.view, [0, 0], atol=1e-14)


BROKEN = [
    (0.45, (0.25, 0.75), (0.9, 0.5), 1.0),
    (0.45, (0.25, 0.75), (0.1, 0.5), 0.0),
    (0.05, (0.75, 0.25), (0.9, 0.5), 0.0),
    (0.05, (0.75, 0.25), (0.1, 0.5), 1.0),
]


def test_experts_that_are_calibrated_without_the_gate():
    """Calibrated where they are active, not on their views: the error is .44 after the shift."""
    found = population_results(BROKEN)
    mixture, identity = found["mixture"], found["identity"]
    np.testing.assert_allclose(found["active"].top_label, [0, 0], atol=1e-14)
    np.testing.assert_allclose(found["active"].load, [1, 1])
    np.testing.assert_allclose(mixture.classwise.aggregate, 0.44, rtol=1e-12)
    # the view of expert 1: .1125 of its .15 is right, at confidence .9, for either class
    np.testing.assert_allclose(mixture.top_label.experts, [0.15, 0], atol=1e-14)
    np.testing.assert_allclose(mixture.load, [0.3, 0.7])
    np.testing.assert_allclose(identity.aggregate, 0.024, rtol=1e-12)
    np.testing.assert_allclose(identity.disagreement, 0.06, rtol=1e-12)
    np.testing.assert_allclose(identity.view, [-0.036, 0], atol=1e-14)


def test_errors_of_experts_may_cancel_their_disagreement():
    """A source over the same configurations, by a linear program: the aggregate is calibrated."""
    levels = [0.1, 0.3, 0.5, 0.7, 0.9]
    rows = [
        ((r, 1 - r), (a, b), float(y))
        for r in (0.25, 0.5, 0.75)
        for a in levels
        for b in levels
        for y in (0, 1)
    ]
    routing, ones, truth = (np.array(x) for x in zip(*rows, strict=True))
    level = (routing * ones).sum(1).round(9)
    rules = [np.ones(len(rows))]
    rules += [(ones[:, k] == v) * (truth - v) for k in range(2) for v in levels]
    rules += [(level == p) * (truth - p) for p in np.unique(level)]
    wanted = {(r[0], *f, y) for _, r, f, y in BROKEN}
    seen = np.array([(r[0], *f, y) in wanted for r, f, y in rows])
    source = scipy.optimize.linprog(
        np.zeros(len(rows)),
        A_eq=np.array(rules),
        b_eq=np.eye(len(rules))[0],
        bounds=[(0.005 if s else 0, 1) for s in seen],
    ).x
    found = population_results(
        [(m, r, f, y) for m, (r, f, y) in zip(source, rows, strict=True) if m > 0]
    )
    np.testing.assert_allclose(found["mixture"].classwise.aggregate, 0, atol=1e-9)
    np.testing.assert_allclose(found["active"].classwise, [0, 0], atol=1e-9)
    identity = found["identity"]
    np.testing.assert_allclose(identity.aggregate, 0, atol=1e-9)
    assert identity.disagreement > 1e-3
    np.testing.assert_allclose(identity.view.sum(), -identity.disagreement, atol=1e-9)
