"""What the foundation promises: the main job's time and memory, and the cost of each objective.

`python -m benchmarks.foundation [--check] [--parts run seeds steps import] [--out FILE]`

* run: `calmoe run` without arguments in a process of its own, report included.
* seeds: the compiled epoch of five seeds against that of one, `portal`, vanilla.
* steps: one training step of each objective against one of ERM; ResNet-18 with 3 stages, 128
  images of 32x32x3. Medians over interleaved rounds in one process.
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

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Figure, ratio, report, time_interleaved
from calmoe_jax._mapping import over_seeds
from calmoe_jax.data import load_task
from calmoe_jax.study.config import ModelConfig
from calmoe_jax.study.networks import build_network
from calmoe_jax.training import Batch, TrainState, init_state, objectives, train_epoch, train_step

_OBJECTIVES = {
    "vanilla": objectives.erm(),
    "robust": objectives.robust(eta=2.0),
    "robust_released": objectives.robust(eta=2.0, detach=False),
    "robust_filtered": objectives.robust_filtered(eta=2.0),
    "fgr": objectives.rectified(objectives.erm()),
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
    task = load_task("portal")
    inputs, labels = jnp.asarray(task.train.inputs), jnp.asarray(task.train.labels)
    network = build_network(
        ModelConfig(), task.train.inputs, single=False, num_classes=len(task.classes)
    )
    optimizer, objective = optax.adamw(1e-3), _OBJECTIVES["vanilla"]
    one_seed = partial(
        train_epoch, network=network, objective=objective, optimizer=optimizer, batch_size=128
    )

    def init(seed: jax.Array) -> TrainState:
        return init_state(network, objective, optimizer, jax.random.key(seed))

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
    seconds = time_interleaved(variants, rounds=15)
    return [
        Figure("five seeds / one seed", ratio(seconds, "five", "one"), 5.5),
        Figure("five seeds by vmap / one seed", ratio(seconds, "five by vmap", "one")),
    ]


def measure_steps() -> list[Figure]:
    """A step of each objective against a step of ERM."""
    rng = np.random.RandomState(0)
    inputs = jnp.asarray(rng.randint(0, 256, (128, 32, 32, 3)), jnp.uint8)
    labels = jnp.asarray(rng.randint(0, 10, 128), jnp.int32)
    optimizer, batch = optax.adamw(1e-3), Batch(inputs, labels)
    config = ModelConfig(backbone="resnet18", stages=3)
    network = build_network(config, inputs, single=False, num_classes=10)
    variants = {}
    for name, objective in _OBJECTIVES.items():
        start = partial(init_state, network, objective, optimizer)
        step = partial(train_step, network=network, objective=objective, optimizer=optimizer)
        variants[name] = partial(
            jax.jit(step), jax.jit(start)(jax.random.key(0)), batch, jax.random.key(1)
        )
    seconds = time_interleaved(variants, rounds=9)
    return [
        Figure("ERM step", median(seconds["vanilla"]), unit="s"),
        Figure("Robust step / ERM step", ratio(seconds, "robust", "vanilla"), 1.05),
        Figure(
            "Robust (released) step / ERM step", ratio(seconds, "robust_released", "vanilla"), 1.05
        ),
        Figure(
            "Robust Filtered step / ERM step", ratio(seconds, "robust_filtered", "vanilla"), 1.10
        ),
        Figure("FGR step / ERM step", ratio(seconds, "fgr", "vanilla"), 2.2),
    ]


def measure_import() -> list[Figure]:
    """Seconds that `import calmoe_jax` adds to `import jax`."""
    code = (
        "import jax, time; start = time.perf_counter(); import calmoe_jax; "
        "print(time.perf_counter() - start)"
    )
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(5)
    ]
    return [Figure("import calmoe_jax after import jax", median(seconds), 0.1, "s")]


PARTS = {
    "run": measure_run,
    "seeds": measure_seeds,
    "steps": measure_steps,
    "import": measure_import,
}


def main() -> int:
    """Measures the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is exceeded")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    arguments = parser.parse_args()
    figures = [figure for part in arguments.parts for figure in PARTS[part]()]
    return report("foundation", figures, arguments.out, check=arguments.check)


if __name__ == "__main__":
    sys.exit(main())
