"""The mixture that experiments use is the vanilla one of a run, and its checkpoints are reused."""

import json

import numpy as np
import pytest
import trainings
from small import small_task

from calmoe_jax.study import RunConfig
from experiments import trained

pytestmark = pytest.mark.exhaustive

CONFIG = RunConfig(seeds=2, first_seed=7, model=trainings.MODEL, train=trainings.TRAIN)


@pytest.mark.exhaustive
def test_it_is_the_vanilla_training_and_goes_on_from_its_checkpoints(tmp_path, monkeypatch):
    task = small_task()
    expected = trainings.train(tmp_path / "a", "vanilla", task)
    found = trained.train_vanilla(task, CONFIG, tmp_path / "b")
    assert trainings.same_bits(found.state, expected.state)
    lines = (tmp_path / "b" / "metrics.jsonl").read_text()
    again = trained.train_vanilla(task, CONFIG, tmp_path / "b")
    assert trainings.same_bits(again.state, expected.state)
    assert (tmp_path / "b" / "metrics.jsonl").read_text() == lines
    assert (tmp_path / "b" / "checkpoints" / "vanilla").is_dir()

    sample = trained.sample(again, task.calibration.inputs)
    assert sample.expert_log_probs.shape == (2, 60, 3, 3)
    np.testing.assert_allclose(sample.routing_weights.sum(axis=-1), 1, rtol=1e-5)


def test_json_makes_its_folder_and_refuses_nan(tmp_path):
    trained.write_json(tmp_path / "new" / "a.json", {"a": np.float64(0.5)})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"a": 0.5}
    with pytest.raises(ValueError, match="JSON"):
        trained.write_json(tmp_path / "b.json", [float("nan")])
