"""The registry of tasks: name, description, files needed, loader."""

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from calmoe_jax.data.checks import check_task
from calmoe_jax.data.corruptions import CORRUPTIONS, SEVERITIES
from calmoe_jax.data.embedded import digits, portal
from calmoe_jax.data.errors import MissingDataError
from calmoe_jax.data.local import (
    cifar,
    civil_comments,
    domains,
    images,
    newsgroups,
    pacs,
    sentiment,
)
from calmoe_jax.data.sets.catalogue import SETS
from calmoe_jax.data.sets.folder import data_folder
from calmoe_jax.data.task import Task


class TaskInfo(NamedTuple):
    """Description of a task that is not loaded yet.

    Attributes:
        summary: a one-line description.
        load: makes the task from the data folder.
        source: origin of the data, and its licence.
        files: files needed below the data folder; none if the data comes with the package.
        shifts: names of its shifts.
        data: names of the data sets of `calmoe_jax.data.sets.SETS` that it is made of.
        hard: name of its hard subset; empty if it has none.
    """

    summary: str
    load: Callable[[Path | None], Task]
    source: str = ""
    files: tuple[str, ...] = ()
    shifts: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    hard: str = "ambiguous"

    def missing(self, data_dir: Path | None) -> tuple[str, ...]:
        """What is needed and not below the data folder: files, or data sets that lie in either of
        two forms.
        """
        wanted = (
            self.files
            if not self.data
            else tuple(
                item for name in self.absent(data_dir) for item in SETS[name].files or (name,)
            )
        )
        return tuple(
            name
            for name in dict.fromkeys(wanted)
            if data_dir is None or not (data_dir / name).is_file()
        )

    def absent(self, data_dir: Path | None) -> tuple[str, ...]:
        """The data sets that are not below the data folder."""
        return tuple(name for name in self.data if not SETS[name].is_here(data_dir))


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
        data=("mnist", "usps", "optdigits"),
    ),
    "fashion_c": TaskInfo(
        "Fashion-MNIST at 28x28; six corruptions at five severities",
        images.load_fashion_c,
        images.FASHION_SOURCE,
        images.FASHION_FILES,
        _CORRUPTED,
        data=("fashion_mnist",),
    ),
    "cifar10h": TaskInfo(
        "CIFAR-10 with the votes of some 51 people on each test image, hard and easy ones apart",
        cifar.load_cifar10h,
        cifar.SOURCE_H,
        data=("cifar10", "cifar10_h"),
    ),
    "cifar10c": TaskInfo(
        "CIFAR-10; 19 corruptions at five severities",
        cifar.load_cifar10c,
        cifar.SOURCE_C,
        shifts=cifar.CORRUPTED,
        data=("cifar10", "cifar10_h"),
        hard="",
    ),
    **{
        f"pacs_{domain}": TaskInfo(
            f"images of seven classes at 64x64 in three domains, shifted to {domain}",
            partial(pacs.load, left_out=domain),
            pacs.SOURCE,
            shifts=(domain,),
            data=("pacs",),
            hard="",
        )
        for domain in pacs.DOMAINS
    },
    "newsgroups": TaskInfo(
        "branches of Usenet by a post's words; trained on nine groups, shifted to eight others",
        newsgroups.load,
        newsgroups.SOURCE,
        newsgroups.FILES,
        newsgroups.SHIFTS,
        data=("newsgroups",),
    ),
    "sentiment": TaskInfo(
        "sentiment of tweets by human ratings; shifted to reviews and editorials",
        sentiment.load,
        sentiment.SOURCE,
        sentiment.FILES,
        sentiment.SHIFTS,
        data=("sentiment4",),
    ),
    "civil_comments": TaskInfo(
        "whether a comment on news is toxic; shifted to those that mention one of eight identities",
        civil_comments.load,
        civil_comments.SOURCE,
        shifts=civil_comments.SHIFTS,
        data=("wilds_civil_comments",),
        hard=civil_comments.HARD,
    ),
    **{
        f"office_home_{domain}": TaskInfo(
            f"Office-Home's 65 classes at 64x64; trained on three domains, shifted to {domain}",
            partial(domains.load_office_home, held_out=domain),
            domains.OFFICE_HOME_SOURCE,
            shifts=(domain,),
            data=("office_home",),
            hard="",
        )
        for domain in domains.OFFICE_HOME_DOMAINS
    },
    "domainnet": TaskInfo(
        "DomainNet's 345 classes at 64x64; trained on photographs, shifted to five other domains",
        domains.load_domainnet,
        domains.DOMAINNET_SOURCE,
        shifts=domains.DOMAINNET_SHIFTS,
        data=("domainnet",),
        hard="",
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
        data_dir: folder with the data of tasks that do not come with the package; by default that
            of `CALMOE_DATA_DIR`, or the one that `calmoe data prepare` brings data to.

    Returns:
        The task; the same arrays on every platform, except that features of texts, which use a
        singular value decomposition, may differ in the last digit.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
        MissingDataError: if data is missing, with the command that brings it.
        CorruptDataError: if a file cannot be read, or holds invalid values.

    Example:
        >>> [split.name for split in load_task("portal").evaluation]
        ['test', '1990-1993', '1994-1997', '1998-2002', 'ambiguous']
    """
    if name not in TASKS:
        raise unknown_task(name)
    info = TASKS[name]
    if not info.data:
        return check_task(info.load(data_dir))
    folder = data_folder(data_dir).path
    if absent := info.absent(folder):
        raise MissingDataError(_how_to_get(name, absent, folder))
    return check_task(info.load(folder))


def _how_to_get(task: str, absent: tuple[str, ...], folder: Path) -> str:
    """What a task lacks, and the command that brings it."""
    lacking, manual = [], []
    for name in absent:
        found = SETS[name]
        files = [file for file in found.files if not (folder / file).is_file()]
        lacking.append(f"{', '.join(files) or name} ({found.size}, {found.licence})")
        if found.manual:
            manual.append(f" {name} must be downloaded by hand first, from {found.source}.")
    return (
        f"task {task} needs data that is not in {folder}: {'; '.join(lacking)}. The command "
        f"`calmoe data prepare {task}` brings it; --data-dir or CALMOE_DATA_DIR names another "
        f"folder."
        f"{''.join(manual)}"
    )


def unknown_task(name: str, *, others: str = "") -> ValueError:
    """The error for an unknown task; `others` lists what else could be given."""
    near = difflib.get_close_matches(name, TASKS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return ValueError(f"task must be one of {', '.join(TASKS)}{others}, got task={name!r}.{hint}")
