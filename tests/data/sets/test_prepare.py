"""Data sets from a server to tasks."""

import gzip
import importlib
import sys

import archives
import numpy as np
import pictures
import pytest
import texts
from preparing import left, prepare

from calmoe_jax import cli, data
from calmoe_jax.data import CorruptDataError, MissingDataError
from calmoe_jax.data._encoded import decode, read_encoded, read_images
from calmoe_jax.data.local import cifar
from calmoe_jax.data.sets import SETS, _recipes, catalogue
from calmoe_jax.data.tfds import from_tfds

pytestmark = pytest.mark.every_case


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
