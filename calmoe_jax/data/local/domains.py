"""Photographs and drawings of the same classes: Office-Home and DomainNet.

`office_home_art`, `_clipart`, `_product` and `_real_world` leave one domain out: it is the shift,
the other three are trained on. `domainnet` trains on photographs; the five other domains are
shifts, with what their lists call the test part.

All images are 64x64. Of DomainNet a fixed part is used, so that a task fits in memory (2 GB):
at most 50,000 training images, 5,000 for calibration, and 10,000 of each domain's test part, drawn
by a hash of the file's name.
"""

from functools import partial
from pathlib import Path

import numpy as np

from calmoe_jax.data._encoded import EncodedImages, decode, read_encoded
from calmoe_jax.data._order import hash_order, shuffled
from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.sets.catalogue import DOMAINNET_DOMAINS
from calmoe_jax.data.task import Kind, Split, Task
from calmoe_jax.data.tfds.classes import prepared_classes

OFFICE_HOME_SOURCE = "Office-Home, non-commercial research; Venkateswara et al. 2017"
DOMAINNET_SOURCE = "DomainNet at 64x64, research use; Peng et al. 2019"
OFFICE_HOME_DOMAINS = ("art", "clipart", "product", "real_world")
DOMAINNET_SHIFTS = DOMAINNET_DOMAINS[1:]
_SIZE = 64
_MOST = {"train": 50_000, "calibration": 5_000, "test": 10_000}


def load_office_home(data_dir: Path | None, *, held_out: str) -> Task:
    """Three domains to train on, 70 % for training, 10 % for calibration, 20 % for the test.

    Args:
        data_dir: the data folder.
        held_out: the domain left out, all of which is the shift.
    """
    domains = {part: read_encoded(data_dir, "office_home", part) for part in OFFICE_HOME_DOMAINS}
    rows: dict[str, list[tuple[str, np.ndarray]]] = {"train": [], "calibration": [], "test": []}
    for domain, images in domains.items():
        if domain == held_out:
            continue
        order = np.array(hash_order([f"{domain}/{key}" for key in images.keys], seed=0))
        ends = [round(len(order) * share) for share in (0.2, 0.3)]
        for name, part in zip(("test", "calibration", "train"), np.split(order, ends), strict=True):
            rows[name].append((domain, part))

    def split(name: str, kind: Kind, what: str) -> Split:
        pixels = [decode(domains[domain], _SIZE, part) for domain, part in rows[name]]
        labels = [domains[domain].labels[part] for domain, part in rows[name]]
        return _together(name, kind, pixels, labels, what)

    others = ", ".join(domain for domain in OFFICE_HOME_DOMAINS if domain != held_out)
    return Task(
        name=f"office_home_{held_out}",
        classes=prepared_classes(domains[held_out].where),
        train=split("train", "train", f"70 % of {others}"),
        calibration=split("calibration", "calibration", f"10 % of {others}"),
        evaluation=(
            split("test", "id", f"20 % of {others}"),
            Split(
                name=held_out,
                kind="shift",
                inputs=decode(domains[held_out], _SIZE),
                labels=domains[held_out].labels,
                description=f"all of {held_out}, which no training image is from",
            ),
        ),
        source=OFFICE_HOME_SOURCE,
    )


def load_domainnet(data_dir: Path | None, *, trained_on: tuple[str, ...] = ("real",)) -> Task:
    """One domain to train on, or several, and the others as shifts.

    Args:
        data_dir: the data folder.
        trained_on: the domains trained on; the largest numbers of images hold for all together.
    """
    unknown = sorted(set(trained_on) - set(DOMAINNET_DOMAINS))
    if unknown or not trained_on:
        raise ValueError(
            f"trained_on must be some of {', '.join(DOMAINNET_DOMAINS)}, got {trained_on}."
        )
    read = partial(_read_domainnet, data_dir)
    seen = [read(domain, "train") for domain in trained_on]
    held_out = [_some(images, _MOST["calibration"] // len(seen), tenth=True) for images in seen]
    kept = [_some(images, _MOST["train"] // len(seen), tenth=False) for images in seen]
    tests = {domain: read(domain, "test") for domain in DOMAINNET_DOMAINS}
    most = {d: _MOST["test"] // (len(seen) if d in trained_on else 1) for d in DOMAINNET_DOMAINS}
    tested = {domain: _some(images, most[domain]) for domain, images in tests.items()}

    def split(
        name: str, kind: Kind, parts: list[EncodedImages], rows: list[np.ndarray], what: str
    ) -> Split:
        pixels = [decode(part, _SIZE, some) for part, some in zip(parts, rows, strict=True)]
        labels = [part.labels[some] for part, some in zip(parts, rows, strict=True)]
        return _together(name, kind, pixels, labels, what)

    names = ", ".join(trained_on)
    return Task(
        name="domainnet",
        classes=prepared_classes(seen[0].where),
        train=split("train", "train", seen, kept, f"training images of {names}"),
        calibration=split("calibration", "calibration", seen, held_out, f"others of {names}"),
        evaluation=(
            split(
                "test", "id", [tests[d] for d in trained_on], [tested[d] for d in trained_on],
                f"test images of {names}",
            ),
            *(
                split(domain, "shift", [tests[domain]], [tested[domain]], f"images of {domain}")
                for domain in DOMAINNET_DOMAINS
                if domain not in trained_on
            ),
        ),
        source=DOMAINNET_SOURCE,
    )  # fmt: skip


def _together(
    name: str, kind: Kind, pixels: list[np.ndarray], labels: list[np.ndarray], what: str
) -> Split:
    """A split of several domains; of the training images the first are a random part."""
    arrays = np.concatenate(pixels), np.concatenate(labels)
    images, of_images = shuffled(*arrays) if kind == "train" else arrays
    return Split(name, kind, images, of_images, description=what)


def _read_domainnet(data_dir: Path | None, domain: str, part: str) -> EncodedImages:
    return read_encoded(data_dir, "domainnet", part, record=f"domainnet64/{domain}")


def _some(images: EncodedImages, most: int, *, tenth: bool | None = None) -> np.ndarray:
    """At most so many rows, by a hash of their files: of all, of a tenth, or of what it leaves."""
    order = np.array(hash_order(images.keys, seed=0))
    if tenth is not None:
        end = len(order) // 10
        order = order[:end] if tenth else order[end:]
    if not len(order):
        raise CorruptDataError(
            f"{images.where} must hold at least ten images, got {len(images.keys)}."
        )
    return np.sort(order[:most])
