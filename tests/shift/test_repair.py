"""Temperatures for splits without their labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_task

import calmoe_jax as cm
from calmoe_jax.shift import repair
from calmoe_jax.shift.repair.held_out import spread
from calmoe_jax.shift.repair.sides import side_of
from calmoe_jax.shift.repair.temperatures import match_aim

SEEDS, EXPERTS, CLASSES = 3, 4, 3


def draw(size, seed=0):
    """Predictions of seeds that agree more often than by chance."""
    logits, gates, common = jax.random.split(jax.random.key(seed), 3)
    logits = 2 * jax.random.normal(logits, (SEEDS, size, EXPERTS, CLASSES))
    logits += 2 * jax.random.normal(common, (size, 1, CLASSES))[None]
    weights = jax.nn.softmax(jax.random.normal(gates, (SEEDS, size, EXPERTS)))
    return repair.Sample(jax.nn.log_softmax(logits), weights)


def fit(task, held_out, inside, targets, split):
    """The calibration split's names stand for examples of `held_out`."""
    prepared = repair.prepare(held_out, task.calibration.labels, task.calibration.clusters, inside)
    return repair.fit_to_targets(prepared, targets, split.clusters)


@pytest.fixture(scope="module")
def fitted():
    task = small_task()
    split = task.evaluation[1]
    held_out, targets = draw(len(task.calibration)), draw(len(split) + 7, seed=1)
    # neighbours bear out what is predicted, but for the last class, which most targets are given
    predicted = np.asarray(jnp.argmax(cm.mix_log_probs(*(x[0] for x in held_out)), axis=-1))
    drawn = np.random.RandomState(0).randint(CLASSES, size=len(predicted))
    task.calibration.labels[:] = np.where(predicted == CLASSES - 1, drawn, predicted)
    biased = targets.expert_log_probs.at[..., -1].add(1.5)
    targets = targets._replace(expert_log_probs=jax.nn.log_softmax(biased))
    inside = jnp.array([0.5, 1.0, 2.0])
    found = fit(task, held_out, inside, targets, split)
    return task, split, held_out, inside, targets, found


def test_no_rule_goes_below_the_temperature_in_distribution(fitted):
    *_, inside, _, found = fitted
    assert tuple(found.temperatures) == repair.CALIBRATORS
    for name, value in found.temperatures.items():
        assert (value >= inside * (1 - 1e-6)).all(), name
    assert ((found.effective_share > 0) & (found.effective_share <= 1 + 1e-5)).all()
    assert ((found.separability >= 0) & (found.separability <= 1)).all()


def test_no_temperature_is_below_a_high_one_and_none_is_boundless(fitted):
    task, split, held_out, _, targets, _ = fitted
    high = fit(task, held_out, jnp.full(SEEDS, 50.0), targets, split)
    for name, value in high.temperatures.items():
        assert (value >= 50 * (1 - 1e-6)).all(), name
    logits, one = targets.expert_log_probs[0, :, 0], jnp.ones(())
    where = jnp.ones(len(logits), bool)
    hopeless = jax.jit(match_aim)(logits, jnp.zeros(()), one, where)
    assert 10 < hopeless < 1e5
    assert cm.shift.mean_confidence(logits, hopeless) < 1 / CLASSES + 2e-3


def test_padding_does_not_matter(fitted):
    task, split, held_out, inside, targets, found = fitted
    garbage = repair.Sample(
        targets.expert_log_probs.at[:, len(split) :].set(-3.0),
        targets.routing_weights.at[:, len(split) :].set(0.9),
    )
    again = fit(task, held_out, inside, garbage, split)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_each_rule_is_the_public_functions_put_together(fitted):
    task, split, held_out, inside, targets, found = fitted
    labels = jnp.asarray(task.calibration.labels)
    real = repair.Sample(*(x[:, : len(split)] for x in targets))
    mixed = [cm.mix_log_probs(*sample) for sample in (held_out, real)]
    agreement = [
        cm.shift.chance_corrected_agreement(jnp.argmax(x, axis=-1), num_classes=CLASSES)
        for x in mixed
    ]
    for i in range(SEEDS):
        ours, theirs = (cm.configuration(*(x[i] for x in sample)) for sample in (held_out, real))
        means = [cm.shift.mean_confidence(x.log_probs, inside[i]) for x in (ours, theirs)]
        accuracy = cm.calibration.accuracy(ours.log_probs, labels, from_logits=True)
        levels = [jax.nn.softmax(x.log_probs / inside[i]).max(axis=-1) for x in (ours, theirs)]
        shares = jnp.mean(jax.nn.one_hot(jnp.argmax(mixed[1][i], axis=-1), CLASSES), axis=0)
        classes = jnp.mean(jax.nn.one_hot(labels, CLASSES), axis=0)
        told = cm.shift.separability(
            *(
                cm.shift.configuration_coordinates(*(x[i] for x in sample))
                for sample in (held_out, real)
            )
        )
        aims = {
            "difference_of_confidences": cm.shift.difference_of_confidences(
                accuracy, *means, slope=1.5
            ),
            "average_threshold": cm.shift.average_threshold_accuracy(
                levels[0], jnp.argmax(mixed[0][i], axis=-1) == labels, levels[1]
            ),
            "separability": cm.shift.separability_confidence(
                *means, jnp.sqrt(sum(x.var() / len(x) for x in levels)), told, num_classes=CLASSES
            ),
            "agreement": cm.shift.agreement_accuracy(
                *agreement, jnp.full(SEEDS, means[0]), jnp.full(SEEDS, shares @ classes)
            )[i],
        }
        solution = cm.shift.configuration_balance(
            cm.mixture.configuration_features(ours), cm.mixture.configuration_features(theirs)
        )
        refit = cm.calibration.calibrators.fit_temperature(
            ours.log_probs, labels, weights=jnp.exp(solution.log_weights)
        )
        ids = [np.unique(x.clusters, return_inverse=True)[1] for x in (task.calibration, split)]
        points = [cm.shift.configuration_coordinates(*(x[i] for x in s)) for s in (held_out, real)]
        own, other = (
            cm.shift.neighbour_support(
                p, jnp.argmax(m[i], axis=-1), points[0], labels, num_classes=CLASSES,
                clusters=jnp.asarray(c), num_clusters=len(c), **more,
            )
            for p, m, c, more in zip(
                points, mixed, ids, ({"reference_clusters": jnp.asarray(ids[0])}, {}), strict=True
            )
        )  # fmt: skip
        aims["neighbours"] = cm.shift.neighbour_accuracy(own, other, means[0])
        aims["agreement"] = jnp.minimum(aims["agreement"], aims["neighbours"])
        expected = {
            name: cm.shift.match_confidence(
                theirs.log_probs, jnp.maximum(aim, 1 / CLASSES + 1e-3), at_least=inside[i]
            ).temperature
            for name, aim in aims.items()
        }
        expected["configuration_balanced"] = jnp.maximum(
            jnp.where(refit.converged, refit.temperature, 0), inside[i]
        )
        assert set(expected) == set(found.temperatures)
        assert min(expected["agreement"], expected["neighbours"]) > inside[i]
        for name, value in expected.items():
            np.testing.assert_allclose(found.temperatures[name][i], value, rtol=2e-3, err_msg=name)


def test_the_test_sees_as_many_examples_of_a_small_split_as_there_are():
    side = side_of(np.arange(40), 3000, most_examples=1000)
    assert side.num_clusters == len(side.rows) == 1000
    np.testing.assert_array_equal(side.counted, np.arange(1000) < 40)
    np.testing.assert_array_equal(side.rows[:40], np.arange(40))
    np.testing.assert_array_equal(side.numbers[:40], np.arange(40))
    assert (side.rows[40:] == 0).all()
    many = side_of(np.arange(3000), 3000, most_examples=1000)
    assert many.counted.all()
    np.testing.assert_allclose(many.rows, np.arange(1000) * 2999 / 999, atol=0.5)


@pytest.mark.parametrize(
    ("count", "size"), [(5000, 6000), (1500, 6000), (2001, 2001), (7, 9), (0, 3)]
)
def test_neighbours_are_looked_for_evenly(count, size):
    rows, counted = spread(jnp.asarray(count), size)
    most = min(count, 2000)
    np.testing.assert_array_equal(np.flatnonzero(counted), np.arange(most))
    expected = np.arange(most) * max(count, 1) // max(most, 1)
    np.testing.assert_array_equal(rows[:most], expected)
    assert (rows < max(count, 1)).all()


def test_agreement_is_the_more_cautious_of_two():
    """Seeds that never differ, and neighbours that do; many examples, so that it shows."""
    held_out, targets = (
        repair.Sample(*(jnp.broadcast_to(x[:1], (2, *x.shape[1:])) for x in draw(400, seed=i)))
        for i in range(2)
    )
    predicted = np.asarray(jnp.argmax(cm.mix_log_probs(*(x[0] for x in held_out)), axis=-1))
    drawn = np.random.RandomState(0).randint(CLASSES, size=400)
    labels = np.where(predicted == CLASSES - 1, drawn, predicted)
    biased = jax.nn.log_softmax(targets.expert_log_probs.at[..., -1].add(4.0))
    targets = targets._replace(expert_log_probs=biased)
    alone, pad = np.arange(400), ((0, 0), (0, 80), (0, 0), (0, 0))
    both, one = (
        repair.fit_to_targets(
            repair.prepare(repair.Sample(*(x[:n] for x in held_out)), labels, alone, jnp.ones(n)),
            repair.Sample(*(jnp.pad(x[:n], pad[: x.ndim]) for x in targets)),
            alone,
        ).temperatures
        for n in (2, 1)
    )
    np.testing.assert_allclose(both["agreement"], one["neighbours"][0], rtol=1e-4)
    numbers = {"clusters": jnp.asarray(alone), "num_clusters": 400}
    points = [cm.shift.configuration_coordinates(*(x[0] for x in s)) for s in (held_out, targets)]
    chosen = [jnp.argmax(cm.mix_log_probs(*(x[0] for x in s)), -1) for s in (held_out, targets)]
    own, other = (
        cm.shift.neighbour_support(
            p, c, points[0], jnp.asarray(labels), num_classes=CLASSES, **numbers, **more
        )
        for p, c, more in zip(
            points, chosen, ({"reference_clusters": jnp.asarray(alone)}, {}), strict=True
        )
    )
    ours, theirs = (cm.mix_log_probs(*(x[0] for x in s)) for s in (held_out, targets))
    aim = cm.shift.neighbour_accuracy(own, other, cm.shift.mean_confidence(ours, jnp.ones(())))
    expected = cm.shift.match_confidence(theirs, aim, at_least=1.0).temperature
    np.testing.assert_allclose(one["neighbours"][0], expected, rtol=1e-3)
    confidence = cm.shift.mean_confidence(cm.mix_log_probs(*(x[0] for x in held_out)), jnp.ones(()))
    matched = cm.shift.match_confidence(cm.mix_log_probs(*(x[0] for x in targets)), confidence)
    assert (both["agreement"] > 1.2 * jnp.maximum(matched.temperature, 1)).all()


def test_hard_routing_of_what_is_real_is_seen(fitted):
    task, split, held_out, inside, targets, found = fitted
    assert not found.hard.any()
    chosen = jax.nn.one_hot(jnp.argmax(targets.routing_weights, axis=-1), EXPERTS)
    real = (jnp.arange(chosen.shape[1]) < len(split))[None, :, None]
    hard = targets._replace(routing_weights=jnp.where(real, chosen, targets.routing_weights))
    assert fit(task, held_out, inside, hard, split).hard.all()


def test_clusters_of_the_test_stay_whole():
    own = side_of(np.repeat(["b", "a", "c"], 10), 30, most_examples=1000)
    other = side_of(np.arange(24) // 4, 40, most_examples=1000, least_clusters=9)
    assert (own.num_clusters, other.num_clusters) == (3, 9)
    np.testing.assert_array_equal(other.counted, np.arange(40) < 24)
    np.testing.assert_array_equal(own.numbers, np.repeat([1, 0, 2], 10))
    np.testing.assert_array_equal(other.numbers[:24], np.arange(24) // 4)


def test_what_is_known_of_held_out_examples_is_computed_once(fitted, monkeypatch):
    """One preparation serves several splits, and says what one for each would."""
    task, split, held_out, inside, targets, found = fitted
    prepared = repair.prepare(held_out, task.calibration.labels, task.calibration.clusters, inside)
    monkeypatch.setattr(repair.held_out, "_prepare", None)
    for _ in range(2):
        again = repair.fit_to_targets(prepared, targets, split.clusters)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)
    record = repair.describe(found, 1, len(task.calibration))
    assert record.p_value == float(found.shift.p_value[1])
    assert record.temperatures == {k: float(v[1]) for k, v in found.temperatures.items()}
    assert record.decision in ("keep", "rebalance", "cannot_repair")


def test_one_seed_has_nothing_to_agree_with(fitted):
    task, split, held_out, inside, targets, _ = fitted
    alone = [repair.Sample(*(x[:1] for x in sample)) for sample in (held_out, targets)]
    found = fit(task, alone[0], inside[:1], alone[1], split)
    assert set(found.temperatures) == set(repair.CALIBRATORS) - {"agreement"}


def test_slots_as_experts():
    log_probs = jnp.log(jnp.array([[[[0.7, 0.3], [0.2, 0.8]]]]))
    weights, indices = jnp.array([[[0.6, 0.4]]]), jnp.array([[[2, 0]]])
    found = repair.dense_sample(log_probs, weights, indices, num_experts=3)
    np.testing.assert_allclose(found.routing_weights, [[[0.4, 0, 0.6]]], rtol=1e-6)
    expected = [[[[0.2, 0.8], [0.5, 0.5], [0.7, 0.3]]]]
    np.testing.assert_allclose(jnp.exp(found.expert_log_probs), expected, rtol=1e-6)
