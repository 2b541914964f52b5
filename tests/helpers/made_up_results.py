"""Results of an imaginary run: every number is random, every list is complete."""

import dataclasses

import numpy as np

from calmoe_jax.study import records
from calmoe_jax.study.comparison import COMPARED
from calmoe_jax.study.records import METRICS, SHIFT_MEAN

CALIBRATORS = ("none", "temperature", "per_expert", "safe", "bold", "neighbours")
SPLITS = (
    records.SplitInfo("train", "train", 900, 90, "to train on", None, None),
    records.SplitInfo("calibration", "calibration", 100, 10, "held out", None, None),
    records.SplitInfo("test", "id", 200, 20, "the same years", None, None),
    records.SplitInfo("late", "shift", 80, 8, "later years", "year", 2.0),
    records.SplitInfo("early", "shift", 120, 12, "earlier years", "year", 1.0),
    records.SplitInfo("ambiguous", "hard", 50, 5, "difficult ones", None, None),
    records.SplitInfo("easy", "part", 70, 7, "simple ones", None, None),
)
METHODS = ("single", "vanilla", "mine")
TITLES = {"single": "Single classifier", "vanilla": "Vanilla MoE", "mine": "My own"}


def results(
    *,
    task="made_up",
    methods=METHODS,
    titles=TITLES,
    seeds=(1, 2),
    splits=SPLITS,
    calibrators=CALIBRATORS,
    reference="vanilla",
):
    """Results of some methods on some splits; `single` has no statistics of a mixture."""
    rng = np.random.RandomState(0)
    evaluated = [split for split in splits if split.kind in ("id", "shift", "hard", "part")]
    everything = [(m, c, s) for m in methods for c in calibrators for s in evaluated]
    return records.Results(
        task=task,
        config={
            "methods": list(methods), "model": {"experts": 3}, "train": {"epochs": 4, "rate": None}
        },
        environment=records.Environment(
            "3.11.7", {"jax": "0.10.2", "triton": None}, "linux", ("1 x cpu",), 2, None
        ),
        source="made up",
        splits=tuple(splits),
        methods=tuple(
            records.MethodInfo(name, titles.get(name, ""), "what it does", name, False)
            for name in methods
        ),
        reference=reference,
        records=tuple(
            record(rng, task, method, seed, split, calibrator)
            for method, calibrator, split in everything
            for seed in seeds
        ),
        fits=tuple(
            fit(rng, method, calibrator, seed)
            for method in methods
            for calibrator in ("temperature", "per_expert")
            for seed in seeds
        ),
        shifts=tuple(
            finding(rng, method, split, seed)
            for method in methods
            for split in evaluated
            for seed in seeds
        ),
        comparisons=tuple(
            compared(metric, *np.sort(rng.randn(3))[[1, 0, 2]].tolist(), method, calibrator, label)
            for method in methods
            if method != reference and reference in methods
            for calibrator in calibrators
            for label in [s.name for s in evaluated] + with_mean(evaluated)
            for metric in COMPARED
        ),
        reliability=tuple(reliability(rng, *where) for where in everything),
        warnings=("mine, seed 1: expert 2 of 3 got nothing",),
    )  # fmt: skip


def with_mean(evaluated):
    return [SHIFT_MEAN] if any(split.kind == "shift" for split in evaluated) else []


def record(rng, task, method, seed, split, calibrator):
    values = dict(zip(METRICS, rng.rand(len(METRICS)).tolist(), strict=True))
    if method == "single":
        values |= {"disagreement": None, "routing_entropy": None}
    if split.kind == "shift":  # nobody voted on these
        values |= {"human_nll": None, "human_brier": None, "human_ece": None}
    return records.Record(
        task, method, "top_k", seed, split.name, split.kind, calibrator, split.n, **values
    )


def fit(rng, method, calibrator, seed):
    if calibrator == "temperature":
        return records.Fit(method, calibrator, seed, float(rng.rand()), True, False)
    return records.Fit(
        method, calibrator, seed, tuple(rng.rand(3).tolist()), (True, False, True),
        (False, True, False),
    )  # fmt: skip


def finding(rng, method, split, seed):
    return records.ShiftFinding(
        method, split.name, split.kind, seed, *rng.rand(5).tolist(), True, "enough are like them",
        float(rng.rand()), {"neighbours": 1.0 + float(rng.rand())},
        dict(zip(("temperature", "safe", "bold"), rng.rand(3).tolist(), strict=True)), "keep",
        "no shift is seen", 0,
    )  # fmt: skip


def reliability(rng, method, calibrator, split):
    weight = rng.randint(0, 30, 15).astype(float)
    confidence = weight * (np.arange(15) + rng.rand(15)) / 15
    residual = weight * 0.1 * rng.randn(15)
    return records.Reliability(
        method, calibrator, split.name, split.kind,
        *(tuple(x.tolist()) for x in (weight, confidence, residual)),
    )  # fmt: skip


def compared(
    metric, difference, low, high, method="mine", calibrator="none", split=SHIFT_MEAN
):  # fmt: skip
    return records.Comparison(
        method, calibrator, split, metric, 0.1 + difference, 0.1, difference, low, high
    )


def with_comparisons(given, *lines):
    """The same results with other comparisons."""
    return dataclasses.replace(given, comparisons=tuple(lines))
