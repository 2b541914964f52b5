"""What the foundation promises: the main job's time and memory, and the cost of each objective.

`python -m benchmarks.foundation [--check] [--parts run seeds steps import] [--out FILE]`

* run: `calmoe run` without arguments in a process of its own, report included.
* seeds: the compiled epoch of five seeds against that of one, `portal`, vanilla.
* steps: one training step of each objective against one of ERM; ResNet-18 with 3 stages, 128
  images of 32x32x3. Medians over rounds in which all take turns, in one process.
* import: what `import calmoe_jax` adds to `import jax`, median of five processes.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Figure, ratio, report, time_interleaved

BATCH_SIZE = 128
# Rounds of the seeds and of the steps, one after the other.
SEED_ROUNDS, STEP_ROUNDS = 15, 9
PROCESSES = 5
# What a method's step is called, and its most time in units of a step of vanilla.
STEPS = {
    "robust": ("Robust", 1.05),
    "robust_released": ("Robust (released)", 1.05),
    "robust_filtered": ("Robust Filtered", 1.10),
    "fgr": ("FGR", 2.2),
}


def measure_run() -> list[Figure]:
    """Wall time and peak memory of the main job."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "calmoe_jax.cli", "run", "--out", f"{folder}/run"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - start
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return [
        Figure("calmoe run, wall time", seconds, 150, "s"),
        Figure("calmoe run, peak memory", kilobytes / 1e6, 3, "GB"),
    ]


def measure_seeds() -> list[Figure]:
    """Five seeds against one, an epoch each, compiled."""
    # training and study need more packages than the other benchmarks: imported where used
    from calmoe_jax import training
    from calmoe_jax._mapping import over_seeds
    from calmoe_jax.data import load_task
    from calmoe_jax.study import ModelConfig
    from calmoe_jax.study.networks import build_network

    task = load_task("portal")
    inputs, labels = jnp.asarray(task.train.inputs), jnp.asarray(task.train.labels)
    network = build_network(
        ModelConfig(), task.train.inputs, single=False, num_classes=len(task.classes)
    )
    objective, optimizer = training.objectives.erm(), optax.adamw(1e-3)
    one_seed = partial(
        training.train_epoch, network=network, objective=objective, optimizer=optimizer,
        batch_size=BATCH_SIZE,
    )  # fmt: skip

    def init(seed: jax.Array) -> training.TrainState:
        return training.init_state(network, objective, optimizer, jax.random.key(seed))

    def epochs(number: int, mapped: Callable[..., Callable[..., object]]) -> Callable[[], object]:
        seeds = jnp.arange(number)
        states = jax.jit(jax.vmap(init))(seeds)
        program = jax.jit(mapped(lambda s, n: one_seed(s, n, jnp.int32(0), inputs, labels)))
        return partial(program, states, seeds)

    variants = {
        "one": epochs(1, over_seeds),
        "five": epochs(5, over_seeds),
        "five by vmap": epochs(5, jax.vmap),
    }
    seconds = time_interleaved(variants, rounds=SEED_ROUNDS)
    return [
        Figure("five seeds / one seed", ratio(seconds, "five", "one"), 5.5),
        Figure("five seeds by vmap / one seed", ratio(seconds, "five by vmap", "one")),
    ]


def measure_steps(
    size: int = 32, backbone: Literal["mlp", "resnet18"] = "resnet18"
) -> list[Figure]:
    """A step of each objective against a step of the mean loss (ERM).

    Args:
        size: height and width of the images.
        backbone: as in `ModelConfig`.
    """
    from calmoe_jax import training
    from calmoe_jax.study import ModelConfig, TrainConfig
    from calmoe_jax.study.config import with_defaults
    from calmoe_jax.study.methods import build_method
    from calmoe_jax.study.networks import build_network

    rng = np.random.RandomState(0)
    batch = training.Batch(
        jnp.asarray(rng.randint(0, 256, (BATCH_SIZE, size, size, 3)), jnp.uint8),
        jnp.asarray(rng.randint(0, 10, BATCH_SIZE), jnp.int32),
    )
    model = ModelConfig(backbone=backbone, stages=3)
    config = with_defaults(model, TrainConfig())
    network = build_network(model, batch.inputs, single=False, num_classes=10)
    optimizer, key = optax.adamw(1e-3), jax.random.key(0)
    variants = {}
    for name in ("vanilla", *STEPS):
        objective = build_method(name, config, None).objective
        step = partial(
            training.train_step, network=network, objective=objective, optimizer=optimizer
        )
        state = training.init_state(network, objective, optimizer, key)
        variants[name] = partial(jax.jit(step), state, batch, key)
    seconds = time_interleaved(variants, rounds=STEP_ROUNDS)
    ratios = [
        Figure(f"{title} step / ERM step", ratio(seconds, name, "vanilla"), bound)
        for name, (title, bound) in STEPS.items()
    ]
    return [Figure("ERM step", median(seconds["vanilla"]), unit="s"), *ratios]


def measure_import() -> list[Figure]:
    """Seconds that `import calmoe_jax` adds to `import jax`."""
    code = (
        "import jax, time; start = time.perf_counter(); import calmoe_jax; "
        "print(time.perf_counter() - start)"
    )
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(PROCESSES)
    ]
    return [Figure("import calmoe_jax after import jax", median(seconds), 0.1, "s")]


PARTS = {
    "run": measure_run,
    "seeds": measure_seeds,
    "steps": measure_steps,
    "import": measure_import,
}


def main() -> int:
    """Measures the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is exceeded")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    figures = [figure for part in arguments.parts for figure in PARTS[part]()]
    return report("foundation", figures, arguments.out, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
