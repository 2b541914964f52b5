"""Every task by name: what it is, what it needs, and how it is loaded."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from calmoe_jax.data.corruptions import CORRUPTIONS, SEVERITIES
from calmoe_jax.data.embedded import digits, portal
from calmoe_jax.data.local import images, newsgroups, sentiment
from calmoe_jax.data.task import Task, check_task


class TaskInfo(NamedTuple):
    """What is known of a task before it is loaded.

    Attributes:
        summary: one line for people.
        source: where the data is from, and its licence.
        files: files needed below the data folder; none where the data comes with the package.
        shifts: names of its shifts.
        load: makes the task from the data folder.
    """

    summary: str
    source: str
    files: tuple[str, ...]
    shifts: tuple[str, ...]
    load: Callable[[Path | None], Task]

    def missing(self, data_dir: Path | None) -> tuple[str, ...]:
        """The needed files that are not below the data folder."""
        if data_dir is None:
            return self.files
        return tuple(name for name in self.files if not (data_dir / name).is_file())


_CORRUPTED = tuple(f"{name}_{severity}" for name in CORRUPTIONS for severity in SEVERITIES)

TASKS: dict[str, TaskInfo] = {
    "portal": TaskInfo(
        "desert rodents by their measurements; trained on 1977-1989, tested until 2002",
        portal.SOURCE,
        (),
        ("1990-1993", "1994-1997", "1998-2002"),
        portal.load,
    ),
    "digits": TaskInfo(
        "scikit-learn's 8x8 digits; six corruptions at five severities",
        digits.DIGITS_SOURCE,
        (),
        _CORRUPTED,
        digits.load_digits,
    ),
    "digits16": TaskInfo(
        "MNIST at 16x16; shifted to USPS, optdigits and six corruptions at five severities",
        images.DIGITS16_SOURCE,
        images.DIGITS16_FILES,
        ("usps", "optdigits", *_CORRUPTED),
        images.load_digits16,
    ),
    "fashion_c": TaskInfo(
        "Fashion-MNIST at 28x28; six corruptions at five severities",
        images.FASHION_SOURCE,
        images.FASHION_FILES,
        _CORRUPTED,
        images.load_fashion_c,
    ),
    "newsgroups": TaskInfo(
        "branches of Usenet by a post's words; trained on nine groups, shifted to eight others",
        newsgroups.SOURCE,
        newsgroups.FILES,
        newsgroups.SHIFTS,
        newsgroups.load,
    ),
    "sentiment": TaskInfo(
        "sentiment of tweets as people rated it; shifted to reviews and editorials",
        sentiment.SOURCE,
        sentiment.FILES,
        sentiment.SHIFTS,
        sentiment.load,
    ),
}


def load_task(name: str, data_dir: Path | None = None) -> Task:
    """Loads a task and checks it.

    Args:
        name: one of `TASKS`.
        data_dir: folder with the files of tasks that do not come with the package.

    Returns:
        The task; the same arrays on every platform (features of texts, which rest on a singular
        value decomposition, all but a few to the last digit).

    Raises:
        ValueError: for an unknown name, with the nearest known one.
        MissingDataError: where a file is not there.
        CorruptDataError: where a file cannot be read, or holds what it must not.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got task={name!r}.{hint}")
    return check_task(TASKS[name].load(data_dir))
