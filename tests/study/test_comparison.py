"""Comparisons against plain means, and their intervals."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import references
from small import split

from calmoe_jax.data import Split
from calmoe_jax.study import comparison
from calmoe_jax.study.records import SHIFT_MEAN


class Evaluated(NamedTuple):
    method: str
    calibrator: str
    split: Split
    per_example: comparison.ExampleScores


def evaluation_of(method, part, seed, *, shift=0.0, calibrator="none"):
    rng = np.random.RandomState(seed)
    n = len(part)
    confidence = rng.rand(2, n)
    correct = (rng.rand(2, n) < confidence - shift).astype(np.float32)
    per_example = comparison.ExampleScores(
        confidence=confidence.astype(np.float32),
        correct=correct,
        nll=rng.rand(2, n).astype(np.float32),
        brier=rng.rand(2, n).astype(np.float32),
    )
    return Evaluated(method, calibrator, part, per_example)


def test_compared_values_equal_plain_means():
    part = split("s", "shift", 200, 0, clusters=15)
    ours, reference = evaluation_of("robust", part, 1), evaluation_of("vanilla", part, 2)
    comparator = comparison.Comparator(2)
    comparator.add(reference)
    comparator.add(ours)
    lines = {(x.split, x.metric): x for x in comparator.compare()}
    for name, e in (("value", ours), ("reference", reference)):
        x = e.per_example
        expected = {
            "accuracy": x.correct.mean(),
            "nll": x.nll.mean(),
            "brier": x.brier.mean(),
            "confidence_gap": (x.confidence - x.correct).mean(),
            "ece": np.mean([
                references.calibration_error(x.confidence[i], x.correct[i]) for i in range(2)
            ]),
        }  # fmt: skip
        for metric, value in expected.items():
            assert abs(getattr(lines["s", metric], name) - value) < 1e-5
            mean = lines[SHIFT_MEAN, metric]
            assert dataclasses.replace(mean, split="s") == lines["s", metric]
    for line in lines.values():
        assert abs(line.difference - (line.value - line.reference)) < 1e-9
        assert line.low < line.difference < line.high


def test_a_method_does_not_differ_from_itself():
    part = split("s", "shift", 100, 0)
    comparator = comparison.Comparator(2)
    comparator.add(evaluation_of("vanilla", part, 1))
    comparator.add(evaluation_of("robust", part, 1))
    for line in comparator.compare():
        assert line.low == line.difference == line.high == 0


@pytest.mark.exhaustive
def test_intervals_cover_and_clusters_widen_them():
    """95 % intervals of a difference of mean losses, with a common offset in each cluster."""
    covered, widths = 0, []
    for trial in range(60):
        rng = np.random.RandomState(trial)
        clusters = np.repeat(np.arange(40), 5).astype(np.int32)
        width = []
        for numbers in (clusters, np.arange(200, dtype=np.int32)):
            part = split("s", "shift", 200, 0)
            object.__setattr__(part, "clusters", numbers)
            noise = np.repeat(rng.randn(40), 5) + 0.3 * rng.randn(200)
            comparator = comparison.Comparator(1)
            for method, offset in (("vanilla", 0.0), ("robust", 0.2 + noise)):
                e = evaluation_of(method, part, 3)
                one = comparison.ExampleScores(*(v[:1] for v in e.per_example))
                nll = np.broadcast_to(offset, (1, 200)).astype(np.float32)
                comparator.add(e._replace(per_example=one._replace(nll=nll)))
            (line,) = (x for x in comparator.compare() if (x.split, x.metric) == ("s", "nll"))
            width.append(line.high - line.low)
            if numbers is clusters:
                covered += line.low <= 0.2 <= line.high
        widths.append(width)
    assert 51 <= covered <= 60  # 57 expected; outside 51..60 has probability under 1 %
    assert np.mean([a / b for a, b in widths]) > 1.5


def test_copies_of_a_split_do_not_narrow_intervals():
    """The same examples corrupted in thirty ways are not thirty times as many examples."""
    widths = []
    for copies in (1, 30):
        comparator = comparison.Comparator(2)
        for method, seed in (("vanilla", 1), ("robust", 2)):
            for copy in range(copies):
                part = split(f"s{copy}", "shift", 200, 0)
                comparator.add(evaluation_of(method, part, seed))
        (line,) = (
            x for x in comparator.compare() if (x.split, x.metric) == (SHIFT_MEAN, "accuracy")
        )
        widths.append(line.high - line.low)
    assert abs(widths[1] / widths[0] - 1) < 1e-6


def test_an_infinite_loss_has_no_interval():
    comparator = comparison.Comparator(2)
    part = split("s", "shift", 40, 0)
    for method in ("vanilla", "robust"):
        e = evaluation_of(method, part, 1)
        e.per_example.nll[0, 3] = np.inf
        comparator.add(e)
    assert {x.metric for x in comparator.compare()} == {
        "accuracy", "brier", "ece", "confidence_gap",
    }  # fmt: skip


def test_without_the_reference_there_is_nothing_to_compare_with():
    comparator = comparison.Comparator(2)
    comparator.add(evaluation_of("robust", split("s", "shift", 30, 0), 1))
    assert comparator.compare() == []


def test_any_method_can_be_the_reference():
    part = split("s", "shift", 60, 0)
    found = {}
    for reference in ("vanilla", "robust"):
        comparator = comparison.Comparator(2, reference=reference)
        for method, seed in (("vanilla", 1), ("robust", 2)):
            comparator.add(evaluation_of(method, part, seed))
        found[reference] = comparator.compare()
        assert {x.method for x in found[reference]} == {"vanilla", "robust"} - {reference}
    for one, other in zip(found["vanilla"], found["robust"], strict=True):
        assert (one.value, one.reference) == (other.reference, other.value)
        assert abs(one.difference + other.difference) < 1e-12
        assert abs(one.low + other.high) < 1e-9


def test_only_what_both_were_evaluated_on_is_compared():
    early, late = (split(name, "shift", 40, i) for i, name in enumerate(("early", "late")))
    comparator = comparison.Comparator(2)
    comparator.add(evaluation_of("vanilla", early, 1))
    comparator.add(evaluation_of("robust", early, 2))
    comparator.add(evaluation_of("robust", late, 3))
    comparator.add(evaluation_of("robust", early, 4, calibrator="temperature"))
    lines = comparator.compare()
    assert {(x.calibrator, x.split) for x in lines} == {("none", "early")}
    comparator.add(evaluation_of("vanilla", late, 5))
    assert {x.split for x in comparator.compare()} == {"early", "late", SHIFT_MEAN}
