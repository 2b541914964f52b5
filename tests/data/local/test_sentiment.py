"""`sentiment`: labels from the ratings, no leaks, errors that name the file."""

import gzip
import re
import tarfile

import numpy as np
import pytest
from texts import (
    Spied,
    assert_as_registered,
    assert_equal_tasks,
    centroid_accuracy_is_plausible,
    digest,
    members,
    rated_rows,
    tar,
    write_sentiment,
)

from calmoe_jax import data
from calmoe_jax.data.local import sentiment


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rated")
    return Spied(sentiment, write_sentiment(folder, tar(members(rated_rows()))))


def label_by_count(scores):
    counts = [sum(s < 0 for s in scores), sum(s == 0 for s in scores), sum(s > 0 for s in scores)]
    winners = [i for i in range(3) if counts[i] == max(counts)]
    return winners[0] if len(winners) == 1 else 1


def test_labels_are_what_most_raters_say(rated):
    scores = {words: s for table in rated_rows().values() for _, words, s in table}
    for split in rated.texts.values():
        expected = [label_by_count(scores[words]) for words in split.inputs]
        assert split.labels.tolist() == expected
        signs = [np.sign(scores[words]) for words in split.inputs]
        shares = [[np.mean(row == sign) for sign in (-1, 0, 1)] for row in signs]
        np.testing.assert_allclose(split.soft_labels, shares, rtol=1e-6)
    assert {label for s in rated.texts.values() for label in s.labels.tolist()} == {0, 1, 2}


@pytest.mark.parametrize(
    ("scores", "name"),
    [
        ([-1, -4, 0], "negative"),
        ([0, 0, 4], "neutral"),
        ([1, 1, -4], "positive"),  # its mean is negative
        ([1, 1, 0, 0], "neutral"),
        ([-1, -1, 0, 0], "neutral"),
        ([-4, -4, 1, 1], "neutral"),
        ([-1, 0, 1], "neutral"),
        ([-3], "negative"),
    ],
)
def test_ties_are_neutral_and_the_rule_has_no_favourite(scores, name):
    def label(values):
        counts = (sum(v < 0 for v in values), values.count(0), sum(v > 0 for v in values))
        return sentiment._Rated("text", "1", tuple(c / len(values) for c in counts)).label

    names = ("negative", "neutral", "positive")
    assert names[label(scores)] == name
    assert label([-s for s in scores]) == 2 - label(scores)


def test_the_registry_names_the_shifts_that_come(rated):
    assert_as_registered(rated.task)


def test_sentiment_sizes(rated):
    sizes = {name: len(split) for name, split in rated.splits.items()}
    hard = sizes.pop("ambiguous")
    assert sizes == {
        "train": 182,
        "calibration": 28,
        "test": 70,
        "products": 40,
        "films": 40,
        "editorials": 40,
    }
    assert 0 < hard < 70


def test_the_hard_subset_is_what_raters_dispute(rated):
    scores = {words: s for table in rated_rows().values() for _, words, s in table}
    shares = []
    for words in rated.texts["test"].inputs:
        counts = [sum(np.sign(s) == sign for s in scores[words]) for sign in (-1, 0, 1)]
        shares.append(max(counts) / 20)
    disputed = np.array(shares) < 0.7
    assert 0.7 in np.round(shares, 9)  # seven tenths of one mind are not disputed
    hard, test = rated.splits["ambiguous"], rated.splits["test"]
    assert (hard.inputs == test.inputs[disputed]).all()
    assert (hard.labels == test.labels[disputed]).all()
    assert (hard.clusters == test.clusters[disputed]).all()


def test_sentences_of_an_article_are_a_cluster(rated):
    numbers = {words: n for table in rated_rows().values() for n, words, _ in table}
    for name, clusters in (("products", 10), ("films", 40), ("editorials", 10)):
        split = rated.texts[name]
        articles = [numbers[words].split("_")[0] for words in split.inputs]
        assert split.num_clusters == clusters
        assert len(set(zip(articles, split.clusters.tolist(), strict=True))) == clusters


def test_variants_of_a_tweet_stay_together(tmp_path):
    rows = rated_rows()
    originals = rows["tweets"][:40]
    for number, words, scores in originals:
        for i, variant in enumerate((words.upper() + "!", f"{words.capitalize()}!!! :-)"), start=1):
            rows["tweets"].append((f"{1000 * i + int(number)}", variant, scores[::-1]))
    found = Spied(sentiment, write_sentiment(tmp_path, tar(members(rows))), featured=False)
    places = []
    for _, words, _ in originals:
        variants = (words, words.upper() + "!", f"{words.capitalize()}!!! :-)")
        (where,) = {tuple(found.where(v)) for v in variants}
        (name,) = where
        split = found.texts[name]
        assert len({int(split.clusters[list(split.inputs).index(v)]) for v in variants}) == 1
        places.append(name)
    assert set(places) == {"train", "calibration", "test"}
    clusters = [set(found.texts[n].clusters.tolist()) for n in ("train", "calibration", "test")]
    assert not clusters[0] & clusters[1]
    assert not clusters[0] & clusters[2]
    assert not clusters[1] & clusters[2]


def test_texts_that_were_there_already_are_left_out(tmp_path):
    rows = rated_rows()
    tweet = rows["tweets"][0][1]
    review = rows["amazonReviewSnippets"][0][1]
    rows["amazonReviewSnippets"] += [
        ("90_1", tweet.upper(), [1]),
        ("91_1", f"«{review}».", [1]),
        ("92_1", "!", [1]),
        ("93_1", "?", [1]),
    ]
    rows["nytEditorialSnippets"] += [("90_1", review, [1]), ("91_1", "Brand-new words", [0, 0])]
    found = Spied(sentiment, write_sentiment(tmp_path, tar(members(rows))), featured=False)
    assert found.where(review) == ["products"]
    assert len(found.texts["products"]) == 41
    assert found.where("!") == ["products"]
    assert len(found.texts["editorials"]) == 41
    words = [
        " ".join(re.findall(r"\w+", t.lower())) for s in found.texts.values() for t in s.inputs
    ]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("how", ["again", "order", "newline", "bom", "archive"])
def test_how_the_same_tables_are_written_does_not_matter(rated, how, tmp_path):
    rows = rated_rows()
    content = members(rows)
    if how == "order":
        rng = np.random.RandomState(0)
        shuffled = [
            {stem: [table[i] for i in rng.permutation(len(table))] for stem, table in rows.items()}
            for _ in range(2)
        ]
        texts, ratings = (members(r) for r in shuffled)
        content = {name: (texts if "Truth" in name else ratings)[name] for name in content}
    elif how == "newline":
        content = members(rows, newline="\n")
        content = {name: raw + b"\n\n" for name, raw in content.items()}
    elif how == "bom":
        content = members(rows, bom=b"\xef\xbb\xbf")
    elif how == "archive":
        content = {"elsewhere/x.pdf": b"\0" * 2000, **dict(reversed(content.items()))}
    featured = how == "again"  # of the same texts, features are the same
    again = Spied(sentiment, write_sentiment(tmp_path, tar(content)), featured=featured)
    for name, split in again.texts.items():
        assert split.inputs.tolist() == rated.texts[name].inputs.tolist()
        assert (split.labels == rated.texts[name].labels).all()
        assert (split.clusters == rated.texts[name].clusters).all()
    if featured:
        assert_equal_tasks(rated.task, again.task)


def test_entities_are_read_and_broken_bytes_are_no_error(tmp_path):
    rows = rated_rows()
    rows["tweets"].append(("900", "salt &amp; pepper &lt;3", [1]))
    content = members(rows)
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    content[name] += b"\r\n900\t1.0\tcaf\xe9 noir"
    content[name.replace("GroundTruth", "anonDataRatings")] += b"\r\n900\t1.0\t0.0\t[1, 1]"
    found = Spied(sentiment, write_sentiment(tmp_path, tar(content)), featured=False)
    assert len(found.where("salt & pepper <3")) == 1
    assert found.where("caf\ufffd noir") == ["films"]


def test_the_archive_is_not_unpacked(tmp_path):
    content = {"../outside.txt": b"x", "/tmp/calmoe_outside.txt": b"x", **members(rated_rows())}
    folder = write_sentiment(tmp_path / "data", tar(content))
    before = sorted(tmp_path.rglob("*"))
    Spied(sentiment, folder, featured=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_sentiment_says_how_to_get_it(tmp_path):
    with pytest.raises(data.MissingDataError, match=r"2014\.tar\.gz .*data prepare sentiment`"):
        data.load_task("sentiment")
    with pytest.raises(data.MissingDataError, match=r"2014\.tar\.gz \(2\.3 MB, MIT; "):
        data.load_task("sentiment", tmp_path)


def changed(stem, kind, old, new):
    content = members(rated_rows())
    name = f"hutto_ICWSM_2014/{stem}_{kind}.txt"
    assert old in content[name]
    content[name] = content[name].replace(old, new, 1)
    return tar(content)


def without(name):
    content = members(rated_rows())
    del content[f"hutto_ICWSM_2014/{name}"]
    return content


def special(name, kind):
    info = tarfile.TarInfo(f"hutto_ICWSM_2014/{name}")
    info.type = kind
    info.linkname = "/etc/hostname"
    return info


FILM_TEXTS = "movieReviewSnippets_GroundTruth.txt"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"no gzip", "not a complete gzip"),
        (tar(members(rated_rows()))[:-100], "not a complete gzip"),
        (gzip.compress(b"no tar" * 200), "not a complete tar"),
        (gzip.compress(b""), "not a complete tar"),
        (gzip.compress(gzip.decompress(tar(members(rated_rows())))[:30000]), "not a complete tar"),
        (tar(without(FILM_TEXTS)), f"{FILM_TEXTS}"),
        (tar(without(FILM_TEXTS), special(FILM_TEXTS, tarfile.DIRTYPE)), "is not a file"),
        (tar(without(FILM_TEXTS), special(FILM_TEXTS, tarfile.SYMTYPE)), "lacks the file"),
        (tar({**without(FILM_TEXTS), f"hutto_ICWSM_2014/{FILM_TEXTS}": b""}), "got none"),
        (changed("tweets", "GroundTruth", b"\t-9.5\t", b"\t"), "line 1: .*2 further columns"),
        (changed("tweets", "GroundTruth", b"\t-9.5\t", b"\t1\t2\t"), "line 1: .*2 further"),
        (changed("tweets", "anonDataRatings", b"\t1.0\t", b"\t"), "line 1: .*3 further columns"),
        (changed("tweets", "GroundTruth", b"\n2\t", b"\ntwo\t"), "line 2: .*must be a number"),
        (changed("tweets", "GroundTruth", b"\n2\t", b"\n1\t"), "line 2: number 1 occurs twice"),
        (changed("tweets", "GroundTruth", b"\n7\t", b"\n9999\t"), "7 has not|9999 has not"),
        (changed("tweets", "anonDataRatings", b"1\t", b"999\t0\t0\t[1]\r\n1\t"), "999 has not"),
        (changed("tweets", "anonDataRatings", b"[", b"[5, "), r"tweets 1 .*got '\[5, "),
        (changed("tweets", "anonDataRatings", b"[", b"[1.5, "), "whole numbers from -4 to 4"),
        (changed("tweets", "anonDataRatings", b"[", b"[], ["), "whole numbers from -4 to 4"),
        (changed("tweets", "anonDataRatings", b"[", b"__import__('os') ["), "whole numbers"),
    ],
    ids=range(20),
)
def test_corrupt_sentiment_names_the_file(tmp_path, raw, message):
    folder = write_sentiment(tmp_path, raw)
    with pytest.raises(data.CorruptDataError, match=message) as error:
        data.load_task("sentiment", folder)
    assert str(folder / "sentiment4" / "hutto_ICWSM_2014.tar.gz") in str(error.value)


@pytest.mark.exhaustive
@pytest.mark.slow
def test_the_real_sentiment(shared_data):
    found = Spied(sentiment, shared_data)
    sizes = {name: len(s) for name, s in found.texts.items()}
    assert sum(sizes[n] for n in ("train", "calibration", "test")) == 4200
    # 3,708, 10,605 and 5,190 less copies
    assert [sizes[n] for n in data.TASKS["sentiment"].shifts] == [3687, 10602, 5114]
    clusters = [found.splits[n].num_clusters for n in data.TASKS["sentiment"].shifts]
    assert clusters == [300, 10602, 498]
    assert np.mean(found.splits["films"].labels == 1) < 0.02
    assert digest(found.task) == "f6d2d5364bb22783"
    assert 200 < len(found.splits["ambiguous"]) < len(found.splits["test"]) / 3
    centroid_accuracy_is_plausible(found, at_least={"test": 0.55, "products": 0.4})
