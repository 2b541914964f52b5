"""Which rule would be chosen without a single label of a target?

`python -m experiments.choose_rule --data-dir DIR [--runs DIR] [--out FILE]`

The constants of the mode `bold` of `calmoe_jax.shift.repair` (the more cautious of seeds' and
neighbours' rules, both here from the confidence on held-out examples) were chosen by calibration
error on the tasks' own shifts. Here they are chosen on shifts of every severity that are made of
training and held-out examples alone (`experiments.simulated`). Two choices are evaluated on the
real shifts: the constants with the least simulated error of those that raise a task's error by at
most .005 without a shift, and of those that also raise it by at most .01 under any simulated shift.

Temperatures are looked up on a grid, so errors differ from those of `repair_without_labels`: a
task's mean by up to .002.
"""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from calmoe_jax import mixture, shift
from calmoe_jax.data import Split, Task, resolve_task
from calmoe_jax.shift import repair
from calmoe_jax.study import RunConfig
from calmoe_jax.training import TrainedSeeds
from experiments.repair_without_labels import errors, fit
from experiments.simulated import NO_SHIFT, SUBPOPULATIONS, family, leave_out, subpopulations
from experiments.trained import experiment_parser, sample, train_vanilla, write_results

SEEDS = 3
_MOST_NEIGHBOURS = 2000
_FAMILIES = (NO_SHIFT, "new", "noise", "faded")
# Calibration error above that of the temperature in distribution: without a shift, and with one.
ALLOWED_WITHOUT, ALLOWED_HARM = 0.005, 0.01
LOG_TEMPERATURES = np.linspace(np.log(0.25), np.log(60), 110)
NUM_NEIGHBOURS = (5, 10, 15, 25, 40)


class Constants(NamedTuple):
    """Constants of a rule: neighbours, then growth and margin for them and for the seeds."""

    num_neighbours: int
    growth: float
    margin: float
    seeds_growth: float
    seeds_margin: float


SHIPPED = Constants(15, 5.0, 2.0, 3.0, 1.0)
GRID = tuple(
    Constants(*values)
    for values in itertools.product(
        NUM_NEIGHBOURS, (0, 1, 2, 3, 4, 5, 6, 8, 10, 15), (0, 1, 2, 3), (0, 1, 2, 3, 4, 6, 10),
        (0, 1, 2),
    )
)  # fmt: skip


class Shift(NamedTuple):
    """What constants are tried on; arrays are of every seed.

    Attributes:
        inside: temperature in distribution.
        error_inside: calibration error at it, a mean over the seeds.
        error_best: that at the temperature fitted to the targets' labels.
        confidence: mean confidence of the held-out examples at their temperature.
        supports: of held-out examples and of targets, by number of neighbours.
        agreements: of held-out examples and of targets.
        chance: of the seeds' predictions.
        errors: calibration error by temperature.
        confidences: mean confidence of the targets by temperature.
        num_classes: number of classes.
    """

    inside: np.ndarray
    error_inside: float
    error_best: float
    confidence: np.ndarray
    supports: dict[int, tuple[shift.NeighbourSupport, shift.NeighbourSupport]]
    agreements: tuple[shift.Agreement, shift.Agreement]
    chance: np.ndarray
    errors: np.ndarray
    confidences: np.ndarray
    num_classes: int


class Side(NamedTuple):
    """Predictions for examples, their labels and clusters."""

    sample: repair.Sample
    labels: np.ndarray
    clusters: np.ndarray

    def take(self, rows: np.ndarray) -> "Side":
        """Some of the examples."""
        chosen = repair.Sample(*(x[:, rows] for x in self.sample))
        return Side(chosen, self.labels[rows], self.clusters[rows])

    def evenly(self, most: int) -> "Side":
        """At most so many of them."""
        size = len(self.labels)
        return self.take(np.linspace(0, size - 1, min(size, most)).round().astype(int))


@jax.jit
def _supports(
    held_out: repair.Sample,
    labels: jax.Array,
    clusters: jax.Array,
    targets: repair.Sample,
    target_clusters: jax.Array,
) -> dict[int, tuple[shift.NeighbourSupport, shift.NeighbourSupport]]:
    def one_seed(ours: repair.Sample, theirs: repair.Sample) -> Any:
        points, others = (shift.configuration_coordinates(*x) for x in (ours, theirs))
        log_probs, other_log_probs = (mixture.mix_log_probs(*x) for x in (ours, theirs))
        result = {}
        for number in NUM_NEIGHBOURS:
            own = shift.neighbour_support(
                points, jnp.argmax(log_probs, axis=-1), points, labels,
                num_classes=log_probs.shape[-1], clusters=clusters, num_clusters=len(labels),
                reference_clusters=clusters, num_neighbours=number,
            )  # fmt: skip
            other = shift.neighbour_support(
                others, jnp.argmax(other_log_probs, axis=-1), points, labels,
                num_classes=log_probs.shape[-1], clusters=target_clusters,
                num_clusters=len(target_clusters), num_neighbours=number,
            )  # fmt: skip
            result[number] = own, other
        return result

    return jax.lax.map(lambda sides: one_seed(*sides), (held_out, targets))


@jax.jit
def curves(log_probs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Calibration error and mean confidence of each model, by temperature."""

    def at(log_temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
        temperatures = jnp.full(len(log_probs), jnp.exp(log_temperature))
        confidence = jax.vmap(shift.mean_confidence)(log_probs, temperatures)
        return errors(log_probs, labels, temperatures), confidence

    return jax.lax.map(at, jnp.asarray(LOG_TEMPERATURES, jnp.float32))


def observe(held_out: Side, targets: Side) -> Shift:
    """Measures a shift."""
    logs, target_logs = (mixture.mix_log_probs(*x.sample) for x in (held_out, targets))
    labels, target_labels = jnp.asarray(held_out.labels), jnp.asarray(targets.labels)
    inside, best = fit(logs, labels), fit(target_logs, target_labels)
    near, far = (x.evenly(_MOST_NEIGHBOURS) for x in (held_out, targets))
    numbers = [jnp.asarray(np.unique(x.clusters, return_inverse=True)[1]) for x in (near, far)]
    predicted, target_predicted = (jnp.argmax(x, axis=-1) for x in (logs, target_logs))
    classes = logs.shape[-1]
    chosen = jnp.mean(jax.nn.one_hot(target_predicted, classes), axis=1)
    found = Shift(
        inside,
        float(jnp.mean(errors(target_logs, target_labels, inside))),
        float(jnp.mean(errors(target_logs, target_labels, best))),
        jax.vmap(shift.mean_confidence)(logs, inside),
        _supports(near.sample, jnp.asarray(near.labels), numbers[0], far.sample, numbers[1]),
        (
            shift.chance_corrected_agreement(predicted, num_classes=classes),
            shift.chance_corrected_agreement(target_predicted, num_classes=classes),
        ),
        chosen @ jnp.mean(jax.nn.one_hot(labels, classes), axis=0),
        *curves(target_logs, target_labels),
        classes,
    )
    return jax.tree.map(np.asarray, found)


def _temperatures(at: Shift, aims: np.ndarray) -> np.ndarray:
    """Logarithms of the temperatures that give each seed its mean confidence."""
    inside = np.log(at.inside)
    aims = np.maximum(aims, 1 / at.num_classes + 1e-3)
    found = [np.interp(-aim, -at.confidences[:, i], LOG_TEMPERATURES) for i, aim in enumerate(aims)]
    return np.where(np.isnan(aims), inside, np.maximum(found, inside))


def neighbours_temperatures(at: Shift, constants: Constants) -> np.ndarray:
    """Log temperatures of each seed by its neighbours."""
    accuracy = partial(shift.neighbour_accuracy, growth=constants.growth, margin=constants.margin)
    given = *at.supports[constants.num_neighbours], at.confidence
    aims = jax.vmap(accuracy)(*jax.tree.map(jnp.asarray, given))
    return _temperatures(at, np.asarray(aims))


def seeds_temperatures(at: Shift, constants: Constants) -> np.ndarray:
    """Log temperatures of each seed by its agreement with the others."""
    given = *at.agreements, at.confidence, at.chance
    aims = shift.agreement_accuracy(
        *jax.tree.map(jnp.asarray, given),
        growth=constants.seeds_growth,
        margin=constants.seeds_margin,
    )
    return _temperatures(at, np.asarray(aims))


def errors_of(at: Shift, grid: tuple[Constants, ...]) -> np.ndarray:
    """Calibration error, a mean over the seeds, for each of the constants."""
    by_neighbours, by_seeds = {}, {}
    for constants in grid:
        first, second = constants[:3], constants[3:]
        if first not in by_neighbours:
            by_neighbours[first] = neighbours_temperatures(at, constants)
        if second not in by_seeds:
            by_seeds[second] = seeds_temperatures(at, constants)
    values = []
    for constants in grid:
        logs = np.maximum(by_neighbours[constants[:3]], by_seeds[constants[3:]])
        seeds = [np.interp(x, LOG_TEMPERATURES, at.errors[:, i]) for i, x in enumerate(logs)]
        values.append(np.mean(seeds))
    return np.array(values)


def _of_split(trained: TrainedSeeds, split: Split) -> Side:
    return Side(sample(trained, split.inputs), split.labels, split.clusters)


def _of_families(made: tuple[Task, dict[str, Split]]) -> tuple[Task, dict[str, Split]]:
    """Only shifts of the families that the constants are chosen on."""
    without, targets = made
    return without, {name: x for name, x in targets.items() if family(name) in _FAMILIES}


def simulate(task: Task, config: RunConfig, folder: Path) -> list[dict[str, Shift]]:
    """For each subpopulation that is left out, the shifts to it."""
    numbers = subpopulations(task)
    made = [_of_families(leave_out(task, numbers, number)) for number in range(SUBPOPULATIONS)]
    # of one size, so that all share programs
    most = min(len(without.calibration) for without, _ in made)
    size = min(len(split) for _, targets in made for split in targets.values())
    found = []
    for number, (without, targets) in enumerate(made):
        trained = train_vanilla(without, config, folder / f"{task.name}-without-{number}")
        held_out = _of_split(trained, without.calibration).evenly(most)
        found.append(
            {
                name: observe(held_out, _of_split(trained, split).evenly(size))
                for name, split in tqdm(targets.items(), unit="shift", disable=None)
            }
        )
    return found


def real(task: Task, config: RunConfig, folder: Path) -> dict[str, Shift]:
    """The shifts of a task itself, for the mixtures of `calmoe run`."""
    trained = train_vanilla(task, config, folder)
    held_out = _of_split(trained, task.calibration)
    return {
        split.name: observe(held_out, _of_split(trained, split))
        for split in tqdm(task.evaluation, unit="split", disable=None, desc=task.name)
    }


def evaluate(shifts: dict[str, dict[str, Shift]], kinds: dict[str, str], rule: Constants) -> Any:
    """Share of the gap that a rule closes, and the split of each task where it does most harm."""
    means, harms = [], {}
    for task, splits in shifts.items():
        found = {name: errors_of(at, (rule,))[0] for name, at in splits.items()}
        moved = [name for name in splits if kinds[f"{task}/{name}"] == "shift"]
        rows = [(splits[n].error_inside, found[n], splits[n].error_best) for n in moved]
        means.append(np.mean(rows, axis=0))
        harm = {
            name: found[name] - at.error_inside
            for name, at in splits.items()
            if kinds[f"{task}/{name}"] != "hard"
        }
        worst = max(harm, key=lambda name: harm[name])
        harms[task] = [worst, float(harm[worst])]
    inside, ours, best = np.mean(means, axis=0)
    return {
        "temperature": inside,
        "rule": ours,
        "best": best,
        "closed": (inside - ours) / (inside - best),
        "greatest_harm": harms,
        "by_task": {task: mean.tolist() for task, mean in zip(shifts, means, strict=True)},
    }


class Tried(NamedTuple):
    """Calibration errors on a simulated shift, means over what was left out.

    Attributes:
        inside: of the temperature in distribution.
        errors: of each of the constants in the grid.
    """

    inside: float
    errors: np.ndarray


def try_all(simulated: dict[str, list[dict[str, Shift]]]) -> dict[str, dict[str, Tried]]:
    """All constants of the grid on every simulated shift, by task and name."""
    found: dict[str, dict[str, Tried]] = {}
    for task, made in tqdm(simulated.items(), unit="task", disable=None, desc="grid"):
        found[task] = {
            name: Tried(
                float(np.mean([shifts[name].error_inside for shifts in made])),
                np.mean([errors_of(shifts[name], GRID) for shifts in made], axis=0),
            )
            for name in made[0]
        }
    return found


def mean_error(tried: dict[str, dict[str, Tried]]) -> np.ndarray:
    """Error of all constants on the shifts: a mean over those of a task, then over tasks."""
    tasks = [[x.errors for name, x in of.items() if name != NO_SHIFT] for of in tried.values()]
    return np.mean([np.mean(errors, axis=0) for errors in tasks], axis=0)


def choose(tried: dict[str, dict[str, Tried]], *, watched: Callable[[str], bool]) -> Constants:
    """The constants with the least error, of those that do little harm on the watched shifts."""
    harmless = np.ones(len(GRID), bool)
    for of_task in tried.values():
        for name, at in of_task.items():
            if watched(name):
                allowed = ALLOWED_WITHOUT if name == NO_SHIFT else ALLOWED_HARM
                harmless &= at.errors - at.inside <= allowed
    if not harmless.any():
        raise ValueError("all constants of the grid do harm on simulated shifts.")
    return GRID[int(np.argmin(np.where(harmless, mean_error(tried), np.inf)))]


def greatest_harms(tried: dict[str, dict[str, Tried]], rule: Constants) -> dict[str, list[Any]]:
    """The simulated shift of each task on which a rule does most harm, and how much."""
    index, found = GRID.index(rule), {}
    for task, of_task in tried.items():
        harms = {name: float(at.errors[index] - at.inside) for name, at in of_task.items()}
        worst = max(harms, key=lambda name: harms[name])
        found[task] = [worst, harms[worst]]
    return found


def main() -> None:
    """Chooses on simulated shifts, evaluates on real ones, prints both, writes everything."""
    arguments = experiment_parser(__doc__).parse_args()
    simulated, kinds, shifts = {}, {}, {}
    for name in tqdm(arguments.tasks, unit="task", disable=None):
        task = resolve_task(name, arguments.data_dir)
        simulated[task.name] = simulate(task, RunConfig(seeds=SEEDS), arguments.runs)
        shifts[task.name] = real(task, RunConfig(), arguments.runs / task.name)
        kinds |= {f"{task.name}/{split.name}": split.kind for split in task.evaluation}
    tried = try_all(simulated)
    rules = {
        "chosen: no harm without a shift": choose(tried, watched=lambda name: name == NO_SHIFT),
        "chosen: no harm under any shift": choose(tried, watched=lambda name: True),
        "shipped": SHIPPED,
    }
    result: dict[str, Any] = {}
    for title, rule in rules.items():
        found = evaluate(shifts, kinds, rule)
        simulated_error = float(mean_error(tried)[GRID.index(rule)])
        harms = greatest_harms(tried, rule)
        result[title] = {
            "constants": rule._asdict(),
            "simulated": simulated_error,
            "simulated_harm": harms,
            **found,
        }
        print(f"\n{title}: {rule}; simulated shifts {simulated_error:.3f}")
        print(
            f"real shifts: temperature {found['temperature']:.3f}, rule {found['rule']:.3f}, best "
            f"{found['best']:.3f}: {found['closed']:.1%} of the gap"
        )
        for task_name, (split, harm) in found["greatest_harm"].items():
            made, made_harm = harms[task_name]
            print(
                f"  {task_name:<12} greatest harm {harm:+.3f} ({split}); of a simulated shift "
                f"{made_harm:+.3f} ({made})"
            )
    if arguments.out:
        write_results(arguments.out, rules=result)


if __name__ == "__main__":
    main()
