"""The examples of the data package, run."""

import doctest
import inspect

import numpy as np
import pytest

from calmoe_jax import data

PUBLIC = {name: value for name, value in vars(data).items() if not name.startswith("_")}
FUNCTIONS = sorted(name for name, value in PUBLIC.items() if inspect.isfunction(value))


@pytest.mark.parametrize("name", ["", *FUNCTIONS])
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"np": np, **PUBLIC, "TASKS": dict(data.TASKS)}
    monkeypatch.setattr(data.registry, "TASKS", names["TASKS"])
    document = inspect.getdoc(PUBLIC[name] if name else data)
    example = doctest.DocTestParser().get_doctest(document, names, name, None, 0)
    assert example.examples, f"{name} has no example"
    report = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
