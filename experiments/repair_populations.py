"""The populations that `experiments.repair_protocol` draws labels from: real and simulated splits.

For every task, set of seeds and split: each model's confidences, whether it is right, a guess at
its correctness and its gaps estimated without labels, and calibration error against temperature.
"""

import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from calmoe_jax import mixture, shift
from calmoe_jax._files import write_whole
from calmoe_jax.calibration.calibrators import scale_log_probs
from calmoe_jax.data import Split, Task, resolve_task
from calmoe_jax.shift.estimators import Evidence
from calmoe_jax.shift.few_labels import correctness_model
from calmoe_jax.study import ModelConfig, RunConfig, TrainConfig
from calmoe_jax.training import TrainedSeeds
from experiments.choose_rule import LOG_TEMPERATURES, curves
from experiments.features import colour, without_colour_images
from experiments.paper import QUICK, smaller
from experiments.repair_without_labels import errors, fit
from experiments.simulated import family, leave_out, subpopulations
from experiments.trained import sample, train_vanilla

SETS = (42, 52, 62)
# Subpopulations that are left out in turn, of the simulated shifts.
LEFT_OUT = (0, 1)
SEEDS, SIMULATED_SEEDS = 5, 3
# Targets of a split, held-out examples, and targets of a simulated shift; the others are left out
# evenly.
MOST_TARGETS, MOST_HELD_OUT = 3000, 2000
MOST_SIMULATED = 1000
# Kind of splits of which a part of the labels is wrong, which no rule without labels can see.
CONTROL = "control"
# In the name of the folder, so that networks of another size are never taken for these.
_SIZE = f"width-{QUICK.width}-images-{QUICK.images}-epochs-{QUICK.epochs}"


class Population(NamedTuple):
    """A split as the models of one set of seeds see it; arrays have a leading axis of models.

    Attributes:
        task: name of the task.
        first_seed: of the set.
        split: name of the split.
        kind: `id`, `shift`, `hard` or `control`; of a simulated split its family.
        simulated: whether it is one.
        num_classes: number of classes.
        inside: temperature fitted in distribution.
        confidence: of each target, at that temperature.
        correct: whether it is right, 0 or 1.
        correctness: what `correctness_model` guesses.
        safe: gap by the safe rule.
        bold: gap by the bold one.
        errors: calibration error by temperature.
        confidences: mean confidence by temperature.
        error_inside: calibration error at the temperature fitted in distribution.
    """

    task: str
    first_seed: int
    split: str
    kind: str
    simulated: bool
    num_classes: int
    inside: np.ndarray
    confidence: np.ndarray
    correct: np.ndarray
    correctness: np.ndarray
    safe: np.ndarray
    bold: np.ndarray
    errors: np.ndarray
    confidences: np.ndarray
    error_inside: np.ndarray

    def errors_at(self, gaps: np.ndarray) -> np.ndarray:
        """Calibration error of each model after its confidence is lowered by gaps `[models, n]`."""
        mean = self.confidence.mean(axis=1)
        found = np.empty(gaps.shape)
        for i, of_model in enumerate(gaps):
            aim = np.maximum(mean[i] - np.maximum(of_model, 0), 1 / self.num_classes + 1e-3)
            at = np.interp(-aim, -self.confidences[i], LOG_TEMPERATURES)
            at = np.maximum(at, np.log(self.inside[i]))
            found[i] = np.interp(at, LOG_TEMPERATURES, self.errors[i])
        return np.where(gaps > 0, found, self.error_inside[:, None])

    @property
    def gap(self) -> np.ndarray:
        """Mean confidence minus accuracy, of each model."""
        return self.confidence.mean(axis=1) - self.correct.mean(axis=1)

    @property
    def least_error(self) -> np.ndarray:
        """Least calibration error of any temperature, for each model."""
        return np.minimum(self.errors.min(axis=1), self.error_inside)


def kept(path: Path, make: Callable[[], Iterable[Population]]) -> list[Population]:
    """Populations from a file, or made and written to it, whole."""
    if not path.exists():
        made = list(make())
        rows = {f"{i} {name}": x for i, p in enumerate(made) for name, x in p._asdict().items()}
        content = io.BytesIO()
        np.savez_compressed(content, **rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    with np.load(path) as rows:
        number = len(rows.files) // len(Population._fields)
        return [_read(rows, i) for i in range(number)]


def _read(rows: Any, number: int) -> Population:
    found = {name: rows[f"{number} {name}"] for name in Population._fields}
    # plain values come back as arrays without axes
    return Population(**{name: x.item() if x.ndim == 0 else x for name, x in found.items()})


def gather(
    tasks: list[str], data_dir: Path | None, runs: Path, *, end_to_end: bool = False
) -> list[Population]:
    """All populations of all tasks and sets of seeds; those in `runs` are not made again.

    Args:
        tasks: their names.
        data_dir: folder with the data.
        runs: folder of trainings and populations.
        end_to_end: whether networks of colour images see the images, not features of them.
    """
    found: list[Population] = []
    for name in tqdm(tasks, unit="task", disable=None):
        task, of_task = resolve_task(name, data_dir), runs
        model, train = ModelConfig(), TrainConfig()
        if end_to_end and colour(task):
            task, of_task = smaller(task, QUICK.images), runs / f"end-to-end-{_SIZE}"
            model, train = QUICK.resnet, QUICK.train
        else:
            task = without_colour_images(task, runs / "features")
        for first_seed in SETS:
            for kind, make in (("real", real_populations), ("simulated", simulated_populations)):
                path = of_task / "populations" / f"{task.name}-{kind}-{first_seed}.npz"
                found += kept(path, partial(make, task, first_seed, of_task, model, train))
    return found


def real_populations(
    task: Task, first_seed: int, runs: Path, model: ModelConfig, train: TrainConfig
) -> Iterator[Population]:
    """A task's own splits."""
    config = RunConfig(seeds=SEEDS, first_seed=first_seed, model=model, train=train)
    trained = train_vanilla(task, config, runs / f"{task.name}-{first_seed}")
    splits = {x.name: (x, x.kind) for x in task.evaluation if x.kind != "part"}
    splits |= {
        f"{CONTROL} {split.name}": (_flipped(split, len(task.classes)), CONTROL)
        for split in task.evaluation
        if split.kind == "id"
    }
    yield from _populations(task, trained, first_seed, splits, simulated=False)


def simulated_populations(
    task: Task, first_seed: int, runs: Path, model: ModelConfig, train: TrainConfig
) -> Iterator[Population]:
    """Shifts made of a task's training and held-out examples."""
    numbers = subpopulations(task)
    config = RunConfig(seeds=SIMULATED_SEEDS, first_seed=first_seed, model=model, train=train)
    for number in LEFT_OUT:
        without, targets = leave_out(task, numbers, number)
        folder = runs / f"{task.name}-without-{number}-{first_seed}"
        trained = train_vanilla(without, config, folder)
        splits = {f"{name} ({number})": (split, family(name)) for name, split in targets.items()}
        yield from _populations(without, trained, first_seed, splits, simulated=True)


def _populations(
    task: Task,
    trained: TrainedSeeds,
    first_seed: int,
    splits: dict[str, tuple[Split, str]],
    *,
    simulated: bool,
) -> Iterator[Population]:
    held_out = _evenly(task.calibration, MOST_HELD_OUT)
    own = sample(trained, held_out.inputs)
    # fitted on all held-out examples, as `calmoe run` does
    all_of_them = sample(trained, task.calibration.inputs)
    inside = fit(mixture.mix_log_probs(*all_of_them), jnp.asarray(task.calibration.labels))
    references = _references(own, inside)
    for name, (split, kind) in tqdm(splits.items(), unit="split", disable=None, desc=task.name):
        some = _evenly(split, MOST_SIMULATED if simulated else MOST_TARGETS)
        theirs = sample(trained, some.inputs)
        log_probs, labels = mixture.mix_log_probs(*theirs), jnp.asarray(some.labels)
        measured = _measure(references, jnp.asarray(held_out.labels), theirs, labels, inside)
        by_temperature = (x.T for x in curves(log_probs, labels))
        found = jax.tree.map(np.asarray, (inside, *measured, *by_temperature))
        at_inside = np.asarray(errors(log_probs, labels, inside))
        yield Population(
            task.name, first_seed, name, kind, simulated, log_probs.shape[-1], *found, at_inside
        )


def _flipped(split: Split, num_classes: int) -> Split:
    """The split with every third label replaced by the next one: no input shows it."""
    labels = split.labels.copy()
    labels[::3] = (labels[::3] + 1) % num_classes
    return dataclasses.replace(split, labels=labels, soft_labels=None)


def _evenly(split: Split, most: int) -> Split:
    if len(split) <= most:
        return split
    rows = np.linspace(0, len(split) - 1, most).round().astype(int)
    return split.take(rows, split.name, split.kind, split.description)


@jax.jit
def _references(own: shift.repair.Sample, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log probabilities of all models at their temperatures, and coordinates."""
    log_probs = jax.vmap(scale_log_probs)(mixture.mix_log_probs(*own), inside[:, None])
    coordinates = jax.lax.map(lambda x: shift.configuration_coordinates(*x), own)
    return log_probs, coordinates


@jax.jit
def _measure(
    references: tuple[jax.Array, jax.Array],
    labels: jax.Array,
    theirs: shift.repair.Sample,
    target_labels: jax.Array,
    inside: jax.Array,
) -> tuple[jax.Array, ...]:
    ours = _references(theirs, inside)
    count = len(inside)

    def one(number: jax.Array) -> tuple[jax.Array, ...]:
        others = (number + jnp.arange(1, count)) % count
        evidence = [Evidence(x[number], x[others], y[number]) for x, y in (references, ours)]
        guess = correctness_model(evidence[0], labels, evidence[1])
        gaps = shift.label_free_gaps(evidence[0], labels, evidence[1])
        probs = jnp.exp(ours[0][number])
        right = jnp.argmax(probs, axis=-1) == target_labels
        return jnp.max(probs, axis=-1), right.astype(jnp.float32), guess, gaps.safe, gaps.bold

    return jax.lax.map(one, jnp.arange(count))
