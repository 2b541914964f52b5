"""`pacs_art_painting`, `pacs_cartoon`, `pacs_photo`, `pacs_sketch`: leave one domain out.

PACS (Li et al. 2017) holds images of seven classes in four domains: art paintings, cartoons, photos
and sketches. Each task trains on three of them and shifts to the fourth, none of whose images it
sees before. The images were reduced from 227x227 to 64x64 (Lanczos) and re-encoded as JPEG (quality
95), in files of a user's own or by `calmoe data prepare pacs`. The two number images differently,
so which image is in which part differs.

Within each domain that is trained on, in an order by a hash of its images' numbers, the first fifth
is for the in-distribution test, the next tenth for calibration and the rest for training; these
parts are the same in the three tasks that train on a domain. Training images are in such an order
over all three, too: the first of them are a random part. The test split is of the three domains
together; each one's part of it is a split of its own, too. The left-out domain is tested whole.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from calmoe_jax.data._encoded import read_images
from calmoe_jax.data._order import hash_order, shuffled
from calmoe_jax.data.sets.catalogue import PACS_DOMAINS
from calmoe_jax.data.task import Kind, Split, Task

SOURCE = "PACS, research use, Li et al. 2017; reduced to 64x64, re-encoded as JPEG"
DOMAINS = PACS_DOMAINS

_CLASSES = "dog elephant giraffe guitar horse house person".split()
_SIZE = 64
_TESTED, _HELD_OUT = 0.2, 0.1  # shares of each domain that is trained on


class _Domain(NamedTuple):
    """Images of one domain, in hash order, and which rows are for what."""

    images: np.ndarray
    labels: np.ndarray
    parts: dict[str, slice]


def load(data_dir: Path | None, *, left_out: str) -> Task:
    """Reads the four domains.

    Args:
        data_dir: folder with the files.
        left_out: the domain that is not trained on, one of `DOMAINS`.
    """
    domains = {domain: _read(data_dir, domain) for domain in DOMAINS}
    seen = tuple(domain for domain in DOMAINS if domain != left_out)

    def split(name: str, kind: Kind, part: str, of: tuple[str, ...], description: str) -> Split:
        found = [
            (domains[d].images[rows], domains[d].labels[rows])
            for d in of
            for rows in [domains[d].parts[part]]
        ]
        images, labels = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        if part == "train":
            images, labels = shuffled(images, labels)
        return Split(name, kind, images, labels, description=description)

    named = ", ".join(domain.replace("_", " ") for domain in seen)
    return Task(
        name=f"pacs_{left_out}",
        classes=tuple(_CLASSES),
        train=split("train", "train", "train", seen, f"70 % of the images of {named}"),
        calibration=split(
            "calibration", "calibration", "calibration", seen, f"10 % of the images of {named}"
        ),
        evaluation=(
            split("test", "id", "test", seen, f"20 % of the images of {named}"),
            split(
                left_out, "shift", "all", (left_out,), "all images of the domain that is left out"
            ),
            *(
                split(f"test_{domain}", "part", "test", (domain,), "its images of the test split")
                for domain in seen
            ),
        ),
        source=SOURCE,
    )


def _read(data_dir: Path | None, domain: str) -> _Domain:
    images, labels, _ = read_images(data_dir, "pacs", domain, _SIZE)
    count = len(labels)
    order = np.array(hash_order([f"{domain} {i}" for i in range(count)], seed=0))
    first, second = round(count * _TESTED), round(count * (_TESTED + _HELD_OUT))
    parts = {
        "test": slice(0, first),
        "calibration": slice(first, second),
        "train": slice(second, count),
        "all": slice(0, count),
    }
    return _Domain(images[order], labels[order], parts)
