"""How far P(right | S) changes: the parts add up, and are 0 where theory says so."""

import numpy as np
import pytest

from experiments.drift import Seen, measure_drift


def made(size, seed=0, *, fewer_right=0.0, tilt=0.0):
    """Four experts, three classes; right as often as the confidence says, less `fewer_right`.

    With `tilt` confident predictions are rarer, which leaves P(right | S) as it is.
    """
    rng = np.random.RandomState(seed)
    confidence = rng.uniform(0.4, 1, 4 * size)
    kept = rng.uniform(size=4 * size) < np.exp(-tilt * (confidence - 0.4))
    confidence = confidence[kept][:size]
    size = len(confidence)
    right = rng.uniform(size=size) < confidence - fewer_right
    return Seen(rng.randint(4, size=size), rng.randint(3, size=size), confidence, right)


@pytest.mark.parametrize(
    "targets",
    [
        made(3000, 1),
        made(2000, 2, fewer_right=0.2, tilt=2.0),
        # of a class that was never predicted, and of one that no longer is
        made(500, 3)._replace(predicted=np.arange(500) % 2 * 5),
        made(50, 4)._replace(predicted=np.full(50, 7)),
    ],
)
def test_the_parts_are_the_change_of_the_gap(targets):
    held_out = made(1000)
    found = measure_drift(held_out, targets)
    before, after = (x.confidence.mean() - x.correct.mean() for x in (held_out, targets))
    np.testing.assert_allclose(found[:2], (before, after), atol=1e-12)
    parts = found.moved + found.changed + found.remainder
    np.testing.assert_allclose(parts, after - before, atol=1e-12)


def test_parts_by_loops():
    held_out, targets = made(600), made(400, 5)._replace(predicted=np.arange(400) % 5)
    edges = {}
    for e in range(4):
        for c in range(3):
            some = (held_out.expert == e) & (held_out.predicted == c)
            edges[e, c] = np.quantile(held_out.confidence[some], [1 / 3, 2 / 3])
    gaps = []
    for seen in (held_out, targets):
        by_cell = {}
        for e, c, p, right in zip(*seen, strict=True):
            third = sum(p > x for x in edges.get((e, c), ()))
            by_cell.setdefault((e, c, third), []).append(p - right)
        gaps.append(by_cell)
    before, after = gaps
    here = {s: x for s, x in after.items() if s in before}
    expected = (
        sum(len(x) * np.mean(before[s]) for s, x in here.items()) / 400
        - np.mean(np.concatenate(list(before.values()))),
        sum(len(x) * (np.mean(x) - np.mean(before[s])) for s, x in here.items()) / 400,
        sum(sum(x) for s, x in after.items() if s not in before) / 400,
    )
    found = measure_drift(held_out, targets)
    np.testing.assert_allclose((found.moved, found.changed, found.remainder), expected, atol=1e-12)
    np.testing.assert_allclose(found.unseen, np.mean(targets.predicted > 2), atol=1e-12)


def test_moved_configurations_are_no_change_of_the_labels():
    found = measure_drift(made(40_000), made(40_000, 1, tilt=3.0))
    assert abs(found.changed) < 0.01
    assert found.size < 0.02
    assert found.unseen == 0


def test_labels_that_are_wrong_more_often_are():
    found = measure_drift(made(40_000), made(40_000, 1, fewer_right=0.2))
    np.testing.assert_allclose((found.changed, found.size), 0.2, atol=0.015)
    assert abs(found.moved) < 0.01


def test_of_one_cell_by_hand():
    held_out = Seen(*(np.array(x) for x in ([0] * 4, [1] * 4, [0.8] * 4, [1, 1, 1, 0])))
    targets = Seen(*(np.array(x) for x in ([0] * 4, [1] * 4, [0.9] * 4, [1, 0, 0, 0])))
    found = measure_drift(held_out, targets)
    # the third of one confidence alone holds all below it, and the third above it the targets
    assert found.unseen == 1
    found = measure_drift(held_out, targets._replace(confidence=np.full(4, 0.7)))
    np.testing.assert_allclose(found[:5], (0.05, 0.45, 0, 0.4, 0), atol=1e-12)


def test_of_targets_that_share_no_cell_all_is_remainder():
    held_out, targets = made(100), made(50)._replace(predicted=np.full(50, 7))
    found = measure_drift(held_out, targets)
    assert (found.unseen, found.changed) == (1, 0)
    assert (found.moved, found.remainder) == (-found.gap_before, found.gap_after)
    assert np.isnan(found.size)
