"""`newsgroups`: no leaks, features learnt from training texts alone, errors that name the file."""

import dataclasses
import gzip

import numpy as np
import pytest
from texts import (
    GROUPS,
    TEST,
    TRAIN,
    Spied,
    assert_as_registered,
    assert_equal_tasks,
    babble,
    centroid_accuracy_is_plausible,
    digest,
    write_newsgroups,
)

from calmoe_jax import data
from calmoe_jax.data.local import newsgroups, text


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return Spied(newsgroups, write_newsgroups(tmp_path_factory.mktemp("news"), TRAIN, TEST))


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


def test_the_registry_names_the_shifts_that_come(groups):
    assert_as_registered(groups.task)


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
    found = Spied(newsgroups, write_newsgroups(tmp_path, train, test), featured=False)
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
    with pytest.raises(
        data.MissingDataError, match=r"train\.tsv\.gz, .*calmoe data prepare newsgroups"
    ):
        data.load_task("newsgroups")
    write_newsgroups(tmp_path, TRAIN, TEST)
    (tmp_path / "newsgroups" / "test.tsv.gz").unlink()
    with pytest.raises(data.MissingDataError, match=r"not in .*: newsgroups/test\.tsv\.gz \(14 MB"):
        data.load_task("newsgroups", tmp_path)
    assert data.TASKS["newsgroups"].missing(tmp_path) == ("newsgroups/test.tsv.gz",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no gzip", "not a complete gzip"),
        (gzip.compress(b"sci.med\twords" * 50)[:-9], "not a complete gzip"),
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
        Spied(newsgroups, write_newsgroups(tmp_path, train, TEST), featured=False)


@pytest.mark.slow
@pytest.mark.exhaustive
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
