"""Several processes on this machine: they train as one, stop together, and notice a loss."""

import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from dispatching import exhaustive
from jobs import HELPERS, Job, environment, free_port
from small import CLASSES, small_task
from steps_over_devices import OBJECTIVES, assert_same_steps, take_steps
from trainings import SEEDS, train

from calmoe_jax.data.records import write_records
from calmoe_jax.parallel.processes import (
    ProcessError,
    check_agreement,
    join_processes,
    raise_everywhere,
    stop_is_due,
)

LAST = 18


def worker(folder, count, *, methods=None, pause=0.0, program="worker.py"):
    """A job of processes of one training."""
    folder.mkdir(exist_ok=True)
    port, methods = free_port(), methods or ["robust"] * count
    given = [(HELPERS / program, folder, port, count, i, methods[i], pause) for i in range(count)]
    return Job(given, [{"JAX_NUM_CPU_DEVICES": str(max(1, 4 // count))}] * count)


def state(folder):
    with np.load(folder / "state.npz") as held:
        return [held[name] for name in held.files]


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "wide"),
    [
        (2, False),
        pytest.param(2, True, marks=pytest.mark.long),
        pytest.param(4, False, marks=pytest.mark.long),
    ],
)
def test_twenty_steps_of_every_objective_are_those_of_one_process(tmp_path, count, wide):
    """Losses, weights, gradients, batch statistics and states; processes start once for all."""
    kinds = ["float64" if wide else "float32"] * count
    codes, said = worker(tmp_path, count, methods=kinds, program="steps_worker.py").end(600)
    assert codes == [0] * count, said
    for name in OBJECTIVES:
        wanted = take_steps(name, wide=wide)
        with np.load(tmp_path / f"{name}.npz") as held:
            found = jax.tree.unflatten(jax.tree.structure(wanted), [held[n] for n in held.files])
        assert_same_steps(name, found, wanted, wide=wide)


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize("count", [2, *exhaustive(4)])
def test_processes_train_as_one_device(tmp_path, count):
    codes, said = worker(tmp_path / "job", count).end()
    assert codes == [0] * count, said
    alone = train(tmp_path / "one", "robust", small_task(), seeds=SEEDS[:1])
    for found, wanted in zip(
        state(tmp_path / "job"), jax.tree.leaves(alone.state.params), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_processes_train_on_one_stream(tmp_path):
    """Each reads its own rows of the same batches."""
    for name in ("grain", "array_record"):
        pytest.importorskip(name, reason=f"needs {name} (the data extra)")
    pairs = zip(small_task().train.inputs, small_task().train.labels, strict=True)
    examples = [{"inputs": inputs, "label": int(label)} for inputs, label in pairs]
    for count in (1, 2):
        records = tmp_path / str(count) / "records"
        write_records(records, examples, classes=CLASSES, shards=2, quiet=True)
        codes, said = worker(tmp_path / str(count), count).end()
        assert codes == [0] * count, said
    for one, two in zip(state(tmp_path / "1"), state(tmp_path / "2"), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_signal_to_one_stops_all_at_one_step_and_resumption_is_bit_equal(tmp_path):
    assert worker(tmp_path / "whole", 2).end()[0] == [0, 0]
    job = worker(tmp_path / "cut", 2, pause=0.3)
    assert job.wait_for("step 4")
    job.processes[1].send_signal(signal.SIGTERM)
    codes, said = job.end()
    assert codes == [143, 143], said
    words = [
        next(line for line in each.splitlines() if "is saved at step" in line) for each in said
    ]
    assert words[0] == words[1]
    codes, said = worker(tmp_path / "cut", 2).end()
    assert codes == [0, 0], said
    assert f"step {words[0].split('step ')[1].split('.')[0]}\n" in said[0]
    assert "step 3\n" not in said[0]
    for a, b in zip(state(tmp_path / "whole"), state(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("lost", [1, 0])
def test_a_lost_process_ends_the_others_which_say_so(tmp_path, lost):
    job = worker(tmp_path, 2, pause=0.3)
    assert job.wait_for("step 8", lost)
    job.processes[lost].kill()
    start = time.monotonic()
    code = job.processes[1 - lost].wait(30)
    assert time.monotonic() - start < 30
    assert code != 0
    said = job.end()[1][1 - lost]
    # Gloo may abort the process in the middle of an exchange, before Python can say it
    ways = "another process of the job has ended", "distributed service", "gloo::EnforceNotMet"
    assert any(words in said for words in ways), said
    codes, said = worker(tmp_path, 2).end()
    assert codes == [0, 0], said
    assert "step 0\n" not in said[0]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.exhaustive
def test_twenty_kills_at_random_moments(tmp_path):
    assert worker(tmp_path / "whole", 1).end()[0] == [0]
    moments = random.Random(0)
    for _ in range(20):
        job = worker(tmp_path / "cut", 1, pause=0.1)
        for _ in range(moments.randrange(1, LAST)):
            if not job.wait_for("step"):
                break
        time.sleep(moments.uniform(0, 0.1))
        job.processes[0].kill()
        job.end()
        for path in (tmp_path / "cut").glob("*.npz"):
            state(path.parent)  # whole or not there
    codes, said = worker(tmp_path / "cut", 1).end()
    assert codes == [0], said
    for a, b in zip(state(tmp_path / "whole"), state(tmp_path / "cut"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_different_configurations_are_refused_everywhere(tmp_path):
    codes, said = worker(tmp_path, 2, methods=["robust", "vanilla"]).end()
    assert codes == [1, 1], said
    for each in said:
        assert "all processes must have the same configuration, got different method" in each
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_coordinator_that_does_not_answer_is_named():
    code = (
        "from calmoe_jax.parallel.processes import *\n"
        "try: join_processes(coordinator='127.0.0.1:9', num_processes=2, process_id=1, timeout=3)\n"
        "except ProcessError as error: print('refused:', error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=90
    )
    assert "refused: coordinator=127.0.0.1:9 did not answer within timeout=3" in done.stdout
    alone = code.replace("127.0.0.1:9", f"127.0.0.1:{free_port()}").replace("id=1", "id=0")
    done = subprocess.run(
        [sys.executable, "-c", alone], env=environment(), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 2
    assert "calmoe: not all processes came within timeout=3 seconds" in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "a:1"}, "num_processes must be given with the others"),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            r"process_id must be in \[0, 2\), the number of processes, got process_id=2",
        ),
    ],
)
def test_arguments_are_checked_before_anything_starts(given, message):
    with pytest.raises(ProcessError, match=message):
        join_processes(**given)


def test_what_a_cluster_does_not_say_is_named(monkeypatch):
    def initialize(*_, **__):
        raise RuntimeError("jobs must be indexed")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ProcessError, match="the processes could not join: jobs must be indexed"):
        join_processes()


def test_a_cluster_is_not_asked_for_what_is_given(monkeypatch):
    asked = []
    monkeypatch.setattr(
        jax.distributed, "initialize",
        lambda *_, **options: asked.append(options["cluster_detection_method"]),
    )  # fmt: skip
    join_processes(coordinator="127.0.0.1:1", num_processes=1, process_id=0)
    join_processes()
    assert asked == ["deactivate", None]


def test_alone_nothing_is_waited_for():
    check_agreement({"a": 1})
    assert not stop_is_due(3)
    raise_everywhere(None)
    with pytest.raises(ProcessError, match="mine"):
        raise_everywhere(ProcessError("mine"))
