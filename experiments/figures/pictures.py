"""The committed pictures: what each is drawn from, and whether it is still of that.

Beside the pictures' paths `pictures.json` keeps digests of the results that each was drawn from and
of its file, so that results that were made anew without their picture are found.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import matplotlib

from calmoe_jax.drawing.style import STYLE, png
from calmoe_jax.study.report.plots import draw_reliability
from experiments import hard_or_soft_page, repair_protocol
from experiments.figures import evidence, first_run, repair, theory
from experiments.figures.words import ROOT, read
from experiments.our_study import report
from experiments.our_study.comparing import read_rows
from experiments.theory.__main__ import PARTS

STAMPS = ROOT / "experiments" / "figures" / "pictures.json"
_STUDY = "experiments/our_study"


class Picture(NamedTuple):
    """A committed picture.

    Attributes:
        source: what it is drawn from, as bytes.
        draw: makes the PNG.
    """

    source: Callable[[], bytes]
    draw: Callable[[], bytes]


def _file(path: str) -> bytes:
    return (ROOT / path).read_bytes()


def _study() -> bytes:
    return b"".join(path.read_bytes() for path in sorted((ROOT / _STUDY).glob("*.json.gz")))


def _numbers(letter: str) -> bytes:
    return json.dumps(theory.numbers(letter), sort_keys=True).encode()


def _theory(letter: str) -> bytes:
    with matplotlib.rc_context(STYLE):
        return png(PARTS[letter].draw(theory.numbers(letter)))


def _reliability() -> bytes:
    with matplotlib.rc_context(STYLE):
        figure = draw_reliability(first_run.summary("portal"))
        assert figure is not None
        return png(figure)


# By path below the root of the repository.
PICTURES: dict[str, Picture] = {
    f"{_STUDY}/frontier.png": Picture(_study, lambda: report.draw(read_rows(ROOT / _STUDY))),
    "experiments/corruptions/severity.png": Picture(
        partial(_file, evidence.CORRUPTIONS),
        lambda: hard_or_soft_page.draw(read(evidence.CORRUPTIONS)),
    ),
    "experiments/first_results/reliability.png": Picture(
        partial(_file, "experiments/first_results/portal.json.gz"), _reliability
    ),
    "experiments/repair/frontier.png": Picture(
        partial(_file, repair.PATH),
        lambda: repair_protocol.draw_frontier(repair.found(repair.PATH)),
    ),
    **{
        f"experiments/theory/{letter}.png": Picture(
            partial(_numbers, letter), partial(_theory, letter)
        )
        for letter in PARTS
    },
}


def stamp(source: bytes, picture: bytes) -> dict[str, str]:
    """The digests that are kept of a picture.

    Args:
        source: what it is drawn from.
        picture: its file.
    """
    return {
        "source": hashlib.sha256(source).hexdigest()[:16],
        "picture": hashlib.sha256(picture).hexdigest()[:16],
    }


def kept() -> dict[str, dict[str, str]]:
    """The stamps of the committed pictures, by path; none where there is no file of them."""
    found: dict[str, Any] = json.loads(STAMPS.read_text()) if STAMPS.is_file() else {}
    return found


def stale(stamps: dict[str, dict[str, str]]) -> list[str]:
    """The paths of pictures that are not there, or not of their results.

    Args:
        stamps: as from `kept`.
    """
    return [
        path
        for path, picture in PICTURES.items()
        if not (ROOT / path).is_file()
        or stamps.get(path) != stamp(picture.source(), (ROOT / path).read_bytes())
    ]
