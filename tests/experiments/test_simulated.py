"""Simulated shifts: subpopulations of classes, what is left out, noise and fading."""

import dataclasses

import numpy as np
import pytest

from calmoe_jax.data import Split, Task
from experiments import simulated

pytestmark = pytest.mark.exhaustive


def a_task(dtype=np.float32):
    """Two classes of four clouds each, and the cloud that each example is of."""
    rng = np.random.RandomState(0)
    sizes, centres = (40, 25, 15, 10), np.array([[0, 0], [50, 0], [0, 50], [50, 50]])
    rows = np.concatenate([c + rng.randn(s, 2) for c, s in zip(centres, sizes, strict=True)])
    cloud = np.tile(np.repeat(np.arange(4), sizes), 2)
    inputs = np.concatenate([rows, rows + 100]) + 10
    labels = np.repeat([0, 1], 90).astype(np.int32)
    order = rng.permutation(180)

    def split(some, kind):
        return Split(kind, kind, inputs[some].astype(dtype), labels[some], some, "")

    train, held_out = order[:150], order[150:]
    task = Task("t", ("a", "b"), split(train, "train"), split(held_out, "calibration"), (), "")
    return task, (cloud[train], cloud[held_out])


def test_each_class_is_divided_and_the_largest_subpopulation_comes_first():
    task, expected = a_task()
    for found, numbers in zip(simulated.subpopulations(task), expected, strict=True):
        np.testing.assert_array_equal(found, numbers)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_what_is_left_out_is_seen_in_targets_alone(dtype):
    task, numbers = a_task(dtype)
    without, targets = simulated.leave_out(task, numbers, 1)
    # every example is a cluster of its own, whose number identifies it
    cloud = dict(zip(task.train.clusters, numbers[0], strict=True))
    cloud |= dict(zip(task.calibration.clusters, numbers[1], strict=True))
    inside = np.concatenate([without.train.clusters, without.calibration.clusters])
    assert not any(cloud[i] == 1 for i in inside)
    new = {name: np.mean([cloud[i] == 1 for i in x.clusters]) for name, x in targets.items()}
    mixed = {"none": 0, "25% new": 0.25, "50% new": 0.5, "75% new": 0.75, "100% new": 1}
    for name, share in new.items():
        np.testing.assert_allclose(share, mixed.get(name, 0), atol=0.02)
    for name, split in targets.items():
        of_all = simulated.family(name) in ("hard", "prior")
        assert len(split) == len(targets["none"]) > 20 or of_all
        assert len(split) > 5
        assert split.inputs.dtype == dtype
        assert set(split.labels) == {0, 1}
        assert not set(split.clusters) & set(inside)


def test_noise_and_fading_are_as_large_as_they_say():
    task, numbers = a_task()
    without, targets = simulated.leave_out(task, numbers, 0)
    mean, scale = (f(without.train.inputs, axis=0) for f in (np.mean, np.std))
    plain = targets["none"].inputs
    for share in (0.75, 0.5, 0.25):
        expected = mean + share * (plain - mean)
        np.testing.assert_allclose(targets[f"faded to {share}"].inputs, expected, rtol=1e-4)
    for level in (0.25, 0.5, 1.0):
        noise = (targets[f"noise {level}"].inputs - plain) / scale
        np.testing.assert_allclose(noise.std(), level, rtol=0.3)


def test_missing_features_are_means_and_classes_have_their_shares():
    task, numbers = a_task()
    without, targets = simulated.leave_out(task, numbers, 0)
    mean = without.train.inputs.mean(axis=0)
    for share in (0.25, 0.5):
        gone = np.isclose(targets[f"missing {share}"].inputs, mean, rtol=1e-6)
        np.testing.assert_allclose(gone.mean(), share, atol=0.2)
        kept = ~gone
        plain = targets["none"].inputs
        np.testing.assert_array_equal(targets[f"missing {share}"].inputs[kept], plain[kept])
    for power in (0.5, 1.0):
        counts = np.bincount(targets[f"prior {power}"].labels)
        np.testing.assert_allclose(counts[1] / counts[0], 2**power, rtol=0.25)


def test_hard_examples_have_neighbours_of_other_labels():
    task, numbers = a_task()
    _, targets = simulated.leave_out(task, numbers, 0)
    train = task.train

    def doubt(split):
        near = [np.argsort(np.linalg.norm(train.inputs - x, axis=1))[1:16] for x in split.inputs]
        return np.mean(
            [np.mean(train.labels[i] != y) for i, y in zip(near, split.labels, strict=True)]
        )

    assert doubt(targets["hard 0.25"]) >= doubt(targets["hard 0.5"]) >= doubt(targets["none"])
    assert {simulated.family(name) for name in targets} == set(simulated.FAMILIES)


def test_votes_stay_with_their_examples():
    task, numbers = a_task()

    def voted(split):
        # the cluster, which identifies an example, in the votes
        shares = np.stack([split.clusters, 1000 - split.clusters], axis=1) / 1000
        return dataclasses.replace(split, soft_labels=shares)

    task = dataclasses.replace(task, train=voted(task.train), calibration=voted(task.calibration))
    without, targets = simulated.leave_out(task, numbers, 1)
    for split in (without.train, without.calibration, *targets.values()):
        np.testing.assert_array_equal(np.round(split.soft_labels[:, 0] * 1000), split.clusters)
