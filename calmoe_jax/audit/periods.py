"""Periods of dated logs: the targets of each day, week, month or file."""

from typing import NamedTuple

import numpy as np

from calmoe_jax._errors import UserError
from calmoe_jax.audit.logs import Logs

_UNITS = {"day": "D", "month": "M"}
# Days from the first Monday of the dates that NumPy counts, a Thursday.
_MONDAY = 4
_MOST_PERIODS = 2000


class Period(NamedTuple):
    """Targets of one period.

    Attributes:
        name: the date on which it begins, its file, or its number.
        rows: rows of its targets in the logs, ascending.
    """

    name: str
    rows: np.ndarray


def periods_of(logs: Logs, every: str) -> list[Period]:
    """Divides the targets that count into periods, in the order of time.

    Args:
        logs: checked logs.
        every: `file`, a period for each file in the order given; `day`, `week` (from Monday) or
            `month` of dates; a number, the length of a period in the units of a numeric time; or
            `auto`: days where there are dates, else files.

    Returns:
        Periods with at least one target.

    Raises:
        UserError: if the logs have no such time, or no targets, or give too many periods.
    """
    rows = np.flatnonzero(logs.targets if logs.where is None else logs.where & logs.targets)
    if not len(rows):
        raise UserError("the logs have no targets: there is nothing to follow along time.")
    dated = logs.time is not None and logs.time.dtype.kind == "M"
    if every == "auto":
        if logs.time is not None and not dated:
            raise UserError("every must be a number for a time of numbers, got every=auto.")
        every = "day" if dated else "file"
    if every == "file":
        found = _by_file(logs, rows)
    elif every in ("day", "week", "month"):
        if not dated:
            raise UserError(f"every must be file or a number without dates, got every={every}.")
        found = _by_date(logs, rows, every)
    else:
        found = _by_number(logs, rows, every, dated)
    if len(found) > _MOST_PERIODS:
        raise UserError(
            f"every must give at most {_MOST_PERIODS:,} periods, got {len(found):,} with "
            f"every={every}."
        )
    return found


def _by_file(logs: Logs, rows: np.ndarray) -> list[Period]:
    ends = np.cumsum([size for _, size in logs.files])
    if len(ends) < 2:
        raise UserError(
            "the logs have no time and are of one file: give a column time, or a file for each "
            "period."
        )
    of = np.searchsorted(ends, rows, side="right")
    return _divided(rows, of, [name for name, _ in logs.files])


def _by_date(logs: Logs, rows: np.ndarray, every: str) -> list[Period]:
    assert logs.time is not None
    time = logs.time[rows]
    if every == "week":
        days = time.astype("datetime64[D]").astype(np.int64)
        starts = ((days - _MONDAY) // 7 * 7 + _MONDAY).astype("datetime64[D]")
    else:
        starts = time.astype(f"datetime64[{_UNITS[every]}]")
    kinds, of = np.unique(starts, return_inverse=True)
    return _divided(rows, of, [str(kind) for kind in kinds])


def _by_number(logs: Logs, rows: np.ndarray, every: str, dated: bool) -> list[Period]:
    try:
        length = float(every)
    except ValueError:
        length = np.nan
    if not 0 < length < np.inf:
        raise UserError(
            f"every must be auto, file, day, week, month or a number above 0, got every={every}."
        )
    if logs.time is None or dated:
        raise UserError(f"every must not be a number without a time of numbers, got every={every}.")
    numbers = np.floor(logs.time[rows].astype(np.float64) / length)
    kinds, of = np.unique(numbers, return_inverse=True)
    return _divided(rows, of, [f"{kind * length:g}" for kind in kinds])


def _divided(rows: np.ndarray, of: np.ndarray, names: list[str]) -> list[Period]:
    found = [Period(name, rows[of == i]) for i, name in enumerate(names)]
    return [period for period in found if len(period.rows)]
