"""tensorflow-datasets, where it is installed."""

import importlib
import warnings
from importlib.util import find_spec

import pytest

NEEDED = ("tensorflow_datasets", "array_record", "importlib_resources")


@pytest.fixture
def tfds():
    if any(find_spec(name) is None for name in NEEDED):
        pytest.skip("needs the data extra")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies, when they are imported
        return importlib.import_module("tensorflow_datasets")
