"""Temperatures for splits without their labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small_task

import calmoe_jax as cm
from calmoe_jax.shift import repair
from calmoe_jax.shift.repair.fit import _effective_share
from calmoe_jax.shift.repair.held_out import spread
from calmoe_jax.shift.repair.sides import side_of
from calmoe_jax.shift.repair.temperatures import match_aim

SEEDS, EXPERTS, CLASSES = 3, 4, 3


def normal(key, shape):
    """The same numbers whatever the default dtype is."""
    return jax.random.normal(key, shape, jnp.float32).astype(jnp.zeros(()).dtype)


def draw(size, seed=0, alike=2.0):
    """Predictions of seeds that agree more often than by chance, if they have anything alike."""
    logits, gates, common = jax.random.split(jax.random.key(seed), 3)
    logits = 2 * normal(logits, (SEEDS, size, EXPERTS, CLASSES))
    logits += alike * normal(common, (size, 1, CLASSES))[None]
    weights = jax.nn.softmax(normal(gates, (SEEDS, size, EXPERTS)))
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


def test_temperatures_keep_the_floor_and_are_finite(fitted):
    task, split, held_out, _, targets, _ = fitted
    high = fit(task, held_out, jnp.full(SEEDS, 50.0), targets, split)
    for name, value in high.temperatures.items():
        assert (value >= 50 * (1 - 1e-6)).all(), name
    logits, one = targets.expert_log_probs[0, :, 0], jnp.ones(())
    where = jnp.ones(len(logits), bool)
    hopeless = jax.jit(match_aim)(logits, jnp.zeros(()), one, where)
    assert 10 < hopeless < 1e5
    assert cm.shift.mean_confidence(logits, hopeless) < 1 / CLASSES + 2e-3


def test_mean_confidences_are_those_of_the_temperatures(fitted):
    """Of the real targets alone: none is counted that is padding."""
    _, split, _, inside, targets, found = fitted
    log_probs = np.asarray(cm.mix_log_probs(*(x[:, : len(split)] for x in targets)), np.float64)
    given = {"none": np.ones(SEEDS), "temperature": inside, **found.temperatures}
    assert list(found.mean_confidence) == list(given)
    for name, temperatures in given.items():
        scaled = np.exp(log_probs / np.asarray(temperatures)[:, None, None])
        largest = (scaled / scaled.sum(axis=-1, keepdims=True)).max(axis=-1)
        np.testing.assert_allclose(found.mean_confidence[name], largest.mean(axis=1), rtol=1e-5)


def test_padding_does_not_matter(fitted):
    task, split, held_out, inside, targets, found = fitted
    garbage = repair.Sample(
        targets.expert_log_probs.at[:, len(split) :].set(-3.0),
        targets.routing_weights.at[:, len(split) :].set(0.9),
    )
    again = fit(task, held_out, inside, garbage, split)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@jax.jit
def by_public_functions(labels, own, clusters, held_out, targets, inside):
    """Temperatures of one seed and its mean confidences, with public functions alone.

    The modes are missing: they are of all seeds.
    """
    samples = held_out, targets
    ours, theirs = (cm.configuration(*sample) for sample in samples)
    means = [cm.shift.mean_confidence(x.log_probs, inside) for x in (ours, theirs)]
    accuracy = cm.calibration.accuracy(ours.log_probs, labels, from_logits=True)
    levels = [jax.nn.softmax(x.log_probs / inside).max(axis=-1) for x in (ours, theirs)]
    predicted = [jnp.argmax(x.log_probs, axis=-1) for x in (ours, theirs)]
    points = [cm.shift.configuration_coordinates(*sample) for sample in samples]
    error = jnp.sqrt(sum(x.var() / len(x) for x in levels))
    supports = [
        cm.shift.neighbour_support(
            p, c, points[0], labels, num_classes=CLASSES, clusters=n, num_clusters=len(n), **more
        )
        for p, c, n, more in zip(
            points, predicted, (own, clusters), ({"reference_clusters": own}, {}), strict=True
        )
    ]
    aims = {
        "neighbours": cm.shift.neighbour_accuracy(*supports, means[0]),
        "difference_of_confidences": cm.shift.difference_of_confidences(
            accuracy, *means, slope=1.5
        ),
        "average_threshold": cm.shift.average_threshold_accuracy(
            levels[0], predicted[0] == labels, levels[1]
        ),
        "separability": cm.shift.separability_confidence(
            *means, error, cm.shift.separability(*points), num_classes=CLASSES
        ),
    }
    found = {name: matched(theirs.log_probs, aim, inside) for name, aim in aims.items()}
    solution = cm.shift.configuration_balance(
        *(cm.mixture.configuration_features(x) for x in (ours, theirs))
    )
    refit = cm.calibration.calibrators.fit_temperature(
        ours.log_probs, labels, weights=jnp.exp(solution.log_weights)
    )
    found["configuration_balanced"] = jnp.maximum(
        jnp.where(refit.converged, refit.temperature, 0), inside
    )
    shares = jnp.mean(jax.nn.one_hot(predicted[1], CLASSES), axis=0)
    chance = shares @ jnp.mean(jax.nn.one_hot(labels, CLASSES), axis=0)
    return found, aims["neighbours"], means, chance


def matched(log_probs, aim, inside):
    aim = jnp.maximum(aim, 1 / CLASSES + 1e-3)
    return cm.shift.match_confidence(log_probs, aim, at_least=inside).temperature


@jax.jit
def agreement_of(sample):
    predicted = jnp.argmax(cm.mix_log_probs(*sample), axis=-1)
    return cm.shift.chance_corrected_agreement(predicted, num_classes=CLASSES)


def test_each_rule_is_the_public_functions_put_together(fitted):
    task, split, held_out, inside, targets, found = fitted
    labels = jnp.asarray(task.calibration.labels)
    real = repair.Sample(*(x[:, : len(split)] for x in targets))
    ids = [
        jnp.asarray(np.unique(x.clusters, return_inverse=True)[1])
        for x in (task.calibration, split)
    ]
    agreement = [agreement_of(sample) for sample in (held_out, real)]
    match = jax.jit(matched)
    for i in range(SEEDS):
        of_seed = [repair.Sample(*(x[i] for x in sample)) for sample in (held_out, real)]
        expected, by_neighbours, means, chance = by_public_functions(
            labels, *ids, *of_seed, inside[i]
        )
        by_seeds = cm.shift.agreement_accuracy(
            *agreement, jnp.full(SEEDS, means[0]), jnp.full(SEEDS, chance),
            target_confidence=jnp.full(SEEDS, means[1]),
        )[i]  # fmt: skip
        log_probs = cm.mix_log_probs(*of_seed[1])
        expected["safe"] = match(log_probs, by_seeds, inside[i])
        expected["bold"] = match(log_probs, jnp.minimum(by_seeds, by_neighbours), inside[i])
        assert set(expected) == set(found.temperatures)
        assert expected["neighbours"] > inside[i]
        assert expected["bold"] >= max(expected["safe"], expected["neighbours"]) * (1 - 1e-3)
        for name, value in expected.items():
            np.testing.assert_allclose(found.temperatures[name][i], value, rtol=2e-3, err_msg=name)


def test_safe_lowers_the_confidence_where_seeds_agree_less(fitted):
    task, split, held_out, inside, _, _ = fitted
    targets = draw(len(split) + 7, seed=1, alike=0.8)
    found = fit(task, held_out, inside, targets, split)
    real = repair.Sample(*(x[:, : len(split)] for x in targets))
    log_probs = [jax.vmap(cm.mix_log_probs)(*x) for x in (held_out, real)]
    means = [jax.vmap(cm.shift.mean_confidence)(x, inside) for x in log_probs]
    predicted = [np.argmax(x, axis=-1) for x in log_probs]
    shares = np.eye(CLASSES)[predicted[1]].mean(axis=1)
    chance = shares @ np.eye(CLASSES)[task.calibration.labels].mean(axis=0)
    aims = cm.shift.agreement_accuracy(
        agreement_of(held_out), agreement_of(real), means[0], jnp.asarray(chance, jnp.float32),
        target_confidence=means[1],
    )  # fmt: skip
    assert (aims < means[1] - 0.02).all()
    aims = jnp.maximum(aims, 1 / CLASSES + 1e-3)
    np.testing.assert_allclose(found.mean_confidence["safe"], aims, atol=1e-3)
    np.testing.assert_allclose(found.mean_confidence["temperature"], means[1], rtol=1e-5)
    for i in range(SEEDS):
        record = repair.describe(found, i)
        assert record.decision == "lower_confidence"
        assert f"from {means[1][i]:.3f} to {found.mean_confidence['safe'][i]:.3f}" in record.reason
    np.testing.assert_array_equal(
        found.temperatures["bold"],
        np.maximum(found.temperatures["safe"], found.temperatures["neighbours"]),
    )


@pytest.mark.exhaustive
def test_peers_are_to_one_seed_what_the_other_seeds_are(fitted):
    """One mixture and the classes that the others predict: what all mixtures together give it."""
    task, split, held_out, inside, _, _ = fitted
    targets = draw(len(split) + 7, seed=1, alike=0.8)
    together = fit(task, held_out, inside, targets, split)
    one = [repair.Sample(*(x[:1] for x in sample)) for sample in (held_out, targets)]
    others = [
        jnp.argmax(cm.mix_log_probs(*(x[1:] for x in sample)), axis=-1).astype(jnp.int32)
        for sample in (held_out, targets)
    ]
    clusters = task.calibration.clusters
    prepared = repair.prepare(
        one[0], task.calibration.labels, clusters, inside[:1], peers=others[0]
    )
    found = repair.fit_to_targets(prepared, one[1], split.clusters, peers=others[1])
    for name, value in found.temperatures.items():
        np.testing.assert_allclose(value, together.temperatures[name][:1], rtol=1e-5, err_msg=name)
    assert found.temperatures["safe"][0] > inside[0] * 1.05
    assert found.num_peers == together.num_peers == SEEDS - 1
    assert repair.describe(found, 0).reason == repair.describe(together, 0).reason
    for peers in (None, others[1][:1]):
        with pytest.raises(ValueError, match="peers must be the 2 that"):
            repair.fit_to_targets(prepared, one[1], split.clusters, peers=peers)


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


@pytest.mark.exhaustive
def test_bold_is_the_more_cautious_of_two():
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
    found = repair.fit_to_targets(
        repair.prepare(held_out, labels, alone, jnp.ones(2)),
        repair.Sample(*(jnp.pad(x, pad[: x.ndim]) for x in targets)), alone,
    ).temperatures  # fmt: skip
    np.testing.assert_allclose(found["safe"], 1, rtol=1e-4)
    np.testing.assert_allclose(found["bold"], found["neighbours"], rtol=1e-4)
    of_seed = [repair.Sample(*(x[0] for x in sample)) for sample in (held_out, targets)]
    numbers = jnp.asarray(alone)
    expected, _, means, _ = by_public_functions(
        jnp.asarray(labels), numbers, numbers, *of_seed, jnp.ones(())
    )
    np.testing.assert_allclose(found["neighbours"][0], expected["neighbours"], rtol=1e-3)
    sure = jax.jit(matched)(cm.mix_log_probs(*of_seed[1]), max(means), jnp.ones(()))
    assert (found["bold"] > 1.2 * sure).all()


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
    """One preparation for several splits gives the same result as one for each."""
    task, split, held_out, inside, targets, found = fitted
    prepared = repair.prepare(held_out, task.calibration.labels, task.calibration.clusters, inside)
    monkeypatch.setattr(repair.held_out, "_prepare", None)
    for _ in range(2):
        again = repair.fit_to_targets(prepared, targets, split.clusters)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)
    record = repair.describe(found, 1)
    assert record.p_value == float(found.shift.p_value[1])
    assert record.temperatures == {k: float(v[1]) for k, v in found.temperatures.items()}
    assert record.mean_confidence == {k: float(v[1]) for k, v in found.mean_confidence.items()}
    numbers = [record.mean_confidence[name] for name in ("temperature", "safe", "bold")]
    verdict = cm.shift.repair_verdict(record.p_value, *numbers, len(split), peers=True)
    assert (record.decision, record.reason, record.labels) == verdict
    other = {name: jnp.full(SEEDS, 0.9 - 0.1 * i) for i, name in enumerate(found.mean_confidence)}
    numbers = [float(other[name][0]) for name in ("temperature", "safe", "bold")]
    changed = repair.describe(found._replace(mean_confidence=other), 1)
    verdict = cm.shift.repair_verdict(record.p_value, *numbers, len(split), peers=True)
    assert (changed.decision, changed.reason, changed.labels) == verdict
    assert record.balance == repair.balance_evidence(
        record.effective_share, len(task.calibration), hard=False, feasible=record.balanced
    )


def test_the_effective_share_is_of_clusters():
    weights = jnp.array([0.5, 0.2, 0.2, 0.1])
    alone = _effective_share(weights, jnp.arange(4))
    np.testing.assert_allclose(alone, 1 / np.sum(np.square(weights)) / 4, rtol=1e-6)
    # copies of an example in its cluster are no further evidence
    copies = _effective_share(jnp.repeat(weights, 3) / 3, jnp.repeat(jnp.arange(4), 3))
    np.testing.assert_allclose(copies, alone, rtol=1e-6)
    uneven = _effective_share(jnp.full(4, 0.25), jnp.array([0, 0, 0, 1]))
    np.testing.assert_allclose(uneven, 1 / (0.75**2 + 0.25**2) / 2, rtol=1e-6)


def test_the_verdict_counts_clusters(fitted):
    task, split, held_out, inside, targets, found = fitted
    several = np.arange(len(task.calibration)) // 5
    again = repair.fit_to_targets(
        repair.prepare(held_out, task.calibration.labels, several, inside), targets, split.clusters
    )
    sizes = found.num_held_out, found.num_targets, found.clustered
    assert sizes == (len(task.calibration), len(split), False)
    sizes = again.num_held_out, again.num_targets, again.clustered
    assert sizes == (several[-1] + 1, len(split), True)
    # what is not a decision is as before
    np.testing.assert_allclose(again.separability, found.separability, rtol=1e-5)
    assert f"of {several[-1] + 1} held-out clusters are like" in repair.describe(again, 0).balance
    fours = repair.fit_to_targets(
        repair.prepare(held_out, task.calibration.labels, several, inside), targets,
        np.arange(len(split)) // 4,
    )  # fmt: skip
    assert fours.num_targets == -(-len(split) // 4)
    sure = fours._replace(shift=jax.tree.map(jnp.zeros_like, fours.shift), smallest_p_value=0.0)
    assert f"label all {fours.num_targets} clusters of targets" in repair.describe(sure, 0).reason


def test_an_impossible_label_does_not_end_the_fit():
    """It counts as the smallest positive probability; other rows and classes stay as they are."""
    log_probs = jnp.log(jnp.array([[0.9, 0.1, 0.0], [0.25, 0.75, 0.0], [0.5, 0.4996, 0.0004]]))
    labels = jnp.array([2, 0, 1])
    found = repair.with_possible_labels(log_probs, labels)
    expected = log_probs.at[0, 2].set(jnp.log(0.0004))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(repair.least_log_prob(log_probs)), 0.0004, rtol=1e-5)
    certain = jnp.log(jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(jnp.exp(repair.least_log_prob(certain)), 0.001, rtol=1e-5)
    many, right = jnp.tile(log_probs, (20, 1)), jnp.tile(jnp.array([0, 1, 0]), 20)
    fit, wrong = cm.calibration.calibrators.fit_temperature, right.at[0].set(2)
    assert not fit(many, wrong).converged
    fitted = fit(repair.with_possible_labels(many, wrong), wrong)
    assert fitted.converged
    assert fitted.temperature > fit(many, right).temperature


def test_an_impossible_label_does_not_end_the_fit_on_balanced_examples(fitted):
    task, split, held_out, _, targets, _ = fitted
    label = int(task.calibration.labels[0])
    wrong = held_out.expert_log_probs.at[:, 0].set(jnp.log(jnp.arange(CLASSES) != label) - 0.7)
    found = fit(
        task, held_out._replace(expert_log_probs=wrong), jnp.full(SEEDS, 0.05), targets, split
    )
    assert found.balanced.all()
    assert (found.temperatures["configuration_balanced"] > 0.1).all()


@pytest.mark.exhaustive
def test_one_seed_has_no_peers(fitted):
    task, split, held_out, inside, targets, _ = fitted
    alone = [repair.Sample(*(x[:1] for x in sample)) for sample in (held_out, targets)]
    found = fit(task, alone[0], inside[:1], alone[1], split)
    assert tuple(found.temperatures) == repair.CALIBRATORS
    np.testing.assert_array_equal(found.temperatures["safe"], inside[:1])
    np.testing.assert_array_equal(found.temperatures["bold"], found.temperatures["neighbours"])
    assert "no model of another seed" in repair.describe(found, 0).reason
    assert "no model of another seed" not in repair.describe(fitted[-1], 0).reason


def test_slots_as_experts():
    log_probs = jnp.log(jnp.array([[[[0.7, 0.3], [0.2, 0.8]]]]))
    weights, indices = jnp.array([[[0.6, 0.4]]]), jnp.array([[[2, 0]]])
    found = repair.dense_sample(log_probs, weights, indices, num_experts=3)
    np.testing.assert_allclose(found.routing_weights, [[[0.4, 0, 0.6]]], rtol=1e-6)
    expected = [[[[0.2, 0.8], [0.5, 0.5], [0.7, 0.3]]]]
    np.testing.assert_allclose(jnp.exp(found.expert_log_probs), expected, rtol=1e-6)
