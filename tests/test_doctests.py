"""The example of every public function, run."""

import doctest
import inspect

import jax
import jax.numpy as jnp
import pytest

import calmoe_jax as cm

PUBLIC = {
    name: value
    for name, value in vars(cm).items()
    if not name.startswith("_") and not inspect.ismodule(value)
}
FUNCTIONS = sorted(name for name, value in PUBLIC.items() if not inspect.isclass(value))


def example_of(name):
    return doctest.DocTestParser().get_doctest(
        inspect.getdoc(PUBLIC[name]) or "", {"jax": jax, "jnp": jnp, **PUBLIC}, name, None, 0
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example(name):
    example = example_of(name)
    assert example.examples, f"{name} has no example"
    report = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.failed == 0, "".join(report)


def test_every_public_name_is_listed():
    assert len(FUNCTIONS) > 30
    assert all(callable(x) for x in PUBLIC.values())
    assert all(inspect.getdoc(x) for x in PUBLIC.values())
