"""Numbers in the notation of the table, and sentences that must be borne out."""

import gzip
import json
import math
import textwrap
from collections.abc import Iterable
from fractions import Fraction as F
from pathlib import Path
from typing import Any

from experiments.commits import short_commit

# Longest line of the main README.
WIDTH = 104
ROOT = Path(__file__).parents[2]


def read(path: str) -> Any:
    """A committed results file.

    Args:
        path: below the root of the repository; compressed if it ends with `.gz`.
    """
    content = (ROOT / path).read_bytes()
    return json.loads(gzip.decompress(content) if path.endswith(".gz") else content)


def commit_of(path: str) -> str:
    """The commit that a file's results were made at.

    Args:
        path: of the results, as for `read`.
    """
    return short_commit(made_with(path)["commit"])


def made_with(path: str) -> dict[str, Any]:
    """What a file's results were made with: versions, devices, commit.

    Args:
        path: of the results, as for `read`.
    """
    found = read(path)
    made: dict[str, Any] = found["made_with" if "made_with" in found else "environment"]
    return made


def bullet(text: str) -> str:
    """A bullet of the main README, long lines broken.

    Args:
        text: of one paragraph.
    """
    return textwrap.fill(
        text, WIDTH, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False
    )


def fixed(value: float | F, digits: int = 3, *, sign: bool = False) -> str:
    """A number without its leading zero: `.062`, `-.015`, `+.003`; zero has no minus.

    Args:
        value: finite.
        digits: decimals, at least 1.
        sign: whether numbers from zero on have a plus.

    Raises:
        ValueError: if the value is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"value must be finite, got {value}.")
    size = f"{abs(float(value)):.{digits}f}"
    negative = value < 0 and float(size) != 0
    return ("-" if negative else "+" if sign else "") + size.removeprefix("0")


def short(value: float | F, digits: int = 3) -> str:
    """The same without zeros at its end: `.1`, `.16`; `0` for zero.

    Args:
        value: finite.
        digits: decimals at most, at least 1.
    """
    return fixed(value, digits).rstrip("0").rstrip(".") or "0"


def at_most(value: float) -> str:
    """A power of ten times one digit, rounded up: `6e-12`.

    Args:
        value: above 0.
    """
    power = math.floor(math.log10(value))
    digit = math.ceil(value / 10.0**power)
    return f"1e{power + 1}" if digit == 10 else f"{digit}e{power}"


def listed(values: Iterable[float], digits: int = 3, *, sign: bool = False) -> str:
    """Numbers with commas, as of `fixed`.

    Args:
        values: finite.
        digits: decimals.
        sign: whether numbers from zero on have a plus.
    """
    return ", ".join(fixed(value, digits, sign=sign) for value in values)


def supported(words: str, holds: bool) -> str:
    """The words, if the results bear them out.

    Args:
        words: a part of a sentence.
        holds: whether it is true of the results.

    Raises:
        ValueError: if it is not: the sentence must be written anew.
    """
    if not holds:
        raise ValueError(f"the results must show what is said of them, not so: {words}")
    return words
