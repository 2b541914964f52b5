"""A file appears completely or not at all, whatever fails."""

import os
import subprocess
import sys

import pytest

from calmoe_jax import _files


def test_content_is_replaced_atomically(tmp_path):
    path = tmp_path / "f"
    _files.write_whole(path, "old")
    _files.write_whole(path, b"new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A process whose files are limited to 4 KiB gets the error of a full disk."""
    path = tmp_path / "results.json"
    path.write_text("old")
    code = (
        "import resource, signal, sys; from pathlib import Path; "
        "from calmoe_jax._files import write_whole; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
        "write_whole(Path(sys.argv[1]), 'x' * 100_000)"
    )
    failed = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "OSError" in failed.stderr
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_an_interrupt_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_text("old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _files.write_whole(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


def test_json_refuses_nan():
    assert _files.to_json({"b": 1, "a": None}, indent=None) == '{"b": 1, "a": null}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        _files.to_json({"ece": float("nan")})
