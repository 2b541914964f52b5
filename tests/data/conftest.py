"""Tasks that come with the package, loaded once."""

import pytest

from calmoe_jax import data


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
