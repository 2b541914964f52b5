"""Trainings of several seeds: equal however mapped, resumed bit for bit, stopped on errors."""

import jax
import numpy as np
import pytest
from dispatching import exhaustive
from small import small_task
from trainings import MODEL, SEEDS, TRAIN, same_bits, train, training_of

from calmoe_jax import training
from calmoe_jax.study.config import ModelConfig, TrainConfig
from calmoe_jax.training import trainer
from calmoe_jax.training.checkpoints import CheckpointError
from calmoe_jax.training.throughput import flops_of_example, peak_flops


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_warm_up_is_vanilla_for_every_mixture(tmp_path):
    """The same seeds: bit-equal through the warm-up, apart from then on."""
    config = TrainConfig(epochs=2, warmup_epochs=1, batch_size=16)
    lines = {}
    for method in ("vanilla", "robust_filtered_released"):
        train(tmp_path / method, method, config=config)
        log = training.MetricsLog(tmp_path / method / "metrics.jsonl").read()
        lines[method] = [{k: v for k, v in line.items() if k != "method"} for line in log]
    reference = lines.pop("vanilla")
    for log in lines.values():
        assert log[:2] == reference[:2]
        assert all(a["loss"] != b["loss"] for a, b in zip(log[2:], reference[2:], strict=True))


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", *exhaustive("fgr_robust")])
def test_seeds_do_not_depend_on_how_they_are_mapped(method, tmp_path, monkeypatch):
    mapped = train(tmp_path / "map", method)
    monkeypatch.setattr(trainer, "over_seeds", jax.vmap)
    trainer._epoch_program.cache_clear()
    batched = train(tmp_path / "vmap", method)
    monkeypatch.undo()
    trainer._epoch_program.cache_clear()
    for a, b in zip(jax.tree.leaves(mapped.state), jax.tree.leaves(batched.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    alone = train(tmp_path / "one", method, seeds=SEEDS[1:])
    for a, b in zip(jax.tree.leaves(mapped.state), jax.tree.leaves(alone.state), strict=True):
        np.testing.assert_allclose(a[1:], b, rtol=2e-3, atol=2e-5)


@pytest.mark.exhaustive
def test_one_compilation_for_all_seeds_and_epochs(tmp_path, caplog):
    """One program for the objective and one for the warm-up, which is that of vanilla."""

    def compiled(method):
        caplog.clear()
        with jax.log_compiles(True), caplog.at_level("WARNING"):
            train(tmp_path / method, method)
        messages = [record.getMessage() for record in caplog.records]
        done = [m for m in messages if "Finished XLA compilation" in m]
        return len([m for m in done if "epoch_of_seeds" in m])

    trainer._epoch_program.cache_clear()
    assert compiled("robust") == 2
    assert compiled("vanilla") == 0
    assert compiled("fgr") == 1


def test_training_learns_and_seeds_differ(tmp_path):
    config = TrainConfig(epochs=30, batch_size=16, learning_rate=1e-2)
    trained = train(tmp_path, "vanilla", config=config)
    lines = training.MetricsLog(tmp_path / "metrics.jsonl").read()
    assert len(lines) == 60
    first, last = lines[0], lines[-1]
    assert last["nll"] < 0.6 * first["nll"]
    assert last["step"] == 30 * 6
    assert lines[0]["loss"] != lines[1]["loss"]
    kernel = jax.tree.leaves(trained.state.params)[-1]
    assert not (kernel[0] == kernel[1]).all()


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("interrupt_after", "error"),
    [(1, KeyboardInterrupt), *exhaustive((3, Stop))],
)
def test_resumption_is_bit_equal(tmp_path, interrupt_after, error):
    """An interrupt saves the epoch it came in; a crash goes back to the last checkpoint."""
    config = TrainConfig(epochs=4, batch_size=16, checkpoint_every=2)
    whole = train(tmp_path / "whole", "robust_filtered", config=config)

    count = 0

    def stop(_):
        nonlocal count
        count += 1
        if count == interrupt_after:
            raise error

    with pytest.raises(error):
        train(tmp_path / "cut", "robust_filtered", config=config, on_epoch=stop)
    log = tmp_path / "cut" / "metrics.jsonl"
    log.write_text(log.read_text() + '{"method": "robust_filt')  # a line that a crash cut off
    resumed = train(tmp_path / "cut", "robust_filtered", config=config)
    assert same_bits(whole.state, resumed.state)
    assert np.array_equal(whole.importance, resumed.importance)
    assert (tmp_path / "whole" / "metrics.jsonl").read_text() == log.read_text()
    again = train(tmp_path / "cut", "robust_filtered", config=config, on_epoch=stop)
    assert same_bits(whole.state, again.state)
    assert np.array_equal(whole.importance, again.importance)


@pytest.mark.parametrize("number", [np.float32(3e38), *exhaustive(np.float32(np.nan))])
def test_a_non_finite_loss_stops_the_run_and_names_the_place(tmp_path, number):
    task = small_task()
    config = TrainConfig(epochs=1, batch_size=16)
    train(tmp_path, "vanilla", config=config)
    task.train.inputs[5] = number  # the larger one overflows in the network
    with pytest.raises(training.NonFiniteLossError) as error:
        train(tmp_path, "vanilla", task=task, config=TrainConfig(epochs=2, batch_size=16))
    message = str(error.value)
    assert "method vanilla, seed 7" in message
    assert "is not finite at step" in message
    assert f"the last good checkpoint is {tmp_path / 'checkpoints' / '1'}" in message
    steps = [int(word) for word in message.replace("(", " ").split() if word.isdigit()]
    assert any(7 <= s <= 12 for s in steps)  # the second epoch has steps 7 to 12
    assert training.Checkpoints(tmp_path / "checkpoints").latest() == 1


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("routing", ["top_k", *exhaustive("hard")])
def test_load_balancing_spreads_the_load(tmp_path, routing):
    model = ModelConfig(width=8, depth=1, experts=4, router_hidden=8, routing=routing)

    def largest_share(coefficient):
        config = TrainConfig(
            epochs=10, batch_size=16, learning_rate=1e-2, load_balancing=coefficient
        )
        folder = tmp_path / str(coefficient)
        return train(folder, "vanilla", model=model, config=config).importance.max(axis=1).mean()

    assert largest_share(1.0) < largest_share(0.0) - 0.05


def test_dead_experts_are_named():
    importance = np.array([[0.5, 0.49, 0.01], [1 / 3, 1 / 3, 1 / 3]])
    trained = training.TrainedSeeds(None, None, importance)
    assert trained.dead_experts() == [[2], []]
    assert trained.num_experts == 3


def test_the_single_classifier_is_one_expert(tmp_path):
    assert train(tmp_path, "single").num_experts == 1
    assert MODEL.experts == 3
    assert TRAIN.epochs == 3


# orbax leaves its other reads of the broken files to themselves
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_broken_checkpoint_is_said_and_the_one_before_is_taken(tmp_path):
    whole, said = train(tmp_path), []
    last = tmp_path / "checkpoints" / str(TRAIN.epochs)
    for path in last.rglob("*"):
        if path.is_file() and not path.name.startswith("_"):
            path.write_bytes(b"")
    assert same_bits(train(tmp_path, say=said.append).state, whole.state)
    assert f"checkpoint {last} cannot be read" in said[0]
    with pytest.raises(CheckpointError, match="of another model or task"):
        train(tmp_path, "single", say=said.append)


def test_the_peak_of_devices_and_the_work_of_an_example():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("a machine") is None
    task = small_task()
    work = flops_of_example(training_of("vanilla", task), task.train.inputs, 16)
    double = flops_of_example(training_of("vanilla", task), task.train.inputs, 32)
    assert 0 < work < 1e5
    assert work == double
