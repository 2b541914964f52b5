"""Tasks that come with the package, loaded once, and a server in place of the world."""

import pytest
from serving import serving

from calmoe_jax import data
from calmoe_jax.data.sets import SETS, _fetch, _recipes


@pytest.fixture(autouse=True)
def no_data_of_the_user(monkeypatch, tmp_path_factory):
    """Data is where a test says."""
    monkeypatch.delenv("CALMOE_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path_factory.getbasetemp() / "no data"))


@pytest.fixture(scope="session")
def portal():
    return data.load_task("portal")


@pytest.fixture(scope="session")
def digits():
    return data.load_task("digits")


@pytest.fixture
def server(monkeypatch):
    """A server; downloads go to it, under their own names, checked by the checksums from here."""
    real = _recipes.remotes

    def remotes(name):
        return tuple(map(served.remote, real(name)))

    monkeypatch.setattr(_recipes, "remotes", remotes)
    monkeypatch.setattr(_fetch.time, "sleep", lambda seconds: None)
    for name, found in SETS.items():
        monkeypatch.setitem(SETS, name, found._replace(room=1))
    with serving() as served:
        yield served
