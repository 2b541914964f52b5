"""Columns of text as the arrays that they stand for, and points in time."""

from datetime import UTC, datetime

import numpy as np

_NONE = ("", "nan", "NaN", "null", "None", "NA")
_TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def from_text(array: str, values: np.ndarray) -> np.ndarray:
    """The array that a column of text stands for.

    Args:
        array: its name; `labels` become numbers with NaN for what is missing, `targets` and `where`
            true or false, `clusters` whole numbers if all are, `time` numbers or points in time.
        values: the texts.

    Raises:
        ValueError: if a text is not what it must be.
    """
    if array in ("targets", "where"):
        return _truths(array, values)
    if array in ("labels", "weights", "drawn_probability"):
        return _numbers(array, values)
    _refuse_missing(array, values)
    if array == "time":
        return _times(values)
    try:
        return values.astype(np.int64)
    except (ValueError, OverflowError):
        return values.astype(str)


def as_times(values: np.ndarray) -> np.ndarray:
    """Checks points in time: numbers, or dates in UTC in microseconds.

    Args:
        values: numbers, texts or dates.

    Raises:
        ValueError: if one is missing or cannot be read.
        TypeError: for another kind.
    """
    if values.dtype.kind in "US":
        values = from_text("time", values.astype(str))
    if values.dtype.kind == "M":
        missing = np.isnat(values)
        values = values.astype("datetime64[us]")
    elif values.dtype.kind in "iuf":
        missing = ~np.isfinite(values)
    else:
        raise TypeError(f"time must be dates or numbers, got {values.dtype}.")
    if missing.any():
        raise ValueError(f"time must be known, got none at example {int(np.argmax(missing))}.")
    return values


def _refuse_missing(array: str, values: np.ndarray) -> None:
    missing = np.isin(values, _NONE)
    if missing.any():
        raise ValueError(
            f"{array} must be known for every example, got none at example "
            f"{int(np.argmax(missing))}"
        )


def _truths(array: str, values: np.ndarray) -> np.ndarray:
    kinds, inverse = np.unique(values, return_inverse=True)
    known = [_TRUTH.get(kind.strip().lower()) for kind in kinds.tolist()]
    if None in known:
        wrong = inverse == known.index(None)
        raise ValueError(
            f"{array} must be true or false, got {str(kinds[known.index(None)])!r} at example "
            f"{int(np.argmax(wrong))}"
        )
    return np.array(known, bool)[inverse]


def _numbers(array: str, values: np.ndarray) -> np.ndarray:
    filled = np.where(np.isin(values, _NONE), "nan", values)
    try:
        return filled.astype(np.float64)
    except ValueError as error:
        row = next(i for i, value in enumerate(filled) if not _is_number(value))
        raise ValueError(
            f"{array} must be numbers, got {str(filled[row])!r} at example {row}"
        ) from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _times(values: np.ndarray) -> np.ndarray:
    """Numbers if all are, else dates; those with an offset are brought to UTC."""
    for kind in (np.int64, np.float64):
        try:
            return values.astype(kind)
        except (ValueError, OverflowError):
            continue
    kinds, inverse = np.unique(values, return_inverse=True)
    dates = np.empty(len(kinds), "datetime64[us]")
    for i, text in enumerate(kinds.tolist()):
        try:
            date = datetime.fromisoformat(text.strip())
        except ValueError as error:
            row = int(np.argmax(inverse == i))
            raise ValueError(
                f"time must be ISO dates or numbers, got {text!r} at example {row}"
            ) from error
        dates[i] = date.astimezone(UTC).replace(tzinfo=None) if date.tzinfo else date
    return dates[inverse]
