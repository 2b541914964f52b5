"""The registry of tasks: name, description, files needed, loader."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from calmoe_jax.data.checks import check_task
from calmoe_jax.data.corruptions import CORRUPTIONS, SEVERITIES
from calmoe_jax.data.embedded import digits, portal
from calmoe_jax.data.local import cifar, images, newsgroups, pacs, sentiment
from calmoe_jax.data.task import Task


class TaskInfo(NamedTuple):
    """Description of a task that is not loaded yet.

    Attributes:
        summary: a one-line description.
        load: makes the task from the data folder.
        source: origin of the data, and its licence.
        files: files needed below the data folder; none if the data comes with the package.
        shifts: names of its shifts.
    """

    summary: str
    load: Callable[[Path | None], Task]
    source: str = ""
    files: tuple[str, ...] = ()
    shifts: tuple[str, ...] = ()

    def missing(self, data_dir: Path | None) -> tuple[str, ...]:
        """The needed files that are not below the data folder."""
        if data_dir is None:
            return self.files
        return tuple(name for name in self.files if not (data_dir / name).is_file())


_CORRUPTED = tuple(f"{name}_{severity}" for name in CORRUPTIONS for severity in SEVERITIES)

TASKS: dict[str, TaskInfo] = {
    "portal": TaskInfo(
        "desert rodents by their measurements; trained on 1977-1989, tested until 2002",
        portal.load,
        portal.SOURCE,
        shifts=("1990-1993", "1994-1997", "1998-2002"),
    ),
    "digits": TaskInfo(
        "scikit-learn's 8x8 digits; six corruptions at five severities",
        digits.load_digits,
        digits.DIGITS_SOURCE,
        shifts=_CORRUPTED,
    ),
    "digits16": TaskInfo(
        "MNIST at 16x16; shifted to USPS, optdigits and six corruptions at five severities",
        images.load_digits16,
        images.DIGITS16_SOURCE,
        images.DIGITS16_FILES,
        ("usps", "optdigits", *_CORRUPTED),
    ),
    "fashion_c": TaskInfo(
        "Fashion-MNIST at 28x28; six corruptions at five severities",
        images.load_fashion_c,
        images.FASHION_SOURCE,
        images.FASHION_FILES,
        _CORRUPTED,
    ),
    "cifar10h": TaskInfo(
        "CIFAR-10 with the votes of some 51 people on each test image, hard and easy ones apart",
        cifar.load_cifar10h,
        cifar.SOURCE_H,
        cifar.FILES,
    ),
    "cifar10c": TaskInfo(
        "CIFAR-10; 19 corruptions at five severities",
        cifar.load_cifar10c,
        cifar.SOURCE_C,
        cifar.FILES,
        cifar.CORRUPTED,
    ),
    **{
        f"pacs_{domain}": TaskInfo(
            f"images of seven classes at 64x64 in three domains, shifted to {domain}",
            partial(pacs.load, left_out=domain),
            pacs.SOURCE,
            pacs.FILES,
            (domain,),
        )
        for domain in pacs.DOMAINS
    },
    "newsgroups": TaskInfo(
        "branches of Usenet by a post's words; trained on nine groups, shifted to eight others",
        newsgroups.load,
        newsgroups.SOURCE,
        newsgroups.FILES,
        newsgroups.SHIFTS,
    ),
    "sentiment": TaskInfo(
        "sentiment of tweets by human ratings; shifted to reviews and editorials",
        sentiment.load,
        sentiment.SOURCE,
        sentiment.FILES,
        sentiment.SHIFTS,
    ),
}


def register(name: str, info: TaskInfo) -> None:
    """Registers a task by name, for this process.

    Args:
        name: name of the task for `load_task` and `calmoe run`; without a colon and not ending in
            `.npz`, which would mean a function or a file.
        info: description and loader.

    Raises:
        ValueError: if the name is taken, empty, or looks like a function or a file.

    Example:
        >>> info = TaskInfo("rodents, once more", TASKS["portal"].load)
        >>> register("rodents", info)
        >>> TASKS["rodents"].summary
        'rodents, once more'
    """
    if name in TASKS:
        raise ValueError(f"name must be new, got name={name!r}: {TASKS[name].summary}.")
    if not name or ":" in name or name.lower().endswith(".npz"):
        raise ValueError(f"name must be without a colon and not end in .npz, got name={name!r}.")
    TASKS[name] = info


def load_task(name: str, data_dir: Path | None = None) -> Task:
    """Loads a task and checks it.

    Args:
        name: one of `TASKS`.
        data_dir: folder with the files of tasks that do not come with the package.

    Returns:
        The task; the same arrays on every platform, except that features of texts, which use a
        singular value decomposition, may differ in the last digit.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
        MissingDataError: if a file is missing.
        CorruptDataError: if a file cannot be read, or holds invalid values.

    Example:
        >>> [split.name for split in load_task("portal").evaluation]
        ['test', '1990-1993', '1994-1997', '1998-2002', 'ambiguous']
    """
    if name not in TASKS:
        raise unknown_task(name)
    return check_task(TASKS[name].load(data_dir))


def unknown_task(name: str, *, others: str = "") -> ValueError:
    """The error for an unknown task; `others` lists what else could be given."""
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return ValueError(f"task must be one of {', '.join(TASKS)}{others}, got task={name!r}.{hint}")
