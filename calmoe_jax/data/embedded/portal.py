"""`portal`: identify desert rodents from their measurements, over 25 years.

The embedded table holds all 30,676 captures of the Portal Project (Arizona, 1977 to 2002) that have
sex, hindfoot length and weight, as in Data Carpentry's teaching table (R package `ratdat`); CC0,
S. Ernest, J. Brown, T. Valone, E. White. A survey of the plots takes a few nights a month; the same
animal is often caught more than once in it. So examples are split by survey period, never by row,
and the bootstrap resamples whole periods.
"""

import csv
import datetime
import io
import math
from importlib import resources
from pathlib import Path

import numpy as np

from calmoe_jax.data import _files as files
from calmoe_jax.data._order import hash_order
from calmoe_jax.data.ambiguity import ambiguous_subset
from calmoe_jax.data.task import Split, Task

SOURCE = "Portal Project teaching database, CC0; Ernest, Brown, Valone, White; embedded"

# The eleven most frequent species with full measurements, except Chaetodipus baileyi (PB): it
# first appears in 1995, after all training data.
SPECIES = {
    "DM": "Dipodomys merriami",
    "PP": "Chaetodipus penicillatus",
    "DO": "Dipodomys ordii",
    "RM": "Reithrodontomys megalotis",
    "OT": "Onychomys torridus",
    "DS": "Dipodomys spectabilis",
    "PF": "Perognathus flavus",
    "PE": "Peromyscus eremicus",
    "NL": "Neotoma albigula",
    "OL": "Onychomys leucogaster",
    "PM": "Peromyscus maniculatus",
}
_PLOT_TYPES = (
    "Control",
    "Long-term Krat Exclosure",
    "Rodent Exclosure",
    "Short-term Krat Exclosure",
    "Spectab exclosure",
)
_SHIFTS = ((1990, 1993), (1994, 1997), (1998, 2002))
_LAST_TRAINING_YEAR = 1989
_NEW_PERIOD_AFTER = datetime.timedelta(days=7)
# Rounded means and deviations of the training years; constants, so that the features do not depend
# on a platform's order of summation.
_WEIGHT, _WEIGHT_SCALE = 52.0, 42.0
_HINDFOOT, _HINDFOOT_SCALE = 32.0, 10.0


def load(_: Path | None = None) -> Task:
    """Reads the embedded table.

    Features: weight, hindfoot length, sex, sine and cosine of the month, type of the plot. Of the
    survey periods of 1977 to 1989, 65 % are for training, 10 % for calibration and 25 % for the
    in-distribution test; the later years are the shifts.
    """
    packaged = resources.files("calmoe_jax.data.embedded") / "portal.csv.gz"
    with resources.as_file(packaged) as path:
        text = files.read_gzip(path).decode()
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["species"] in SPECIES]
    dates = [datetime.date.fromisoformat(row["date"]) for row in rows]
    periods = _survey_periods(dates)
    years = np.array([date.year for date in dates])
    classes = list(SPECIES)
    everything = Split(
        name="all",
        kind="train",
        inputs=np.array([_features(row, date) for row, date in zip(rows, dates, strict=True)]),
        labels=np.array([classes.index(row["species"]) for row in rows], np.int32),
        clusters=periods,
        description="",
    )
    early = years <= _LAST_TRAINING_YEAR
    names = sorted({int(p) for p in periods[early]})
    order = [names[i] for i in hash_order([str(name) for name in names], seed=0)]
    ends = [round(len(order) * share) for share in (0.25, 0.35)]
    span = f"survey periods of 1977 to {_LAST_TRAINING_YEAR}"

    def of_periods(chosen: list[int]) -> np.ndarray:
        return early & np.isin(periods, chosen)

    held_out, kept = of_periods(order[: ends[0]]), of_periods(order[ends[1] :])
    test = everything.take(held_out, "test", "id", f"a quarter of the {span}")
    train = everything.take(kept, "train", "train", f"65 % of the {span}")
    calibration = everything.take(
        of_periods(order[ends[0] : ends[1]]), "calibration", "calibration", f"10 % of the {span}"
    )
    shifts = []
    for first, last in _SHIFTS:
        inside = (years >= first) & (years <= last)
        shifts.append(
            Split(
                name=f"{first}-{last}",
                kind="shift",
                inputs=everything.inputs[inside],
                labels=everything.labels[inside],
                clusters=everything.clusters[inside],
                description=f"captures of {first} to {last}",
                series="year",
                position=(first + last) / 2,
            )
        )
    likeness = np.array([_likeness(row) for row in rows], np.int64)
    hard = ambiguous_subset(train, test, (likeness[kept], likeness[held_out]))
    return Task(
        name="portal",
        classes=tuple(SPECIES.values()),
        train=train,
        calibration=calibration,
        evaluation=(test, *shifts, hard),
        source=SOURCE,
    )


def _survey_periods(dates: list[datetime.date]) -> np.ndarray:
    """Numbers the survey periods: a new one begins after a week without a capture."""
    number, period_of = 0, {}
    last = min(dates)
    for date in sorted(set(dates)):
        number += date - last >= _NEW_PERIOD_AFTER
        period_of[date] = number
        last = date
    return np.array([period_of[date] for date in dates], np.int32)


def _features(row: dict[str, str], date: datetime.date) -> np.ndarray:
    angle = 2 * math.pi * (date.month - 1) / 12
    values = [
        (float(row["weight_g"]) - _WEIGHT) / _WEIGHT_SCALE,
        (float(row["hindfoot_mm"]) - _HINDFOOT) / _HINDFOOT_SCALE,
        1.0 if row["sex"] == "M" else -1.0,
        round(math.sin(angle), 6),
        round(math.cos(angle), 6),
    ]
    plot = [float(row["plot_type"] == name) for name in _PLOT_TYPES]
    return np.array(values + plot, np.float32)


def _likeness(row: dict[str, str]) -> tuple[int, int, int]:
    """Grams, half millimetres and sex, as whole numbers of comparable size."""
    sex = 20 if row["sex"] == "M" else 0
    return int(row["weight_g"]), 2 * int(row["hindfoot_mm"]), sex
