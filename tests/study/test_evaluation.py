"""Records against independent counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from small import small_task

import calmoe_jax as cm
from calmoe_jax import training
from calmoe_jax.nn import Network
from calmoe_jax.shift import repair
from calmoe_jax.study import evaluation
from calmoe_jax.study.config import ModelConfig
from calmoe_jax.study.methods import Method
from calmoe_jax.study.networks import build_network
from calmoe_jax.training import TrainState, objectives

SEEDS = (1, 2)
VANILLA = Method("vanilla", objectives.erm())
MOCAE = Method("mocae", objectives.erm(), expert_temperatures=True)
SINGLE = Method("single", objectives.erm())


def fake_network(experts):
    """A network that is a linear map, and a seed's parameters."""

    def apply(params, statistics, inputs, *, train, sparse=False):
        assert not train
        log_probs = jax.nn.log_softmax(jnp.einsum("nd,dec->nec", inputs, params["experts"]))
        gate = inputs @ params["gate"]
        prediction = cm.mixture.predict(log_probs, gate)
        return prediction, statistics

    rng = np.random.RandomState(0)
    params = {
        "experts": jnp.asarray(
            2 * np.eye(4, 3)[None, :, None, :] + rng.randn(2, 4, experts, 3), jnp.float32
        ),
        "gate": jnp.asarray(rng.randn(2, 4, experts), jnp.float32),
    }
    importance = np.full((2, experts), 1 / experts)
    return training.TrainedSeeds(Network(None, apply), TrainState(params, {}, ()), importance)


@pytest.fixture(scope="module")
def evaluated():
    task, trained = small_task(), fake_network(3)
    results = dict(
        zip(
            ("vanilla", "mocae"),
            evaluation.evaluate(task, trained, (VANILLA, MOCAE), SEEDS, routing="dense"),
            strict=True,
        )
    )
    return task, trained, results


def outputs_of(trained, inputs, seed):
    params = jax.tree.map(lambda x: x[seed], trained.state.params)
    prediction, _ = trained.network.apply(params, {}, jnp.asarray(inputs), train=False)
    return np.asarray(prediction.expert_log_probs), np.asarray(prediction.routing.combine_weights)


def test_every_combination_is_recorded_once(evaluated):
    task, _, results = evaluated
    for method, (evaluations, _, shifts) in results.items():
        records = [r for e in evaluations for r in e.records]
        keys = [(r.calibrator, r.split, r.seed) for r in records]
        assert len(keys) == len(set(keys)) == len(evaluation.CALIBRATORS) * 4 * 2
        assert [(x.split, x.seed) for x in shifts] == [
            (split.name, seed) for split in task.evaluation for seed in SEEDS
        ]
        by = {(r.calibrator, r.split, r.seed): r for r in records}
        for finding in shifts:  # what a verdict says is what the tables hold
            assert set(finding.mean_confidence) == {"none", "temperature", *finding.temperatures}
            for name, value in finding.mean_confidence.items():
                record = by[name, finding.split, finding.seed]
                assert abs(record.accuracy + record.confidence_gap - value) < 1e-5, name
        assert {(r.task, r.method, r.routing) for r in records} == {("portal", method, "dense")}
        assert {(r.split, r.kind, r.n) for r in records} == {
            (s.name, s.kind, len(s)) for s in task.evaluation
        }


def test_records_equal_oracles(evaluated):
    _, trained, results = evaluated
    for e in results["vanilla"][0]:
        if e.calibrator != "none":
            continue
        for i in range(2):
            log_experts, weights = outputs_of(trained, e.split.inputs, i)
            probs = references.mix(np.exp(log_experts, dtype=np.float64), weights)
            labels = e.split.labels
            correct = probs.argmax(1) == labels
            record = e.records[i]
            true = np.eye(3)[labels]
            expected = {
                "accuracy": correct.mean(),
                "nll": -np.log(probs[np.arange(len(labels)), labels]).mean(),
                "brier": ((probs - true) ** 2).sum(1).mean(),
                "ece": references.calibration_error(probs.max(1), correct),
                "classwise_ece": np.mean(
                    [references.calibration_error(probs[:, c], labels == c) for c in range(3)]
                ),
                "confidence_gap": probs.max(1).mean() - correct.mean(),
                "disagreement": references.disagreement(np.exp(log_experts), weights).mean(),
                "routing_entropy": np.mean([references.entropy(w) for w in weights]),
            }
            voted = e.split.soft_labels
            if voted is None:
                expected |= dict.fromkeys(("human_nll", "human_brier", "human_ece"))
            else:
                voted = voted.astype(np.float64)
                chosen = voted[np.arange(len(labels)), probs.argmax(1)]
                expected |= {
                    "human_nll": -(voted * np.log(probs)).sum(1).mean(),
                    "human_brier": np.mean(
                        [
                            sum(q * ((p - np.eye(3)[c]) ** 2).sum() for c, q in enumerate(row))
                            for p, row in zip(probs, voted, strict=True)
                        ]
                    ),
                    "human_ece": references.calibration_error(probs.max(1), chosen),
                }
            for name, value in expected.items():
                if value is None:
                    assert getattr(record, name) is None, (e.split.name, name)
                    continue
                assert abs(getattr(record, name) - value) < 1e-5, (e.split.name, name)


def test_temperatures_are_fitted_on_the_calibration_split_alone(evaluated):
    task, trained, results = evaluated
    evaluations, fits, _ = results["vanilla"]
    for i, seed in enumerate(SEEDS):
        log_experts, weights = outputs_of(trained, task.calibration.inputs, i)
        labels = jnp.asarray(task.calibration.labels)
        mixed = cm.mix_log_probs(jnp.asarray(log_experts), jnp.asarray(weights))
        expected = cm.calibration.calibrators.fit_temperature(mixed, labels).temperature
        (line,) = (f for f in fits if (f.calibrator, f.seed) == ("temperature", seed))
        assert abs(line.temperature / float(expected) - 1) < 1e-4
        for e in evaluations:
            if e.calibrator == "temperature":
                log_experts, weights = outputs_of(trained, e.split.inputs, i)
                mixed = cm.mix_log_probs(jnp.asarray(log_experts), jnp.asarray(weights))
                scaled = jax.nn.log_softmax(mixed / expected)
                nll = cm.calibration.negative_log_likelihood(
                    scaled, jnp.asarray(e.split.labels), from_logits=True
                )
                assert abs(e.records[i].nll - float(nll)) < 1e-4


@pytest.mark.exhaustive
def test_per_expert_weights_by_the_router_and_mocae_does_not(evaluated):
    task, trained, results = evaluated
    labels = jnp.asarray(task.calibration.labels)
    log_experts, weights = (jnp.asarray(x) for x in outputs_of(trained, task.calibration.inputs, 0))
    on_view = cm.calibration.calibrators.fit_expert_temperatures(
        log_experts, labels, routing_weights=weights
    )
    on_all = cm.calibration.calibrators.fit_expert_temperatures(log_experts, labels)
    fits = {
        (m, f.calibrator): f.temperature
        for m, (_, lines, _) in results.items()
        for f in lines
        if f.seed == SEEDS[0]
    }
    np.testing.assert_allclose(fits["vanilla", "per_expert"], on_view.temperature, rtol=1e-4)
    np.testing.assert_allclose(fits["mocae", "mocae"], on_all.temperature, rtol=1e-4)
    assert np.abs(np.array(on_view.temperature) - np.array(on_all.temperature)).max() > 0.01


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1]])
def test_each_expert_gets_its_own_temperature(order):
    """Whatever slot it is in."""
    task, trained = small_task(), fake_network(3)
    split = task.evaluation[0]
    log_probs, weights = outputs_of(trained, split.inputs, 1)
    outputs = evaluation.predict(trained, split.inputs)
    slots = evaluation.Outputs(*(x[:, :, np.array(order)] for x in outputs))
    experts = np.array([0.5, 1.0, 4.0])
    temperatures = evaluation.Temperatures(
        jnp.tile(jnp.asarray(experts, jnp.float32), (2, 1)), jnp.full(2, 2.0)
    )
    scores = evaluation._score(
        slots, temperatures, jnp.asarray(split.labels), jnp.ones(len(split), bool)
    )
    scaled = references.softmax(log_probs / experts[None, :, None])
    mixed = references.softmax(np.log(references.mix(scaled, weights)) / 2)
    wanted = -np.log(mixed[np.arange(len(split)), split.labels]).mean()
    np.testing.assert_allclose(scores.metrics["nll"][1], wanted, rtol=1e-5)
    moved = evaluation._scale_experts(slots, temperatures.experts)
    np.testing.assert_allclose(
        jnp.exp(moved.expert_log_probs[1]), scaled[:, order], rtol=1e-4, atol=1e-6
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("routing", ["top_k", "hard"])
def test_records_do_not_depend_on_how_experts_are_computed(routing, monkeypatch):
    task, methods = small_task(), (VANILLA, MOCAE)
    model = ModelConfig(width=8, depth=1, experts=3, routing=routing, k=2)
    network = build_network(model, task.train.inputs, single=False, num_classes=3)
    params, statistics = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 2))
    state = TrainState(params, statistics, ())
    trained = training.TrainedSeeds(network, state, np.full((2, 3), 1 / 3))
    sparse = list(evaluation.evaluate(task, trained, methods, SEEDS, routing=routing))
    predict = evaluation.predict
    monkeypatch.setattr(evaluation, "predict", lambda t, x, *, sparse: predict(t, x, sparse=False))
    dense = list(evaluation.evaluate(task, trained, methods, SEEDS, routing=routing))
    assert predict(trained, task.evaluation[0].inputs, sparse=True).expert_indices.shape[2] < 3
    for (left, left_fits, left_shifts), (right, right_fits, right_shifts) in zip(
        sparse, dense, strict=True
    ):
        assert left_fits == right_fits
        for one, other in zip(left_shifts, right_shifts, strict=True):
            assert one.temperatures == pytest.approx(other.temperatures, rel=1e-3)
            assert one.p_value == other.p_value
        for a, b in zip(left, right, strict=True):
            for one, other in zip(a.records, b.records, strict=True):
                one, other = dataclasses.asdict(one), dataclasses.asdict(other)
                # a repair's temperature differs in its last digits: an example may change its bin
                binned = {name: one.pop(name) for name in ("ece", "classwise_ece")}
                for name, value in binned.items():
                    assert value == pytest.approx(other.pop(name), abs=1 / one["n"]), name
                assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.exhaustive
def test_a_single_classifier_has_no_disagreement_to_report():
    (result,) = evaluation.evaluate(
        small_task(), fake_network(1), (SINGLE,), SEEDS, routing="dense"
    )
    for record in (r for e in result[0] for r in e.records):
        assert record.disagreement is None
        assert record.routing_entropy is None
    by = {(e.calibrator, e.split.name): e.records for e in result[0]}
    for name in ("test", "late"):  # one expert: its temperature is the aggregate's
        a, b = by["temperature", name], by["per_expert", name]
        assert all(abs(x.nll - y.nll) < 1e-5 for x, y in zip(a, b, strict=True))


def test_temperatures_without_a_finite_optimum():
    logits = jnp.array([[5.0, 0.0], [0.0, 5.0]])
    right = cm.calibration.calibrators.fit_temperature(logits, jnp.array([0, 1]))
    assert float(repair.usable_temperature(right)) == 1.0
    wrong = cm.calibration.calibrators.fit_temperature(logits, jnp.array([1, 0]))
    assert float(repair.usable_temperature(wrong)) > 1e4


def test_nan_is_an_error_and_an_infinite_loss_is_none():
    assert evaluation._finite("nll", np.float32(np.inf)) is None
    with pytest.raises(FloatingPointError, match="ece is NaN"):
        evaluation._finite("ece", np.float32(np.nan))


@pytest.mark.exhaustive
def test_bootstrap_counts():
    counts = cm.calibration.intervals.bootstrap_counts(jax.random.key(0), 8, num_replicates=4000)
    assert (counts.sum(axis=1) == 8).all()
    np.testing.assert_allclose(counts.mean(axis=0), 1, atol=0.06)
    np.testing.assert_allclose(counts.var(axis=0), 1 - 1 / 8, atol=0.08)
    assert (
        cm.calibration.intervals.bootstrap_counts(jax.random.key(0), 1, num_replicates=3) == 1
    ).all()
    with pytest.raises(ValueError, match="num_clusters must be at least 1"):
        cm.calibration.intervals.bootstrap_counts(jax.random.key(0), 0)
