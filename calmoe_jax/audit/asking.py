"""Which targets of logs to label: draws them, and writes the list to fill in."""

import csv
import io
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax._checks import check_at_least
from calmoe_jax._errors import UserError
from calmoe_jax.audit import evidence
from calmoe_jax.audit.evidence import Population
from calmoe_jax.audit.logs import Logs
from calmoe_jax.shift.few_labels import draw_units, label_chances, labels_needed

# Gaps that the line on the number of labels speaks of.
_GAPS = (0.05, 0.1, 0.2)


class Units(NamedTuple):
    """What is drawn as one: targets, or clusters of them.

    Attributes:
        of: unit of each target of a population, from 0.
        number: how many there are.
        chances: chance of each to be drawn; they sum to 1.
        whole_clusters: whether they are clusters.
    """

    of: np.ndarray
    number: int
    chances: np.ndarray
    whole_clusters: bool


class Request(NamedTuple):
    """Targets to label, in the order in which they were drawn.

    Attributes:
        table: the list to fill in, as CSV.
        num_units: number of units drawn.
        num_targets: number of targets in them.
        left_out: number of targets that were left out because they have a label.
        population: number of targets that these were drawn from.
        whole_clusters: whether the units are clusters.
        guessed_by: what the guess at correctness knows beside the confidence.
    """

    table: str
    num_units: int
    num_targets: int
    left_out: int
    population: int
    whole_clusters: bool
    guessed_by: tuple[str, ...]


def ask_for_labels(
    logs: Logs, *, budget: int, seed: int = 0, whole_clusters: bool = False
) -> Request:
    """Draws targets without a label, more of those whose correctness is less certain.

    Args:
        logs: checked logs.
        budget: number of targets to draw, or of clusters, at least 1.
        seed: seed of the draw.
        whole_clusters: whether clusters are drawn, all targets of one together.

    Returns:
        A `Request`. Its columns: `order` of the draw, from 1; `file` if there are several, and
        `row` in it, from 0; `cluster` if these are drawn; `predicted` class and its `confidence`
        as logged; `probability` of this draw, given those before it; `inclusion_probability`, the
        chance to be among the first `budget` (see `inclusion_probabilities`); `label`, empty.

    Raises:
        ValueError: if `budget` is less than 1.
        UserError: if no target lacks a label.
    """
    check_at_least("budget", budget, 1)
    counted = logs.targets if logs.where is None else logs.where & logs.targets
    rows = np.flatnonzero(counted & (logs.labels < 0))
    if not len(rows):
        raise UserError("the logs have no target without a label, so that none can be drawn.")
    known = evidence.held_out(logs)
    people = evidence.population(logs, known, rows)
    units = units_of(logs, people, whole_clusters=whole_clusters)
    number = min(budget, units.number)
    drawn = np.asarray(
        draw_units(jax.random.key(seed), jnp.asarray(units.chances, jnp.float32), num_draws=number)
    )
    included = inclusion_probabilities(units.chances, number)
    probability = draw_probabilities(units.chances, drawn)
    at = places(logs)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    several = len(logs.files) > 1
    table.writerow(_header(several, whole_clusters))
    probs = np.exp(np.asarray(people.evidence.log_probs) * known.temperature)
    probs /= probs.sum(axis=1, keepdims=True)
    count = 0
    for order, unit in enumerate(drawn):
        for target in np.flatnonzero(units.of == unit).tolist() if whole_clusters else [int(unit)]:
            file, row = at(int(rows[target]))
            best = int(probs[target].argmax())
            table.writerow(
                [
                    order + 1, *([file] if several else []), row,
                    *([logs.clusters[rows[target]]] if whole_clusters else []), best,
                    f"{probs[target, best]:.6f}", f"{probability[order]:.9g}",
                    f"{included[unit]:.9g}", "",
                ]
            )  # fmt: skip
            count += 1
    return Request(
        text.getvalue(), number, count, int(counted.sum()) - len(rows), len(rows), whole_clusters,
        people.guessed_by,
    )  # fmt: skip


def units_of(logs: Logs, people: Population, *, whole_clusters: bool) -> Units:
    """The units of a population, and their chances; the same whenever they are computed.

    Args:
        logs: checked logs.
        people: the targets.
        whole_clusters: whether clusters are the units.
    """
    chances = np.asarray(
        label_chances(people.correctness, where=people.evidence.where), np.float64
    )[: len(people.rows)]
    of, number = np.arange(len(chances)), len(chances)
    if whole_clusters:
        of = np.unique(logs.clusters[people.rows], return_inverse=True)[1]
        number = int(of.max()) + 1
        chances = np.bincount(of, chances, number).astype(np.float64)
    return Units(of, number, chances / chances.sum(), whole_clusters)


def draw_probabilities(chances: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The probability of each draw, given those before it.

    Args:
        chances: chance of each unit; they sum to 1.
        drawn: the units in the order in which they were drawn.
    """
    chosen = chances[drawn]
    return chosen / np.maximum(1 - (np.cumsum(chosen) - chosen), chosen)


def inclusion_probabilities(chances: np.ndarray, number: int) -> np.ndarray:
    """The probability of each unit to be among the first draws, approximately.

    Draws without replacement are a race: unit `u` arrives after an exponential time of rate
    `chance_u`, and the first are drawn. The time of the last of them is taken to be the `t` at
    which their expected number is right, `sum_u (1 - exp(-chance_u t)) = number`; the probability
    is then `1 - exp(-chance_u t)`. The error vanishes as the number of draws grows.

    Args:
        chances: chance of each unit.
        number: number of draws, at most the number of units.

    References:
        Rosen, Asymptotic theory for successive sampling with varying probabilities without
        replacement, 1972.
    """
    if number >= len(chances):
        return np.ones_like(chances)
    low, high = 0.0, 1.0
    while -np.expm1(-chances * high).sum() < number:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        short = -np.expm1(-chances * middle).sum() < number
        low, high = (middle, high) if short else (low, middle)
    return -np.expm1(-chances * high)


def places(logs: Logs) -> Callable[[int], tuple[str, int]]:
    """A function from a row of the logs to its file's name and its row there.

    Args:
        logs: checked logs.
    """
    names = [name for name, _ in logs.files]
    ends = np.cumsum([size for _, size in logs.files])

    def place(row: int) -> tuple[str, int]:
        if not names:
            return "", row
        file = int(np.searchsorted(ends, row, side="right"))
        return names[file], row - (int(ends[file - 1]) if file else 0)

    return place


def words_of_request(asked: Request, budget: int) -> list[str]:
    """What was drawn, in sentences.

    Args:
        asked: as from `ask_for_labels`.
        budget: the budget.
    """
    kind = "clusters" if asked.whole_clusters else "targets"
    lines = [
        f"{asked.num_units:,} {kind} drawn"
        + (f" with {asked.num_targets:,} targets" if asked.whole_clusters else "")
        + f", from {asked.population:,} targets without a label; more where the prediction is less "
        "certain to be right."
    ]
    if asked.num_units < budget:
        lines.append(f"These are all: there are fewer {kind} than the budget of {budget:,}.")
    if asked.left_out:
        lines.append(
            f"{asked.left_out:,} targets have a label already. They are neither drawn nor part of "
            "what a repair by these labels is about."
        )
    if "neighbours" not in asked.guessed_by:
        by = evidence.words_of_guess(asked.guessed_by)
        lines.append(
            f"How certain a prediction is was judged by {by}: neighbours are searched where "
            f"experts are logged and there are at most {evidence.MOST_COMPARED:,} targets."
        )
    lines.append(
        "Label them in the order given and stop where you like: what is used are the labels up to "
        "the first that is missing."
    )
    needed = ", ".join(f"{labels_needed(gap):,} for a gap of {gap:g}" for gap in _GAPS)
    lines.append(f"Labels that would certify half of a gap, eight times in ten, about: {needed}.")
    return lines


def _header(several: bool, whole_clusters: bool) -> list[str]:
    return [
        "order", *(["file"] if several else []), "row", *(["cluster"] if whole_clusters else []),
        "predicted", "confidence", "probability", "inclusion_probability", "label",
    ]  # fmt: skip
