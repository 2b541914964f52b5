"""Verdicts follow from the signs of intervals."""

import dataclasses

import made_up_results
import pytest
from made_up_results import compared

from calmoe_jax.study.report import Summary, verdicts

BELOW, AROUND, ABOVE = (-0.05, -0.06, -0.04), (0.0, -0.01, 0.01), (0.05, 0.04, 0.06)


def verdict_of(results, method="mine"):
    (verdict,) = (v for v in verdicts(Summary(results)) if v.method == method)
    return verdict


@pytest.mark.parametrize(
    ("ece", "accuracy", "tone", "words"),
    [
        (BELOW, BELOW, "mixed", "Better calibrated under shift than vanilla, but less accurate"),
        (BELOW, AROUND, "better", "Better calibrated under shift than vanilla"),
        (BELOW, ABOVE, "better", "Better calibrated under shift than vanilla"),
        (AROUND, BELOW, "worse", "Less accurate than vanilla, calibrated alike under shift"),
        (AROUND, AROUND, "same", "No clear difference from vanilla under shift"),
        (AROUND, ABOVE, "better", "More accurate than vanilla, calibrated alike under shift"),
        (ABOVE, BELOW, "worse", "Worse than vanilla here"),
        (ABOVE, AROUND, "worse", "Worse than vanilla here"),
        (ABOVE, ABOVE, "mixed", "Worse calibrated under shift than vanilla, but more accurate"),
    ],
)
def test_headlines_say_what_the_intervals_say(ece, accuracy, tone, words):
    given = made_up_results.with_comparisons(
        made_up_results.results(), compared("ece", *ece), compared("accuracy", *accuracy)
    )
    verdict = verdict_of(given)
    assert (verdict.tone, verdict.headline) == (tone, words)
    assert f"{0.1 + ece[0]:.3f}" in verdict.detail


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (BELOW, BELOW, "still better"), (BELOW, AROUND, "no clear difference"),
        (BELOW, ABOVE, ": worse"), (AROUND, BELOW, ": better"),
        (AROUND, AROUND, "no clear difference"), (AROUND, ABOVE, ": worse"),
        (ABOVE, BELOW, ": better"), (ABOVE, AROUND, "no clear difference"),
        (ABOVE, ABOVE, "still worse"),
    ],
)  # fmt: skip
def test_details_say_what_a_temperature_changes(before, after, words):
    given = made_up_results.with_comparisons(
        made_up_results.results(),
        compared("ece", *before),
        compared("accuracy", *AROUND),
        compared("ece", *after, calibrator="temperature"),
    )
    assert words in verdict_of(given).detail


def test_the_reference_comes_first_and_is_named():
    given = made_up_results.results(reference="single")
    found = verdicts(Summary(given))
    assert [v.method for v in found] == ["single", "vanilla", "mine"]
    assert found[0].headline.startswith("The reference.")
    assert all("vanilla" not in v.headline for v in found)
    assert all("single" in v.headline for v in found[1:])


def test_without_the_reference_there_is_no_comparison():
    given = made_up_results.results(methods=("single", "mine"))
    for verdict in verdicts(Summary(given)):
        assert verdict.tone == "reference"
        assert "vanilla is not in this run" in verdict.headline
        assert "accuracy" in verdict.detail


def test_without_shifts_there_is_nothing_to_judge():
    splits = [s for s in made_up_results.SPLITS if s.kind != "shift"]
    for verdict in verdicts(Summary(made_up_results.results(splits=splits))):
        assert verdict.headline == "No shift to judge by"


def with_errors(inside, outside, gap=0.2):
    given = made_up_results.results(methods=("vanilla",))
    new = [
        dataclasses.replace(r, ece=inside if r.kind == "id" else outside, confidence_gap=gap)
        for r in given.records
    ]
    return dataclasses.replace(given, records=tuple(new))


@pytest.mark.parametrize(
    ("inside", "outside", "words"),
    [
        (0.06, 0.02, "poorly calibrated even in distribution"),
        (0.02, 0.03, "stays about as well calibrated"),
        (0.02, 0.04, "somewhat less well calibrated"),
        (0.02, 0.06, "poorly calibrated under shift"),
    ],
)
def test_the_reference_is_judged_by_its_own_errors(inside, outside, words):
    assert words in verdict_of(with_errors(inside, outside), "vanilla").headline


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        (0.1, "over-confident by 10.0 points"),
        (-0.1, "under-confident by 10.0 points"),
        (0.001, "its confidence equals its accuracy"),
    ],
)
def test_the_side_of_the_gap(gap, words):
    assert words in verdict_of(with_errors(0.01, 0.02, gap), "vanilla").detail


def test_what_was_not_measured_is_left_out():
    given = made_up_results.results(methods=("mine",), calibrators=("neighbours",))
    assert "was not measured" in verdict_of(given).headline
    no_inside = [s for s in made_up_results.SPLITS if s.kind != "id"]
    given = made_up_results.results(methods=("mine",), calibrators=("none",), splits=no_inside)
    assert "calibrated under shift" in verdict_of(given).headline
