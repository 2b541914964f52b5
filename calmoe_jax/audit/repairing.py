"""The repair of a deployed model, from its logs and a few labels, as a record for a file."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from calmoe_jax import shift
from calmoe_jax._checks import check_choice
from calmoe_jax._errors import UserError
from calmoe_jax.audit import evidence
from calmoe_jax.audit.answers import Answer, Drawn, asked_rows, at_random, in_order
from calmoe_jax.audit.asking import Units, units_of
from calmoe_jax.audit.deployed import FORMAT, KINDS, SCHEMA
from calmoe_jax.audit.evidence import HeldOut, Population
from calmoe_jax.audit.limits_of_repair import cannot_know, rests_on
from calmoe_jax.audit.logs import Logs
from calmoe_jax.audit.refitting import Deployed, refit
from calmoe_jax.audit.scoring import plain
from calmoe_jax.calibration.intervals._interval import check_level
from calmoe_jax.shift.estimators import Evidence
from calmoe_jax.shift.repair.temperatures import match_aim


class Labelled(NamedTuple):
    """Targets with what their labels show.

    Attributes:
        people: the targets.
        drawn: their labels, in the order of the draws.
        units: what the draws were of, and with what chances; `None` if of targets, with equal ones.
        found: temperatures and bounds.
    """

    people: Population
    drawn: Drawn
    units: Units | None
    found: shift.LabelledRepair


def repair(
    logs: Logs,
    *,
    labels: Path | None = None,
    answers: Sequence[Answer] | None = None,
    mode: str | None = None,
    level: float = 0.9,
) -> dict[str, Any]:
    """The repair for the targets of logs, as plain values for a file that `load_repair` reads.

    Args:
        logs: checked logs.
        labels: the filled list, for errors.
        answers: its rows, as from `read_answers`; without them the labels that targets of the logs
            have are used, as if drawn uniformly at random.
        mode: `safe` and `bold` use no label, `certified` and `combined` need some; by default
            `combined` where there are labels, else `safe`. `refit` needs many
            (`shift.repair.refit_with_labels`).
        level: level of each of the two bounds, in (0, 1).

    Raises:
        ValueError: if `level` is out of range or `mode` is none of these.
        UserError: if there is no target, or no label and the mode needs some; or for `refit` with
            a list of clusters.
    """
    check_level(level)
    if mode is not None:
        check_choice("mode", mode, KINDS)
    if mode == "refit" and any(x.cluster is not None for x in answers or ()):
        raise UserError("mode=refit needs a list of targets, not of clusters, with --labels.")
    counted = logs.targets if logs.where is None else logs.where & logs.targets
    rows = np.flatnonzero(counted) if answers is None else asked_rows(logs, answers)
    if not len(rows):
        raise UserError("the logs have no targets: there is nothing to repair for.")
    known = evidence.held_out(logs)
    people = evidence.population(logs, known, rows)
    asked = None if answers is None else (labels or Path("the list"), answers)
    seen = with_labels(logs, known, people, asked, level=level)
    number = int(seen.found.num_labels)
    kind = mode or ("combined" if number else "safe")
    if not number and kind in ("certified", "combined", "refit"):
        raise UserError(
            f"mode must be safe or bold without labels, got mode={kind}: no label of a target is "
            "there to use."
        )
    return _record(logs, known, seen, kind, level, left_out=int(counted.sum()) - len(rows))


def with_labels(
    logs: Logs,
    known: HeldOut,
    people: Population,
    asked: tuple[Path, Sequence[Answer]] | None,
    *,
    level: float,
    shared: bool = False,
) -> Labelled:
    """What labels show of a population.

    Args:
        logs: checked logs.
        known: the held-out examples.
        people: the targets.
        asked: a filled list and its name; `None` for the logs' own labels.
        level: level of each bound.
        shared: whether numbers of draws are rounded up to a power of two, so that several calls
            share programs.
    """
    if asked is None:
        units = None
        drawn = at_random(logs, people.rows)
    else:
        path, answers = asked
        whole = any(answer.cluster is not None for answer in answers)
        units = units_of(logs, people, whole_clusters=whole)
        drawn = in_order(path, answers, people.rows, units, logs.clusters[people.rows])
    length = max(len(drawn.units), 1)
    planned = drawn.planned
    if shared:
        length, planned = (1 << (n - 1).bit_length() for n in (length, planned))
    order = np.pad(drawn.units, (0, length - len(drawn.units)), constant_values=-1)
    found = _found(known, people, drawn.labels, order, units, level, planned)
    if not all(math.isfinite(x) for x in (found.certified, found.combined)):
        raise UserError("the labels give no number: too few examples, or predictions not usable.")
    return Labelled(people, drawn, units, found)


def _found(
    known: HeldOut,
    people: Population,
    labels: np.ndarray,
    order: np.ndarray,
    units: Units | None,
    level: float,
    planned: int,
) -> shift.LabelledRepair:
    padding = len(people.evidence.log_probs) - len(labels)
    of, number, chances = None, None, None
    if units is not None:
        chances = jnp.asarray(units.chances, jnp.float32)
        if units.whole_clusters:
            of, number = jnp.asarray(np.pad(units.of, (0, padding)), jnp.int32), units.number
        else:
            chances = jnp.pad(chances, (0, padding))
    return _repaired(
        known.evidence, known.labels, people.evidence,
        jnp.asarray(np.pad(labels, (0, padding), constant_values=-1), jnp.int32),
        jnp.asarray(order, jnp.int32), people.correctness, people.label_free, of, chances,
        num_units=number, level=level, planned=planned,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("num_units", "level", "planned"))
def _repaired(
    held_out: Any, labels: Any, targets: Any, target_labels: Any, drawn: Any, correctness: Any,
    label_free: Any, units: Any, chances: Any, *, num_units: int | None, level: float, planned: int,
) -> shift.LabelledRepair:  # fmt: skip
    return shift.repair_with_labels(
        held_out, labels, targets, target_labels, drawn, correctness=correctness,
        label_free=label_free, units=units, num_units=num_units, chances=chances, level=level,
        planned=planned,
    )  # fmt: skip


def relative_temperature(seen: Labelled, kind: str) -> float:
    """The temperature of a rule, relative to the held-out one.

    Args:
        seen: as from `with_labels`.
        kind: the rule.
    """
    found = seen.found
    if kind in ("certified", "combined"):
        return float(getattr(found, kind))
    lower_by = getattr(found.label_free, kind)
    return float(_matched(seen.people.evidence, found.confidence - lower_by))


@jax.jit
def _matched(targets: Any, aim: jax.Array) -> jax.Array:
    return match_aim(targets.log_probs, aim, jnp.ones(()), targets.where)


_confidence = jax.jit(shift.mean_confidence)


def _mean_confidence(targets: Evidence, relative: float) -> float:
    return float(_confidence(targets.log_probs, jnp.float32(relative), where=targets.where))


def _deployed(logs: Logs, known: HeldOut, seen: Labelled, kind: str, level: float) -> Deployed:
    if kind == "refit":
        chances = None if seen.units is None else seen.units.chances
        return refit(logs, known, seen.people.rows, seen.drawn, chances, level=level)
    relative = relative_temperature(seen, kind)
    after = _mean_confidence(seen.people.evidence, relative)
    return Deployed(known.temperature * relative, None, after)


def _record(
    logs: Logs, known: HeldOut, seen: Labelled, kind: str, level: float, *, left_out: int
) -> dict[str, Any]:
    found, targets = seen.found, seen.people.evidence
    number = int(found.num_labels)
    label_free = {name: plain(x) for name, x in found.label_free._asdict().items()}
    by_labels = ("estimate", "standard_error", "lower", "upper", "posterior")
    gap = {name: plain(getattr(found, name)) if number else None for name in by_labels}
    if not number:
        gap["estimate"] = label_free[kind]

    def confidence(relative: float) -> float:
        return _mean_confidence(targets, relative)

    deployed = _deployed(logs, known, seen, kind, level)
    record = {
        "format": FORMAT,
        "schema": SCHEMA,
        "kind": kind,
        "temperature": deployed.temperature,
        "expert_temperatures": deployed.expert_temperatures,
        "held_out_temperature": known.temperature,
        "confidence": {
            "logged": confidence(1 / known.temperature),
            "before": confidence(1.0),
            "after": deployed.confidence,
        },
        "gap": gap | {"label_free": label_free},
        "refit": deployed.refit,
        "level": level,
        "labels": {"used": number, "planned": seen.drawn.planned if number else 0},
        "classes": int(targets.log_probs.shape[1]),
        "experts": None if logs.aggregate_only else int(logs.routing_weights.shape[1]),
        "peers": 0 if logs.peer_probs is None else int(logs.peer_probs.shape[1]),
        "examples": {
            "held_out": len(known.rows), "targets": len(seen.people.rows), "left_out": left_out,
        },
    }  # fmt: skip
    return record | {
        "rests_on": rests_on(record, known, seen.people, seen.drawn, logs.notes),
        "cannot_know": cannot_know(record),
    }
