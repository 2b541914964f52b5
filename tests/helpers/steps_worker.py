"""A process that takes steps of every objective: `steps_worker.py FOLDER PORT COUNT ID KIND`."""

import sys
from pathlib import Path

import jax
import numpy as np

from calmoe_jax.parallel import device_mesh
from calmoe_jax.parallel.processes import is_writer, join_processes, wait_for_all

if __name__ == "__main__":
    folder, port, count, number, kind = sys.argv[1:6]
    join_processes(
        coordinator=f"127.0.0.1:{port}", num_processes=int(count), process_id=int(number),
        timeout=60, heartbeat=60,
    )  # fmt: skip
    from steps_over_devices import OBJECTIVES, take_steps

    for name in OBJECTIVES:
        taken = take_steps(name, device_mesh(), wide=kind == "float64")
        if is_writer():
            np.savez(Path(folder) / f"{name}.npz", *jax.tree.leaves(taken))
    wait_for_all("the end")
