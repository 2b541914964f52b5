"""`civil_comments`: whether most raters call a comment on news toxic; identities as shifts.

CivilComments as WILDS splits it, by article (Borkan et al. 2019; Koh et al. 2021). A comment is
toxic if half of its raters or more say so. Comments on one article are one cluster. Hard: test
comments that mention any identity, as in the paper (`identity_any`); the shifts are the test
comments that mention one of eight, so they are parts of the test and overlap.

As in the paper's protocol 50,000 training comments are used, drawn by a hash of their number; for
calibration 10,000 of WILDS's validation split are, so that they are of other articles (the paper
takes the last tenth of its training comments). The test is whole.
"""

import dataclasses
from pathlib import Path

import numpy as np

from calmoe_jax.data._order import hash_order
from calmoe_jax.data.errors import CorruptDataError, MissingDataError
from calmoe_jax.data.local.text import with_features
from calmoe_jax.data.sets.catalogue import how_to_get, newest_version
from calmoe_jax.data.task import Kind, Split, Task

SOURCE = "CivilComments-WILDS, CC0; Borkan et al. 2019, Koh et al. 2021"
SHIFTS = (
    "male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white",
)  # fmt: skip
HARD = "identities"
CLASSES = ("civil", "toxic")
_MOST = {"train": 50_000, "validation": 10_000}


@dataclasses.dataclass(frozen=True)
class Comments:
    """Comments as texts, for a network with a tokeniser of its own, or for `load`'s features.

    Attributes:
        train: training comments; `inputs` are texts, an array of objects.
        calibration: comments held out from training.
        test: all test comments.
        identities: which test comments mention which of `SHIFTS`, bools [comments, 8].
        any_identity: which test comments mention any identity at all.
        where: the folder that they are from.
    """

    train: Split
    calibration: Split
    test: Split
    identities: np.ndarray
    any_identity: np.ndarray
    where: Path

    def task(self, train: Split, calibration: Split, test: Split) -> Task:
        """The task of these splits, in which other inputs may have replaced the texts.

        Args:
            train: as `self.train`, with inputs of any kind; so are the other two.
            calibration: as `self.calibration`.
            test: as `self.test`.
        """
        shifts = tuple(
            test.take(self.identities[:, i], name, "shift", f"test comments that mention {name}")
            for i, name in enumerate(SHIFTS)
            if self.identities[:, i].any()
        )
        hard = test.take(self.any_identity, HARD, "hard", "test comments that mention any identity")
        return Task(
            name="civil_comments",
            classes=CLASSES,
            train=train,
            calibration=calibration,
            evaluation=(test, *shifts, *((hard,) if len(hard) else ())),
            source=SOURCE,
        )


def load(data_dir: Path | None) -> Task:
    """Reads the comments; features: see `calmoe_jax.data.local.text`."""
    comments = load_texts(data_dir)
    splits = with_features(
        comments.train, (comments.calibration, comments.test), where=str(comments.where)
    )
    return comments.task(*splits)


def load_texts(data_dir: Path | None) -> Comments:
    """Reads the comments as texts.

    Args:
        data_dir: the data folder.

    Raises:
        MissingDataError: if they are not there, or without their articles, with the command that
            brings them.
        CorruptDataError: if they cannot be read.
    """
    from calmoe_jax.data.tfds.records import read_records

    version = None
    if data_dir is not None:
        version = newest_version(data_dir / "wilds_civil_comments")
    if version is None:
        place = f"in {data_dir}" if data_dir is not None else "without a data folder"
        raise MissingDataError(
            f"wilds_civil_comments, prepared, is needed, and there is none {place}. "
            f"{how_to_get('wilds_civil_comments')}"
        )
    parts = {name: read_records(version, name) for name in ("train", "validation", "test")}
    if "article_id" not in parts["test"]:
        raise MissingDataError(
            f"{version} lacks article_id, by which comments are clustered: an earlier release "
            f"prepared it. Remove that folder. {how_to_get('wilds_civil_comments')}"
        )
    train = _split(version, parts["train"], "train", "train", _MOST["train"])
    held_out = _split(
        version, parts["validation"], "calibration", "calibration", _MOST["validation"]
    )
    test = _split(version, parts["test"], "test", "id", None)
    return Comments(
        train=train,
        calibration=held_out,
        test=test,
        identities=np.array(parts["test"]["identities"]) >= 0.5,
        any_identity=np.array(parts["test"]["identity_any"]) >= 0.5,
        where=version,
    )


def _split(version: Path, rows: dict[str, list], name: str, kind: Kind, most: int | None) -> Split:
    count = len(rows["text"])
    if not count:
        raise CorruptDataError(f"{version} must hold comments to make {name} of, got none.")
    order = np.array(hash_order([str(number) for number in range(count)], seed=0))
    order = np.sort(order if most is None else order[:most])
    texts = np.empty(count, object)
    texts[:] = rows["text"]
    return Split(
        name=name,
        kind=kind,
        inputs=texts[order],
        labels=(np.array(rows["toxicity"])[order] >= 0.5).astype(np.int32),
        clusters=np.array(rows["article_id"])[order].astype(np.int32),
        description=f"{len(order):,} comments of WILDS's split {name}",
    )
