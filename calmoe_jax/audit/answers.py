"""Labels that came back: reads the filled list, and lines it up with the logs."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calmoe_jax._errors import UserError
from calmoe_jax.audit.asking import Units, draw_probabilities
from calmoe_jax.audit.logs import Logs

_COLUMNS = ("order", "row", "probability", "label")
# Of a file with fewer digits, or chances computed on another machine.
_TOLERANCE = 1e-3
# Key of the order that is given to labels of which none is known.
_KEY = 20_240_001
# More labels than this add nothing that can be seen, and take time.
_MOST_LABELS = 20_000


class Answer(NamedTuple):
    """A row of a filled list.

    Attributes:
        order: of its draw, from 1.
        row: of the target in the logs.
        cluster: the cluster that was drawn; `None` if targets were.
        probability: of the draw.
        label: the class; -1 where it is missing.
    """

    order: int
    row: int
    cluster: int | None
    probability: float
    label: int


class Drawn(NamedTuple):
    """Labels of targets, and the order in which their units were drawn.

    Attributes:
        units: the units with labels, in the order of their draws.
        labels: class of each target of the population, -1 where it is not used.
        planned: number of draws that were planned.
        words: what is used and what is assumed, in sentences.
    """

    units: np.ndarray
    labels: np.ndarray
    planned: int
    words: tuple[str, ...]


def read_answers(path: Path, logs: Logs) -> list[Answer]:
    """Reads a list of `calmoe label` that was filled in.

    Args:
        path: the file.
        logs: the logs that it was drawn from.

    Returns:
        Its rows, by their order. A label that is missing is taken from the logs, if they have it.

    Raises:
        UserError: if the file cannot be read, or does not fit the logs; the message names the line.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    first = text.partition("\n")[0]
    table = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=first.count), restval="")
    names = [(name or "").strip() for name in table.fieldnames or ()]
    table.fieldnames = names
    missing = [name for name in _COLUMNS if name not in names]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is no list of calmoe label.")
    if len(logs.files) > 1 and "file" not in names:
        raise UserError(f"{path} lacks file, but the logs are of {len(logs.files)} files.")
    classes = logs.expert_probs.shape[2]
    found: list[Answer] = []
    rows: dict[int, int] = {}
    for cells in table:
        line = table.line_num
        if None in cells:
            raise UserError(f"{path}: line {line} has more cells than there are names.")
        try:
            answer = _answer(cells, logs, classes)
        except ValueError as error:
            raise UserError(f"{path}: line {line}: {error}.") from error
        if answer.row in rows:
            raise UserError(f"{path}: lines {rows[answer.row]} and {line} are about one target.")
        rows[answer.row] = line
        found.append(answer)
    if not found:
        raise UserError(f"{path} has no row.")
    return sorted(found, key=lambda answer: answer.order)


def _answer(cells: dict[str, str], logs: Logs, classes: int) -> Answer:
    order, row = _whole("order", cells["order"]), _whole("row", cells["row"])
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    at, size = _start(cells.get("file"), logs)
    if not 0 <= row < size:
        raise ValueError(f"row must be in [0, {size - 1}], got {row}")
    row += at
    if not logs.targets[row] or (logs.where is not None and not logs.where[row]):
        raise ValueError("this row of the logs is no target that counts")
    probability = cells["probability"].strip()
    try:
        chance = float(probability)
    except ValueError:
        chance = np.nan
    if not 0 < chance <= 1:
        raise ValueError(f"probability must be in (0, 1], got {probability!r}")
    text = cells["label"].strip()
    label = int(logs.labels[row]) if text == "" else _whole("label", text)
    if text and not 0 <= label < classes:
        raise ValueError(f"label must be in [0, {classes - 1}] or empty, got {label}")
    cluster = _whole("cluster", cells["cluster"]) if "cluster" in cells else None
    return Answer(order, row, cluster, chance, label)


def _whole(name: str, text: str) -> int:
    # programs of tables write whole numbers with gaps as 3.0
    if not re.fullmatch(r"\s*-?\d{1,15}(\.0*)?\s*", text):
        raise ValueError(f"{name} must be a whole number, got {text!r}")
    return int(text.strip().partition(".")[0])


def _start(file: str | None, logs: Logs) -> tuple[int, int]:
    """First row of a file in the logs, and its number of rows."""
    size = len(logs.labels)
    if file is None or not logs.files:
        return 0, size
    names = [name for name, _ in logs.files]
    matching = [i for i, name in enumerate(names) if name == file]
    matching = matching or [i for i, x in enumerate(names) if Path(x).name == Path(file).name]
    if len(matching) != 1:
        raise ValueError(f"file must be one of the logs' files, got {file!r}")
    sizes = [rows for _, rows in logs.files]
    return sum(sizes[: matching[0]]), sizes[matching[0]]


def asked_rows(logs: Logs, answers: Sequence[Answer]) -> np.ndarray:
    """The targets that a list was drawn from: those without a label, but for the list's.

    Args:
        logs: checked logs.
        answers: as from `read_answers`.
    """
    lacking = logs.labels < 0
    lacking[[answer.row for answer in answers]] = True
    lacking &= logs.targets
    return np.flatnonzero(lacking if logs.where is None else lacking & logs.where)


def in_order(
    path: Path, answers: Sequence[Answer], rows: np.ndarray, units: Units, clusters: np.ndarray
) -> Drawn:
    """The labels up to the first draw of which one is missing.

    Args:
        path: the file, for errors.
        answers: as from `read_answers`.
        rows: rows of the population in the logs, ascending.
        units: units of the population.
        clusters: cluster of each of its targets.

    Raises:
        UserError: if the draws are not those of these logs.
    """
    places = np.searchsorted(rows, [answer.row for answer in answers])
    labels = np.full(len(rows), -1)
    by_order: dict[int, list[tuple[int, Answer]]] = {}
    for place, answer in zip(places, answers, strict=True):
        by_order.setdefault(answer.order, []).append((int(place), answer))
    planned = max(by_order)
    drawn: list[int] = []
    missing = None
    for order in range(1, planned + 1):
        group = by_order.get(order)
        if group is None:
            missing = missing or order
            break
        unit = _unit(path, order, group, units, clusters)
        drawn.append(unit)
        complete = all(answer.label >= 0 for _, answer in group)
        if not complete and missing is None:
            missing = order
        if missing is None:
            for place, answer in group:
                labels[place] = answer.label
    if len(set(drawn)) < len(drawn):
        raise UserError(f"{path}: two draws are of one cluster.")
    expected = draw_probabilities(units.chances, np.asarray(drawn, int))
    for order, probability in enumerate(expected, start=1):
        given = by_order[order][0][1].probability
        if abs(given - probability) > _TOLERANCE * probability:
            raise UserError(
                f"{path}: draw {order} has probability {given:.4g}, but {probability:.4g} by these "
                "logs. Give the logs that it was drawn from, all of them, as they were then."
            )
    used = planned if missing is None else missing - 1
    kind = "clusters" if units.whole_clusters else "targets"
    words = [f"{used:,} of {planned:,} drawn {kind} are used, in the order of their draws"]
    beyond = sum(
        all(answer.label >= 0 for _, answer in group)
        for order, group in by_order.items()
        if order > used
    )
    if missing is not None and beyond:
        words.append(
            f"draw {missing} lacks a label, so that {beyond:,} labels after it are not used: the "
            "bounds hold for labels in the order drawn"
        )
    return Drawn(np.asarray(drawn[:used], int), labels, planned, tuple(words))


def _unit(
    path: Path, order: int, group: list[tuple[int, Answer]], units: Units, clusters: np.ndarray
) -> int:
    """The unit of a draw; all of its targets must be there, and no other."""
    own = {int(units.of[place]) for place, _ in group}
    if not units.whole_clusters:
        if len(group) > 1:
            raise UserError(f"{path}: two rows have order {order}.")
        return own.pop()
    named = {answer.cluster for _, answer in group} | {int(clusters[p]) for p, _ in group}
    size = int((units.of == next(iter(own))).sum())
    if len(own) > 1 or len(named) > 1 or len(group) != size:
        raise UserError(
            f"{path}: draw {order} must be a whole cluster, of {size} targets, got "
            f"{len(group)} rows."
        )
    return own.pop()


def at_random(logs: Logs, rows: np.ndarray) -> Drawn:
    """The logs' own labels of targets, as if their examples had been drawn uniformly at random.

    Args:
        logs: checked logs.
        rows: rows of the population in the logs.

    Raises:
        UserError: if the logs say that they were drawn with unequal probabilities.
    """
    own = logs.labels[rows]
    labelled = np.flatnonzero(own >= 0)
    drawn = logs.drawn_probability
    if drawn is not None and len(labelled):
        chance = drawn[rows[labelled]]
        if np.ptp(chance) > 1e-6 * chance.max():
            raise UserError(
                "drawn_probability must be one number for all labelled targets, got "
                f"{chance.min():.4g} to {chance.max():.4g}: bounds need the order of unequal "
                "draws. Give the list of calmoe label with --labels."
            )
    order = np.random.default_rng(_KEY).permutation(labelled)[:_MOST_LABELS]
    words = [
        f"{len(order):,} labelled targets of the logs are used; that they were drawn uniformly at "
        "random among the targets is assumed, and cannot be seen in the logs"
    ]
    if len(order) < len(labelled):
        words.append(f"{len(labelled) - len(order):,} labels more are not used")
    labels = np.full(len(rows), -1)
    labels[order] = own[order]
    return Drawn(order, labels, max(len(order), 1), tuple(words if len(order) else ()))
