"""Archives that were downloaded by hand, and those that are wrong: nothing is left of them."""

import io

import archives
import pytest
from PIL import Image
from preparing import left, prepare

from calmoe_jax import data
from calmoe_jax.data import CorruptDataError, MissingDataError
from calmoe_jax.data._encoded import decode, read_encoded
from calmoe_jax.data.sets import SETS, catalogue

pytestmark = pytest.mark.every_case


@pytest.mark.parametrize("form", ["zip", "folder"])
def test_pacs_by_hand(tfds, tmp_path, monkeypatch, form):
    monkeypatch.setitem(SETS, "pacs", SETS["pacs"]._replace(room=1))
    classes = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    content = archives.domains(catalogue.PACS_DOMAINS, classes, 4)
    content |= {"__MACOSX/kfold/photo/dog/._pic.jpg": b"no image", "kfold/.DS_Store": b""}
    content["kfold/photo/dog/pic_001.jpg"] = archives.picture(1, (40, 40), "PNG")
    manual = tmp_path / "by hand"
    manual.mkdir()
    if form == "zip":
        (manual / "PACS.zip").write_bytes(archives.zipped(content))
    else:
        for name, raw in content.items():
            (manual / name).parent.mkdir(parents=True, exist_ok=True)
            (manual / name).write_bytes(raw)
    before = left(manual)
    assert prepare("pacs", tmp_path / "data", manual_dir=manual)
    assert left(manual) == before
    assert {name.split("/")[0] for name in left(tmp_path / "data")} == {"pacs"}
    for domain in catalogue.PACS_DOMAINS:
        found = read_encoded(tmp_path / "data", "pacs", domain)
        assert found.labels.tolist() == [label for label in range(7) for _ in range(4)]
        assert found.keys[1] == f"{domain}/dog/pic_001.jpg"
        raw = content[f"kfold/{domain}/elephant/pic_000.jpg"]
        small = Image.open(io.BytesIO(raw)).convert("RGB").resize((64, 64), Image.LANCZOS)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=95)
        assert list(found)[4] == buffer.getvalue()
        assert decode(found).shape == (28, 64, 64, 3)
    task = data.load_task("pacs_photo", tmp_path / "data")
    assert [len(split) for split in task.splits[:4]] == [60, 6, 18, 28]
    photos = decode(read_encoded(tmp_path / "data", "pacs", "photo"))
    assert {i.tobytes() for i in task.evaluation[1].inputs} == {i.tobytes() for i in photos}


def without(content, part):
    return {name: raw for name, raw in content.items() if part not in name}


PACS = archives.domains(catalogue.PACS_DOMAINS, ("dog", "elephant", "giraffe", "guitar", "horse",
                        "house", "person"), 1)  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (without(PACS, "/sketch/"), "PACS.zip lacks the domain sketch"),
        (
            without(PACS, "/photo/guitar/"),
            "domain photo must have images of every class, .* guitar",
        ),
        (PACS | {"kfold/photo/tiger/a.jpg": b""}, "the class must be one of dog, .* got 'tiger'"),
        (PACS | {"kfold/photo/dog/a.jpg": b"x"}, "kfold/photo/dog/a.jpg is not an image"),
        (PACS | {"kfold/photo/dog/pic_000.jpg": archives.picture(0)[:300]}, "is not an image that"),
        ({}, "lacks the domain art_painting"),
    ],
)
def test_archives_of_domains_that_are_wrong(tfds, tmp_path, monkeypatch, content, message):
    monkeypatch.setitem(SETS, "pacs", SETS["pacs"]._replace(room=1))
    folder = tmp_path / "data"
    (folder / "manual").mkdir(parents=True)
    (folder / "manual" / "PACS.zip").write_bytes(archives.zipped(content))
    with pytest.raises(CorruptDataError, match=message):
        prepare("pacs", folder)
    assert left(folder) == ["manual", "manual/PACS.zip"]


def test_a_truncated_archive_by_hand(tfds, tmp_path, monkeypatch):
    monkeypatch.setitem(SETS, "pacs", SETS["pacs"]._replace(room=1))
    raw = archives.zipped(PACS)
    broken = bytearray(raw)
    broken[len(raw) // 2] ^= 1  # in the middle of an image
    for content, message in ((raw[:-40], "is not a complete archive"), (bytes(broken), "archive")):
        path = tmp_path / "manual" / "PACS.zip"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(CorruptDataError, match=message) as error:
            prepare("pacs", tmp_path)
        assert str(path) in str(error.value)
        assert left(tmp_path) == ["manual", "manual/PACS.zip"]


def test_what_must_be_downloaded_by_hand(tfds, tmp_path):
    with pytest.raises(MissingDataError, match=r"put OfficeHomeDataset_10072016.zip or .*manual"):
        prepare("office_home", tmp_path / "new")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "archive", "message"),
    [
        ("cifar10", archives.cifar()[:-2000], "cifar-10-binary.tar.gz is not a complete archive"),
        ("cifar10", archives.cifar(data_batch_3__bin=None), "lacks the file data_batch_3.bin"),
        ("cifar10", archives.cifar(test_batch__bin=b"x" * 3072), "records of 3073 bytes, got 3072"),
        ("cifar10", archives.cifar(test_batch__bin=b""), "records of 3073 bytes, got 0"),
        ("cifar10", archives.cifar(batches__meta__txt=b"a\nb\n"), "must name 10 classes, got 2"),
        ("cifar10_h", archives.votes(**{"cifar10h-raw.csv": None}), "lacks the file cifar10h-raw"),
        ("cifar10_h", archives.votes(11), "every image must have votes, got none of 11"),
        ("cifar10_h", archives.votes(13), "one of 12 images and 10 classes, got image 12"),
        ("cifar10_h", archives.votes(**{"cifar10h-raw.csv": b"a,b\n1,2\n"}), "line 2: KeyError"),
        ("cifar10_h", archives.votes()[:-30], "cifar10h-raw.zip is not a complete archive"),
        ("cifar10_corrupted", archives.tar({}, compressed=False), "lacks the file /labels.npy"),
        ("cifar10_corrupted", archives.corrupted(("fog",))[:4000], "is not a complete archive"),
        ("civil_comments_identities", archives.zipped({}), "lacks the file civil_comments.csv"),
        ("sentiment4", archives.tar({"x": b""}), "lacks the file /tweets_anonDataRatings.txt"),
    ],
)
def test_archives_that_are_not_what_they_should_be(
    tfds, server, tmp_path, monkeypatch, name, archive, message
):
    """With the right checksum; the next try downloads anew."""
    monkeypatch.setitem(SETS, name, SETS[name]._replace(
        records=("cifar10_corrupted/fog_1",) if name == "cifar10_corrupted" else SETS[name].records
    ))  # fmt: skip
    server.files["cifar-10-binary.tar.gz"] = archives.cifar()
    server.files[_recipes_last(name)] = archive
    with pytest.raises(CorruptDataError, match=message):
        prepare(name, tmp_path / "new")
    assert left(tmp_path) == []


def _recipes_last(name):
    return {
        "cifar10": "cifar-10-binary.tar.gz",
        "cifar10_h": "cifar10h-raw.zip",
        "cifar10_corrupted": "CIFAR-10-C.tar",
        "civil_comments_identities": "civil_comments_v1.2.zip",
        "sentiment4": "hutto_ICWSM_2014.tar.gz",
    }[name]
