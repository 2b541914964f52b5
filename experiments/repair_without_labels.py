"""How much of the calibration error under shift can be repaired without labels?

`python -m experiments.repair_without_labels --data-dir DIR [--tasks NAME ...] [--out FILE]`

Trains the vanilla mixture as `calmoe run` does by default (or goes on from the checkpoints in
`runs/`), finds one temperature for each shifted split by every rule of `calmoe_jax.shift.repair`,
and compares with the oracle: the temperature that is fitted on the split's own labels. All splits
of a task have the same weight, and so have all tasks.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from calmoe_jax import calibration, mixture
from calmoe_jax.data import Task, resolve_task
from calmoe_jax.shift import repair
from calmoe_jax.study import RunConfig
from experiments.trained import experiment_parser, sample, train_vanilla, write_results

RULES = ("none", "temperature", *repair.CALIBRATORS, "oracle")


@jax.jit
def fit(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
    """The temperature of each seed, as `calmoe run` uses it."""
    fits = jax.lax.map(lambda x: calibration.calibrators.fit_temperature(x, labels), log_probs)
    return repair.usable_temperature(fits)


@jax.jit
def errors(log_probs: jax.Array, labels: jax.Array, temperatures: jax.Array) -> jax.Array:
    """Top-label ECE of each seed at its temperature."""
    scaled = jax.vmap(calibration.calibrators.scale_log_probs)(log_probs, temperatures[:, None])

    def one(x: jax.Array) -> jax.Array:
        return calibration.expected_calibration_error(x, labels, from_logits=True)

    return jax.lax.map(one, scaled)


def measure(task: Task, config: RunConfig, folder: Path) -> dict[str, dict[str, list[float]]]:
    """ECE of every seed by split and rule."""
    trained = train_vanilla(task, config, folder)
    held_out = sample(trained, task.calibration.inputs)
    inside = fit(mixture.mix_log_probs(*held_out), jnp.asarray(task.calibration.labels))
    prepared = repair.prepare(held_out, task.calibration.labels, task.calibration.clusters, inside)
    result = {}
    for split in tqdm(task.evaluation, unit="split", disable=None, desc=task.name):
        targets = sample(trained, split.inputs)
        log_probs, labels = mixture.mix_log_probs(*targets), jnp.asarray(split.labels)
        found = repair.fit_to_targets(prepared, targets, split.clusters)
        temperatures = {
            "none": jnp.ones_like(inside),
            "temperature": inside,
            **found.temperatures,
            "oracle": fit(log_probs, labels),
        }
        result[split.name] = {
            name: errors(log_probs, labels, t).tolist() for name, t in temperatures.items()
        }
    return result


def summarise(task: Task, measured: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Mean over the shifts, in distribution, and the greatest harm, by rule.

    Hard subsets are listed separately: their examples are chosen because the labels of their
    neighbours differ, which looks like a shift to a rule that uses these labels.
    """
    mean = {
        split: {rule: float(np.mean(values)) for rule, values in rules.items()}
        for split, rules in measured.items()
    }
    kinds = {split.name: split.kind for split in task.evaluation}
    summary = {}
    for rule in RULES:
        harms = {s: mean[s][rule] - mean[s]["temperature"] for s in mean}
        worst = max((s for s in mean if kinds[s] != "hard"), key=lambda name: harms[name])
        summary[rule] = {
            "shifted": float(np.mean([mean[s][rule] for s in mean if kinds[s] == "shift"])),
            "in_distribution": float(np.mean([mean[s][rule] for s in mean if kinds[s] == "id"])),
            "worst_split": worst,
            "worst_harm": harms[worst],
            "hard_harm": max((harms[s] for s in mean if kinds[s] == "hard"), default=None),
        }
    return summary


def main() -> None:
    """Measures, prints a table, and writes everything."""
    arguments = experiment_parser(__doc__).parse_args()
    everything: dict[str, Any] = {}
    for name in arguments.tasks:
        task = resolve_task(name, arguments.data_dir)
        measured = measure(task, RunConfig(), arguments.runs / task.name)
        summary = summarise(task, measured)
        everything[task.name] = {"summary": summary, "splits": measured}
        print(f"\n{task.name:<28}shifted  in distribution  on hard  greatest harm of another split")
        for rule, line in summary.items():
            hard = "" if line["hard_harm"] is None else f"{line['hard_harm']:+.3f}"
            print(
                f"{rule:<28}{line['shifted']:7.3f}{line['in_distribution']:17.3f}{hard:>9}"
                f"{line['worst_harm']:+8.3f} {line['worst_split']}"
            )
    means = {
        rule: np.mean([x["summary"][rule]["shifted"] for x in everything.values()])
        for rule in RULES
    }
    print(f"\n{'mean over the tasks':<28}shifted  of the gap to the oracle closed")
    for rule, value in means.items():
        closed = (means["temperature"] - value) / (means["temperature"] - means["oracle"])
        print(f"{rule:<28}{value:7.3f}{closed:10.0%}")
    if arguments.out:
        write_results(arguments.out, tasks=everything)


if __name__ == "__main__":
    main()
