"""Preparing that fails, stops or is started twice: nothing is half there, and what came is kept."""

import errno
import os
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import archives
import pytest
from preparing import left, prepare

from calmoe_jax import cli, data
from calmoe_jax.data import MissingDataError
from calmoe_jax.data._encoded import read_encoded
from calmoe_jax.data.errors import PreparationError
from calmoe_jax.data.sets import SETS, _recipes, catalogue

prepare_module = sys.modules["calmoe_jax.data.sets.prepare"]

pytestmark = pytest.mark.every_case


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
