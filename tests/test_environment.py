"""The description of the machine, and of the commit of a result."""

import os
import subprocess

import jax
import pytest

from calmoe_jax import _environment


def git(folder, *arguments):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A package in a separate repository, in which the module seems to be."""
    package = tmp_path / "package"
    package.mkdir()
    for name in ("__init__.py", "other.py"):
        (package / name).write_text("")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(_environment, "__file__", str(package / "module.py"))
    return package


def test_versions_and_machine():
    known = _environment.describe_environment()
    assert known["versions"]["jax"] == jax.__version__
    assert known["cores"] == os.cpu_count()
    assert known["devices"] == [f"{len(jax.devices())} x {jax.devices()[0].device_kind}"]
    assert _environment._version("no-such-package") is None


def test_the_commit_and_whether_it_was_changed(repository):
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "first")
    head = git(repository, "rev-parse", "HEAD")
    assert _environment.describe_environment()["commit"] == head
    (repository / "other.py").write_text("changed")
    assert _environment.describe_environment()["commit"] == head + "+"


def test_no_commit_of_an_unrelated_repository(repository):
    git(repository, "add", "other.py")
    git(repository, "commit", "-q", "-m", "without the package")
    assert _environment.describe_environment()["commit"] is None


def test_no_commit_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(_environment, "__file__", str(tmp_path / "module.py"))
    assert _environment.describe_environment()["commit"] is None
