"""What distinguishes a run: other data, other votes on it."""

import dataclasses

from small import small_task

from calmoe_jax.study import identity


def test_votes_are_part_of_the_data():
    task = small_task()
    *others, hard = task.evaluation
    turned = dataclasses.replace(hard, soft_labels=hard.soft_labels[::-1])
    without = dataclasses.replace(hard, soft_labels=None)
    found = {
        identity._fingerprint(dataclasses.replace(task, evaluation=(*others, split)))
        for split in (hard, turned, without)
    }
    assert len(found) == 3
    assert identity._fingerprint(small_task()) in found
