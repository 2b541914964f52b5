"""A pytest plugin: one share of the tests, and none begun after a deadline.

`CALMOE_SHARD=2/4` keeps every fourth test, from the second on; `CALMOE_SECONDS=100` skips those
that would begin after as many seconds. For machines without pytest-xdist and with little time.
"""

import os
import time
from typing import Any

import pytest

_START = time.monotonic()


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Keeps this process's share, kernels first: time may run out."""
    items.sort(key=lambda item: "triton" not in item.name)
    number, of = map(int, os.environ.get("CALMOE_SHARD", "1/1").split("/"))
    kept = items[number - 1 :: of]
    others = [item for i, item in enumerate(items) if i % of != number - 1]
    if others:
        config.hook.pytest_deselected(items=others)
    items[:] = kept


def pytest_runtest_setup(item: Any) -> None:
    """Skips where the time is up."""
    if time.monotonic() - _START > float(os.environ.get("CALMOE_SECONDS", "inf")):
        pytest.skip("no time left")
