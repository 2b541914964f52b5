"""Small files in the layout of the text tasks, and tasks recorded while they are made."""

import dataclasses
import gzip
import hashlib
import io
import tarfile

import numpy as np
import pytest

from calmoe_jax import data
from calmoe_jax.data import Split
from calmoe_jax.data.local import text

GROUPS = (
    "alt.atheism comp.graphics comp.os.ms-windows.misc comp.sys.ibm.pc.hardware "
    "comp.sys.mac.hardware comp.windows.x misc.forsale rec.autos rec.motorcycles "
    "rec.sport.baseball rec.sport.hockey sci.crypt sci.electronics sci.med sci.space "
    "soc.religion.christian talk.politics.guns talk.politics.mideast talk.politics.misc "
    "talk.religion.misc"
).split()


STEMS = ("tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets")


def babble(rng, topic, share=0.5):
    """Words of a topic and of none; the last is the text's own, so that no two are equal."""
    topical = rng.rand(24) < share
    words = [
        f"{topic}{n}" if t else f"word{n}"
        for t, n in zip(topical, rng.randint(0, 90, 24), strict=True)
    ]
    return " ".join([*words, f"own{rng.randint(10**9)}"])


def posts(count, seed):
    rng = np.random.RandomState(seed)
    return [(g, f"{babble(rng, g[:3], 0.15)} of {g}") for g in GROUPS for _ in range(count)]


def write_newsgroups(folder, train, test):
    (folder / "newsgroups").mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("test", test)):
        lines = "".join(f"{group}\t{words}\n" for group, words in rows)
        (folder / "newsgroups" / f"{name}.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    return folder


TRAIN, TEST = posts(25, seed=0), posts(8, seed=1)


def ratings_of(rng):
    """Twenty raters who mostly agree."""
    sign = rng.randint(-1, 2)
    return [int(sign * rng.randint(1, 5)) if rng.rand() < 0.75 else 0 for _ in range(20)]


def rated_rows(seed=0):
    """By file stem: number, text and ratings."""
    rng = np.random.RandomState(seed)
    tweets = [(str(i + 1), babble(rng, "tweet"), ratings_of(rng)) for i in range(280)]
    rows = {"tweets": tweets}
    for stem in STEMS[1:]:
        numbers = [f"{i // 4 + 1}_{i % 4 + 1}" for i in range(40)]
        if stem.startswith("movie"):
            numbers = [str(i + 1) for i in range(40)]
        rows[stem] = [(number, babble(rng, stem[:2]), ratings_of(rng)) for number in numbers]
    return rows


def members(rows, *, newline="\r\n", bom=b""):
    """The files of an archive; the published means are wrong on purpose."""
    content = {}
    for stem, table in rows.items():
        texts = newline.join(f"{number}\t-9.5\t{words}" for number, words, _ in table)
        ratings = newline.join(f"{number}\t-9.5\t1.0\t{scores}" for number, _, scores in table)
        content[f"hutto_ICWSM_2014/{stem}_GroundTruth.txt"] = texts.encode()
        content[f"hutto_ICWSM_2014/{stem}_anonDataRatings.txt"] = bom + ratings.encode()
    return content


def tar(content, *more):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, raw in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
        for info in more:
            archive.addfile(info)
    return gzip.compress(buffer.getvalue(), compresslevel=1)


def write_sentiment(folder, raw):
    (folder / "sentiment4").mkdir(parents=True, exist_ok=True)
    (folder / "sentiment4" / "hutto_ICWSM_2014.tar.gz").write_bytes(raw)
    return folder


class Spied:
    """A task, and its splits when their inputs were still texts.

    Args:
        module: that of the task.
        folder: with its files.
        featured: whether features are learnt as users get them; otherwise a text's letters are
            counted, which is quick, for tests of which text goes where.
    """

    def __init__(self, module, folder, *, featured=True):
        def spy(train, others, *, where):
            self.texts = {split.name: split for split in (train, *others)}
            if featured:
                return text.with_features(train, others, where=where)
            return tuple(map(letter_counts, (train, *others)))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "with_features", spy)
            name = module.__name__.rsplit(".", 1)[-1]
            self.task = data.load_task(name, folder)
        self.splits = {split.name: split for split in self.task.splits}

    def where(self, words):
        return [name for name, split in self.texts.items() if words in split.inputs]


def letter_counts(split):
    rows = [np.bincount(np.frombuffer(t.encode(), np.uint8), minlength=256) for t in split.inputs]
    return dataclasses.replace(split, inputs=np.array(rows, np.float32))


def assert_equal_tasks(ours, others):
    assert [s.name for s in ours.splits] == [s.name for s in others.splits]
    for a, b in zip(ours.splits, others.splits, strict=True):
        assert a.inputs.tobytes() == b.inputs.tobytes()
        assert (a.labels == b.labels).all()
        assert (a.clusters == b.clusters).all()


def assert_as_registered(task):
    """The shifts are those that `calmoe tasks` lists."""
    names = tuple(s.name for s in task.splits if s.kind == "shift")
    assert data.TASKS[task.name].shifts == names
    assert [s.kind for s in task.splits[:3]] == ["train", "calibration", "id"]
    assert [s.name for s in task.splits if s.kind == "hard"] == ["ambiguous"]


def of_texts(name, texts):
    rows = np.arange(len(texts), dtype=np.int32)
    return Split(name, "train", np.array(texts, object), 0 * rows)


def digest(loaded):
    """Of what must be the same everywhere; the last split may depend on the features."""
    total = hashlib.sha256()
    for split in loaded.splits[:-1]:
        total.update(np.concatenate([split.labels, split.clusters]).astype("<i4").tobytes())
    return total.hexdigest()[:16]


def centroid_accuracy_is_plausible(found, at_least):
    """A nearest-centroid classifier, by direction, does what these features allow."""
    train = found.task.train
    centroids = np.stack(
        [train.inputs[train.labels == c].mean(axis=0) for c in range(len(found.task.classes))]
    )
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    for name, least in at_least.items():
        split = found.splits[name]
        assert np.mean((split.inputs @ centroids.T).argmax(axis=1) == split.labels) > least
