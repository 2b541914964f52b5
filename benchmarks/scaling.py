"""Scaling of the training step of a sparse transformer: compiled for pods, and run on CPU devices.

`python -m benchmarks.scaling [--parts weak strong devices] [--out FILE] [--table FILE]`

`weak` (as many examples a chip) and `strong` (as many in all) are *compiled* for TPU v5e, which the
extra `tpu` can do anywhere: memory and bytes sent of a device, and the time to compile. Nothing is
timed there. `devices` *runs* 20 steps on 1, 2, 4 and 8 CPU devices of this machine and compares the
losses with those of one: it is about being right, not fast. Processes are compared in
`tests/parallel/test_processes.py`. About ten minutes on two cores, with `JAX_PLATFORMS=cpu`.
`--table` prints the README's table of such a file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import environment, write_json

# ViT-S/16 with 32 experts in every second block, k = 2, bfloat16, the robust objective.
MODEL = {"model": "S/16", "experts": 32, "expert_shards": 8, "heads": 4}
TOPOLOGIES = {8: "v5e:2x4", 32: "v5e:4x8", 256: "v5e:16x16", 512: "2*v5e:16x16"}
PER_CHIP, IN_ALL = 16, 4096
PARTS = ("weak", "strong", "devices")
COUNTS = (1, 2, 4, 8)
STEPS = 20


def planned(chips: int, batch: int) -> dict[str, Any]:
    """The figures of a plan."""
    from calmoe_jax.study.plan_config import PlanConfig
    from calmoe_jax.study.planning import plan_training

    plan = plan_training(PlanConfig(**MODEL, batch=batch), TOPOLOGIES[chips], largest=False).plan
    sent: dict[str, float] = {}
    for each in plan.collectives:
        name = f"{each.kind} over {' and '.join(each.axes)}"
        sent[name] = sent.get(name, 0) + each.bytes_sent
    return {
        "chips": chips,
        "topology": plan.topology,
        "batch": batch,
        "fits": plan.fits,
        "gigabytes": plan.needed / 1e9,
        "teraflops": plan.flops / 1e12,
        "sent_megabytes": {name: value / 1e6 for name, value in sent.items()},
        "compile_seconds": plan.compile_seconds,
    }


def losses(count: int) -> list[float]:
    """Losses of steps on so many devices, of a process of its own."""
    code = f"from benchmarks.scaling import run; run({count})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=900
    )
    if done.returncode:
        raise RuntimeError(f"{count} devices: {done.stderr[-2000:]}")
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(count: int) -> None:
    """Takes the steps on so many devices, and prints their losses."""
    import jax

    jax.config.update("jax_num_cpu_devices", count)
    import numpy as np
    import optax

    from calmoe_jax.nn import MoEBlocks, MoEClassifier, ViT, from_nnx
    from calmoe_jax.parallel import device_mesh
    from calmoe_jax.training import Batch, objectives, sharded_training

    moe = MoEBlocks(num_experts=8, noise=0.0, expert_axis="expert")
    network = from_nnx(
        lambda rngs: MoEClassifier(ViT.of_size("tiny", (8, 8, 3), moe=moe, rngs=rngs), 5, rngs=rngs)
    )
    objective = objectives.with_layer_losses(
        objectives.robust(eta=2.0), importance=0.01, load=0.01, z_loss=0.001
    )
    mesh = device_mesh(expert_shards=max(1, count // 2))
    training = sharded_training(network, objective, optax.sgd(0.1), mesh)
    state, rng = training.init(jax.random.key(0)), np.random.RandomState(0)
    found = []
    for step in range(STEPS):
        images = rng.randn(32, 8, 8, 3).astype(np.float32)
        batch = Batch(images, rng.randint(0, 5, 32).astype(np.int32))
        state, log = training.step(state, training.place(batch), jax.random.key(step))
        found.append(float(log.loss))
    print(json.dumps(found))


def measure(parts: tuple[str, ...]) -> dict[str, Any]:
    """All figures of some parts."""
    from tqdm import tqdm

    work = [("weak", n, PER_CHIP * n) for n in TOPOLOGIES] if "weak" in parts else []
    work += [("strong", n, IN_ALL) for n in TOPOLOGIES if n > 8] if "strong" in parts else []
    found: dict[str, Any] = {"model": MODEL}
    for part, chips, batch in tqdm(work, unit="plan", disable=None):
        found.setdefault(part, []).append(planned(chips, batch))
        print(_line(part, found[part][-1]), flush=True)
    if "devices" in parts:
        one, *others = (losses(count) for count in COUNTS)
        found["devices"] = {
            count: max(abs(a - b) / abs(b) for a, b in zip(each, one, strict=True))
            for count, each in zip(COUNTS[1:], others, strict=True)
        }
        for count, off in found["devices"].items():
            print(f"{count} CPU devices, {STEPS} steps: losses within {off:.1e} of one device's")
    return found


def _line(part: str, row: dict[str, Any]) -> str:
    sent = ", ".join(f"{name} {value:.0f} MB" for name, value in row["sent_megabytes"].items())
    fits = "fits" if row["fits"] else "does not fit"
    return (
        f"{part}: {row['topology']}, batch {row['batch']}: {row['gigabytes']:.2f} GB ({fits}), "
        f"{row['teraflops']:.2f} Tflop; sends {sent}; compiled in {row['compile_seconds']:.0f} s"
    )


def table(found: dict[str, Any]) -> str:
    """The table of the README, from the figures."""
    model = found["model"]
    lines = [
        f"Compiled for TPU v5e, not run (ViT-{model['model']}, {model['experts']} experts over "
        f"{model['expert_shards']} chips, k = 2, bfloat16, Robust):",
        "",
        "| chips | examples a chip | memory of a chip | sent by a chip | of it between experts |",
        "|---|---|---|---|---|",
    ]
    seen = {(row["chips"], row["batch"]) for row in found["weak"]}
    others = [row for row in found["strong"] if (row["chips"], row["batch"]) not in seen]
    for row in found["weak"] + others:
        sent = row["sent_megabytes"]
        exchanged = sum(value for name, value in sent.items() if name.startswith("all-to-all"))
        lines.append(
            f"| {row['chips']} | {row['batch'] // row['chips']} | {row['gigabytes']:.2f} GB | "
            f"{sum(sent.values()):.0f} MB | {exchanged:.0f} MB |"
        )
    worst = max(found["devices"].values())
    lines += [
        "",
        f"Run on {', '.join(map(str, found['devices']))} CPU devices: {STEPS} steps of a small "
        f"one, every loss within {worst:.0e} of one device's.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, help="where to write everything as JSON")
    parser.add_argument("--table", type=Path, help="print the README's table of such a file")
    given = parser.parse_args(arguments)
    if given.table:
        print(table(json.loads(given.table.read_text())))
        return 0
    found = measure(tuple(given.parts))
    if given.out:
        write_json(given.out, {"environment": environment(), **found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
