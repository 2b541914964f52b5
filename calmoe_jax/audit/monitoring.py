"""Follows a deployed model along time: confidence, shift, accuracy, the gap as labels arrive."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax._checks import check_range
from calmoe_jax._errors import UserError
from calmoe_jax.audit import evidence
from calmoe_jax.audit.answers import Answer, asked_rows
from calmoe_jax.audit.evidence import HeldOut
from calmoe_jax.audit.findings import number
from calmoe_jax.audit.logs import Logs
from calmoe_jax.audit.periods import Period, periods_of
from calmoe_jax.audit.repairing import Labelled, with_labels
from calmoe_jax.audit.scoring import plain
from calmoe_jax.audit.shift_along_time import Look, look_for_shift
from calmoe_jax.calibration.intervals._interval import check_level
from calmoe_jax.shift.few_labels import pooled_gaps

# Standard errors to each side of a band of the label-free estimates.
_ERRORS = 1.645

# A filled list of `calmoe label`: its file, and its rows as from `read_answers`.
List = tuple[Path, Sequence[Answer]]


class Followed(NamedTuple):
    """What one period shows.

    Attributes:
        period: the period.
        look: the test for a shift.
        seen: what its labels and the label-free estimates say.
        error: standard error of its mean confidence.
    """

    period: Period
    look: Look
    seen: Labelled
    error: float


def monitor(
    logs: Logs,
    *,
    every: str = "auto",
    level: float = 0.9,
    alarm: float = 0.05,
    lists: Sequence[List] = (),
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Follows the targets of dated logs, as plain values for a file.

    Args:
        logs: checked logs, with a time or of several files.
        every: length of a period (see `periods_of`).
        level: level of each bound from labels, in (0, 1); each period has its own.
        alarm: level of the tests for a shift, of all periods together, in (0, 1).
        lists: filled lists of `calmoe label`, each drawn from one period.
        told: is called with the name of each period when it is done.

    Returns:
        `periods`, in the order of time, each with `mean_confidence` at the held-out temperature,
        `shift`, `accuracy` and its band, and `gap`; and what they rest on.

        The band of `accuracy` is, without labels, from what the mode bold would lower the mean
        confidence to (what the labels of neighbours say) to what safe would (the mean confidence
        itself where the logs have no peers), 1.645 standard errors wider to each side: no interval
        of any level, since what a shift does to labels cannot be seen. With labels it is the bounds
        by `confidence_gap_sequence`. Labels without a list count as drawn uniformly at random among
        the period's targets.
        `gap.pooled` borrows from other periods (`pooled_gaps`, about the label-free gap).

    Raises:
        UserError: if the logs cannot be divided into periods, or a list is not of one of them.
        ValueError: if a level is out of range.
    """
    check_level(level)
    check_range("alarm", alarm, 1e-6, 1 - 1e-6)
    periods = periods_of(logs, every)
    of_period = [_list_of(period, lists) for period in periods]
    _check_used(lists, of_period)
    known = evidence.held_out(logs)
    found = []
    for i, (period, own) in enumerate(zip(periods, of_period, strict=True), start=1):
        found.append(_follow(logs, known, period, own, i, level, alarm))
        told(period.name)
    pooled = _pooled(found)
    numbers = [int(one.seen.found.num_labels) for one in found]
    assumed = sum(n for n, own in zip(numbers, of_period, strict=True) if own is None)
    return {
        "format": "calmoe monitor",
        "schema": 1,
        "held_out": {
            "examples": len(known.rows),
            "temperature": known.temperature,
            "mean_confidence": _mean_confidence(known),
            "accuracy": _accuracy(known),
        },
        "level": level,
        "alarm": alarm,
        "spending": "level K / ((K + k - 1) (K + k)) for the k-th period, with K = 30; the shares "
        "of infinitely many periods sum to the level",
        "periods": [_plain(one, gap, level) for one, gap in zip(found, pooled, strict=True)],
        "rests_on": _rests_on(logs, sum(numbers), assumed, level),
    }


def _list_of(period: Period, lists: Sequence[List]) -> List | None:
    """The list that was drawn from a period, if there is one."""
    own = [one for one in lists if np.isin([a.row for a in one[1]], period.rows).all()]
    if len(own) > 1:
        raise UserError(f"{own[0][0]} and {own[1][0]} are both of period {period.name}.")
    return own[0] if own else None


def _check_used(lists: Sequence[List], used: Sequence[List | None]) -> None:
    for one in lists:
        if not any(one is other for other in used):
            raise UserError(f"{one[0]} must be drawn from the targets of one period.")


def _follow(
    logs: Logs,
    known: HeldOut,
    period: Period,
    own: List | None,
    look: int,
    level: float,
    alarm: float,
) -> Followed:
    rows = period.rows
    if own is not None:  # what was drawn from: those without a label
        rows = np.intersect1d(rows, asked_rows(logs, own[1]))
    padded = 1 << (len(rows) - 1).bit_length()
    people = evidence.population(logs, known, rows, padded=padded)
    seen = with_labels(logs, known, people, own, level=level, shared=True)
    confidence = jnp.exp(people.evidence.log_probs.max(axis=1))[: len(rows)]
    error = float(jnp.std(confidence)) / math.sqrt(len(rows))
    tested = look_for_shift(logs, known.rows, period.rows, look=look, level=alarm)
    return Followed(period, tested, seen, error)


def _pooled(found: Sequence[Followed]) -> list[dict[str, float | None]]:
    """Gaps of all periods by a common model; of none where there is no label at all."""
    gaps = [one.seen.found for one in found]
    labelled = jnp.array([int(gap.num_labels) > 0 for gap in gaps])
    if not bool(labelled.any()):
        return [{"mean": None, "standard_deviation": None} for _ in found]
    pooled = pooled_gaps(
        jnp.stack([gap.estimate for gap in gaps]),
        jnp.stack([gap.standard_error for gap in gaps]),
        jnp.stack([gap.label_free.bold for gap in gaps]),
        where=labelled,
    )
    means, deviations = plain(pooled.mean), plain(pooled.standard_deviation)
    return [
        {"mean": mean, "standard_deviation": deviation}
        for mean, deviation in zip(means, deviations, strict=True)
    ]


def _plain(one: Followed, pooled: dict[str, float | None], level: float) -> dict[str, Any]:
    found = one.seen.found
    labels = int(found.num_labels)
    confidence = float(found.confidence)
    safe, bold = float(found.label_free.safe), float(found.label_free.bold)
    if labels:
        accuracy = confidence - np.array([found.estimate, found.upper, found.lower])
        source = "labels"
    else:
        margin = _ERRORS * one.error
        accuracy = confidence - np.array([bold, bold + margin, safe - margin])
        source = "label-free"
    value, low, high = (float(x) for x in np.clip(accuracy, 0, 1))
    by_labels = ("estimate", "standard_error", "lower", "upper")
    return {
        "period": one.period.name,
        "targets": len(one.seen.people.rows),
        "labels": labels,
        "mean_confidence": confidence,
        "shift": one.look._asdict(),
        "accuracy": {"value": value, "low": low, "high": high, "by": source},
        "gap": {name: plain(getattr(found, name)) if labels else None for name in by_labels}
        | {"label_free": {"safe": safe, "bold": bold}, "pooled": pooled},
    }


@jax.jit
def _correct(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(log_probs, axis=1) == labels)


def _accuracy(known: HeldOut) -> float:
    return float(_correct(known.evidence.log_probs, known.labels))


def _mean_confidence(known: HeldOut) -> float:
    return float(jnp.mean(jnp.exp(known.evidence.log_probs.max(axis=1))))


def _rests_on(logs: Logs, labelled: int, assumed: int, level: float) -> list[str]:
    lines = [f"{note}." for note in logs.notes]
    if assumed:
        lines.append(
            f"{assumed:,} labelled targets are used; that they were drawn uniformly at random "
            "among the targets of their period is assumed, and cannot be seen in the logs."
        )
    if labelled:
        lines.append(
            f"Bounds from labels hold at level {level:g} each and at any number of labels, for "
            "each period by itself."
        )
    peers = logs.peer_probs is not None
    upper = "what the agreement with peers says" if peers else "the confidence"
    lines.append(
        "Without labels the band of the accuracy lies between what the labels of neighbours say "
        f"and {upper}; a shift that neither sees is outside it."
    )
    if logs.aggregate_only:
        stands = "what the agreement with peers says" if peers else "the confidence"
        lines.append(
            "The logs hold the aggregate alone: no test for a shift of the configuration, and "
            f"without labels {stands} stands for the accuracy."
        )
    return lines


def describe_monitor(found: dict[str, Any]) -> str:
    """A short table, for a terminal.

    Args:
        found: as from `monitor`.
    """
    held_out = found["held_out"]
    lines = [
        f"Held out: {held_out['examples']:,} examples, accuracy {held_out['accuracy']:.3f}, mean "
        f"confidence {held_out['mean_confidence']:.3f} at temperature "
        f"{held_out['temperature']:.3f}.",
        "",
        f"{'period':<12}{'targets':>9}{'conf.':>7}{'shift p':>9}{'of level':>10}"
        f"{'accuracy':>10}{'band':>16}{'labels':>8}{'gap at least':>14}{'pooled':>8}",
    ]
    for one in found["periods"]:
        shift, accuracy, gap = one["shift"], one["accuracy"], one["gap"]
        mark = " *" if shift["shifted"] else ""
        low, high = accuracy["low"], accuracy["high"]
        lines.append(
            f"{_short(one['period']):<12}{one['targets']:>9,}{one['mean_confidence']:>7.3f}"
            f"{_p_value(shift['p_value']):>9}{_p_value(shift['level']):>10}"
            f"{accuracy['value']:>10.3f}{f'{low:.3f} to {high:.3f}':>16}{one['labels']:>8,}"
            f"{_known(gap['lower']):>14}{_known(gap['pooled']['mean']):>8}{mark}"
        )
    shifted = [one["period"] for one in found["periods"] if one["shift"]["shifted"]]
    words = f"* a shift, at level {found['alarm']:g} over all periods: {len(shifted)}"
    if shifted:
        words += f", the first {shifted[0]}"
    return "\n".join(["", *lines, f"{words}.", *found["rests_on"]]).lstrip("\n")


def _short(name: str) -> str:
    """The last part of a path, cut to the width of the column."""
    last = name.rpartition("/")[2]
    return last if len(last) <= 11 else f"{last[:10]}…"


def _p_value(value: float | None) -> str:
    return "-" if value is None else number(value, ".4f" if value >= 1e-3 else ".0e")


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
