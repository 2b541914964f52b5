"""Evaluates a trained method on a task: records for every split, calibrator and seed."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from calmoe_jax import calibration, mixture
from calmoe_jax._mapping import over_seeds
from calmoe_jax.data import Split, Task
from calmoe_jax.shift import repair
from calmoe_jax.shift.repair import usable_temperature
from calmoe_jax.study.comparison import ExampleScores
from calmoe_jax.study.methods import Method
from calmoe_jax.study.records import METRICS, Fit, Record, ShiftFinding
from calmoe_jax.training import TrainedSeeds, TrainState

# The calibrators of `repair` use each split's unlabelled examples as well.
CALIBRATORS = ("none", "temperature", "per_expert", *repair.CALIBRATORS)

# Inputs go through a network in chunks of this many, so that one program serves every split.
_CHUNK = 1024


class Outputs(NamedTuple):
    """Predictions of the networks of all seeds for a split, of all experts or the chosen ones."""

    expert_log_probs: Float[Array, "seeds examples slots classes"]
    routing_weights: Float[Array, "seeds examples slots"]
    expert_indices: Int[Array, "seeds examples slots"]


class Temperatures(NamedTuple):
    """Temperatures of every expert before mixing, and of the aggregate after it."""

    experts: Float[Array, "*seeds experts"]
    aggregate: Float[Array, "*seeds"]


class Scores(NamedTuple):
    """Metrics of one seed on one split, and per-example scores for the bootstrap."""

    metrics: dict[str, Float[Array, ""]]
    bins: calibration.ReliabilityBins
    per_example: ExampleScores


class Evaluation(NamedTuple):
    """Results of one method, calibrator and split.

    Attributes:
        records: one for each seed.
        bins: reliability sums, summed over the seeds.
        per_example: scores of every example, `[seeds, examples]`.
    """

    method: str
    calibrator: str
    split: Split
    records: list[Record]
    bins: calibration.ReliabilityBins
    per_example: ExampleScores


def predict(trained: TrainedSeeds, inputs: PyTree, *, sparse: bool = False) -> Outputs:
    """Predictions of all seeds, in evaluation mode, in chunks of a fixed size.

    Args:
        trained: networks and their parameters.
        inputs: inputs.
        sparse: whether to compute only the chosen experts.
    """
    chunks = []
    length = len(jax.tree.leaves(inputs)[0])
    for start in range(0, length, _CHUNK):
        count = min(_CHUNK, length - start)
        padded = jax.tree.map(lambda x, start=start: _chunk(x, start), inputs)
        outputs = _predict_chunk(trained.network.apply, sparse, trained.state, padded)
        chunks.append(Outputs(*(x[:, :count] for x in outputs)))
    return Outputs(*(jnp.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True)))


def _chunk(x: np.ndarray, start: int) -> jax.Array:
    """A chunk of an array's rows, padded with zeros."""
    rows = x[start : start + _CHUNK]
    missing = np.zeros((_CHUNK - len(rows), *x.shape[1:]), x.dtype)
    return jnp.asarray(np.concatenate([rows, missing]))


@partial(jax.jit, static_argnums=(0, 1))
def _predict_chunk(apply: Any, sparse: bool, state: TrainState, inputs: PyTree) -> Outputs:
    def one_seed(params: PyTree, network_state: PyTree) -> Outputs:
        prediction, _ = apply(params, network_state, inputs, train=False, sparse=sparse)
        indices, weights = prediction.routing
        return Outputs(prediction.expert_log_probs, weights, indices)

    return over_seeds(one_seed)(state.params, state.network_state)


@jax.jit
def _fit(
    outputs: Outputs, labels: Int[Array, " examples"]
) -> dict[str, calibration.calibrators.TemperatureFit]:
    """Fits every temperature that a method or a calibrator needs, for every seed.

    The outputs must be of all experts, in their order.
    """

    def one_seed(
        expert_log_probs: Float[Array, "examples experts classes"],
        weights: Float[Array, "examples experts"],
    ) -> dict[str, calibration.calibrators.TemperatureFit]:
        fit_experts = calibration.calibrators.fit_expert_temperatures
        log_probs = mixture.mix_log_probs(expert_log_probs, weights)
        return {
            "mocae": fit_experts(expert_log_probs, labels),
            "temperature": calibration.calibrators.fit_temperature(log_probs, labels),
            "per_expert": fit_experts(expert_log_probs, labels, routing_weights=weights),
        }

    return over_seeds(one_seed)(outputs.expert_log_probs, outputs.routing_weights)


@jax.jit
def _scale_experts(outputs: Outputs, temperatures: Float[Array, "seeds experts"]) -> Outputs:
    of_slots = jax.vmap(lambda t, indices: t[indices])(temperatures, outputs.expert_indices)
    scaled = calibration.calibrators.scale_log_probs(outputs.expert_log_probs, of_slots)
    return outputs._replace(expert_log_probs=scaled)


@jax.jit
def _score(
    outputs: Outputs,
    temperatures: Temperatures,
    labels: Int[Array, " examples"],
    where: Bool[Array, " examples"],
    soft_labels: Float[Array, "examples classes"] | None = None,
) -> Scores:
    def one_seed(
        expert_log_probs: Float[Array, "examples slots classes"],
        weights: Float[Array, "examples slots"],
        expert_indices: Int[Array, "examples slots"],
        temperatures: Temperatures,
    ) -> Scores:
        of_slots = temperatures.experts[expert_indices]
        scaled = calibration.calibrators.scale_log_probs(expert_log_probs, of_slots)
        config = mixture.configuration(scaled, weights)
        log_probs = calibration.calibrators.scale_log_probs(
            config.log_probs, temperatures.aggregate[None]
        )
        probs = jnp.exp(log_probs)
        confidence, correct = calibration.top_label(probs, labels)
        correct = correct.astype(confidence.dtype)
        true = jax.nn.one_hot(labels, probs.shape[-1])
        per_example = ExampleScores(
            correct=correct,
            confidence=confidence,
            nll=-jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0],
            brier=jnp.sum(jnp.square(probs - true), axis=-1),
        )
        count = jnp.sum(where)

        def mean(values: Float[Array, " examples"]) -> Float[Array, ""]:
            return jnp.sum(jnp.where(where, values, 0)) / count

        by_class = calibration.classwise_bins(probs, labels, where=where)
        metrics = {
            "accuracy": calibration.accuracy(probs, labels, where=where),
            "nll": calibration.negative_log_likelihood(
                log_probs, labels, where=where, from_logits=True
            ),
            "brier": calibration.brier_score(probs, labels, where=where),
            "ece": calibration.expected_calibration_error(probs, labels, where=where),
            "classwise_ece": jnp.mean(calibration.calibration_error(by_class)),
            "smooth_ece": calibration.smooth_calibration_error(
                confidence, correct, where=where
            ).value,
            "confidence_gap": calibration.confidence_gap(probs, labels, where=where),
            "disagreement": mean(config.disagreement),
            "routing_entropy": mean(config.routing_entropy),
        }
        if soft_labels is not None:
            metrics |= {
                "human_nll": calibration.negative_log_likelihood(
                    log_probs, soft_labels, where=where, from_logits=True
                ),
                "human_brier": calibration.brier_score(probs, soft_labels, where=where),
                "human_ece": calibration.expected_calibration_error(
                    probs, soft_labels, where=where
                ),
            }
        bins = calibration.top_label_bins(probs, labels, where=where)
        return Scores(metrics, bins, per_example)

    return over_seeds(one_seed)(*outputs, temperatures)


def evaluate(
    task: Task,
    trained: TrainedSeeds,
    methods: tuple[Method, ...],
    seeds: tuple[int, ...],
    *,
    routing: str,
) -> Iterator[tuple[list[Evaluation], list[Fit], list[ShiftFinding]]]:
    """Evaluates the methods that share a training.

    Args:
        task: the task; temperatures are fitted only on its calibration split.
        trained: all seeds of the training that the methods share.
        methods: the methods.
        seeds: seed numbers.
        routing: routing kind of the run's models, for the records.

    Yields:
        For each method: its evaluations (calibrator by calibrator, split by split); a fit for
        each fitted calibrator and seed, with `converged=False` where no finite temperature is
        optimal (see `repair.usable_temperature`); a finding for each split and seed: whether its
        configuration shifts, and what can be done about it.
    """
    # calibrators are fitted to all experts' predictions, whichever were chosen
    raw = {
        split.name: predict(trained, split.inputs, sparse=split is not task.calibration)
        for split in task.splits[1:]
    }
    num_experts = trained.num_experts
    longest = max(len(split) for split in task.evaluation)
    most_clusters = max(
        (s.num_clusters for s in task.evaluation if s.num_clusters < len(s)), default=None
    )
    for method in methods:
        name, outputs, fits = method.name, raw, []
        calibration_labels = jnp.asarray(task.calibration.labels)
        if method.expert_temperatures:
            fitted = _fit(raw["calibration"], calibration_labels)["mocae"]
            fits += _fit_lines(name, "mocae", seeds, fitted)
            outputs = {k: _scale_experts(v, usable_temperature(fitted)) for k, v in raw.items()}
        fitted_all = _fit(outputs["calibration"], calibration_labels)
        for calibrator in ("temperature", "per_expert"):
            fits += _fit_lines(name, calibrator, seeds, fitted_all[calibrator])
        ones = jnp.ones((len(seeds), num_experts))
        inside = usable_temperature(fitted_all["temperature"])
        common = {
            "none": Temperatures(ones, ones[:, 0]),
            "temperature": Temperatures(ones, inside),
            "per_expert": Temperatures(usable_temperature(fitted_all["per_expert"]), ones[:, 0]),
        }
        held_out = repair.prepare(
            _sample(outputs["calibration"], num_experts),
            task.calibration.labels,
            task.calibration.clusters,
            inside,
        )
        evaluations, shifts = {}, []
        for split in task.evaluation:
            padded = Outputs(*(_pad(x, longest, 1) for x in outputs[split.name]))
            repaired = repair.fit_to_targets(
                held_out,
                _sample(padded, num_experts),
                split.clusters,
                most_clusters=most_clusters,
            )
            shifts += _shift_lines(name, split, seeds, repaired)
            temperatures = common | {
                calibrator: Temperatures(ones, found)
                for calibrator, found in repaired.temperatures.items()
            }
            for calibrator, values in temperatures.items():
                evaluations[calibrator, split.name] = _evaluate_one(
                    task.name,
                    name,
                    routing,
                    calibrator,
                    split,
                    padded,
                    values,
                    seeds,
                    num_experts == 1,
                )
        ordered = [
            evaluations[calibrator, split.name]
            for calibrator in CALIBRATORS
            for split in task.evaluation
            if (calibrator, split.name) in evaluations
        ]
        yield ordered, fits, shifts


def _pad(x: np.ndarray | jax.Array, length: int, axis: int) -> jax.Array:
    width = [(0, length - size) if i == axis else (0, 0) for i, size in enumerate(np.shape(x))]
    return jnp.asarray(np.pad(np.asarray(x), width))


@partial(jax.jit, static_argnums=1)
def _sample(outputs: Outputs, num_experts: int) -> repair.Sample:
    return repair.dense_sample(*outputs, num_experts=num_experts)


def _evaluate_one(
    task: str,
    method: str,
    routing: str,
    calibrator: str,
    split: Split,
    outputs: Outputs,
    temperatures: Temperatures,
    seeds: tuple[int, ...],
    single: bool,
) -> Evaluation:
    """Scores a split whose outputs are padded at the end."""
    count = len(split)
    length = outputs.routing_weights.shape[1]
    votes = split.soft_labels
    scores = _score(
        outputs,
        temperatures,
        _pad(split.labels, length, 0),
        jnp.arange(length) < count,
        None if votes is None else _pad(votes, length, 0),
    )
    scores = jax.tree.map(np.asarray, scores)
    absent = ("disagreement", "routing_entropy") if single else ()
    measured = scores.metrics.keys() - set(absent)
    records = [
        Record(
            task=task,
            method=method,
            routing=routing,
            seed=seed,
            split=split.name,
            kind=split.kind,
            calibrator=calibrator,
            n=count,
            **{
                name: _finite(name, scores.metrics[name][i]) if name in measured else None
                for name in METRICS
            },
        )
        for i, seed in enumerate(seeds)
    ]
    bins = calibration.ReliabilityBins(*(x.sum(axis=0) for x in scores.bins))
    per_example = ExampleScores(*(x[:, :count] for x in scores.per_example))
    return Evaluation(method, calibrator, split, records, bins, per_example)


def _finite(name: str, value: np.floating) -> float | None:
    """A number, or `None` for an infinite log loss; raises on NaN, which must not occur."""
    if np.isnan(value):
        raise FloatingPointError(f"{name} is NaN: a prediction that was scored is NaN.")
    return float(value) if np.isfinite(value) else None


def _fit_lines(
    method: str,
    calibrator: str,
    seeds: tuple[int, ...],
    fit: calibration.calibrators.TemperatureFit,
) -> list[Fit]:
    def plain(values: jax.Array, i: int) -> Any:
        of_seed = np.asarray(values)[i].tolist()
        return tuple(of_seed) if isinstance(of_seed, list) else of_seed

    return [
        Fit(
            method,
            calibrator,
            seed,
            temperature=plain(usable_temperature(fit), i),
            converged=plain(fit.converged, i),
            at_bound=plain(fit.at_bound, i),
        )
        for i, seed in enumerate(seeds)
    ]


def _shift_lines(
    method: str,
    split: Split,
    seeds: tuple[int, ...],
    repaired: repair.Repair,
) -> list[ShiftFinding]:
    return [
        ShiftFinding(
            method,
            split.name,
            split.kind,
            seed,
            **repair.describe(repaired, i)._asdict(),
        )
        for i, seed in enumerate(seeds)
    ]
