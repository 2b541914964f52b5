"""`civil_comments`: from WILDS's table to a task, and what is wrong in a table."""

import dataclasses
import importlib
import sys

import archives
import numpy as np
import pytest

from calmoe_jax import data
from calmoe_jax.data import CorruptDataError, MissingDataError
from calmoe_jax.data.errors import PreparationError
from calmoe_jax.data.local import civil_comments
from calmoe_jax.data.sets import SETS, prepare
from calmoe_jax.data.tfds import records
from calmoe_jax.data.tfds.records import read_records

ROWS = [
    row | {"article_id": 70_000 + number // 3} for number, row in enumerate(archives.comments())
]


def write(folder, rows, form="csv", **options):
    pytest.importorskip("tensorflow_datasets")
    manual = folder / "manual"
    manual.mkdir(parents=True)
    raw = archives.comments_csv(rows, **options) if isinstance(rows, list) else rows
    name = "all_data_with_identities.csv"
    if form == "csv":
        (manual / name).write_bytes(raw)
    elif form == "folder":
        (manual / "civilcomments_v1.0").mkdir()
        (manual / "civilcomments_v1.0" / name).write_bytes(raw)
    else:
        content = archives.tar({"RELEASE_v1.0.txt": b"", f"./{name}": raw})
        (manual / "civilcomments_v1.0.tar.gz").write_bytes(content)
    prepare_small(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("comments"), ROWS)


def of(split):
    return [row for row in ROWS if row["split"] == split]


def test_texts_labels_and_identities_are_those_of_the_table(folder):
    found = civil_comments.load_texts(folder)
    splits = (("train", found.train), ("val", found.calibration), ("test", found.test))
    for name, split in splits:
        assert split.inputs.tolist() == [row["comment_text"] for row in of(name)]
        assert split.labels.tolist() == [int(row["toxicity"] >= 0.5) for row in of(name)]
        assert split.clusters.tolist() == [row["article_id"] for row in of(name)]
        assert split.num_clusters <= len(split) / 3 + 2
    expected = [[row[i] >= 0.5 for i in civil_comments.SHIFTS] for row in of("test")]
    np.testing.assert_array_equal(found.identities, expected)
    np.testing.assert_array_equal(found.any_identity, np.any(expected, axis=1))
    assert "tensorflow" not in sys.modules


def test_the_task(folder):
    task = data.load_task("civil_comments", folder)
    info = data.TASKS["civil_comments"]
    assert task.classes == ("civil", "toxic")
    assert tuple(s.name for s in task.evaluation if s.kind == "shift") == info.shifts
    assert [s.name for s in task.evaluation if s.kind == "hard"] == [info.hard]
    texts = civil_comments.load_texts(folder)
    test, hard = task.evaluation[0], task.evaluation[-1]
    assert test.inputs.shape == (60, 128)
    np.testing.assert_array_equal(hard.inputs, test.inputs[texts.any_identity])
    for i, split in enumerate(task.evaluation[1:-1]):
        np.testing.assert_array_equal(split.labels, test.labels[texts.identities[:, i]])
        np.testing.assert_array_equal(split.clusters, test.clusters[texts.identities[:, i]])
    # words tell the classes apart, so features must
    centres = [task.train.inputs[task.train.labels == c].mean(axis=0) for c in (0, 1)]
    guessed = test.inputs @ (centres[1] - centres[0]) > 0.5 * (
        centres[1] @ centres[1] - centres[0] @ centres[0]
    )
    assert np.mean(guessed == test.labels) > 0.9


def test_other_inputs_take_the_place_of_texts(folder):
    """As token ids do."""
    found = civil_comments.load_texts(folder)
    ids = [
        dataclasses.replace(split, inputs=np.array([[len(text)] for text in split.inputs]))
        for split in (found.train, found.calibration, found.test)
    ]
    task = data.check_task(found.task(*ids))
    assert task.input_spec.dtype == np.int32
    assert task.evaluation[-1].inputs[:, 0].tolist() == [
        len(row["comment_text"]) for row in of("test") if row["identity_any"] >= 0.5
    ]


def test_an_identity_that_nobody_mentions_is_no_split(tmp_path):
    rows = [row | {"LGBTQ": 0.0} for row in ROWS]
    task = data.load_task("civil_comments", write(tmp_path, rows))
    names = [split.name for split in task.evaluation]
    assert names == ["test", *(n for n in civil_comments.SHIFTS if n != "LGBTQ"), "identities"]


def test_the_largest_numbers_of_comments(folder, monkeypatch):
    whole = civil_comments.load_texts(folder)
    monkeypatch.setattr(civil_comments, "_MOST", {"train": 50, "validation": 7})
    some = civil_comments.load_texts(folder)
    assert [len(s) for s in (some.train, some.calibration, some.test)] == [50, 7, 60]
    assert set(some.train.inputs) < set(whole.train.inputs)


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_every_form_of_the_table_gives_the_same(folder, tmp_path, form):
    other = write(tmp_path, ROWS, form, newline="\r\n" if form == "tar" else "\n")
    one, two = (civil_comments.load_texts(each) for each in (folder, other))
    assert one.train.inputs.tolist() == two.train.inputs.tolist()
    np.testing.assert_array_equal(one.identities, two.identities)


def test_articles_written_as_floats_are_the_same(folder, tmp_path):
    rows = [row | {"article_id": float(row["article_id"])} for row in ROWS]
    one, two = (civil_comments.load_texts(each) for each in (folder, write(tmp_path, rows)))
    np.testing.assert_array_equal(one.test.clusters, two.test.clusters)


def test_what_was_prepared_without_articles_must_be_prepared_again(folder, monkeypatch):
    def earlier(version, split):
        rows = read_records(version, split)
        del rows["article_id"]
        return rows

    monkeypatch.setattr(records, "read_records", earlier)
    message = r"1\.1\.0 lacks article_id, .* Remove that folder\. .*prepare wilds_civil_comments`"
    with pytest.raises(MissingDataError, match=message):
        data.load_task("civil_comments", folder)


def test_the_archive_of_wilds_comes_from_its_server(server, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    content = archives.tar({"RELEASE_v1.0.txt": b"", "all_data_with_identities.csv": RAW})
    name = "civilcomments_v1.0.tar.gz"
    server.files[name] = content
    server.cut[name] = len(content) // 10
    with pytest.raises(PreparationError, match="the same command goes on"):
        prepare("wilds_civil_comments", tmp_path, quiet=True)
    del server.cut[name]
    server.asked.clear()
    assert prepare("wilds_civil_comments", tmp_path, quiet=True)
    assert server.asked == [(name, f"bytes={4 * (len(content) // 10)}-")]
    assert [p.name for p in tmp_path.iterdir()] == ["wilds_civil_comments"]
    assert [len(s) for s in data.load_task("civil_comments", tmp_path).splits[:3]] == [260, 40, 60]


def changed(number, **cells):
    rows = [dict(row) for row in ROWS]
    rows[number] |= cells
    return rows


def lacking(column):
    return [{name: cell for name, cell in row.items() if name != column} for row in ROWS]


RAW = archives.comments_csv(ROWS)


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(3, comment_text=""), r"line \d+: comment_text must not be empty"),
        (changed(3, split="dev"), "split must be one of train, val, test, got 'dev'"),
        (changed(3, toxicity="much"), r"toxicity must be a share in \[0, 1\], got 'much'"),
        (changed(3, toxicity="nan"), r"toxicity must be a share in \[0, 1\], got 'nan'"),
        (changed(3, LGBTQ=""), r"LGBTQ must be a share in \[0, 1\], got ''"),
        (changed(3, male=-0.1), r"male must be a share"),
        (changed(300, white=1.5), r"white must be a share in \[0, 1\], got '1.5'"),
        (changed(3, article_id=""), r"article_id must be a whole number, got ''"),
        (changed(3, article_id=-1), r"article_id must be a whole number, got '-1'"),
        (changed(300, article_id=0.5), r"article_id must be a whole number, got '0.5'"),
        (changed(3, article_id="inf"), r"article_id must be a whole number, got 'inf'"),
        (lacking("article_id"), "lacks the column article_id"),
        (lacking("muslim"), "lacks the column muslim"),
        (lacking("identity_any"), "lacks the column identity_any"),
        (lacking("comment_text"), "lacks the column comment_text"),
        ([row for row in ROWS if row["split"] != "val"], "must have comments of split val"),
        (b"", "lacks the column"),
        (RAW[: len(RAW) - 30], "a row must have a value for each column"),
        (RAW.replace(b"toxic1", b"toxic\xff", 1), "cannot be read"),
    ],
)
def test_tables_that_are_wrong_leave_nothing(tmp_path, rows, message):
    with pytest.raises(CorruptDataError, match=message) as error:
        write(tmp_path, rows)
    assert "all_data_with_identities.csv" in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manual"]


def test_archives_that_are_wrong(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    whole = archives.tar({"all_data_with_identities.csv": RAW})
    (tmp_path / "manual").mkdir()
    path = tmp_path / "manual" / "civilcomments_v1.0.tar.gz"
    for content, message in (
        (whole[: len(whole) // 2], "is not a complete archive"),
        (b"", "is not a complete archive"),
        (archives.tar({"RELEASE.txt": b""}), "lacks the file all_data_with_identities.csv"),
    ):
        path.write_bytes(content)
        with pytest.raises(CorruptDataError, match=message) as error:
            prepare_small(tmp_path)
        assert str(path) in str(error.value)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["manual"]


def prepare_small(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SETS, "wilds_civil_comments", SETS["wilds_civil_comments"]._replace(room=1))
        assert prepare("wilds_civil_comments", folder, quiet=True)


def test_the_original_release(server, tmp_path):
    """In the splits and with the features of tensorflow-datasets."""
    pytest.importorskip("tensorflow_datasets")
    upstream = importlib.import_module("tensorflow_datasets.text.civil_comments")
    names = {"train": "train", "val": "test_public", "test": "test_private"}
    rows = []
    for number, row in enumerate(ROWS[:20] + ROWS[-90:]):
        shares = dict.fromkeys(upstream._labels("identity"), "" if number % 5 == 0 else 0.25)
        rows.append(
            {"id": number, "parent_text": "", "publication_id": "p", "created_date": "d"}
            | {"comment_text": row["comment_text"], "parent_id": "", "article_id": 3}
            | {"split": names[row["split"]]}
            | shares
        )
    server.files["civil_comments_v1.2.zip"] = archives.zipped(
        {"civil_comments.csv": archives.comments_csv(rows)}
    )
    assert prepare("civil_comments_identities", tmp_path, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["civil_comments"]
    assert SETS["civil_comments_identities"].is_here(tmp_path)
    (version,) = (tmp_path / "civil_comments").glob("CivilCommentsIdentities/1.*")
    for ours, theirs in (
        ("train", "train"),
        ("validation", "test_public"),
        ("test", "test_private"),
    ):
        found = read_records(version, ours)
        expected = [r["comment_text"] for i, r in enumerate(rows) if r["split"] == theirs and i % 5]
        assert sorted(found["text"]) == sorted(expected)
        assert set(map(float, found["female"])) == {0.25}
