"""The commands in the README run, and its API table lists existing names."""

import re
from pathlib import Path

import jax.numpy as jnp

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_examples_run():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(code, names)
    assert names["y"].shape == (16, 8)
    assert jnp.isfinite(names["loss"])
    assert 0 <= names["ece"] <= 1
    assert jnp.allclose(names["probs"].sum(-1), 1)
