"""Text tasks: no leaks, labels as people gave them, features learnt from training texts alone."""

import dataclasses
import gzip
import hashlib
import io
import re
import tarfile

import numpy as np
import pytest

from calmoe_jax import data
from calmoe_jax.data.local import newsgroups, sentiment, text
from calmoe_jax.data.task import Split

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


class Spied:
    """A task, and its splits when their inputs were still texts."""

    def __init__(self, module, folder):
        def spy(train, others, *, where):
            self.texts = {split.name: split for split in (train, *others)}
            return text.with_features(train, others, where=where)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "with_features", spy)
            name = module.__name__.rsplit(".", 1)[-1]
            self.task = data.load_task(name, folder)
        self.splits = {split.name: split for split in self.task.splits}

    def where(self, words):
        return [name for name, split in self.texts.items() if words in split.inputs]


def assert_equal_tasks(ours, others):
    assert [s.name for s in ours.splits] == [s.name for s in others.splits]
    for a, b in zip(ours.splits, others.splits, strict=True):
        assert a.inputs.tobytes() == b.inputs.tobytes()
        assert (a.labels == b.labels).all()
        assert (a.clusters == b.clusters).all()


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return Spied(newsgroups, write_newsgroups(tmp_path_factory.mktemp("news"), TRAIN, TEST))


# Features


def of_texts(name, texts):
    rows = np.arange(len(texts), dtype=np.int32)
    return Split(name, "train", np.array(texts, object), 0 * rows, rows, "")


def weights_by_loop(texts, vocabulary, frequencies, count):
    rows = []
    for words in (re.findall(r"\w\w+|[^\w\s]+", t.lower()) for t in texts):
        row = np.zeros(len(vocabulary))
        for i, word in enumerate(vocabulary):
            times = words.count(word)
            if times:
                row[i] = (1 + np.log(times)) * (1 + np.log((1 + count) / (1 + frequencies[i])))
        rows.append(row / max(np.linalg.norm(row), 1e-30))
    return np.array(rows)


def test_features_equal_a_loop_and_a_full_singular_value_decomposition():
    # no more words than singular vectors are sought, so that the randomised method is exact
    rng = np.random.RandomState(0)
    vocabulary = sorted([f"w{i:03d}" for i in range(130)] + [":)", "!!!"])
    texts = [" ".join(rng.choice(vocabulary, 12)) for _ in range(300)]
    texts += [f"a rare{i // 2}, W000" for i in range(5)]  # two texts do not make a word known
    others = ["W000 w001 w001 :)", "unknown", "", "w002?w003 !!!"]
    bags = [set(re.findall(r"\w\w+|[^\w\s]+", t.lower())) for t in texts]
    known = sorted([*vocabulary, ","])
    frequencies = [sum(word in bag for bag in bags) for word in known]
    weights = weights_by_loop(texts, known, frequencies, len(texts))
    basis = np.linalg.svd(weights, full_matrices=False)[2][:128]
    for vector in basis:
        vector *= np.sign(vector[np.abs(vector).argmax()])
    unit = np.sqrt(np.mean(np.sum((weights @ basis.T) ** 2, axis=1)))
    train, other = text.with_features(
        of_texts("train", texts), (of_texts("other", others),), where="nowhere"
    )
    np.testing.assert_allclose(train.inputs, weights @ basis.T / unit, atol=2e-6)
    expected = weights_by_loop(others, known, frequencies, len(texts)) @ basis.T / unit
    np.testing.assert_allclose(other.inputs, expected, atol=2e-6)
    assert not other.inputs[1:3].any()
    assert np.mean(np.sum(train.inputs.astype(float) ** 2, axis=1)) == pytest.approx(1, rel=1e-5)


def test_the_directions_are_nearly_the_best_ones():
    rng = np.random.RandomState(0)
    texts = [babble(rng, f"t{i % 5}") for i in range(400)]
    bags = [set(t.split()) for t in texts]
    frequencies = {w: sum(w in bag for bag in bags) for w in sorted(set.union(*bags))}
    known = [w for w, texts_with in frequencies.items() if texts_with >= 3]
    assert len(known) > 300  # many more than 128: the randomised method is not exact
    weights = weights_by_loop(texts, known, [frequencies[w] for w in known], len(texts))
    best = np.linalg.svd(weights, compute_uv=False)[:128]
    train, same = text.with_features(
        of_texts("train", texts), (of_texts("same", texts),), where="nowhere"
    )
    assert (train.inputs == same.inputs).all()
    strength = np.linalg.norm(train.inputs, axis=0)
    np.testing.assert_allclose(
        strength / np.linalg.norm(strength), best / np.linalg.norm(best), rtol=0.06
    )


def test_the_sign_of_a_direction_does_not_depend_on_the_solver(monkeypatch):
    import sklearn.decomposition

    class Flipped(sklearn.decomposition.TruncatedSVD):
        def fit(self, x):
            super().fit(x)
            self.components_ = self.components_ * np.where(np.arange(128) % 3, 1, -1)[:, None]
            return self

    rng = np.random.RandomState(0)
    texts = of_texts("train", [babble(rng, f"t{i % 5}") for i in range(200)])
    (ours,) = text.with_features(texts, (), where="nowhere")
    monkeypatch.setattr(sklearn.decomposition, "TruncatedSVD", Flipped)
    (flipped,) = text.with_features(texts, (), where="nowhere")
    assert (ours.inputs == flipped.inputs).all()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["one two three"] * 200, "200 texts and 3 words"),
        (["", " "] * 100, "200 texts and 0 words"),
        ([f"word{i}" for i in range(200)], "200 texts and 0 words"),
        (["one two"], "1 texts and 0 words"),
        ([" ".join(f"word{i}" for i in range(300))] * 128, "128 texts and 300 words"),
    ],
)
def test_too_few_words_name_the_file(texts, message):
    with pytest.raises(data.CorruptDataError, match=rf"^some/file: more than 128 .*{message}"):
        text.with_features(of_texts("train", texts), (), where="some/file")


# Newsgroups


def test_groups_go_to_their_splits(groups):
    found = {}
    for name, split in groups.texts.items():
        for words, label in zip(split.inputs, split.labels, strict=True):
            group = words.rsplit(" ", 1)[1]
            found.setdefault(name, set()).add(group)
            assert ("comp", "rec", "sci", "talk")[label] == group.split(".")[0]
            assert (group, words) in (TEST if name == "test" or name.endswith("later") else TRAIN)
    assert found["siblings"] == {
        "comp.sys.mac.hardware",
        "rec.sport.hockey",
        "talk.politics.misc",
    }
    assert found["siblings_later"] == found["siblings"]
    assert found["cousins_later"] == found["cousins"]
    assert found["calibration"] <= found["train"] == found["test"]
    left_out = {"alt.atheism", "misc.forsale", "soc.religion.christian"}
    groups_used = [found["train"], found["siblings"], found["cousins"], left_out]
    assert sorted(g for used in groups_used for g in used) == sorted(GROUPS)
    # a sibling shares two words of its name with a group trained on, a cousin does not
    seen = {tuple(g.split(".")[:2]) for g in found["train"]}
    assert {tuple(g.split(".")[:2]) for g in found["siblings"]} <= seen
    assert not {tuple(g.split(".")[:2]) for g in found["cousins"]} & seen


def test_newsgroups_sizes_and_names(groups):
    sizes = {name: len(split) for name, split in groups.splits.items()}
    hard = sizes.pop("ambiguous")
    assert sizes == {
        "train": 203,
        "calibration": 22,
        "test": 72,
        "siblings": 75,
        "siblings_later": 24,
        "cousins": 125,
        "cousins_later": 40,
    }
    assert 0 < hard < 72
    assert {r.tobytes() for r in groups.splits["ambiguous"].inputs} <= {
        r.tobytes() for r in groups.splits["test"].inputs
    }
    for split in groups.splits.values():
        assert split.inputs.dtype == np.float32
        assert split.inputs.shape[1:] == (128,)
        assert split.num_clusters == len(split)


@pytest.mark.parametrize("task", ["newsgroups", "sentiment"])
def test_the_registry_names_the_shifts_that_come(task, groups, rated):
    loaded = {"newsgroups": groups, "sentiment": rated}[task].task
    assert data.TASKS[task].shifts == tuple(s.name for s in loaded.splits if s.kind == "shift")
    assert [s.kind for s in loaded.splits[:3]] == ["train", "calibration", "id"]
    assert [s.name for s in loaded.splits if s.kind == "hard"] == ["ambiguous"]


def test_the_order_of_posts_does_not_matter(groups, tmp_path):
    rng = np.random.RandomState(0)
    train, test = ([rows[i] for i in rng.permutation(len(rows))] for rows in (TRAIN, TEST))
    folder = write_newsgroups(tmp_path, train, test)
    again = data.load_task("newsgroups", folder)
    assert_equal_tasks(groups.task, again)
    assert_equal_tasks(again, data.load_task("newsgroups", folder))


def test_copies_count_once_and_cross_posts_not_at_all(tmp_path):
    rng = np.random.RandomState(2)
    twice, both, sibling, crossed, crossed_out, crossed_later = (
        babble(rng, topic) for topic in ("com", "com", "rec", "sci", "sci", "tal")
    )
    train = [
        *TRAIN,
        ("comp.graphics", twice),
        ("comp.graphics", twice.replace(" ", "  ") + " "),  # blanks aside, the same
        ("comp.graphics", both),
        ("rec.sport.hockey", sibling),
        ("sci.med", crossed),
        ("sci.space", crossed),  # of the same class, but seen and unseen
        ("sci.med", crossed_out),
        ("misc.forsale", crossed_out),
        ("talk.politics.guns", crossed_later),
    ]
    test = [
        *TEST,
        ("comp.graphics", both),
        ("rec.sport.hockey", sibling),
        ("talk.religion.misc", crossed_later),
    ]
    for rows in (train, test):
        order = rng.permutation(len(rows))
        rows[:] = [rows[i] for i in order]
    found = Spied(newsgroups, write_newsgroups(tmp_path, train, test))
    everything = [" ".join(t.split()) for split in found.texts.values() for t in split.inputs]
    assert len(everything) == len(set(everything))
    for words in (twice, both):
        assert found.where(words) in (["train"], ["calibration"])
    assert found.where(sibling) == ["siblings"]
    for words in (crossed, crossed_out, crossed_later):
        assert not found.where(words)


def test_likeness_of_posts_does_not_depend_on_their_length(groups):
    test = groups.task.evaluation[0]
    longer = dataclasses.replace(test, inputs=np.concatenate([test.inputs * 2, 0 * test.inputs]))
    keys, again = newsgroups._direction(test), newsgroups._direction(longer)
    assert (again[: len(test)] == keys).all()
    assert not again[len(test) :].any()
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1000, rtol=0.01)


def test_features_are_learnt_from_the_training_split_alone(groups, tmp_path):
    seen = {t.rsplit(" ", 1)[1] for t in groups.texts["train"].inputs}
    train = [(group, t if group in seen else f"{t} more") for group, t in TRAIN]
    test = [(group, f"{t} more") for group, t in TEST]
    found = data.load_task("newsgroups", write_newsgroups(tmp_path, train, test))
    for ours, theirs in zip(found.splits[:2], groups.task.splits[:2], strict=True):
        assert (ours.inputs == theirs.inputs).all()
    # held-out posts are not learnt from either
    held_out = [groups.texts[name] for name in ("calibration", "test")]
    alone = text.with_features(groups.texts["train"], (held_out[1],), where="nowhere")
    both = text.with_features(groups.texts["train"], tuple(held_out), where="nowhere")
    assert (alone[0].inputs == groups.task.train.inputs).all()
    assert (alone[1].inputs == both[2].inputs).all()


def test_missing_newsgroups_say_how_to_get_them(tmp_path):
    with pytest.raises(data.MissingDataError, match=r"train\.tsv\.gz is needed.*fetch_20news"):
        data.load_task("newsgroups")
    write_newsgroups(tmp_path, TRAIN, TEST)
    (tmp_path / "newsgroups" / "test.tsv.gz").unlink()
    with pytest.raises(data.MissingDataError, match=r"no file .*test\.tsv\.gz.*group<tab>text"):
        data.load_task("newsgroups", tmp_path)
    assert data.TASKS["newsgroups"].missing(tmp_path) == ("newsgroups/test.tsv.gz",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "not a whole gzip"),
        (gzip.compress(b"sci.med\twords" * 50)[:-9], "not a whole gzip"),
        (gzip.compress(b"sci.med\twords\nsci.med words\n"), "line 2: .*got 0 tabs"),
        (gzip.compress(b"sci.med\twords\twords\n"), "line 1: .*got 2 tabs"),
        (gzip.compress(b"\n\nsci.magic\twords\n"), "line 3: .*one of the 20, got 'sci.magic'"),
        (gzip.compress("sci.med\tcafé".encode("latin-1")), "must be UTF-8"),
        (gzip.compress(b""), "must hold posts of the same nine groups, later posts, got none"),
        (gzip.compress(b"alt.atheism\twords"), "must hold posts of the same nine groups"),
        (gzip.compress(b"sci.med\twords"), "must hold posts of three groups"),
    ],
    ids=range(9),
)
def test_corrupt_newsgroups_name_the_file(tmp_path, content, message):
    write_newsgroups(tmp_path, TRAIN, TEST)
    path = tmp_path / "newsgroups" / "test.tsv.gz"
    path.write_bytes(content)
    with pytest.raises(data.CorruptDataError, match=message) as error:
        data.load_task("newsgroups", tmp_path)
    assert str(path) in str(error.value)


def test_a_branch_without_training_posts(tmp_path):
    train = [(g, t) for g, t in TRAIN if g not in ("sci.med", "sci.crypt")]
    with pytest.raises(data.CorruptDataError, match="no example of sci"):
        data.load_task("newsgroups", write_newsgroups(tmp_path, train, TEST))


# Sentiment


def ratings_of(rng):
    """Twenty raters, mostly of one mind."""
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
    found = Spied(sentiment, write_sentiment(tmp_path, tar(members(rows))))
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
    found = Spied(sentiment, write_sentiment(tmp_path, tar(members(rows))))
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
    again = data.load_task("sentiment", write_sentiment(tmp_path, tar(content)))
    assert_equal_tasks(rated.task, again)


def test_entities_are_read_and_broken_bytes_are_no_error(tmp_path):
    rows = rated_rows()
    rows["tweets"].append(("900", "salt &amp; pepper &lt;3", [1]))
    content = members(rows)
    name = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    content[name] += b"\r\n900\t1.0\tcaf\xe9 noir"
    content[name.replace("GroundTruth", "anonDataRatings")] += b"\r\n900\t1.0\t0.0\t[1, 1]"
    found = Spied(sentiment, write_sentiment(tmp_path, tar(content)))
    assert len(found.where("salt & pepper <3")) == 1
    assert found.where("caf\ufffd noir") == ["films"]


def test_the_archive_is_not_unpacked(tmp_path):
    content = {"../outside.txt": b"x", "/tmp/calmoe_outside.txt": b"x", **members(rated_rows())}
    folder = write_sentiment(tmp_path / "data", tar(content))
    before = sorted(tmp_path.rglob("*"))
    data.load_task("sentiment", folder)
    assert sorted(tmp_path.rglob("*")) == before


def test_missing_sentiment_says_how_to_get_it(tmp_path):
    with pytest.raises(data.MissingDataError, match=r"2014\.tar\.gz is needed.*vaderSentiment"):
        data.load_task("sentiment")
    with pytest.raises(data.MissingDataError, match=r"no file .*2014\.tar\.gz.*vaderSentiment"):
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
        (b"no gzip", "not a whole gzip"),
        (tar(members(rated_rows()))[:-100], "not a whole gzip"),
        (gzip.compress(b"no tar" * 200), "not a whole tar"),
        (gzip.compress(b""), "not a whole tar"),
        (gzip.compress(gzip.decompress(tar(members(rated_rows())))[:30000]), "not a whole tar"),
        (tar(without(FILM_TEXTS)), f"{FILM_TEXTS}"),
        (tar(without(FILM_TEXTS), special(FILM_TEXTS, tarfile.DIRTYPE)), "is not a file"),
        (tar(without(FILM_TEXTS), special(FILM_TEXTS, tarfile.SYMTYPE)), "lacks the file"),
        (tar({**without(FILM_TEXTS), f"hutto_ICWSM_2014/{FILM_TEXTS}": b""}), "got none"),
        (changed("tweets", "GroundTruth", b"\t-9.5\t", b"\t"), "line 1: .*2 further columns"),
        (changed("tweets", "GroundTruth", b"\t-9.5\t", b"\t1\t2\t"), "line 1: .*2 further"),
        (changed("tweets", "anonDataRatings", b"\t1.0\t", b"\t"), "line 1: .*3 further columns"),
        (changed("tweets", "GroundTruth", b"\n2\t", b"\ntwo\t"), "line 2: .*must be a number"),
        (changed("tweets", "GroundTruth", b"\n2\t", b"\n1\t"), "line 2: number 1 is there twice"),
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


# Real files


def digest(loaded):
    """Of what must be the same everywhere; the last split may depend on the features."""
    total = hashlib.sha256()
    for split in loaded.splits[:-1]:
        total.update(np.concatenate([split.labels, split.clusters]).astype("<i4").tobytes())
    return total.hexdigest()[:16]


@pytest.mark.slow
def test_the_real_newsgroups(shared_data):
    found = Spied(newsgroups, shared_data)
    assert {name: len(s) for name, s in found.texts.items()} == {
        "train": 4723,
        "calibration": 524,
        "test": 3491,
        "siblings": 1642,
        "siblings_later": 1094,
        "cousins": 2719,
        "cousins_later": 1827,
    }
    texts = [t for split in found.texts.values() for t in split.inputs]
    assert len(texts) == len(set(texts))
    assert digest(found.task) == "d0ae2ca00fec2f1a"
    assert 200 < len(found.splits["ambiguous"]) < len(found.splits["test"]) / 2
    centroid_accuracy_is_plausible(found, at_least={"test": 0.8, "siblings": 0.6, "cousins": 0.4})


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
