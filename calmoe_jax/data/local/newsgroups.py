"""`newsgroups`: the branch of Usenet that a post is from, with unseen groups as shifts.

20 Newsgroups by date (Lang 1995): the test file is later than the training file. A line is a post:
its group, a tab and its text, which is the whole post where `calmoe data prepare newsgroups` wrote
it, and its plain words in Cardoso-Cachopo's edition; figures of the two differ.

The classes are the four branches with several groups, `comp`, `rec`, `sci` and `talk`. Nine groups
are trained on; the eight others are the shift, as two kinds: siblings share two words of their name
with a group trained on (comp.sys.mac.hardware, rec.sport.hockey, talk.politics.misc; none of them
is of `sci`), cousins only one. alt.atheism, misc.forsale and soc.religion.christian are alone in
their branch and left out.

Duplicates are removed. Posts sent to several groups have no single label and are left out; of other
copies the one in the training file is kept. So no text is in two splits; but replies quote posts,
periodic postings change by a few words (19 of the 3,491 test posts share nine tenths of their rarer
words with a training post), and threads are not marked in this data. Every post is its own cluster,
so intervals are slightly too narrow.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from calmoe_jax.data import _files as files
from calmoe_jax.data._order import hash_order
from calmoe_jax.data.ambiguity import ambiguous_subset
from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.local.text import with_features
from calmoe_jax.data.sets.catalogue import how_to_get
from calmoe_jax.data.task import Kind, Split, Task

SOURCE = "20 Newsgroups by date, research use; Lang, Rennie, Cardoso-Cachopo"
FILES = ("newsgroups/train.tsv.gz", "newsgroups/test.tsv.gz")
SHIFTS = ("siblings", "siblings_later", "cousins", "cousins_later")

_CLASSES = ("comp", "rec", "sci", "talk")
_SEEN = (
    "comp.graphics",
    "comp.sys.ibm.pc.hardware",
    "comp.windows.x",
    "rec.autos",
    "rec.sport.baseball",
    "sci.crypt",
    "sci.med",
    "talk.politics.guns",
    "talk.politics.mideast",
)
_SIBLINGS = ("comp.sys.mac.hardware", "rec.sport.hockey", "talk.politics.misc")
_COUSINS = (
    "comp.os.ms-windows.misc",
    "rec.motorcycles",
    "sci.electronics",
    "sci.space",
    "talk.religion.misc",
)
_LEFT_OUT = ("alt.atheism", "misc.forsale", "soc.religion.christian")
_GROUPS = (*_SEEN, *_SIBLINGS, *_COUSINS, *_LEFT_OUT)
# Directions of texts, in whole numbers of this unit's fractions, so that distances are exact.
_STEPS = 1000


def load(data_dir: Path | None) -> Task:
    """Reads the two files.

    Training: the nine groups of the training file without a tenth, which is for calibration.
    In-distribution test: the same groups of the test file. Shifts: siblings and cousins, of the
    training file (as old as what is trained on) and of the test file (`_later`). Hard: test posts
    whose training neighbours are of several branches.

    Features: see `calmoe_jax.data.local.text`. The order of lines in a file does not matter.
    """
    paths = [files.find(data_dir, name, how_to_get("newsgroups")) for name in FILES]
    posts: dict[str, tuple[str, int]] = {}  # a text to its group and its file, 0 for training
    crossed = set()
    for number, path in enumerate(paths):
        for group, text in _read(path):
            if posts.setdefault(text, (group, number))[0] != group:
                crossed.add(text)
    for text in crossed:
        del posts[text]
    texts = list(posts)
    texts = [texts[i] for i in hash_order(texts, seed=0)]

    def split(name: str, kind: Kind, groups: tuple[str, ...], file: int, what: str) -> Split:
        rows = [text for text in texts if posts[text][0] in groups and posts[text][1] == file]
        if not rows:
            raise CorruptDataError(f"{paths[file]} must hold posts of {what}, got none.")
        labels = [_CLASSES.index(posts[text][0].split(".")[0]) for text in rows]
        return Split(
            name=name,
            kind=kind,
            inputs=np.array(rows, object),
            labels=np.array(labels, np.int32),
            description=what,
        )

    seen = split("seen", "train", _SEEN, 0, "the nine groups")
    held_out = np.arange(len(seen)) < len(seen) // 10
    train, calibration, test, *shifts = with_features(
        seen.take(~held_out, "train", "train", "nine groups, earlier posts"),
        (
            seen.take(held_out, "calibration", "calibration", "a tenth of those posts, held out"),
            split("test", "id", _SEEN, 1, "the same nine groups, later posts"),
            split("siblings", "shift", _SIBLINGS, 0, "three groups close to them"),
            split("siblings_later", "shift", _SIBLINGS, 1, "three groups close to them, later"),
            split("cousins", "shift", _COUSINS, 0, "five groups of the same branches"),
            split("cousins_later", "shift", _COUSINS, 1, "five groups of the same branches, later"),
        ),
        where=str(paths[0]),
    )
    hard = ambiguous_subset(train, test, (_direction(train), _direction(test)))
    return Task(
        name="newsgroups",
        classes=_CLASSES,
        train=train,
        calibration=calibration,
        evaluation=(test, *shifts, hard),
        source=SOURCE,
    )


def _direction(split: Split) -> np.ndarray:
    """Features scaled to unit length, which removes the effect of a post's length."""
    length = np.linalg.norm(split.inputs, axis=1, keepdims=True)
    return np.rint(_STEPS * split.inputs / np.maximum(length, 1e-6)).astype(np.int64)


def _read(path: Path) -> Iterator[tuple[str, str]]:
    """Group and text of each line, with runs of white space collapsed."""
    try:
        lines = files.read_gzip(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"{path} must be UTF-8: {error}.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        group, *texts = line.split("\t")
        if len(texts) != 1:
            raise CorruptDataError(
                f"{path}, line {number}: a line must be a group, a tab and a text, got "
                f"{len(texts)} tabs."
            )
        if group not in _GROUPS:
            raise CorruptDataError(
                f"{path}, line {number}: the group must be one of the 20, got {group!r}."
            )
        yield group, " ".join(texts[0].split())
