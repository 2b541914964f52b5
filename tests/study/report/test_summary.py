"""Means, deviations and sums of records, against plain counts."""

import dataclasses

import made_up_results
import numpy as np

from calmoe_jax.study.records import SHIFT_MEAN
from calmoe_jax.study.report.summary import Summary


def test_spreads_are_means_over_splits_then_over_seeds():
    results = made_up_results.results()
    summary = Summary(results)
    values = [
        np.mean([
            r.ece for r in results.records
            if (r.method, r.calibrator, r.kind, r.seed) == ("mine", "none", "shift", seed)
        ])
        for seed in (1, 2)
    ]  # fmt: skip
    found = summary.spread("mine", "none", ["early", "late"], "ece")
    assert abs(found.mean - np.mean(values)) < 1e-12
    assert abs(found.std - np.std(values, ddof=1)) < 1e-12
    assert summary.spread("mine", "none", ["early", "late", "early"], "ece") == found


def test_what_does_not_exist_is_none():
    summary = Summary(made_up_results.results(seeds=(7,)))
    assert summary.spread("mine", "none", ["nowhere"], "ece") is None
    assert summary.spread("mine", "none", [], "ece") is None
    assert summary.spread("single", "none", ["test"], "disagreement") is None
    assert summary.spread("mine", "none", ["test"], "disagreement").std is None
    assert summary.comparison("vanilla", "none", "test", "ece") is None
    assert summary.bins("mine", "none", "train") is None
    assert summary.findings("mine", "train") == []


def test_one_missing_value_leaves_the_mean_out():
    results = made_up_results.results()
    broken = [
        dataclasses.replace(r, nll=None)
        if (r.method, r.split, r.seed, r.calibrator) == ("mine", "late", 2, "none") else r
        for r in results.records
    ]  # fmt: skip
    summary = Summary(dataclasses.replace(results, records=tuple(broken)))
    assert summary.spread("mine", "none", ["early", "late"], "nll") is None
    assert summary.spread("mine", "none", ["early"], "nll") is not None


def test_lookups_find_what_a_scan_finds():
    results = made_up_results.results()
    summary = Summary(results)
    assert summary.num_seeds == 2
    assert summary.calibrators == made_up_results.CALIBRATORS
    assert summary.splits() == ["test", "late", "early", "ambiguous", "easy"]
    assert summary.splits("shift") == ["late", "early"]
    for line in results.comparisons:
        assert summary.comparison(line.method, line.calibrator, line.split, line.metric) == line
    assert summary.comparison("mine", "none", SHIFT_MEAN, "ece") is not None
    found = summary.findings("mine", "late")
    assert found == [x for x in results.shifts if (x.method, x.split) == ("mine", "late")]
    bins = summary.bins("mine", "none", "shift")
    chosen = [
        x for x in results.reliability
        if (x.method, x.calibrator, x.kind) == ("mine", "none", "shift")
    ]  # fmt: skip
    for name in ("weight", "confidence", "residual"):
        wanted = np.array([getattr(x, name) for x in chosen]).sum(axis=0)
        np.testing.assert_allclose(getattr(bins, name), wanted)


def test_a_method_without_a_title_is_called_by_its_name():
    summary = Summary(made_up_results.results(titles={}))
    assert summary.title("mine") == "mine"
    assert summary.title("unheard_of") == "unheard_of"
