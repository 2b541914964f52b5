"""What the README tells people to type works, and its API table names what is there."""

import re
from pathlib import Path

import jax.numpy as jnp

import calmoe_jax

TEXT = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_examples_run():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(code, names)
    assert names["y"].shape == (16, 8)
    assert jnp.isfinite(names["loss"])
    assert 0 <= names["ece"] <= 1
    assert jnp.allclose(names["probs"].sum(-1), 1)


def test_the_table_names_the_public_functions():
    table = TEXT.split("## API")[1].split("| `nn`")[0]
    named = set(re.findall(r"\w+", table))
    public = {
        name
        for name, value in vars(calmoe_jax).items()
        if callable(value) and name[0].islower() and not name.startswith("_")
    }
    missing = public - named - {"classwise_calibration_errors"}  # named with an (s)
    assert missing == set()
