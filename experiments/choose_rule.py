"""Which rule would be chosen without a single label of a target?

`python -m experiments.choose_rule --data-dir DIR [--runs DIR] [--out FILE]`

The constants of `calmoe_jax.repair`'s rule (`agreement`: the more cautious of the seeds' and the
neighbours') were chosen by calibration error on the tasks' own shifts. Here they are chosen on
shifts made of training and held-out examples alone, as in BREEDS (Santurkar et al., 2021): k-means
parts each class of a task into four; one part of every class is left out of training and of what is
held out, and is the target. The constants with the least calibration error on these sixteen shifts,
of those that raise it by no more than .005 in distribution on any task, are then judged on the real
ones.

Temperatures are looked up on a grid, so errors differ from those of `repair_without_labels`: a
task's mean by up to .002.
"""

import dataclasses
import itertools
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from calmoe_jax import mixture, repair, shift
from calmoe_jax._files import to_json, write_whole
from calmoe_jax.data import Split, Task, load_task
from calmoe_jax.training import RunConfig
from calmoe_jax.training.loop import over_seeds
from experiments.repair_without_labels import errors, fit
from experiments.trained import experiment_parser, sample, train_vanilla

_PARTS = 4
_SEEDS = 3
_MOST_TARGETS, _MOST_NEIGHBOURS = 6000, 2000
_ALLOWED_HARM = 0.005
_LOG_TEMPERATURES = np.linspace(np.log(0.25), np.log(60), 110)
_NUM_NEIGHBOURS = (5, 10, 15, 25, 40)


class Constants(NamedTuple):
    """Of a rule: neighbours, then growth and margin of theirs and of the seeds' agreement."""

    num_neighbours: int
    growth: float
    margin: float
    seeds_growth: float
    seeds_margin: float


SHIPPED = Constants(15, 5.0, 2.0, 3.0, 1.0)
GRID = tuple(
    Constants(*values)
    for values in itertools.product(
        _NUM_NEIGHBOURS, (0, 1, 2, 3, 4, 5, 6, 8, 10, 15), (0, 1, 2, 3), (0, 1, 2, 3, 4, 6, 10),
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
        agreements: likewise.
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
    """What was said of examples, their labels and clusters."""

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


def subpopulations(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The part of its class that each training and each held-out example is of, largest first."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    splits = task.train, task.calibration
    rows = np.concatenate([x.inputs.reshape(len(x), -1) for x in splits]).astype(np.float32)
    labels = np.concatenate([x.labels for x in splits])
    if rows.shape[1] > 50:
        rows = PCA(50, random_state=0).fit_transform(rows)
    part = np.zeros(len(rows), int)
    for label in range(len(task.classes)):
        some = labels == label
        found = KMeans(_PARTS, n_init=3, random_state=0).fit_predict(rows[some])
        rank = np.argsort(np.argsort(-np.bincount(found, minlength=_PARTS)))
        part[some] = rank[found]
    return part[: len(task.train)], part[len(task.train) :]


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
        for number in _NUM_NEIGHBOURS:
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

    return over_seeds(one_seed)(held_out, targets)


@jax.jit
def _curves(log_probs: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    def at(log_temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
        temperatures = jnp.full(len(log_probs), jnp.exp(log_temperature))
        confidence = jax.vmap(shift.mean_confidence)(log_probs, temperatures)
        return errors(log_probs, labels, temperatures), confidence

    return jax.lax.map(at, jnp.asarray(_LOG_TEMPERATURES, jnp.float32))


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
        *_curves(target_logs, target_labels),
        classes,
    )
    return jax.tree.map(np.asarray, found)


def _temperatures(at: Shift, aims: np.ndarray) -> np.ndarray:
    """Logarithms of the temperatures that give each seed its mean confidence."""
    inside = np.log(at.inside)
    aims = np.maximum(aims, 1 / at.num_classes + 1e-3)
    found = [
        np.interp(-aim, -at.confidences[:, i], _LOG_TEMPERATURES) for i, aim in enumerate(aims)
    ]
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
        seeds = [np.interp(x, _LOG_TEMPERATURES, at.errors[:, i]) for i, x in enumerate(logs)]
        values.append(np.mean(seeds))
    return np.array(values)


def _side(trained: Any, inputs: np.ndarray, labels: np.ndarray, clusters: np.ndarray) -> Side:
    return Side(sample(trained, inputs), labels, clusters)


def _of_split(trained: Any, split: Split) -> Side:
    return _side(trained, split.inputs, split.labels, split.clusters)


def simulate(task: Task, folder: Path) -> list[tuple[Shift, Shift]]:
    """For each part that is left out: the shift to it, and none (half of what is held out)."""
    parts = subpopulations(task)
    config = RunConfig(task=task.name, methods=("vanilla",), seeds=_SEEDS)
    found = []
    for part in range(_PARTS):
        inside, outside = (
            [
                split.take(keep, split.name, split.kind, split.description)
                for split, keep in zip((task.train, task.calibration), kept, strict=True)
            ]
            for kept in ([x != part for x in parts], [x == part for x in parts])
        )
        without = dataclasses.replace(task, train=inside[0], calibration=inside[1])
        trained = train_vanilla(without, config, folder / f"{task.name}-without-{part}")
        left_out = [
            np.concatenate([getattr(x, name) for x in outside])
            for name in ("inputs", "labels", "clusters")
        ]
        size = len(left_out[1])
        rows = np.linspace(0, size - 1, min(size, _MOST_TARGETS)).round().astype(int)
        held_out = _of_split(trained, inside[1])
        order = np.arange(len(held_out.labels))
        halves = [held_out.take(order[i::2]) for i in range(2)]
        targets = _side(trained, *(x[rows] for x in left_out))
        found.append((observe(held_out, targets), observe(*halves)))
    return found


def real(task: Task, folder: Path) -> dict[str, Shift]:
    """The shifts of a task itself, for the mixtures of `calmoe run`."""
    trained = train_vanilla(task, RunConfig(task=task.name, methods=("vanilla",)), folder)
    held_out = _of_split(trained, task.calibration)
    return {
        split.name: observe(held_out, _of_split(trained, split))
        for split in tqdm(task.evaluation, unit="split", disable=None, desc=task.name)
    }


def judge(shifts: dict[str, dict[str, Shift]], kinds: dict[str, str], rule: Constants) -> Any:
    """Share of the gap closed over the tasks, and the greatest harm of a split by task."""
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


def main() -> None:
    """Chooses on simulated shifts, judges on real ones, prints both, and writes everything."""
    arguments = experiment_parser(__doc__).parse_args()
    simulated, plain, kinds, shifts = [], [], {}, {}
    for name in tqdm(arguments.tasks, unit="task", disable=None):
        task = load_task(name, arguments.data_dir)
        pairs = simulate(task, arguments.runs)
        simulated.append(np.mean([errors_of(at, GRID) for at, _ in pairs], axis=0))
        rise = [errors_of(at, GRID) - at.error_inside for _, at in pairs]
        plain.append(np.mean(rise, axis=0))
        shifts[name] = real(task, arguments.runs / name)
        kinds |= {f"{name}/{split.name}": split.kind for split in task.evaluation}
    allowed = np.max(plain, axis=0) <= _ALLOWED_HARM
    score = np.where(allowed, np.mean(simulated, axis=0), np.inf)
    chosen = GRID[int(np.argmin(score))]
    result: dict[str, Any] = {}
    for title, rule in (("chosen on simulated shifts", chosen), ("shipped", SHIPPED)):
        found = judge(shifts, kinds, rule)
        simulated_error = float(np.mean(simulated, axis=0)[GRID.index(rule)])
        result[title] = {"constants": rule._asdict(), "simulated": simulated_error, **found}
        print(f"\n{title}: {rule}; simulated shifts {simulated_error:.3f}")
        print(
            f"real shifts: temperature {found['temperature']:.3f}, rule {found['rule']:.3f}, best "
            f"{found['best']:.3f}: {found['closed']:.1%} of the gap"
        )
        for task_name, (split, harm) in found["greatest_harm"].items():
            print(f"  {task_name:<12} greatest harm {harm:+.3f} ({split})")
    if arguments.out:
        write_whole(arguments.out, to_json(result))


if __name__ == "__main__":
    main()
