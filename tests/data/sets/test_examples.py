"""The examples of the package that brings data, run."""

import doctest
import inspect
from pathlib import Path

import pytest

from calmoe_jax.data import sets

FUNCTIONS = {name: value for name, value in vars(sets).items() if inspect.isfunction(value)}


@pytest.mark.every_case
@pytest.mark.parametrize("name", ["", *FUNCTIONS])
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"Path": Path, **FUNCTIONS}
    document = inspect.getdoc(FUNCTIONS[name] if name else sets)
    example = doctest.DocTestParser().get_doctest(document, names, name, None, 0)
    assert example.examples, f"{name} has no example"
    report = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
    assert list(tmp_path.iterdir()) == []
