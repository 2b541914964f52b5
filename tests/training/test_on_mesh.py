"""Training over a mesh: the batches and results of training on one device, and resumption."""

import jax
import numpy as np
import pytest
from dispatching import exhaustive
from small import small_task
from trainings import SEEDS, TRAIN, same_bits, train, training_of

from calmoe_jax.parallel import device_mesh
from calmoe_jax.training import MetricsLog, train_on_mesh
from calmoe_jax.training.checkpoints import CheckpointError

TASK = small_task()


def on_mesh(folder, method="robust", devices=4, seeds=SEEDS, **kwargs):
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices")
    folder.mkdir(exist_ok=True)
    return train_on_mesh(
        training_of(method, TASK), TASK.train.inputs, TASK.train.labels, seeds,
        device_mesh(jax.devices()[:devices]), folder=folder / "checkpoints",
        log=MetricsLog(folder / "metrics.jsonl"), checkpoint_every=TRAIN.checkpoint_every, **kwargs,
    )  # fmt: skip


def lines(folder):
    read = MetricsLog(folder / "metrics.jsonl").read()
    return sorted(read, key=lambda line: (line["seed"], line["epoch"]))


@pytest.mark.parametrize("method", ["robust", *exhaustive("fgr_robust", "cross_batch_robust")])
@pytest.mark.parametrize("devices", [4, *exhaustive(1, 3)])
def test_a_mesh_trains_as_one_device(tmp_path, method, devices):
    """With three devices the batch of 16 is filled up with examples that do not count."""
    alone = train(tmp_path / "one", method, TASK)
    found = on_mesh(tmp_path / "mesh", method, devices)
    assert found.num_experts == alone.num_experts
    for a, b in zip(jax.tree.leaves(alone.state), jax.tree.leaves(found.state), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "mesh"), strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            if name != "method":
                np.testing.assert_allclose(b[name], value, rtol=1e-5, err_msg=name)


class Stop(Exception):
    pass


def stop_at(number):
    def on_step(step):
        if step == number:
            raise Stop

    return on_step


def test_resumption_is_bit_equal(tmp_path):
    whole = on_mesh(tmp_path / "whole", seeds=(7,))
    with pytest.raises(Stop):
        on_mesh(tmp_path / "cut", seeds=(7,), on_step=stop_at(15))
    resumed = on_mesh(tmp_path / "cut", seeds=(7,))
    assert same_bits(whole.state, resumed.state)
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    again = on_mesh(tmp_path / "cut", seeds=(7,), on_step=stop_at(0))  # takes no step
    assert same_bits(whole.state, again.state)
    np.testing.assert_array_equal(whole.importance, again.importance)


@pytest.mark.exhaustive
def test_another_number_of_devices_goes_on(tmp_path):
    whole = on_mesh(tmp_path / "whole", seeds=(7,))
    with pytest.raises(Stop):
        on_mesh(tmp_path / "cut", seeds=(7,), on_step=stop_at(15))
    resumed = on_mesh(tmp_path / "cut", devices=2, seeds=(7,))
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def break_files(folder):
    """Empties all files of a checkpoint but the marks that say it is complete."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith("_"):
            path.write_bytes(b"")


# orbax leaves its other reads of the broken files to themselves
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broken_checkpoint_is_said_and_the_one_before_is_taken(tmp_path):
    whole = on_mesh(tmp_path, seeds=(7,))
    folder = tmp_path / "checkpoints" / "seed-7"
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    break_files(folder / str(steps[-1]))
    said = []
    again = on_mesh(tmp_path, seeds=(7,), say=said.append)
    assert same_bits(whole.state, again.state)
    assert f"checkpoint {folder / str(steps[-1])} cannot be read" in said[0]


@pytest.mark.exhaustive
def test_checkpoints_of_another_model_are_refused(tmp_path):
    on_mesh(tmp_path, seeds=(7,))
    with pytest.raises(CheckpointError, match="of another model or task"):
        on_mesh(tmp_path, "single", seeds=(7,))
