"""Training on a stream: the loop of training in memory, with batches that are read as it goes."""

import json

import jax
import numpy as np
import pytest
from dispatching import exhaustive
from small import CLASSES, small_task
from trainings import TRAIN, same_bits, training_of

from calmoe_jax.data.records import open_records, write_records
from calmoe_jax.data.stream import examples_of_step
from calmoe_jax.parallel import device_mesh
from calmoe_jax.training import MetricsLog, NonFiniteLossError, train_on_stream
from calmoe_jax.training.batches import InMemory
from calmoe_jax.training.on_mesh import train_on_batches

pytest.importorskip("grain", reason="needs grain (the data extra)")
pytest.importorskip("array_record", reason="needs array_record (the data extra)")

TASK = small_task()
STEPS = len(TASK.train) // TRAIN.batch_size


def mesh_of(devices):
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices")
    return device_mesh(jax.devices()[:devices])


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "records"
    pairs = zip(TASK.train.inputs, TASK.train.labels, strict=True)
    examples = ({"inputs": inputs, "label": int(label)} for inputs, label in pairs)
    write_records(folder, examples, classes=CLASSES, shards=3, quiet=True)
    return open_records(folder)


def on_stream(folder, source, devices=4, method="robust", every=4, **kwargs):
    folder.mkdir(exist_ok=True)
    return train_on_stream(
        training_of(method, TASK), source, (7,), mesh_of(devices), folder=folder / "checkpoints",
        log=MetricsLog(folder / "metrics.jsonl"), steps_per_checkpoint=every, num_threads=2,
        **kwargs,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory, source):
    """A training that nothing interrupted, with its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return on_stream(folder, source), folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stream_order(seed, epoch, examples):
    steps = range(epoch * STEPS, (epoch + 1) * STEPS)
    given = {"seed": seed, "examples": examples, "batch_size": TRAIN.batch_size}
    return np.concatenate([examples_of_step(step, **given) for step in steps])


def test_records_train_as_the_same_examples_in_memory(tmp_path, whole):
    found, folder = whole
    in_memory = train_on_batches(
        training_of("robust", TASK), InMemory(TASK.train.inputs, TASK.train.labels, stream_order),
        (7,), mesh_of(4), folder=tmp_path / "checkpoints",
        log=MetricsLog(tmp_path / "metrics.jsonl"), steps_per_checkpoint=STEPS,
        on_epoch=lambda loss: None, on_step=lambda step: None, say=print,
    )  # fmt: skip
    assert same_bits(found.state, in_memory.state)
    np.testing.assert_array_equal(found.importance, in_memory.importance)
    assert lines(folder) == lines(tmp_path)


class Stop(Exception):
    pass


@pytest.mark.parametrize("stopped_at", [9, *exhaustive(3, 12, 17)])
def test_resumption_from_the_middle_of_an_epoch_is_bit_equal(tmp_path, whole, source, stopped_at):
    def on_step(step):
        taken.append(step)
        if len(taken) > stopped_at and not resuming:
            raise Stop

    taken, resuming = [], False
    with pytest.raises(Stop):
        on_stream(tmp_path, source, on_step=on_step)
    taken, resuming = [], True
    resumed = on_stream(tmp_path, source, on_step=on_step)
    # the last checkpoint before the stop, or the one before that, if it was still being written
    assert taken[0] % 4 == 0
    assert taken[0] <= stopped_at
    assert taken == list(range(taken[0], TRAIN.epochs * STEPS))
    assert same_bits(whole[0].state, resumed.state)
    np.testing.assert_array_equal(whole[0].importance, resumed.importance)
    assert lines(whole[1]) == lines(tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("devices", [1, 2, 3])
def test_the_number_of_devices_changes_roundings_alone(tmp_path, whole, source, devices):
    """With three devices the batch of 16 is filled up with examples that do not count."""
    found = on_stream(tmp_path, source, devices)
    for a, b in zip(jax.tree.leaves(whole[0].state), jax.tree.leaves(found.state), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5)


@pytest.mark.exhaustive
def test_a_state_that_is_not_finite_is_no_checkpoint(tmp_path):
    broken = [
        {"inputs": np.full(4, np.nan, np.float32), "label": int(label)}
        for label in TASK.train.labels
    ]
    with pytest.raises(NonFiniteLossError, match=r"at step 1 .*; none is saved"):
        on_stream(tmp_path, broken, every=2)


def test_checkpoints_are_at_least_a_step_apart(tmp_path, source):
    with pytest.raises(ValueError, match="steps_per_checkpoint must be at least 1"):
        on_stream(tmp_path, source, every=0)
