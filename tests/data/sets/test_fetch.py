"""Downloads: continued, checked, and gone when they are wrong."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from serving import serving

from calmoe_jax.data.errors import PreparationError
from calmoe_jax.data.sets import _fetch
from calmoe_jax.data.sets._fetch import Remote, fetch

CONTENT = np.random.RandomState(0).bytes(700_001)


@pytest.fixture
def server():
    with serving() as served:
        served.files["a.bin"] = CONTENT
        yield served


def remote(server, **known):
    digest = hashlib.sha256(CONTENT).hexdigest()
    known = {"size": len(CONTENT), "sha256": digest} | known
    return Remote(f"{server.url}/a.bin", "here.bin", **known)


def get(server, folder, **known):
    return fetch(remote(server, **known), folder, quiet=True, pause=0.0)


def test_a_file_comes_whole_and_once(server, tmp_path):
    path = get(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert get(server, tmp_path) == path
    assert server.asked == [("a.bin", None)]
    assert [file.name for file in tmp_path.iterdir()] == ["here.bin"]


def test_a_connection_that_ends_is_taken_up_again(server, tmp_path):
    server.cut["a.bin"] = 300_000
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert [start for _, start in server.asked] == [None, "bytes=300000-", "bytes=600000-"]


def test_the_next_command_goes_on(server, tmp_path):
    server.cut["a.bin"] = 100_000
    with pytest.raises(PreparationError, match=r"ended after 400000 of 700001 bytes.*goes on"):
        get(server, tmp_path)
    assert (tmp_path / "here.bin.part").read_bytes() == CONTENT[:400_000]
    assert not (tmp_path / "here.bin").exists()
    del server.cut["a.bin"]
    server.asked.clear()
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("a.bin", "bytes=400000-")]
    assert not (tmp_path / "here.bin.part").exists()


def test_a_server_without_parts_sends_all_again(server, tmp_path):
    (tmp_path / "here.bin.part").write_bytes(CONTENT[:1000])
    server.ranges = False
    assert get(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("known", [{}, {"size": None}])
def test_a_part_that_is_another_files_is_not_kept(server, tmp_path, known):
    (tmp_path / "here.bin.part").write_bytes(bytes(len(CONTENT) + 7))
    assert get(server, tmp_path, **known).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_that_is_busy_is_asked_again(server, tmp_path, code):
    server.states["a.bin"] = [code, code]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_a_file_that_is_gone_is_asked_for_once(server, tmp_path):
    server.states["a.bin"] = [404]
    with pytest.raises(PreparationError, match=r"/a.bin could not be downloaded: .* 404"):
        get(server, tmp_path)
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("partly", [0, 1000, len(CONTENT)])
def test_a_wrong_checksum_leaves_nothing(server, tmp_path, partly):
    (tmp_path / "here.bin.part").write_bytes(bytes(partly))
    with pytest.raises(PreparationError, match=r"must have the SHA-256 .*another file") as error:
        get(server, tmp_path, sha256="0" * 64)
    assert "0" * 64 in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_a_wrong_size_leaves_nothing(server, tmp_path, size):
    with pytest.raises(PreparationError, match=f"must have {size} bytes, got 700001"):
        get(server, tmp_path, size=size)
    assert list(tmp_path.iterdir()) == []


def test_no_server(tmp_path):
    gone = Remote("http://127.0.0.1:9/x", "x")
    with pytest.raises(PreparationError, match=r"127.0.0.1:9/x could not .* no connection"):
        fetch(gone, tmp_path, quiet=True, pause=0.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_leaves_nothing(server, tmp_path):
    (tmp_path / "here.bin.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        get(server, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(server.asked) == 1


def test_progress_is_of_the_whole_file(server, tmp_path, monkeypatch):
    (tmp_path / "here.bin.part").write_bytes(CONTENT[:1000])
    bars = []

    def bar(**named):
        bars.append(named)
        return real(**named | {"disable": True})

    real = _fetch.tqdm
    monkeypatch.setattr(_fetch, "tqdm", bar)
    fetch(remote(server), tmp_path, pause=0.0)
    assert (bars[0]["initial"], bars[0]["total"], bars[0]["unit"]) == (1000, len(CONTENT), "B")
    assert bars[0]["disable"] is None  # only on a terminal
