"""Data sets from a server to tasks; and what is left when that fails, which is nothing."""

import errno
import gzip
import importlib
import io
import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import archives
import numpy as np
import pictures
import pytest
import texts
from PIL import Image

from calmoe_jax import cli, data
from calmoe_jax.data import CorruptDataError, MissingDataError
from calmoe_jax.data._encoded import decode, read_encoded, read_images
from calmoe_jax.data.errors import PreparationError
from calmoe_jax.data.local import cifar
from calmoe_jax.data.sets import SETS, _recipes, catalogue
from calmoe_jax.data.sets import prepare as bring
from calmoe_jax.data.tfds import from_tfds

prepare_module = sys.modules["calmoe_jax.data.sets.prepare"]

pytestmark = pytest.mark.every_case


def prepare(name, folder, **named):
    return bring(name, folder, quiet=True, **named)


def left(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


def test_files_of_mnist_are_what_the_task_reads(tfds, server, tmp_path):
    server.files |= archives.idx_files()
    assert prepare("fashion_mnist", tmp_path / "new")
    assert left(tmp_path / "new") == ["fashion_mnist", *sorted(SETS["fashion_mnist"].files)]
    for name, content in archives.idx_files().items():
        assert (tmp_path / "new" / "fashion_mnist" / name).read_bytes() == content
    assert len(data.load_task("fashion_c", tmp_path / "new").train) == 360
    asked = len(server.asked)
    assert not prepare("fashion_mnist", tmp_path / "new")
    assert len(server.asked) == asked == 4


def test_the_real_addresses_have_sizes_and_checksums(tfds):
    """Those that tensorflow-datasets publishes; nothing is downloaded."""
    of_domains = [f"domainnet/{domain}" for domain in catalogue.DOMAINNET_DOMAINS]
    unpublished = {"cifar10h-raw.zip", "civilcomments_v1.0.tar.gz"}
    for name in (
        "mnist", "fashion_mnist", "sentiment4", "cifar10", "cifar10_h", "cifar10_corrupted",
        "wilds_civil_comments", "civil_comments_identities", *of_domains,
    ):  # fmt: skip
        for remote in _recipes.remotes(name):
            assert remote.url.startswith("http")
            if name not in of_domains and remote.name not in unpublished:
                assert len(remote.sha256) == 64
                assert remote.size > 1000
    for name in ("mnist", "fashion_mnist", "cifar10", "sentiment4"):
        size = sum(remote.size for remote in _recipes.remotes(name))
        assert float(SETS[name].size.split()[0]) == pytest.approx(size / 1e6, rel=0.02)


def test_votes_and_ratings_of_sentiment(server, tmp_path):
    inner = texts.tar(texts.members(texts.rated_rows()))
    server.files["hutto_ICWSM_2014.tar.gz"] = inner
    assert prepare("sentiment4", tmp_path)
    assert left(tmp_path) == ["sentiment4", "sentiment4/hutto_ICWSM_2014.tar.gz"]
    assert (tmp_path / "sentiment4" / "hutto_ICWSM_2014.tar.gz").read_bytes() == inner
    assert data.TASKS["sentiment"].absent(tmp_path) == ()


def test_newsgroups_by_scikit_learn(server, tmp_path, monkeypatch):
    server.files["news.tar.gz"] = archives.newsgroups(25, 8)
    remote = server.remote(_recipes.Remote("", "news.tar.gz"))
    module = importlib.import_module("sklearn.datasets._twenty_newsgroups")
    monkeypatch.setattr(
        module, "ARCHIVE", module.ARCHIVE._replace(url=remote.url, checksum=remote.sha256)
    )
    assert prepare("newsgroups", tmp_path)
    assert left(tmp_path) == ["newsgroups", *sorted(SETS["newsgroups"].files)]
    for part, count in (("train", 25), ("test", 8)):
        lines = gzip.decompress((tmp_path / f"newsgroups/{part}.tsv.gz").read_bytes()).decode()
        rows = [line.split("\t") for line in lines.splitlines()]
        assert sorted(group for group, _ in rows) == sorted(count * texts.GROUPS)
        assert all(f"Subject: {group}" in text and "haé" in text for group, text in rows)
    task = data.load_task("newsgroups", tmp_path)
    assert [len(split) for split in task.splits[:4]] == [203, 22, 72, 75]
    wrong = module.ARCHIVE._replace(checksum="0" * 64)
    monkeypatch.setattr(module, "ARCHIVE", wrong)
    with pytest.raises(CorruptDataError, match="what was downloaded of newsgroups"):
        prepare("newsgroups", tmp_path / "other")
    assert left(tmp_path / "other") == []


@pytest.mark.parametrize(("own", "lacking"), [("train", "test"), ("test", "train")])
def test_one_file_of_newsgroups_is_not_completed_by_another_edition(server, tmp_path, own, lacking):
    texts.write_newsgroups(tmp_path, texts.TRAIN, texts.TEST)
    (tmp_path / f"newsgroups/{lacking}.tsv.gz").unlink()
    before = left(tmp_path)
    message = f"{lacking}.tsv.gz is lacking beside newsgroups/{own}.tsv.gz, which may be of another"
    with pytest.raises(MissingDataError, match=message):
        prepare("newsgroups", tmp_path)
    assert left(tmp_path) == before
    assert server.asked == []


@pytest.mark.parametrize("name", ["usps", "optdigits"])
def test_digits_by_scikit_learn(server, tmp_path, monkeypatch, name):
    side, white = {"usps": (16, 255), "optdigits": (8, 16)}[name]
    rng = np.random.RandomState(0)
    images = rng.randint(0, white + 1, (20, side, side))
    images[0, 0, :2] = 0, white
    labels = np.arange(20) % 10
    pixels = images.reshape(20, -1) / (127.5 if name == "usps" else 1) - (name == "usps")
    given = labels + (name == "usps")
    data_id = _recipes._OPENML[name]
    server.files |= archives.openml(name, data_id, pixels.round(6), given, server.url)
    module = importlib.import_module("sklearn.datasets._openml")
    for what in ("INFO", "FEATURES", "QUALITIES"):
        monkeypatch.setattr(module, f"_DATA_{what}", f"{server.url}/{what.lower()}/{{}}")
    assert prepare(name, tmp_path)
    assert left(tmp_path) == [name, f"{name}/{name}.npz"]
    with np.load(tmp_path / name / f"{name}.npz") as arrays:
        np.testing.assert_array_equal(arrays["images"], images)
        np.testing.assert_array_equal(arrays["labels"], labels)
        assert arrays["images"].dtype == np.uint8
    server.files["table.arff"] = server.files["table.arff"][:-60]
    with pytest.raises(CorruptDataError, match=f"what was downloaded of {name}"):
        prepare(name, tmp_path / "other")
    assert left(tmp_path / "other") == []


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (np.zeros((3, 63)), np.zeros(3), "must hold 64 pixels"),
        (np.zeros((3, 64)), np.zeros(2), "must hold 64 pixels"),
        (np.full((3, 64), 17.0), np.zeros(3), "pixels must be in"),
        (np.full((3, 64), np.nan), np.zeros(3), "pixels must be in"),
        (np.zeros((3, 64)), np.full(3, 10), "labels must be in"),
    ],
)
def test_digits_that_are_none(pixels, labels, message):
    with pytest.raises(CorruptDataError, match=message):
        _recipes.digits_of_openml("optdigits", pixels, labels)


def test_cifar10_reads_as_it_was(tfds, server, tmp_path):
    server.files["cifar-10-binary.tar.gz"] = archives.cifar()
    assert prepare("cifar10", tmp_path)
    assert left(tmp_path)[:2] == ["cifar10", "cifar10/3.0.2"]
    assert not any(name.startswith(".") for name in left(tmp_path))
    parts = {"train": range(5), "test": (5,)}
    for part, files in parts.items():
        labels, pixels = zip(*(archives.cifar_pixels(i, 12) for i in files), strict=True)
        found = read_encoded(tmp_path, "cifar10", part)
        np.testing.assert_array_equal(decode(found), np.concatenate(pixels))
        np.testing.assert_array_equal(found.labels, np.concatenate(labels))
        assert found.keys[0] == f"{part}_00000"
        # as anyone's who has tensorflow-datasets
        split = from_tfds("cifar10", split=part, kind="id", data_dir=tmp_path)
        assert {image.tobytes() for image in split.inputs} == {
            image.tobytes() for image in np.concatenate(pixels)
        }
    assert "tensorflow" not in sys.modules


def test_votes_go_with_their_images(tfds, server, tmp_path):
    server.files |= {
        "cifar-10-binary.tar.gz": archives.cifar(),
        "cifar10h-raw.zip": archives.votes(),
    }
    assert prepare("cifar10_h", tmp_path)
    found = read_encoded(tmp_path, "cifar10_h", "test")
    labels, pixels = archives.cifar_pixels(5, 12)
    np.testing.assert_array_equal(decode(found), pixels)
    counts = np.zeros((12, 10), int)
    for image, label in enumerate(labels):
        counts[image, (label + 1) % 10] = image % 4
        counts[image, label] = 5 - image % 4
    np.testing.assert_array_equal(found.human_counts, counts)
    assert read_encoded(tmp_path, "cifar10_h", "train").human_counts is None
    images, labels, (again,) = read_images(tmp_path, "cifar10_h", "test", 32, ("human_counts",))
    np.testing.assert_array_equal(images, pixels)
    np.testing.assert_array_equal(again, counts)
    with pytest.raises(CorruptDataError, match="images must be 64x64"):
        read_images(tmp_path, "cifar10_h", "test", 64)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_tasks_of_cifar10_read_what_was_prepared(tfds, server, tmp_path, monkeypatch):
    """In the order of the test set, corruptions too, which come without their numbers."""
    names = sorted(catalogue.CORRUPTIONS_OF_CIFAR)
    theirs = {"frosted_glass_blur": "glass_blur", "elastic": "elastic_transform"}
    labels, pixels = archives.cifar_pixels(5, 12)
    rows = np.repeat(np.arange(5), 12)[:, None, None, None]
    content = {}
    for number, name in enumerate(theirs.get(name, name) for name in names):
        content[name] = (10 * number + rows + np.tile(pixels // 16, (5, 1, 1, 1))).astype(np.uint8)
    server.files |= {
        "cifar-10-binary.tar.gz": archives.cifar(),
        "cifar10h-raw.zip": archives.votes(),
        "CIFAR-10-C.tar": archives.corrupted_arrays(content | {"labels": np.tile(labels, 5)}),
    }
    for name in ("cifar10", "cifar10_h"):
        assert prepare(name, tmp_path)
    monkeypatch.setattr(cifar, "_CORRUPTED_IMAGES", 5)
    real, decoded = cifar.decode, []

    def counting(images, size, rows):
        decoded.append(len(rows))
        return real(images, size, rows)

    monkeypatch.setattr(cifar, "decode", counting)
    voted = data.load_task("cifar10h", tmp_path)
    np.testing.assert_array_equal(voted.evaluation[0].inputs, pixels)
    assert "JPEG" not in voted.source
    shares = voted.evaluation[0].soft_labels
    np.testing.assert_allclose(shares[np.arange(12), labels], 1 - np.arange(12) % 4 / 5, atol=1e-6)
    assert prepare("cifar10_corrupted", tmp_path)
    task = data.load_task("cifar10c", tmp_path)
    clean = task.evaluation[0]
    assert decoded == [5] * 95  # of twelve
    for split in task.evaluation[1:]:
        number = names.index(cifar._NAMES_OF_PREPARED.get(split.series, split.series))
        expected = 10 * number + split.position - 1 + clean.inputs // 16
        np.testing.assert_array_equal(split.inputs, expected)
        assert "as published" in split.description
    other = clean.take(np.arange(5)[::-1], "test", "id", "")
    with pytest.raises(CorruptDataError, match="in its order, but labels differ"):
        cifar._of_prepared(tmp_path / "cifar10_corrupted", "fog", 1, clean.clusters, other)


def test_corruptions_are_prepared_one_by_one(tfds, server, tmp_path, monkeypatch):
    records = tuple(f"cifar10_corrupted/{name}_{i}" for name in ("fog", "elastic") for i in (1, 5))
    monkeypatch.setitem(
        SETS, "cifar10_corrupted", SETS["cifar10_corrupted"]._replace(records=records)
    )
    server.files["CIFAR-10-C.tar"] = archives.corrupted(("fog", "elastic_transform"))
    builders = importlib.import_module("calmoe_jax.data.tfds.builders.cifar")
    kept = builders.Cifar10Corrupted.kept
    real, made, most = _recipes.Workshop.build, [], [3]

    def interrupted(self, module, builder, config):
        if len(made) == most[0]:
            raise KeyboardInterrupt
        made.append(config)
        real(self, module, builder, config)
        assert len(kept) == 2  # labels and one corruption, of gigabytes

    monkeypatch.setattr(_recipes.Workshop, "build", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("cifar10_corrupted", tmp_path)
    assert not kept
    most[0] = 99
    made_so_far = sorted(p.name for p in (tmp_path / "cifar10_corrupted").glob("*_*"))
    assert made_so_far == ["elastic_1", "fog_1", "fog_5"]
    assert not SETS["cifar10_corrupted"].is_here(tmp_path)
    assert prepare("cifar10_corrupted", tmp_path)
    assert made == ["fog_1", "fog_5", "elastic_1", "elastic_5"]  # each once
    assert not kept
    assert len(server.asked) == 1  # the download was kept, and is gone now
    assert not (tmp_path / ".downloads").exists()
    for number, name in enumerate(("fog", "elastic")):
        for severity in (1, 5):
            found = read_encoded(
                tmp_path, "cifar10_corrupted", "test", record=f"cifar10_corrupted/{name}_{severity}"
            )
            expected = [10 * number + 3 * (severity - 1) + i for i in found.labels]
            assert decode(found)[:, 4, 5, 2].tolist() == expected
            assert sorted(found.labels) == [0, 1, 2]


@pytest.mark.parametrize("asked", [("cifar10h",), ("cifar10_h", "cifar10"), ("cifar10",)])
def test_the_archive_of_two_data_sets_comes_once(tfds, server, tmp_path, capsys, asked):
    server.files |= {
        "cifar-10-binary.tar.gz": archives.cifar(),
        "cifar10h-raw.zip": archives.votes(),
    }
    assert cli.main(("data", "prepare", *asked, "--data-dir", str(tmp_path))) == 0
    both = {"cifar-10-binary.tar.gz", "cifar10h-raw.zip"} if asked != ("cifar10",) else set()
    assert sorted(name for name, _ in server.asked) == sorted(both | {"cifar-10-binary.tar.gz"})
    assert not any(name.startswith(".") for name in left(tmp_path))
    if both:
        assert len(data.load_task("cifar10h", tmp_path).train) == 54


def test_a_shared_archive_is_kept_for_the_next_command(tfds, server, tmp_path):
    """If it ends between the two; and is nobody's business where the other is there."""
    server.files |= {
        "cifar-10-binary.tar.gz": archives.cifar(),
        "cifar10h-raw.zip": archives.votes(),
    }
    assert prepare("cifar10", tmp_path, then=("pacs", "cifar10_h", "usps"))
    kept = ".downloads/cifar10_h/cifar-10-binary.tar.gz"
    assert [name for name in left(tmp_path) if name.endswith(".gz")] == [kept]
    assert prepare("cifar10_h", tmp_path, then=("cifar10",))
    assert [name for name, _ in server.asked] == ["cifar-10-binary.tar.gz", "cifar10h-raw.zip"]
    assert not any(name.startswith(".") for name in left(tmp_path))


@pytest.mark.parametrize("name", ["cifar10h", "cifar10c"])
def test_the_source_says_which_pixels_are_not_original(tfds, server, tmp_path, monkeypatch, name):
    """Each part is read from the user's own file where there is one."""
    monkeypatch.setattr(cifar, "SEVERITIES", (1,))
    server.files |= {
        "cifar-10-binary.tar.gz": archives.cifar(),
        "cifar10h-raw.zip": archives.votes(),
    }
    for each in ("cifar10", "cifar10_h"):
        assert prepare(each, tmp_path)
    own = pictures.cifar()
    for parts, said in (
        ([], ""),
        (["train"], ", pixels of the training images re-encoded as JPEG"),
        (["test"], ", pixels of the test images re-encoded as JPEG"),
        (["train", "test"], ", pixels re-encoded as JPEG"),
    ):
        for part in parts:
            pictures.write_cifar(tmp_path, {part: own[part]})
        task = data.load_task(name, tmp_path)
        assert task.source.startswith(f"CIFAR-10, research use, Krizhevsky 2009{said}; ")
        assert len(task.train) == (108 if "train" in parts else 54)
        assert len(task.evaluation[0]) == (40 if "test" in parts else 12)
        for part in parts:
            (tmp_path / f"cifar10/{part}.npz").unlink()


def test_votes_that_do_not_match_name_what_they_are_from(tfds, server, tmp_path):
    """Which is the prepared data set, without a file of the user's own."""
    labels, _ = archives.cifar_pixels(5, 12)
    lines = ["annotator_id,trial_index,is_attn_check,chosen_label,reaction_time"]
    lines[0] += ",cifar10_test_test_idx"
    lines += [f"1,{i},0,{(label + 5) % 10},900.0,{i}" for i, label in enumerate(labels)]
    server.files |= {
        "cifar-10-binary.tar.gz": archives.cifar(),
        "cifar10h-raw.zip": archives.votes(**{"cifar10h-raw.csv": "\n".join(lines).encode()}),
    }
    for name in ("cifar10", "cifar10_h"):
        assert prepare(name, tmp_path)
    with pytest.raises(CorruptDataError, match="of 0% of them only") as error:
        data.load_task("cifar10h", tmp_path)
    assert str(catalogue.newest_version(tmp_path / "cifar10_h")) in str(error.value)


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


def test_a_wrong_checksum_leaves_nothing(tfds, server, tmp_path, monkeypatch):
    server.files |= archives.idx_files()
    served = _recipes.remotes
    monkeypatch.setattr(
        _recipes, "remotes", lambda n: tuple(r._replace(sha256="0" * 64) for r in served(n))
    )
    with pytest.raises(PreparationError, match="must have the SHA-256 0000"):
        prepare("mnist", tmp_path / "new")
    assert left(tmp_path) == []


def test_an_interrupted_download_is_kept_and_taken_up(tfds, server, tmp_path):
    server.files |= archives.idx_files()
    last = SETS["mnist"].files[0].split("/")[1]
    size = len(server.files[last])
    server.cut[last] = size // 10
    with pytest.raises(PreparationError, match=r"is kept: the same command goes on"):
        prepare("mnist", tmp_path)
    assert left(tmp_path) == [
        ".downloads", ".downloads/mnist", f".downloads/mnist/{last}.part",
    ]  # fmt: skip
    del server.cut[last]
    server.asked.clear()
    assert prepare("mnist", tmp_path)
    assert server.asked[0] == (last, f"bytes={4 * (size // 10)}-")
    assert left(tmp_path) == ["mnist", *sorted(SETS["mnist"].files)]


@pytest.mark.parametrize("what", ["number", "words"])
def test_a_full_disk_is_said(tfds, server, tmp_path, monkeypatch, what):
    server.files["cifar-10-binary.tar.gz"] = archives.cifar()
    real = _recipes.Workshop.build

    def full(self, *named):
        real(self, *named)
        if what == "number":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise RuntimeError("INTERNAL: write: No space left on device")

    monkeypatch.setattr(_recipes.Workshop, "build", full)
    with pytest.raises(PreparationError, match=r"disk of .* is full: cifar10 needs about 1 MB"):
        prepare("cifar10", tmp_path)
    kept = ".downloads/cifar10/cifar-10-binary.tar.gz"
    assert left(tmp_path) == [".downloads", ".downloads/cifar10", kept]


def test_room_is_looked_for_first(server, tmp_path, monkeypatch):
    monkeypatch.setitem(SETS, "mnist", SETS["mnist"]._replace(room=10**9))
    with pytest.raises(
        PreparationError, match=r"mnist needs about 1,000,000,000 MB in .* are free"
    ):
        prepare("mnist", tmp_path / "new")
    assert left(tmp_path) == []
    assert server.asked == []


def test_two_at_once(tfds, server, tmp_path):
    server.files |= archives.idx_files()
    with prepare_module._alone(tmp_path, "mnist"):
        with pytest.raises(PreparationError, match="another process is bringing mnist"):
            prepare("mnist", tmp_path)
    assert left(tmp_path) == []
    assert prepare("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "pacs"])
def test_a_second_one_leaves_the_first_ones_downloads_alone(server, tmp_path, monkeypatch, name):
    """It is refused while a recipe runs that has downloaded nothing yet, or reads by hand."""
    begun, refused, failed = threading.Event(), threading.Event(), []

    def recipe(name, shop):
        begun.set()
        assert refused.wait(60)
        for part in SETS[name].files:
            (shop.downloads / "archive").write_bytes(b"whole")
            (shop.downloads / "archive").replace(shop.file(part))
        yield

    def first():
        try:
            prepare(name, tmp_path / "new")
        except BaseException as error:
            failed.append(error)

    monkeypatch.setitem(_recipes.RECIPES, name, recipe)
    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    for _ in range(2):
        with pytest.raises(PreparationError, match=f"another process is bringing {name}"):
            prepare(name, tmp_path / "new")
    refused.set()
    thread.join()
    assert failed == []
    assert left(tmp_path / "new") == [name, *sorted(SETS[name].files)]


def test_what_another_process_has_just_brought_is_not_brought_again(server, tmp_path, monkeypatch):
    real = prepare_module._alone

    @contextmanager
    def late(folder, name):
        with real(folder, name):
            for part in SETS[name].files:
                (folder / part).parent.mkdir(exist_ok=True)
                (folder / part).touch()
            yield

    monkeypatch.setattr(prepare_module, "_alone", late)
    assert not prepare("newsgroups", tmp_path)
    assert server.asked == []


def test_a_lock_that_was_taken_from_its_place_is_none(tmp_path, monkeypatch):
    """The file that was opened is removed, and made anew, before it is locked."""
    fcntl = pytest.importorskip("fcntl")
    path, real = tmp_path / ".mnist.lock", fcntl.flock

    def late(file, how):
        path.unlink()
        path.touch()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(PreparationError, match="another process is bringing mnist"):
        with prepare_module._alone(tmp_path, "mnist"):
            pytest.fail("it is not alone")
    assert left(tmp_path) == [".mnist.lock"]


def test_downloads_that_are_gone_do_not_fail_what_is_made(server, tmp_path, monkeypatch):
    def recipe(name, shop):
        for part in SETS[name].files:
            shop.file(part).touch()
        yield
        shop.downloads.rmdir()

    monkeypatch.setitem(_recipes.RECIPES, "mnist", recipe)
    assert prepare("mnist", tmp_path)
    assert left(tmp_path) == ["mnist", *sorted(SETS["mnist"].files)]


def test_an_archive_by_hand_may_be_moved_after_an_interruption(tfds, server, tmp_path, monkeypatch):
    server.files["cifar-10-binary.tar.gz"] = archives.cifar()
    own = tmp_path / "mine" / "cifar-10-binary.tar.gz"
    own.parent.mkdir()
    own.write_bytes(archives.cifar())

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_recipes.Workshop, "build", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare("cifar10", tmp_path / "data", manual_dir=own.parent)
    assert (tmp_path / "data" / ".downloads" / "cifar10" / own.name).is_symlink()
    own.rename(tmp_path / "elsewhere.tar.gz")
    assert prepare("cifar10", tmp_path / "data", manual_dir=own.parent)
    assert [name for name, _ in server.asked] == [own.name]
    assert not any(name.startswith(".") for name in left(tmp_path / "data"))


def test_what_a_killed_process_left_is_removed_and_what_is_there_stays(tfds, server, tmp_path):
    server.files |= archives.idx_files()
    (tmp_path / ".mnist.abc.making" / "mnist").mkdir(parents=True)
    own = tmp_path / SETS["mnist"].files[0]
    own.parent.mkdir()
    own.write_bytes(b"my own")
    assert prepare("mnist", tmp_path)
    assert own.read_bytes() == b"my own"
    assert left(tmp_path) == ["mnist", *sorted(SETS["mnist"].files)]


def test_a_download_by_hand_is_taken_if_it_is_the_same(tfds, server, tmp_path):
    server.files["cifar-10-binary.tar.gz"] = archives.cifar()
    own = tmp_path / "cifar-10-binary.tar.gz"
    own.write_bytes(archives.cifar()[:-1] + b"x")
    with pytest.raises(PreparationError, match=f"{own} must have the SHA-256 .*another file than"):
        prepare("cifar10", tmp_path / "data", manual_dir=tmp_path)
    assert left(tmp_path) == [own.name]
    own.write_bytes(archives.cifar())
    assert prepare("cifar10", tmp_path / "data", manual_dir=tmp_path)
    assert len(read_encoded(tmp_path / "data", "cifar10", "test").labels) == 12
    assert own.read_bytes() == archives.cifar()
    assert server.asked == []


def test_the_newest_version_is_read(tmp_path):
    for version in ("1.0.0", "1.10.0", "1.9.0", "incomplete.2.0.0", "3.0"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "dataset_info.json").touch()
    (tmp_path / "2.0.0").mkdir()  # not finished
    assert catalogue.newest_version(tmp_path) == tmp_path / "1.10.0"
    assert catalogue.newest_version(tmp_path / "2.0.0") is None


def test_a_set_is_here_when_all_of_it_is(tmp_path):
    found = SETS["mnist"]
    for number, name in enumerate(found.files):
        assert not found.is_here(tmp_path), number
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert found.is_here(tmp_path)
    found = SETS["domainnet"]
    for name in found.records:
        assert not found.is_here(tmp_path)
        (tmp_path / name / "1.0.0").mkdir(parents=True)
        (tmp_path / name / "1.0.0" / "dataset_info.json").touch()
    assert found.is_here(tmp_path)


def test_the_command(tfds, server, tmp_path, capsys):
    server.files |= archives.idx_files()
    first, other = SETS["fashion_mnist"].files[0].split("/")[1], "train-labels-idx1-ubyte.gz"
    server.states[other] = [404]
    asked = ("data", "prepare", "fashion_c", "--data-dir", str(tmp_path / "new"))
    assert cli.main(asked) == 1
    out, err = capsys.readouterr()
    assert out.startswith("fashion_mnist: 30.9 MB, MIT; Xiao, Rasul, Vollgraf; from ")
    assert err.startswith(f"calmoe: {server.url}/{other} could not be downloaded: ")
    kept = tmp_path / "new" / ".downloads" / "fashion_mnist" / first
    assert [name for name in left(tmp_path) if name.endswith(".gz")] == [
        str(kept.relative_to(tmp_path))
    ]
    assert cli.main(asked) == 0
    assert capsys.readouterr().out.endswith(f"fashion_mnist: now in {tmp_path / 'new'}\n")
    assert [name for name, _ in server.asked].count(first) == 1
    assert left(tmp_path / "new") == ["fashion_mnist", *sorted(SETS["fashion_mnist"].files)]


def test_unknown_names_and_no_packages(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"name must be one of mnist, .*got name='mnits'"):
        prepare("mnits", tmp_path)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setitem(sys.modules, "array_record", None)
    for name in ("mnist", "cifar10", "domainnet"):
        monkeypatch.setitem(SETS, name, SETS[name]._replace(room=1))
        with pytest.raises(MissingDataError, match=r"pip install 'calmoe_jax\[data\]'"):
            prepare(name, tmp_path / "new")
    assert left(tmp_path) == []


def test_the_catalogue_and_the_recipes_are_of_the_same_sets():
    assert set(SETS) == set(_recipes.RECIPES)
    for name, info in data.TASKS.items():
        assert set(info.data) <= set(SETS), name
    files = [file for found in SETS.values() for file in found.files]
    assert all(Path(file).parts[0] in SETS for file in files)
