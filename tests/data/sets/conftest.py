"""A server in place of the world."""

import importlib
import warnings
from importlib.util import find_spec

import pytest
from serving import serving

from calmoe_jax.data.sets import SETS, _fetch, _recipes

NEEDED = ("tensorflow_datasets", "array_record", "importlib_resources")


@pytest.fixture
def tfds():
    if any(find_spec(name) is None for name in NEEDED):
        pytest.skip("needs the data extra")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, when they are imported
        return importlib.import_module("tensorflow_datasets")


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
