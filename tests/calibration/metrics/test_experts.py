"""Experts on their views, the mixture against them, and the disagreement identity."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
import scipy.optimize
from devices import shard_map

import calmoe_jax as cm
from calmoe_jax.calibration.metrics.disagreement import disagreement_identity
from calmoe_jax.calibration.metrics.experts import (
    chosen_region,
    expert_bins,
    expert_calibration,
    mixture_calibration,
)

pytestmark = pytest.mark.exhaustive


def mixed(probs, routing, labels, from_logits=False):
    return {
        "mixture": mixture_calibration(probs, routing, labels, from_logits=from_logits),
        "identity": disagreement_identity(probs, routing, labels, from_logits=from_logits),
    }


mixed_of = jax.jit(mixed, static_argnames="from_logits")


@functools.partial(jax.jit, static_argnames="num_bins")
def everything(probs, routing, labels, weights, where, num_bins=15):
    options = {"weights": weights, "where": where}
    binned = options | {"num_bins": num_bins}
    views = jnp.stack([routing, chosen_region(routing), (routing > 0).astype(routing.dtype)])
    # one program for the three: they compile in a third of the time
    errors = jax.vmap(lambda v: expert_calibration(probs, v, labels, **binned))(views)
    names = "view", "region", "active"
    return {name: jax.tree.map(lambda x, i=i: x[i], errors) for i, name in enumerate(names)} | {
        "mixture": mixture_calibration(probs, routing, labels, **binned),
        "identity": disagreement_identity(probs, routing, labels, **options),
    }


identity_of = jax.jit(disagreement_identity)


def results_of(probs, routing, labels, weights=None, where=None, **options):
    """With arrays for the defaults, so that one compilation serves most tests."""
    weights = jnp.ones(labels.shape, routing.dtype) if weights is None else weights
    where = jnp.ones(labels.shape, bool) if where is None else where
    return everything(probs, routing, labels, weights, where, **options)


def top_k_weights(logits, k):
    weights = np.zeros(logits.shape)
    for row, gate in zip(weights, logits, strict=True):
        row[np.argsort(-gate)[:k]] = references.softmax(np.sort(gate)[::-1][:k])
    return weights


def problem(seed=0, size=60, experts=3, classes=4, k=None):
    rng = np.random.RandomState(seed)
    probs = references.softmax(rng.randn(size, experts, classes) * 2)
    routing = top_k_weights(rng.randn(size, experts) * 2, k or experts)
    labels = rng.randint(classes, size=size)
    return jnp.asarray(probs, jnp.float32), jnp.asarray(routing, jnp.float32), jnp.asarray(labels)


def classwise(probs, labels, weights, num_bins):
    return np.mean(
        [
            references.calibration_error(column, labels == c, weights, num_bins)
            for c, column in enumerate(probs.T)
        ]
    )


def oracle_errors(probs, view, labels, weights, num_bins):
    """Each expert by itself, with the scalar metric in loops."""
    result = {name: [] for name in ("top_label", "classwise", "gap", "load", "effective_examples")}
    for k in range(view.shape[1]):
        w = view[:, k] * weights
        result["load"].append(w.sum() / weights.sum())
        if w.sum() == 0:
            result["effective_examples"].append(0)
            for name in ("top_label", "classwise", "gap"):
                result[name].append(math.nan)
            continue
        confidence, correct = references.top_label(probs[:, k], labels)
        result["top_label"].append(
            references.calibration_error(confidence, correct, w, num_bins=num_bins)
        )
        result["classwise"].append(classwise(probs[:, k], labels, w, num_bins))
        result["gap"].append(np.dot(w, confidence - correct) / w.sum())
        result["effective_examples"].append(w.sum() ** 2 / np.sum(w**2))
    return result


def oracle_identity(probs, routing, labels, weights):
    """Both sides and the views, example by example."""
    aggregate = references.mix(probs, routing)
    right = references.disagreement(probs, routing)
    left, view = np.zeros(len(labels)), np.zeros(routing.shape)
    for i, y in enumerate(labels):
        true = np.eye(probs.shape[2])[y]
        left[i] = aggregate[i] @ (true - aggregate[i])
        for k in range(routing.shape[1]):
            view[i, k] = routing[i, k] * (probs[i, k] @ (true - probs[i, k]))

    def mean_and_error(values):
        mean = np.average(values, weights=weights)
        share = weights / weights.sum()
        spread = np.sum(share**2 * (values - mean) ** 2)
        return mean, math.sqrt(spread / (1 - np.sum(share**2)))

    by_expert = [mean_and_error(column) for column in view.T]
    return {
        "aggregate": np.average(left, weights=weights),
        "disagreement": np.average(right, weights=weights),
        "difference": np.average(left - right, weights=weights),
        "standard_error": mean_and_error(left - right)[1],
        "view": [mean for mean, _ in by_expert],
        "view_error": [error for _, error in by_expert],
    }


def assert_same(found, expected, rtol=1e-5, atol=2e-6):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=rtol, atol=atol, err_msg=name)


def assert_trees_same(found, expected, rtol=1e-5, atol=2e-6):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_loops(k, weighted):
    probs, routing, labels = problem(k, k=k)
    rng = np.random.RandomState(k)
    weights = rng.rand(60) if weighted else np.ones(60)
    where = rng.rand(60) < 0.8 if weighted else np.ones(60, bool)
    found = results_of(
        probs, routing, labels, jnp.asarray(weights, jnp.float32), jnp.asarray(where)
    )
    p, r, y = (np.asarray(x, np.float64) for x in (probs, routing, labels))
    y = y.astype(int)
    w = np.where(where, weights, 0)
    views = {"view": r, "region": np.eye(3)[r.argmax(1)], "active": (r > 0).astype(float)}
    errors = {name: oracle_errors(p, view, y, w, 15) for name, view in views.items()}
    for name, expected in errors.items():
        assert_same(found[name], expected)
    assert_same(found["identity"], oracle_identity(p, r, y, w))
    aggregate = references.mix(p, r)
    mixture = found["mixture"]
    top = references.calibration_error(*references.top_label(aggregate, y), w)
    for part, expected, name in (
        (mixture.top_label, top, "top_label"),
        (mixture.classwise, classwise(aggregate, y, w, 15), "classwise"),
    ):
        experts = errors["view"][name]
        mean = np.dot(errors["view"]["load"], experts)
        assert_same(
            part,
            {
                "aggregate": expected,
                "experts": experts,
                "expert_mean": mean,
                "gap": expected - mean,
            },
        )
    np.testing.assert_allclose(mixture.load, errors["view"]["load"], rtol=1e-5)
    np.testing.assert_allclose(
        mixture.router_confidence, np.average(r.max(1), weights=w), rtol=1e-5
    )
    entropies = [references.entropy(row) for row in r]
    np.testing.assert_allclose(
        mixture.routing_entropy, np.average(entropies, weights=w), rtol=1e-5, atol=1e-6
    )


def test_bins_of_experts_are_those_of_each_alone_and_add_up():
    probs, routing, labels = problem(5)
    weights, where = jnp.arange(60.0), jnp.arange(60) % 4 != 0
    options = {"num_bins": 7}
    bins_of = jax.jit(functools.partial(expert_bins, **options))
    found = bins_of(probs, routing, labels, weights=weights, where=where)
    one = jax.jit(functools.partial(cm.calibration.top_label_bins, **options))
    for k in range(3):
        alone = one(probs[:, k], labels, weights=weights * routing[:, k], where=where)
        assert_trees_same(jax.tree.map(lambda x, k=k: x[k], found), alone)
    parts = [
        bins_of(probs, routing, labels, weights=weights, where=where & (jnp.arange(60) % 2 == i))
        for i in range(2)
    ]
    assert_trees_same(jax.tree.map(jnp.add, *parts), found)


def test_sharded_sums_equal_the_whole(mesh):
    probs, routing, labels = problem(6, size=60)
    part = jax.sharding.PartitionSpec("d")
    summed = shard_map(
        lambda p, r, y: jax.lax.psum(expert_bins(p, r, y), "d"),
        mesh=mesh,
        in_specs=(part, part, part),
        out_specs=jax.sharding.PartitionSpec(),
    )
    rows = 60 // len(mesh.devices) * len(mesh.devices)
    args = probs[:rows], routing[:rows], labels[:rows]
    assert_trees_same(jax.jit(summed)(*args), jax.jit(expert_bins)(*args))


def test_regions():
    weights = jnp.array([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 0.0]])
    assert chosen_region(weights).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
    strange = jnp.array([[0.5, jnp.nan]])
    assert jnp.isnan(chosen_region(strange)).all()
    assert chosen_region(weights.astype(jnp.bfloat16)).dtype == jnp.float32
    many = jnp.full((384, 100), 0.01).at[:, 50].set(jnp.nan)  # where a plain maximum loses NaN
    assert jnp.isnan(jax.jit(chosen_region)(many)).all()


def test_hard_routing_is_its_own_region_and_does_not_disagree():
    probs, routing, labels = problem(7, k=1)
    found = results_of(probs, routing, labels)
    assert_trees_same(found["view"], found["region"], rtol=0, atol=0)
    assert_trees_same(found["view"], found["active"], rtol=0, atol=0)
    assert found["identity"].disagreement == 0
    assert found["mixture"].router_confidence == 1
    assert found["mixture"].routing_entropy == 0


@pytest.mark.parametrize("seed", range(5))
def test_with_hard_routing_the_aggregate_is_never_worse_than_its_experts(seed):
    found = results_of(*problem(seed, k=1))["mixture"]
    assert found.top_label.gap < 1e-6
    assert found.classwise.gap < 1e-6


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_the_parts_of_the_identity_sum_for_any_data(seed, k):
    with jax.enable_x64(True):
        probs, routing, labels = problem(seed, k=k)
        probs, routing = (np.asarray(x, np.float64) for x in (probs, routing))
        probs /= probs.sum(-1, keepdims=True)
        routing /= routing.sum(-1, keepdims=True)
        weights = np.random.RandomState(seed).rand(60)
        for scale in (1.0, 0.7, 1.5):  # and for weights that do not sum to one
            found = identity_of(
                jnp.asarray(probs),
                jnp.asarray(routing * scale),
                labels,
                weights=jnp.asarray(weights),
            )
            total = found.disagreement + found.view.sum()
            np.testing.assert_allclose(found.aggregate, total, rtol=0, atol=1e-14)
            np.testing.assert_allclose(found.difference, found.view.sum(), rtol=0, atol=1e-14)
            aggregate = references.mix(probs, routing * scale)
            plain = (routing * scale * (probs**2).sum(-1)).sum(-1) - (aggregate**2).sum(-1)
            np.testing.assert_allclose(
                found.disagreement, np.average(plain, weights=weights), atol=1e-14
            )


def test_calibrated_experts_meet_the_identity_and_others_do_not():
    """Labels drawn from a distribution that all experts know in part."""
    rng = np.random.RandomState(0)
    size = 20_000
    side = rng.randint(2, size=(size, 2))
    table = np.array([[0.9, 0.6], [0.35, 0.1]])  # P(Y = 1 | what expert 1 sees, expert 2 sees)
    y = (rng.rand(size) < table[side[:, 0], side[:, 1]]).astype(int)
    ones = np.stack([table.mean(1)[side[:, 0]], table.mean(0)[side[:, 1]]], axis=1)
    probs = jnp.asarray(np.stack([1 - ones, ones], axis=-1), jnp.float32)
    labels = jnp.asarray(y)
    routing = jnp.full((size, 2), 0.5)
    found = identity_of(probs, routing, labels)
    assert found.disagreement > 0.02
    assert abs(found.difference) < 3 * found.standard_error
    assert (jnp.abs(found.view) < 3 * found.view_error).all()
    # one of them too sure
    logits = jnp.log(probs) * jnp.array([3.0, 1.0])[None, :, None]
    found = identity_of(jax.nn.softmax(logits), routing, labels)
    assert found.difference < -5 * found.standard_error
    assert found.view[0] < -5 * found.view_error[0]
    assert abs(found.view[1]) < 3 * found.view_error[1]


def test_the_standard_error_is_the_spread_of_the_difference():
    rng = np.random.RandomState(1)
    probs, routing, _ = problem(8, size=200)
    mixed = references.mix(np.asarray(probs), np.asarray(routing))
    draw = (rng.rand(400, 200, 1) > mixed.cumsum(1)[None, :, :3]).sum(-1)
    found = jax.jit(jax.vmap(lambda y: disagreement_identity(probs, routing, y)))(jnp.asarray(draw))
    # the inputs are fixed here: the error counts their spread too
    between = np.std(np.asarray(disagreement_per_example(probs, routing, mixed)))
    expected = np.sqrt(np.std(found.difference) ** 2 + between**2 / 200)
    np.testing.assert_allclose(np.mean(found.standard_error), expected, rtol=0.1)


def disagreement_per_example(probs, routing, truth):
    """`sum_k r_k <f_k, truth - f_k>` of every example."""
    probs, routing = np.asarray(probs), np.asarray(routing)
    return np.einsum("nk,nkc,nkc->n", routing, probs, truth[:, None] - probs)


# The population examples of the paper's argument: rows are configurations with a probability
# mass, m = P(Y = 1 | configuration); two classes, column 1 is the event. Each row stands twice,
# once for either label.


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


def test_experts_without_load_are_left_out():
    probs, routing, labels = problem(9, k=1)
    routing = jnp.stack([routing[:, 0] + routing[:, 2], routing[:, 1], jnp.zeros(60)], axis=1)
    found = results_of(probs, routing, labels)
    for name in ("view", "region", "active"):
        errors = found[name]
        assert errors.load[2] == 0
        assert errors.effective_examples[2] == 0
        for value in (errors.top_label, errors.classwise, errors.gap):
            assert jnp.isnan(value).tolist() == [False, False, True]
    load = found["mixture"].load[:2]
    for part in found["mixture"][:2]:
        np.testing.assert_allclose(part.expert_mean, load @ part.experts[:2], rtol=1e-6)
        np.testing.assert_allclose(part.gap, part.aggregate - part.expert_mean, atol=1e-7)


def test_an_expert_without_weight_need_not_be_computed():
    probs, routing, labels = problem(10, k=2)
    holes = jnp.where(routing[..., None] > 0, probs, jnp.nan)
    expected = results_of(probs, routing, labels)
    assert_trees_same(results_of(holes, routing, labels), expected)
    found = mixed_of(jnp.log(holes) + 1.0, routing, labels, from_logits=True)
    for name, values in found.items():
        assert_trees_same(values, expected[name], rtol=1e-4, atol=1e-5)


def test_nothing_counts():
    probs, routing, labels = problem()
    for found in (
        mixed_of(probs[:0], routing[:0], labels[:0]),
        results_of(probs, routing, labels, where=jnp.zeros(60, bool)),
        results_of(probs, routing, labels, weights=jnp.zeros(60)),
    ):
        assert all(jnp.isnan(value).all() for value in jax.tree.leaves(found))


def test_one_example_has_no_standard_error():
    probs, routing, labels = problem()
    found = results_of(probs, routing, labels, where=jnp.arange(60) == 4)
    confidence, correct = references.top_label(np.asarray(probs[4]), np.full(3, labels[4]))
    np.testing.assert_allclose(found["view"].gap, confidence - correct, rtol=1e-5)
    np.testing.assert_allclose(found["view"].top_label, abs(confidence - correct), rtol=1e-5)
    assert jnp.isfinite(found["identity"].difference)
    assert jnp.isnan(found["identity"].standard_error)
    assert jnp.isnan(found["identity"].view_error).all()
    np.testing.assert_allclose(found["view"].effective_examples, 1, rtol=1e-6)


def test_what_is_invalid_is_nan_only_where_it_counts():
    probs, routing, labels = problem()
    clean = results_of(probs, routing, labels, where=jnp.arange(60) != 3)
    bad = {
        "a distribution that is none": (probs.at[3, 1, 0].add(0.5), routing, labels),
        "NaN experts": (probs.at[3].set(jnp.nan), routing, labels),
        "NaN weights": (probs, routing.at[3].set(jnp.nan), labels),
        "a negative weight": (probs, routing.at[3].set(jnp.array([-0.2, 0.6, 0.6])), labels),
        "a label": (probs, routing, labels.at[3].set(4)),
        "a negative label": (probs, routing, labels.at[3].set(-1)),
    }
    for name, args in bad.items():
        masked = results_of(*args, where=jnp.arange(60) != 3)
        assert_trees_same(masked, clean, rtol=0, atol=0)
        found = results_of(*args)
        experts = found["view"].top_label
        assert jnp.isnan(experts).any(), name
        assert jnp.isnan(found["identity"].difference), name
        assert jnp.isnan(found["mixture"].top_label.aggregate), name
        assert jnp.isnan(found["mixture"].classwise.expert_mean), name


def test_routing_weights_of_a_mixture_sum_to_one():
    probs, routing, labels = problem()
    found = results_of(probs, 0.9 * routing, labels)
    assert all(jnp.isnan(x).all() for x in jax.tree.leaves(found["mixture"]))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found["view"]))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found["identity"]))
    whole = results_of(probs, routing, labels)["view"]
    assert_trees_same(found["view"]._replace(load=whole.load), whole)


def test_the_scale_of_weights_does_not_matter():
    probs, routing, labels = problem(11)
    weights = jnp.asarray(np.random.RandomState(0).rand(60), jnp.float32)
    expected = results_of(probs, routing, labels, weights)
    for scale in (1e-12, 1e6):
        assert_trees_same(results_of(probs, routing, labels, weights * scale), expected, rtol=1e-4)


def test_order_of_examples_and_of_experts_does_not_matter():
    probs, routing, labels = problem(12)
    expected = results_of(probs, routing, labels)
    order = np.random.RandomState(0).permutation(60)
    assert_trees_same(results_of(probs[order], routing[order], labels[order]), expected)
    turned = results_of(probs[:, ::-1], routing[:, ::-1], labels)
    assert_trees_same(turned["mixture"].top_label.gap, expected["mixture"].top_label.gap)
    assert_trees_same(turned["view"].top_label[::-1], expected["view"].top_label)
    assert_trees_same(turned["identity"].view[::-1], expected["identity"].view)


def test_vmap_equals_a_loop():
    several = [problem(seed) for seed in range(3)]
    mapped = jax.jit(jax.vmap(mixed))(*map(jnp.stack, zip(*several, strict=True)))
    for i, args in enumerate(several):
        found = results_of(*args)
        for name, values in mapped.items():
            assert_trees_same(jax.tree.map(lambda x, i=i: x[i], values), found[name])


def test_rough_inputs_are_computed_in_float32():
    probs, routing, labels = problem(14)
    rough = probs.astype(jnp.bfloat16), routing.astype(jnp.bfloat16)
    found = mixed_of(*rough, labels)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))
    mixture, identity = found["mixture"], found["identity"]
    assert jnp.isfinite(mixture.top_label.aggregate)
    np.testing.assert_allclose(mixture.router_confidence, routing.max(1).mean(), rtol=1e-2)
    exact = results_of(probs, routing, labels)
    assert_trees_same(identity, exact["identity"], rtol=0.01, atol=3e-3)
    # such sums are no distribution for float32
    widened = results_of(*(x.astype(jnp.float32) for x in rough), labels)
    assert jnp.isnan(widened["identity"].difference)


def test_float_labels_are_refused(unchecked):
    probs, routing, labels = problem()
    with pytest.raises(TypeError, match="labels must be of integers"):
        disagreement_identity(probs, routing, labels.astype(jnp.float32))
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        expert_bins(probs, routing, labels, num_bins=0)


def test_the_aggregate_may_be_calibrated_by_gradients():
    """The identity's parts have finite gradients, hard routing included."""
    for k in (1, 3):
        probs, routing, labels = problem(15, k=k)
        gradients = jax.jit(
            jax.grad(lambda p, r, y: disagreement_identity(p, r, y).disagreement, argnums=(0, 1))
        )(probs, routing, labels)
        assert all(jnp.isfinite(x).all() for x in gradients)


def test_gradients_leave_out_experts_that_were_not_computed():
    rng = np.random.RandomState(0)
    logits = jnp.asarray(rng.randn(30, 3, 4), jnp.float32)
    labels = jnp.asarray(rng.randint(4, size=30))
    routing = jnp.asarray(rng.dirichlet(np.ones(3), size=30), jnp.float32)
    routing = routing.at[5].set(jnp.array([0.25, 0.75, 0.0]))

    @jax.jit
    @jax.grad
    def slope(logits):
        found = cm.calibration.mixture_calibration(logits, routing, labels, from_logits=True)
        return found.top_label.aggregate + found.classwise.aggregate + found.top_label.expert_mean

    clean = slope(logits)
    assert jnp.isfinite(clean).all()
    np.testing.assert_allclose(slope(logits.at[5, 2].set(jnp.nan)), clean, atol=1e-6)
