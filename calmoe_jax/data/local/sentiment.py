"""`sentiment`: negative, neutral or positive, by human ratings; from tweets to other domains.

23,703 short texts of four domains, each rated from -4 to 4 by 15 to 99 people (Hutto and Gilbert,
ICWSM 2014, "VADER"). The label is what most raters say, below 0, at 0 or above; if two shares
are equally large the text is neutral. It is derived from the raw ratings: the published means of
195 tweets are not those of their own ratings.

Trained on tweets; the shifts are reviews of products, reviews of films (of which 2 % are neutral)
and editorials (46 %). About 200 tweets were made up as variants of others, most in capitals or
with exclamation marks: tweets of the same words are one cluster, and clusters are never split (a
variant with another adverb, some twenty, is not recognised). In the other domains the sentences of
a review or an article are a cluster (of film reviews, which have no numbers, each sentence is one),
and texts that repeat the words of an earlier one are left out.
"""

import html
import io
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from calmoe_jax.data import _files as files
from calmoe_jax.data._order import hash_order
from calmoe_jax.data.errors import CorruptDataError
from calmoe_jax.data.local.text import with_features
from calmoe_jax.data.sets.catalogue import how_to_get
from calmoe_jax.data.task import Split, Task

SOURCE = "VADER's rated texts, MIT; Hutto and Gilbert 2014"
FILES = ("sentiment4/hutto_ICWSM_2014.tar.gz",)
SHIFTS = ("products", "films", "editorials")

_CLASSES = ("negative", "neutral", "positive")
_FOLDER = "hutto_ICWSM_2014"
_DOMAINS = {
    "tweets": "tweets",
    "products": "amazonReviewSnippets",
    "films": "movieReviewSnippets",
    "editorials": "nytEditorialSnippets",
}
_DESCRIPTIONS = {
    "products": "sentences of reviews of five products",
    "films": "sentences of reviews of films",
    "editorials": "sentences of newspaper editorials",
}
_DISPUTED = 0.7
_NUMBER = re.compile(r"[0-9]+(_[0-9]+)?")
_RATINGS = re.compile(r"\[(-?[0-4](?:, -?[0-4])*)\]")


class _Rated(NamedTuple):
    """A text, the article that it is a sentence of, and its raters' shares of the classes."""

    text: str
    article: str
    shares: tuple[float, ...]

    @property
    def words(self) -> str:
        """The text without case and punctuation."""
        return " ".join(re.findall(r"\w+", self.text.casefold()))

    @property
    def label(self) -> int:
        """The most frequent class; neutral if two shares are equally large."""
        most = [i for i, share in enumerate(self.shares) if share == max(self.shares)]
        return most[0] if len(most) == 1 else _CLASSES.index("neutral")


def load(data_dir: Path | None) -> Task:
    """Reads the archive, in memory.

    Of the tweets, a quarter is the in-distribution test and a tenth is for calibration. Hard: test
    tweets for which less than 70 % of the raters agree.

    Features: see `calmoe_jax.data.local.text`. The order of lines in a file does not matter.
    """
    path = files.find(data_dir, FILES[0], how_to_get("sentiment4"))
    domains = _read(path)
    tweets = domains["tweets"]
    variants = sorted({tweet.words for tweet in tweets})
    order = [variants[i] for i in hash_order(variants, seed=0)]
    place = {words: i for i, words in enumerate(order)}
    home = _split("tweets", tweets, [place[tweet.words] for tweet in tweets])
    ends = [round(len(order) * share) for share in (0.25, 0.35)]
    tested = home.clusters < ends[0]
    kept = home.clusters >= ends[1]
    first: dict[str, _Rated] = {}
    for rated in (rated for name in ("tweets", *SHIFTS) for rated in domains[name]):
        first.setdefault(rated.words, rated)
    shifts = []
    for name in SHIFTS:
        new = [rated for rated in domains[name] if first[rated.words] is rated]
        articles = {article: i for i, article in enumerate(dict.fromkeys(r.article for r in new))}
        shifts.append(_split(name, new, [articles[rated.article] for rated in new]))
    train, calibration, test, *shifted = with_features(
        home.take(kept, "train", "train", "65 % of the tweets"),
        (
            home.take(~tested & ~kept, "calibration", "calibration", "10 % of the tweets"),
            home.take(tested, "test", "id", "a quarter of the tweets"),
            *shifts,
        ),
        where=str(path),
    )
    agreement = np.array([max(tweet.shares) for tweet in tweets])[tested]
    hard = test.take(
        agreement < _DISPUTED,
        "ambiguous",
        "hard",
        f"test tweets of which less than {_DISPUTED:.0%} of the raters say the same",
    )
    return Task(
        name="sentiment",
        classes=_CLASSES,
        train=train,
        calibration=calibration,
        evaluation=(test, *shifted, hard),
        source=SOURCE,
    )


def _split(name: str, rows: list[_Rated], clusters: list[int]) -> Split:
    return Split(
        name=name,
        kind="shift",
        inputs=np.array([rated.text for rated in rows], object),
        labels=np.array([rated.label for rated in rows], np.int32),
        clusters=np.array(clusters, np.int32),
        soft_labels=np.array([rated.shares for rated in rows], np.float32),
        description=_DESCRIPTIONS.get(name, ""),
    )


def _read(path: Path) -> dict[str, list[_Rated]]:
    """The rated texts of every domain, in the order of their numbers."""
    tables = _tables(path)
    domains: dict[str, list[_Rated]] = {}
    for name, stem in _DOMAINS.items():
        texts, ratings = (tables[member] for member in _members(stem))
        alone = set(texts) ^ set(ratings)
        if alone:
            raise CorruptDataError(
                f"{path}: every text of {stem} must have ratings and vice versa, but "
                f"{min(alone)} has not."
            )
        domains[name] = []
        for number in sorted(texts, key=lambda number: [int(part) for part in number.split("_")]):
            found = _RATINGS.fullmatch(ratings[number])
            if found is None:
                raise CorruptDataError(
                    f"{path}: the ratings of {stem} {number} must be a list of whole numbers from "
                    f"-4 to 4, got {ratings[number][:40]!r}."
                )
            scores = [int(score) for score in found[1].split(", ")]
            below, at = sum(score < 0 for score in scores), scores.count(0)
            counts = (below, at, len(scores) - below - at)
            shares = tuple(count / len(scores) for count in counts)
            # "12_3" is the third sentence of article 12; a bare number is a text of its own
            article = number.split("_")[0]
            domains[name].append(_Rated(html.unescape(texts[number]), article, shares))
    return domains


def _members(stem: str) -> tuple[str, str]:
    """Names of a domain's two files: number, mean, text; number, mean, deviation, ratings."""
    return f"{_FOLDER}/{stem}_GroundTruth.txt", f"{_FOLDER}/{stem}_anonDataRatings.txt"


def _tables(path: Path) -> dict[str, dict[str, str]]:
    """The last column by file of the archive and by number; nothing is written to disk."""
    tables = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(files.read_gzip(path)), mode="r:") as archive:
            for stem in _DOMAINS.values():
                for member, columns in zip(_members(stem), (3, 4), strict=True):
                    file = archive.extractfile(member)
                    if file is None:
                        raise CorruptDataError(f"{path}: {member} is not a file.")
                    text = file.read().decode("utf-8-sig", errors="replace")
                    tables[member] = _table(f"{path}: {member}", text, columns)
    except KeyError as error:
        raise CorruptDataError(f"{path} lacks the file {error.args[0]}.") from error
    except tarfile.TarError as error:
        raise CorruptDataError(f"{path} is not a complete tar archive: {error}.") from error
    return tables


def _table(where: str, text: str, columns: int) -> dict[str, str]:
    """The last column by the first."""
    table: dict[str, str] = {}
    for line, row in enumerate(text.split("\n"), start=1):
        if not row.strip():
            continue
        cells = row.rstrip("\r").split("\t")
        if len(cells) != columns or not _NUMBER.fullmatch(cells[0]):
            raise CorruptDataError(
                f"{where}, line {line}: a line must be a number and {columns - 1} further columns, "
                f"got {row[:40]!r}."
            )
        if cells[0] in table:
            raise CorruptDataError(f"{where}, line {line}: number {cells[0]} occurs twice.")
        table[cells[0]] = cells[-1]
    if not table:
        raise CorruptDataError(f"{where} must hold texts, got none.")
    return table
