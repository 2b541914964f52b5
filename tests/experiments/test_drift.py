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


@pytest.mark.parametrize("targets", [made(3000, 1), made(2000, 2, fewer_right=0.2, tilt=2.0)])
def test_the_parts_are_the_change_of_the_gap(targets):
    found = measure_drift(made(4000), targets)
    change = found.gap_after - found.gap_before
    np.testing.assert_allclose(found.moved + found.changed, change, atol=1e-12)


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
    np.testing.assert_allclose(found[:4], (0.05, 0.45, 0, 0.4), atol=1e-12)


def test_targets_that_share_no_cell_give_nan():
    found = measure_drift(made(100), made(50)._replace(predicted=np.full(50, 7)))
    assert found.unseen == 1
    assert all(np.isnan(x) for x in found[:5])
