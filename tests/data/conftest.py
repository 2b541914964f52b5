"""Tasks that come with the package, loaded once."""

import pytest

from calmoe_jax import data


@pytest.fixture(scope="session")
def portal():
    return data.load_task("portal")


@pytest.fixture(scope="session")
def digits():
    return data.load_task("digits")
