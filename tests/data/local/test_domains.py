"""`office_home_*` and `domainnet`, from tiny archives in the true layout to tasks."""

import dataclasses
import importlib

import archives
import numpy as np
import pytest
from mixing import assert_each_half_is_mixed

from calmoe_jax import data
from calmoe_jax.data import CorruptDataError
from calmoe_jax.data._encoded import decode, read_encoded
from calmoe_jax.data.errors import PreparationError
from calmoe_jax.data.local import domains
from calmoe_jax.data.sets import SETS, prepare

FOLDERS = ("Art", "Clipart", "Product", "Real World")
NAMES = ("art", "clipart", "product", "real_world")


@pytest.fixture(scope="module")
def office(tmp_path_factory):
    """Prepared Office-Home, with few classes, in the spelling of its archive."""
    pytest.importorskip("tensorflow_datasets")
    builders = importlib.import_module("calmoe_jax.data.tfds.builders.domains")
    folder = tmp_path_factory.mktemp("office")
    (folder / "manual").mkdir()
    classes = ("Alarm_Clock", "TV", "ToothBrush")
    content = archives.domains(FOLDERS, classes, 20, top="OfficeHomeDataset_10072016")
    (folder / "manual" / "OfficeHomeDataset_10072016.zip").write_bytes(archives.zipped(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builders.OfficeHome, "classes", ("alarm_clock", "toothbrush", "tv"))
        patch.setitem(SETS, "office_home", SETS["office_home"]._replace(room=1))
        assert prepare("office_home", folder, quiet=True)
    return folder


def test_sixty_five_classes():
    builders = pytest.importorskip("calmoe_jax.data.tfds.builders.domains")
    assert len(set(builders.OFFICE_HOME_CLASSES)) == 65
    assert builders.OFFICE_HOME_DOMAINS == domains.OFFICE_HOME_DOMAINS


@pytest.mark.parametrize("held_out", NAMES)
def test_one_domain_is_left_out(office, held_out):
    task = data.load_task(f"office_home_{held_out}", office)
    assert task.classes == ("alarm_clock", "toothbrush", "tv")
    assert [(s.name, s.kind, len(s)) for s in task.splits] == [
        ("train", "train", 126),
        ("calibration", "calibration", 18),
        ("test", "id", 36),
        (held_out, "shift", 60),
    ]
    info = data.TASKS[task.name]
    assert info.shifts == (held_out,)
    assert not info.hard
    assert task.input_spec.shape == (64, 64, 3)
    # every image of a domain is in one split, with its own label
    pixels = {}
    for name in NAMES:
        images = read_encoded(office, "office_home", name)
        for image, label in zip(decode(images), images.labels, strict=True):
            pixels[image.tobytes()] = name, label
    assert len(pixels) == 240
    seen = set()
    for split in task.splits:
        for image, label in zip(split.inputs, split.labels, strict=True):
            name, expected = pixels[image.tobytes()]
            assert (name == held_out) == (split.kind == "shift")
            assert label == expected
            seen.add(image.tobytes())
    assert len(seen) == 240


@pytest.mark.parametrize("held_out", NAMES)
def test_training_images_of_the_domains_are_mixed(office, held_out):
    train = data.load_task(f"office_home_{held_out}", office).train
    known = {
        image.tobytes(): name
        for name in NAMES
        for image in decode(read_encoded(office, "office_home", name))
    }
    found = [known[image.tobytes()] for image in train.inputs]
    assert set(found) == set(NAMES) - {held_out}
    assert_each_half_is_mixed(found)
    assert_each_half_is_mixed(train.labels)


def test_splits_of_a_domain_are_the_same_in_every_task(office):
    """So that no task tests what another one trains on."""
    tasks = [data.load_task(f"office_home_{name}", office) for name in ("art", "product")]
    trained, tested = (
        [{image.tobytes() for image in s.inputs} for s in (t.train, t.evaluation[0])] for t in tasks
    )
    assert not trained[0] & tested[1]
    assert not trained[1] & tested[0]


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """Prepared DomainNet, with three classes, from files under the names of its downloads."""
    pytest.importorskip("tensorflow_datasets")
    upstream = importlib.import_module(
        "tensorflow_datasets.image_classification.domainnet.domainnet"
    )
    folder = tmp_path_factory.mktemp("net")
    manual = folder / "manual"
    manual.mkdir()
    write_net(manual)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream, "_CLASS_NAMES", ["bat", "bee", "bus"])
        patch.setitem(SETS, "domainnet", SETS["domainnet"]._replace(room=1))
        assert prepare("domainnet", folder, quiet=True)
    return folder


def write_net(folder):
    names = ("real", *domains.DOMAINNET_SHIFTS)
    everything = archives.domains(names, ("bat", "bee", "bus"), 12, top="x")
    for domain in names:
        content = {
            name.removeprefix("x/"): raw
            for name, raw in everything.items()
            if name.startswith(f"x/{domain}/")
        }
        (folder / f"{domain}.zip").write_bytes(archives.zipped(content))
        labels = {"bat": 0, "bee": 1, "bus": 2}
        lines = [f"{name} {labels[name.split('/')[1]]}\n" for name in content]
        (folder / f"{domain}_train.txt").write_text("".join(lines[::2]))
        (folder / f"{domain}_test.txt").write_text("".join(lines[1::2]))


def test_domainnet_trains_on_photographs(net):
    assert sorted(p.name for p in net.iterdir()) == ["domainnet64", "manual"]
    assert len(list((net / "manual").iterdir())) == 18
    task = data.load_task("domainnet", net)
    assert task.classes == ("bat", "bee", "bus")
    sizes = [(s.name, s.kind, len(s)) for s in task.splits]
    assert sizes[:3] == [
        ("train", "train", 17),
        ("calibration", "calibration", 1),
        ("test", "id", 18),
    ]
    assert sizes[3:] == [(name, "shift", 18) for name in data.TASKS["domainnet"].shifts]
    tests = {d: read_encoded(net, "domainnet", "test", record=f"domainnet64/{d}") for d in
             ("real", *domains.DOMAINNET_SHIFTS)}  # fmt: skip
    for split in task.evaluation:
        images = tests["real" if split.name == "test" else split.name]
        assert {i.tobytes() for i in split.inputs} == {i.tobytes() for i in decode(images)}


def test_domainnet_comes_domain_by_domain(server, tmp_path, monkeypatch):
    """Each archive is gone once its domain is there; after a failure no other is asked for."""
    pytest.importorskip("tensorflow_datasets")
    upstream = importlib.import_module(
        "tensorflow_datasets.image_classification.domainnet.domainnet"
    )
    monkeypatch.setattr(upstream, "_CLASS_NAMES", ["bat", "bee", "bus"])
    (tmp_path / "served").mkdir()
    write_net(tmp_path / "served")
    server.files |= {file.name: file.read_bytes() for file in (tmp_path / "served").iterdir()}
    server.states["sketch_train.txt"] = [404]
    folder = tmp_path / "data"
    with pytest.raises(PreparationError, match=r"sketch_train.txt could not be downloaded"):
        prepare("domainnet", folder, quiet=True)
    assert [p.name for p in (folder / ".downloads" / "domainnet").iterdir()] == ["sketch.zip"]
    assert len(server.asked) == 17
    assert prepare("domainnet", folder, quiet=True)
    assert [name for name, _ in server.asked[17:]] == ["sketch_train.txt", "sketch_test.txt"]
    assert [p.name for p in folder.iterdir()] == ["domainnet64"]
    task = data.load_task("domainnet", folder)
    assert [len(split) for split in task.splits] == [17, 1, *[18] * 6]


def test_domainnet_can_leave_a_domain_out(net):
    others = ("real", "clipart", "infograph", "painting", "quickdraw")
    task = data.check_task(domains.load_domainnet(net, trained_on=others))
    assert [s.name for s in task.evaluation] == ["test", "sketch"]
    assert [len(s) for s in task.splits] == [85, 5, 90, 18]
    known = {
        image.tobytes(): domain
        for domain in others
        for image in decode(read_encoded(net, "domainnet", "train", record=f"domainnet64/{domain}"))
    }
    found = [known[image.tobytes()] for image in task.train.inputs]
    assert set(found) == set(others)
    assert_each_half_is_mixed(found)
    for wrong in ((), ("reel",)):
        with pytest.raises(ValueError, match="trained_on must be some of real, clipart"):
            domains.load_domainnet(net, trained_on=wrong)


def test_at_most_so_many_images(net, monkeypatch):
    whole = data.load_task("domainnet", net)
    monkeypatch.setattr(domains, "_MOST", {"train": 10, "calibration": 1, "test": 5})
    some = data.load_task("domainnet", net)
    assert [len(s) for s in some.splits] == [10, 1, 5, 5, 5, 5, 5, 5]
    for part, all_of_it in zip(some.splits, whole.splits, strict=True):
        assert {i.tobytes() for i in part.inputs} <= {i.tobytes() for i in all_of_it.inputs}


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "sketch_train.txt").write_text("sketch/bat/no.jpg 0\n"), "lacks the file"),
        (lambda f: (f / "sketch_train.txt").write_text(""), "sketch_train.txt must list images"),
        (lambda f: (f / "sketch_test.txt").write_text("sketch/bat/a.jpg 3\n"), "a class below 3"),
        (lambda f: (f / "sketch_test.txt").write_text("sketch/bat/a.jpg\n"), "a class below 3"),
        (lambda f: (f / "sketch.zip").write_bytes(b"PK"), "sketch.zip is not a complete archive"),
    ],
)
def test_a_wrong_domain_stops_after_the_whole_ones(tmp_path, monkeypatch, change, message):
    pytest.importorskip("tensorflow_datasets")
    upstream = importlib.import_module(
        "tensorflow_datasets.image_classification.domainnet.domainnet"
    )
    monkeypatch.setattr(upstream, "_CLASS_NAMES", ["bat", "bee", "bus"])
    monkeypatch.setitem(SETS, "domainnet", SETS["domainnet"]._replace(room=1))
    (tmp_path / "manual").mkdir()
    write_net(tmp_path / "manual")
    change(tmp_path / "manual")
    with pytest.raises(CorruptDataError, match=message):
        prepare("domainnet", tmp_path, quiet=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["domainnet64", "manual"]
    assert not (tmp_path / "domainnet64" / "sketch").exists()
    assert sum(1 for _ in tmp_path.glob("domainnet64/*/1.0.0/dataset_info.json")) == 5
    write_net(tmp_path / "manual")
    assert prepare("domainnet", tmp_path, quiet=True)


def test_images_that_cannot_be_read(office):
    found = read_encoded(office, "office_home", "art")
    np.testing.assert_array_equal(decode(found, rows=np.array([2, 0])), decode(found)[[2, 0]])
    assert len(decode(found, rows=np.array([], int))) == 0
    assert decode(found, 16).shape == (60, 16, 16, 3)
    with pytest.raises(CorruptDataError, match=r"1\.0\.0: image 1 cannot be read"):
        decode(dataclasses.replace(found, ends=found.ends - 300 * (np.arange(60) == 1)))
    raw = [archives.picture(0, (8, 8)), archives.picture(1, (9, 8))]
    ends = np.cumsum([len(r) for r in raw])
    other = dataclasses.replace(found, jpeg=np.frombuffer(b"".join(raw), np.uint8), ends=ends)
    with pytest.raises(CorruptDataError, match="must be of one size"):
        decode(other)
