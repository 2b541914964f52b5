"""Records: what is read is what was written, bit for bit, or an error that says what is wrong."""

import json

import jax
import numpy as np
import pytest

from calmoe_jax.data import CorruptDataError, DataError, MissingDataError
from calmoe_jax.data.records import open_records, write_records

pytest.importorskip("array_record", reason="needs array_record (the data extra)")

CLASSES = ("a", "b", "c")


def images(count=7):
    rng = np.random.RandomState(0)
    for i in range(count):
        yield {"inputs": rng.randint(0, 256, (4, 4, 3)).astype(np.uint8), "label": i % 3}


def texts(count=7):
    rng = np.random.RandomState(0)
    for i in range(count):
        ids = rng.randint(0, 99, 5).astype(np.int32)
        floats = (rng.randn(2), np.float16(rng.randn()))
        floats[0][0] = [np.nan, -0.0][i % 2]
        yield {"inputs": {"z": ids, "mask": ids > 50, "more": [floats]}, "label": np.int64(i % 3)}


def write(folder, examples, **kwargs):
    write_records(folder, examples, classes=CLASSES, quiet=True, **kwargs)
    return open_records(folder, verify=True)


@pytest.mark.parametrize("make", [images, texts])
@pytest.mark.parametrize("shards", [1, 3])
def test_examples_come_back_bit_for_bit_under_their_numbers(tmp_path, make, shards):
    source = write(tmp_path / "records", make(), shards=shards)
    assert (len(source), source.classes) == (7, CLASSES)
    for number, wanted in enumerate(make()):
        found = source[number]
        assert found["label"] == wanted["label"]
        assert jax.tree.structure(found["inputs"]) == jax.tree.structure(wanted["inputs"])
        pairs = zip(
            jax.tree.leaves(found["inputs"]), jax.tree.leaves(wanted["inputs"]), strict=True
        )
        for a, b in pairs:
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    with pytest.raises(IndexError, match=r"number must be in \[0, 7\), got 7"):
        source[7]


def shard(folder, number=1):
    return sorted(folder.glob("*.array_record"))[number]


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path / "records", images(), shards=2)
    shard(tmp_path / "records").unlink()
    with pytest.raises(MissingDataError, match=r"00001-of-00002.array_record is missing"):
        open_records(tmp_path / "records")


def test_a_truncated_shard_is_named(tmp_path):
    write(tmp_path / "records", images(), shards=2)
    path = shard(tmp_path / "records")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptDataError, match=r"00001-of-00002.* is not complete"):
        open_records(tmp_path / "records")


def test_another_checksum_is_found_on_request(tmp_path):
    write(tmp_path / "records", images(), shards=2)
    path = shard(tmp_path / "records")
    content = bytearray(path.read_bytes())
    content[40_000] ^= 1  # padding, which no reader looks at
    path.write_bytes(content)
    open_records(tmp_path / "records")[1]
    with pytest.raises(CorruptDataError, match=r"00001-of-00002.* has another checksum"):
        open_records(tmp_path / "records", verify=True)


def test_broken_records_are_no_examples(tmp_path):
    source = write(tmp_path / "records", images(), shards=2)
    for path in (shard(tmp_path / "records", i) for i in range(2)):
        content = bytearray(path.read_bytes())
        content[:20_000] = bytes(20_000)
        path.write_bytes(content)
    with pytest.raises(CorruptDataError, match="records cannot be read"):
        source[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"shards": [{}]}, "not a complete index"),
        ({"inputs": {"shape": [1], "dtype": "none"}}, "must be a form of inputs"),
        ({"examples": 8}, "must hold 8 examples, got 7"),
    ],
)
def test_another_index_is_refused(tmp_path, change, words):
    write(tmp_path / "records", images())
    path = tmp_path / "records" / "records.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CorruptDataError, match=words):
        open_records(tmp_path / "records")


def test_an_index_that_is_cut_or_missing_is_refused(tmp_path):
    write(tmp_path / "records", images())
    path = tmp_path / "records" / "records.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(CorruptDataError, match="not a complete index"):
        open_records(tmp_path / "records")
    with pytest.raises(MissingDataError, match="no folder of records"):
        open_records(tmp_path)


def failing():
    yield from images(3)
    raise OSError("the disk is gone")


def test_nothing_is_left_where_writing_fails(tmp_path):
    with pytest.raises(OSError, match="the disk is gone"):
        write_records(tmp_path / "records", failing(), classes=CLASSES, quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="folder must not exist yet"):
        write_records(tmp_path, images(), classes=CLASSES)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"inputs": np.zeros(2), "label": 3}, r"example 1: label must be .* \[0, 3\), got 3"),
        ({"inputs": np.zeros(2), "label": 1.0}, "example 1: label must be an integer"),
        ({"inputs": np.zeros(3), "label": 1}, "shapes and dtypes of example 0"),
        ({"inputs": {"a": "text"}, "label": 1}, r"inputs\['a'\] must be a NumPy array"),
        ({"inputs": {}, "label": 1}, "must hold an array"),
        ({"inputs": np.array(["text"]), "label": 1}, "bools, integers or floats"),
        ({"label": 1}, "must be a dict of inputs and label"),
    ],
)
def test_invalid_examples_are_named(tmp_path, example, words):
    first = {"inputs": np.zeros(2), "label": 0}
    with pytest.raises(DataError, match=words):
        write(tmp_path / "records", [first, example])
    assert list(tmp_path.iterdir()) == []


def test_fewer_examples_than_shards_are_refused(tmp_path):
    with pytest.raises(DataError, match="at least shards=3, got 2"):
        write(tmp_path / "records", images(2), shards=3)
