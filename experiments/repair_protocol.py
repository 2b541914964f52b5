"""What no label, and a few, can do for confidence on shifted data: the protocol of the repair.

`python -m experiments.repair_protocol --data-dir DIR [--tasks TASK ...] [--end-to-end] [--runs DIR]
[--out FILE] [--picture FILE]`

Populations are the tasks' own splits and shifts made of their training and held-out examples, as
the plain mixture of three sets of seeds sees them (`experiments.repair_populations`); 3000 targets
of each at most (1000 of a simulated one). All splits of a task have the same weight, and so have
all tasks. Of tasks of colour images (`--tasks cifar10h pacs_sketch`) features of small frozen
ResNets stand for the images, unless backbones are to be trained with router and experts
(`--end-to-end`, at the quick size of `experiments.paper`).

1. *Combined* is the rule as shipped: the constants of its prior were set on these tasks. *Fitted*
   is the same with a prior fitted to simulated shifts: by EM, to their true gaps given both label-
   free estimates; for the real splits of a task without that task's simulated shifts, for a
   simulated one without its task and its family.
   *Exact gap* lowers confidence by the very gap, which bounds of it approach.
2. Labels are drawn as `calmoe label` draws them, 12 times for each model, split and number.
3. *Closed* is the share of the gap in calibration error from the temperature fitted in distribution
   to the best one (of least error, found with all labels). *Harm* is the error above that of the
   former, a mean over draws, models and sets of seeds, on the split where it is greatest; of real
   shifts, in-distribution splits and hard subsets.
4. Coverage: the share of draws of which a bound is ever above the true gap, up to 200 labels.
5. Negative control: in-distribution splits with a third of the labels replaced, which no input
   shows. Rules without labels must fail there, those with labels must not.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from tqdm import tqdm

from calmoe_jax._files import write_whole
from calmoe_jax.shift.few_labels import (
    GapPrior,
    confidence_gap_sequence,
    draw_units,
    label_chances,
    label_free_prior,
    posterior_gap,
)
from experiments.repair_populations import CONTROL, MOST_TARGETS, Population, gather
from experiments.trained import experiment_parser, write_results

TASKS = ("portal", "newsgroups", "sentiment", "digits16", "fashion_c")
NUMBERS = (10, 25, 50, 100, 200)
DRAWS = 12
LEVEL = 0.9
_ROUNDS = 500
_LEAST_DEVIATION = 0.02
_NO_HARM = 0.01


class Labelled(NamedTuple):
    """What labels show, `[models, draws]`, after all of them."""

    estimate: np.ndarray
    standard_error: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    missed: np.ndarray


class Frontier(NamedTuple):
    """What a rule does with so many labels.

    Attributes:
        closed: share of the gap closed on real shifts.
        by_task: the same by task.
        harm: greatest harm on a split.
        harmed: that split.
        not_shown: number of real splits for which the upper 95 % limit of the harm, over models and
            sets of seeds, is above .01: what is not shown to do no harm.
        task_harm: greatest mean harm over the splits of a task.
        simulated_harm: greatest harm on a simulated split.
        simulated_harmed: that split.
        control: error on the negative control, over that of the temperature in distribution.
    """

    closed: float
    by_task: dict[str, float]
    harm: float
    harmed: str
    not_shown: int
    task_harm: float
    simulated_harm: float
    simulated_harmed: str
    control: float


@partial(jax.jit, static_argnames="number")
def _labelled(
    key: jax.Array,
    confidence: jax.Array,
    correct: jax.Array,
    correctness: jax.Array,
    where: jax.Array,
    *,
    number: int,
) -> tuple[jax.Array, ...]:
    def of_model(model: jax.Array, c: jax.Array, y: jax.Array, m: jax.Array) -> tuple[Any, ...]:
        chances = label_chances(m, where=where)
        gap = jnp.sum(jnp.where(where, c - y, 0)) / jnp.sum(where)

        def once(key: jax.Array) -> tuple[jax.Array, ...]:
            found = confidence_gap_sequence(
                c, y, draw_units(key, chances, num_draws=number), correctness=m, where=where,
                chances=chances, level=LEVEL, planned=number,
            )  # fmt: skip
            missed = jnp.any(found.lower > gap + 1e-5)
            return *(x[-1] for x in found), missed

        return jax.vmap(once)(jax.random.split(jax.random.fold_in(key, model), DRAWS))

    models = jnp.arange(len(confidence))
    return jax.lax.map(lambda x: of_model(*x), (models, confidence, correct, correctness))


def draw(population: Population, number: int) -> Labelled:
    """Draws labels of a population, for each of its models."""
    size = population.confidence.shape[1]

    def filled(x: np.ndarray) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, MOST_TARGETS - size))).astype(np.float32)

    arrays = (population.confidence, population.correct, population.correctness)
    where = np.arange(MOST_TARGETS) < size
    key = jax.random.key(population.first_seed)
    found = _labelled(key, *map(filled, arrays), where, number=number)
    return Labelled(*map(np.asarray, found))


def fit_prior(populations: Iterable[Population]) -> GapPrior:
    """The mixture of `shift.few_labels.prior` that makes the true gaps most likely, by EM.

    The component of no gap keeps its mean of 0; that of any gap has a mean of its own.
    """
    rows = [(p.gap, p.safe, p.bold) for p in populations]
    gap, safe, bold = (np.concatenate(x) for x in zip(*rows, strict=True))
    weights, deviations, any_gap = np.full(4, 0.25), np.array([0.05, 0.05, 0.03, 0.2]), 0.2
    for _ in range(_ROUNDS):
        means = np.stack([safe, bold, np.zeros_like(safe), np.full_like(safe, any_gap)])
        off = gap - means
        with np.errstate(divide="ignore"):  # a component may lose all its weight
            logs = np.log(weights / deviations)[:, None] - 0.5 * (off / deviations[:, None]) ** 2
        share = np.exp(logs - logs.max(axis=0))
        share /= share.sum(axis=0)
        weights = share.mean(axis=1)
        total = share.sum(axis=1)
        some = np.where(total > 0, total, 1)  # what explains nothing has the least deviation
        any_gap = float(share[3] @ gap / some[3])
        squares = np.sum(share * off**2, axis=1) / some
        deviations = np.maximum(np.sqrt(squares), _LEAST_DEVIATION)
    means = np.array([0.0, 0.0, 0.0, any_gap])
    return GapPrior(*(np.asarray(x, np.float32) for x in (weights, means, deviations)))


@jax.jit
def _posterior(
    estimate: jax.Array, error: jax.Array, prior: GapPrior, safe: jax.Array, bold: jax.Array
) -> jax.Array:
    def one(e: jax.Array, s: jax.Array, safe: jax.Array, bold: jax.Array) -> jax.Array:
        means = jnp.stack([safe, bold, jnp.zeros_like(safe), prior.means[3]])
        return posterior_gap(e, s, prior._replace(means=means)).median

    return jax.vmap(jax.vmap(one, in_axes=(0, 0, None, None)))(estimate, error, safe, bold)


def combined(population: Population, found: Labelled, prior: GapPrior) -> np.ndarray:
    """Gaps that the combined rule closes, `[models, draws]`."""
    given = (population.safe, population.bold)
    mean = np.asarray(_posterior(found.estimate, found.standard_error, prior, *given))
    return np.clip(mean, found.lower, found.upper)


def frontier(populations: list[Population], gaps: list[np.ndarray]) -> Frontier:
    """What a rule does, from the gaps `[models, draws]` that it closes on each population."""
    harm: dict[tuple[bool, str, str, str], list[np.ndarray]] = {}
    gained: dict[str, list[tuple[float, float]]] = {}
    control = []
    for population, of_one in zip(populations, gaps, strict=True):
        of_models = population.errors_at(of_one).mean(axis=1) - population.error_inside
        before, best = population.error_inside.mean(), population.least_error.mean()
        after = before + of_models.mean()
        if population.kind == CONTROL:
            control.append((after, before))
            continue
        key = population.simulated, population.task, population.split, population.kind
        harm.setdefault(key, []).append(of_models)
        if population.kind == "shift" and not population.simulated:
            gained.setdefault(population.task, []).append((before - after, before - best))
    closed = {task: np.mean(rows, axis=0) for task, rows in gained.items()}
    total = np.sum(list(closed.values()), axis=0)
    values = {key: np.concatenate(x) for key, x in harm.items()}
    means = {key: float(np.mean(x)) for key, x in values.items()}
    limits = [_upper_limit(x) for key, x in values.items() if not key[0]]
    real = {key: x for key, x in means.items() if not key[0]}
    made = {key: x for key, x in means.items() if key[0]}
    worst = max(real, key=lambda key: real[key])
    worst_made = max(made, key=lambda key: made[key]) if made else (True, "", "", "")
    by_task = [np.mean([x for key, x in real.items() if key[1] == task]) for task in gained]
    after, before = np.mean(control, axis=0)
    return Frontier(
        float(total[0] / total[1]),
        {task: float(x[0] / x[1]) for task, x in closed.items()},
        real[worst],
        "/".join(worst[1:3]),
        int(np.sum(np.array(limits) > _NO_HARM)),
        float(max(by_task)),
        made.get(worst_made, float("nan")) if made else 0.0,
        "/".join(worst_made[1:3]),
        float(after / before),
    )


def _upper_limit(values: np.ndarray) -> float:
    """Upper 95 % limit of a mean, by Student's t; of one value, itself."""
    if len(values) < 2:
        return float(np.mean(values))
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) + stats.t.ppf(0.95, len(values) - 1) * error)


def priors(populations: list[Population]) -> Callable[[Population], GapPrior]:
    """The prior for each population, fitted without its task, or its task and family."""
    made = [p for p in populations if p.simulated]
    known: dict[tuple[str, str], GapPrior] = {}

    def of(population: Population) -> GapPrior:
        key = population.task, population.kind if population.simulated else ""
        if key not in known:
            known[key] = fit_prior(
                p for p in made if p.task != key[0] and (not key[1] or p.kind != key[1])
            )
        return known[key]

    return of


def judge(populations: list[Population]) -> dict[str, Any]:
    """Frontier, coverage and fitted priors; of one task no rule has a prior fitted to others."""
    several = len({p.task for p in populations}) > 1
    prior, shipped = priors(populations), label_free_prior(jnp.zeros(()), jnp.zeros(()))
    blind = {"safe": [p.safe[:, None] for p in populations]}
    blind["bold"] = [p.bold[:, None] for p in populations]
    rows = {f"{rule} 0": frontier(populations, gaps)._asdict() for rule, gaps in blind.items()}
    rows["exact gap"] = frontier(populations, [p.gap[:, None] for p in populations])._asdict()
    missed: dict[str, Any] = {}
    for number in tqdm(NUMBERS, unit="number of labels", disable=None):
        drawn = [draw(p, number) for p in tqdm(populations, unit="split", disable=None)]
        rules = {
            "certified": [x.lower for x in drawn],
            "combined": [combined(p, x, shipped) for p, x in zip(populations, drawn, strict=True)],
            "estimate": [x.estimate for x in drawn],
        }
        if several:
            rules["fitted"] = [
                combined(p, x, prior(p)) for p, x in zip(populations, drawn, strict=True)
            ]
        for rule, gaps in rules.items():
            rows[f"{rule} {number}"] = frontier(populations, gaps)._asdict()
        missed[str(number)] = _coverage(populations, drawn)
    fitted = fit_prior(p for p in populations if p.simulated)
    return {
        "rows": rows,
        "missed": missed,
        "prior": {name: np.asarray(x).tolist() for name, x in fitted._asdict().items()},
        "populations": len(populations),
    }


def _coverage(populations: list[Population], drawn: list[Labelled]) -> dict[str, Any]:
    """Share of draws of which a lower bound was ever above the gap: of all, and by population."""
    shares = {}
    for real in (True, False):
        some = [x.missed for p, x in zip(populations, drawn, strict=True) if p.simulated != real]
        if some:
            flat = np.concatenate([x.ravel() for x in some])
            name = "real" if real else "simulated"
            shares[name] = {"draws": int(flat.size), "missed": float(flat.mean())}
    return shares


def show(found: dict[str, Any]) -> None:
    """Prints the table."""
    names = ("rule, labels", "closed", "harm", "> .01", "task", "simulated", "control")
    print("\n" + "".join(f"{x:<16}" if i == 0 else f"{x:>11}" for i, x in enumerate(names)))
    for name, row in found["rows"].items():
        print(
            f"{name:<16}{row['closed']:11.3f}{row['harm']:+11.4f}{row['not_shown']:11d}"
            f"{row['task_harm']:+11.4f}{row['simulated_harm']:+11.4f}{row['control']:11.2f}"
            f"  {row['harmed']}; {row['simulated_harmed']}"
        )
    print(f"missed (at most {1 - LEVEL:.2f}): {found['missed']}\nprior: {found['prior']}")


def markdown(found: dict[str, Any]) -> str:
    """The README's table: share closed and greatest harm, by rule and number of labels."""
    numbers = [str(number) for number in NUMBERS]
    lines = ["| labels | " + " | ".join(["0", *numbers]) + " |", "|---" * (len(numbers) + 2) + "|"]

    def cell(name: str) -> str:
        row = found["rows"].get(name)
        return f"{row['closed']:.0%}, {row['harm']:+.3f}" if row else ""

    for title, first, rule in (
        ("certified (`safe` at 0)", "safe 0", "certified"),
        ("combined (`bold` at 0)", "bold 0", "combined"),
    ):
        cells = [cell(first), *(cell(f"{rule} {number}") for number in numbers)]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Gathers, judges, prints, writes and draws."""
    parser = experiment_parser(__doc__)
    parser.set_defaults(tasks=list(TASKS))
    parser.add_argument("--picture", type=Path, help="where to draw the frontier")
    parser.add_argument(
        "--end-to-end", action="store_true", help="networks of colour images see the images"
    )
    arguments = parser.parse_args()
    found = judge(
        gather(arguments.tasks, arguments.data_dir, arguments.runs, end_to_end=arguments.end_to_end)
    )
    show(found)
    if arguments.out:
        write_results(arguments.out, **found)
    if arguments.picture:
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        write_whole(arguments.picture, draw_frontier(found))


def draw_frontier(found: dict[str, Any]) -> bytes:
    """Draws share closed against greatest harm, for every number of labels.

    Args:
        found: the results.
    """
    import matplotlib
    from matplotlib.figure import Figure

    from calmoe_jax.drawing.style import STYLE, look, png

    # where the numbers of labels stand beside each line, in points
    places = {"certified": (-9, -4, "right"), "combined": (5, 6, "left")}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.8, 4.6), layout="constrained")
        axes = figure.subplots()
        for i, (rule, (right, up, side)) in enumerate(places.items()):
            rows = [found["rows"][f"{rule} {number}"] for number in NUMBERS]
            harm, closed = ([row[x] for row in rows] for x in ("harm", "closed"))
            style = look(i + 1)
            axes.plot(harm, closed, label=f"{rule}, with as many labels", **style)
            for number, x, y in zip(NUMBERS, harm, closed, strict=True):
                axes.annotate(
                    str(number), (x, y), textcoords="offset points", xytext=(right, up),
                    ha=side, color=style["color"], fontsize=9,
                )  # fmt: skip
        for i, rule in enumerate(("safe", "bold")):
            row = found["rows"][f"{rule} 0"]
            style = look(i + 3) | {"ls": "", "ms": 9}
            axes.plot(row["harm"], row["closed"], label=f"{rule}, no label", **style)
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set_xlabel("greatest harm of a split (ECE above the temperature's in distribution)")
        axes.set_ylabel("share of the gap closed")
        axes.set_xlim(left=-0.0015)
        axes.set_ylim(0, 1)
        axes.set_title("Numbers are labels of the target that were asked for")
        axes.legend(loc="lower right")
        return png(figure)


if __name__ == "__main__":
    main()
