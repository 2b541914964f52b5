"""What to do about targets, by what their inputs show."""

import itertools

import numpy as np
import pytest

import calmoe_jax as cm

pytestmark = pytest.mark.exhaustive


NAN = float("nan")


@pytest.mark.parametrize(
    ("p_value", "confidences", "decision"),
    [
        (0.3, (0.9, 0.9, 0.6), "keep"),
        (0.05, (0.9, 0.9, 0.9), "label_some"),
        (0.051, (0.9, 0.9, 0.9), "keep"),
        (0.01, (0.9, 0.896, 0.6), "label_some"),
        (0.01, (0.9, 0.8, 0.6), "lower_confidence"),
        (0.3, (0.9, 0.8, 0.8), "lower_confidence"),
        (NAN, (0.9, 0.8, 0.8), "lower_confidence"),
        (NAN, (0.9, 0.9, 0.8), "label_some"),
        (0.3, (NAN, 0.9, 0.8), "label_some"),
        (0.3, (0.9, NAN, 0.8), "label_some"),
        (0.3, (0.9, 0.9, NAN), "label_some"),
    ],
)
def test_verdicts(p_value, confidences, decision):
    found = cm.shift.repair_verdict(p_value, *confidences, 10_000, peers=True)
    assert found.decision == decision
    assert (found.labels == 0) == (decision == "keep")
    assert f"label {found.labels} targets" in found.reason or decision == "keep"
    assert "nan" not in found.reason
    before, safe, bold = confidences
    if decision == "lower_confidence":
        assert f"from {before:.3f} to {safe:.3f}" in found.reason
        assert ("bold would" in found.reason) == (bold < safe)


def test_more_labels_are_needed_for_a_smaller_gap_and_never_more_than_there_are():
    def labels(bold, num_targets=10_000, **options):
        return cm.shift.repair_verdict(0.01, 0.9, 0.9, bold, num_targets, peers=True, **options)

    for bold, gap in ((0.6, 0.3), (0.8, 0.1), (0.85, 0.1)):
        assert labels(bold).labels == cm.shift.few_labels.labels_needed(gap, share=0.5)
        assert f"half of a gap of {gap:.2f}" in labels(bold).reason
    # the gap is that of the temperature in distribution, also where safe closes some of it
    lowered = cm.shift.repair_verdict(0.01, 0.9, 0.8, 0.6, 10_000, peers=True)
    assert lowered.labels == labels(0.6).labels
    few = labels(0.8, 40, units="clusters of targets")
    assert few.labels == 40
    assert "label all 40 clusters of targets" in few.reason


def test_without_peers_it_is_said_why_safe_does_nothing():
    for peers in (True, False):
        found = cm.shift.repair_verdict(0.01, 0.9, 0.9, 0.8, 1000, peers=peers)
        assert ("no model of another seed" in found.reason) != peers


@pytest.mark.parametrize(
    ("share", "number", "options", "words"),
    [
        (0.4, 1000, {}, ("400 effective of 1000 held-out examples are like", "share 0.40")),
        (0.4, 1000, {"units": "clusters"}, ("held-out clusters are like",)),
        (0.09, 1000, {}, ("90 effective", "too few")),
        (0.9, 40, {}, ("36 effective", "too few")),
        (0.9, 1000, {"hard": True}, ("900 effective", "one expert per example")),
        (0.9, 1000, {"feasible": False}, ("no weights of held-out examples match",)),
        (NAN, 1000, {}, ("no weights of held-out examples match",)),
    ],
)
def test_what_a_balanced_temperature_rests_on(share, number, options, words):
    found = cm.shift.repair.balance_evidence(share, number, **{"hard": False, **options})
    for each in words:
        assert each in found
    assert ("too few" in found) == ("too few" in words)
    assert "nan" not in found


def test_too_few_clusters_give_no_verdict():
    for own, other in ((3, 3), (2, 3), (1, 1), (0, 5), (1, 9)):
        sides = {frozenset(x) for x in itertools.combinations(range(own + other), own)}
        if own == other:  # the sides have no names
            sides = {frozenset([side, frozenset(range(2 * own)) - side]) for side in sides}
        np.testing.assert_allclose(
            cm.shift.smallest_p_value(own, other), 1 / len(sides), rtol=1e-12
        )
    assert cm.shift.smallest_p_value(2_000_000, 1_000_000) == 0
    assert cm.shift.smallest_p_value(1000, 1000) < 1e-9
    for p_value in (0.01, 0.9):
        found = cm.shift.repair_verdict(
            p_value, 0.9, 0.9, 0.9, 1000, peers=True, smallest_p_value=0.1
        )
        assert found.decision == "label_some"
        assert "clusters" in found.reason
