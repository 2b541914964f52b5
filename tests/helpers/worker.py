"""A process of a small training over several: `worker.py FOLDER PORT COUNT ID METHOD PAUSE`.

Where the folder has records, they are what is trained on.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

import jax
import numpy as np

from calmoe_jax._errors import RunError, UserError
from calmoe_jax._signals import Stopped, ending_on_signals
from calmoe_jax.parallel import device_mesh
from calmoe_jax.parallel.processes import check_agreement, is_writer, join_processes, wait_for_all


def work(folder, port, count, number, method="robust", pause="0"):
    join_processes(
        coordinator=f"127.0.0.1:{port}", num_processes=int(count), process_id=int(number),
        timeout=60, heartbeat=10,
    )  # fmt: skip
    from small import small_task
    from trainings import TRAIN, training_of

    from calmoe_jax.training import MetricsLog, train_on_mesh, train_on_stream

    check_agreement({"method": method})
    task = small_task()

    def on_step(step):
        print("step", step, flush=True)
        time.sleep(float(pause))

    training, log = training_of(method, task), MetricsLog(folder / "metrics.jsonl")
    if (folder / "records").is_dir():
        from calmoe_jax.data.records import open_records

        trained = train_on_stream(
            training, open_records(folder / "records"), (7,), device_mesh(),
            folder=folder / "checkpoints", log=log, steps_per_checkpoint=4, on_step=on_step,
        )  # fmt: skip
    else:
        trained = train_on_mesh(
            training, task.train.inputs, task.train.labels, (7,), device_mesh(),
            folder=folder / "checkpoints", log=log,
            checkpoint_every=TRAIN.checkpoint_every, on_step=on_step,
        )  # fmt: skip
    if is_writer():
        np.savez(folder / "state.npz", *jax.tree.leaves(trained.state.params))
    wait_for_all("the end")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    try:
        with ending_on_signals():
            work(folder, *sys.argv[2:])
    except (UserError, RunError) as error:
        print(error, flush=True)
        os._exit(1)
    except Stopped as stopped:
        print(stopped.words, flush=True)
        os._exit(stopped.code)
