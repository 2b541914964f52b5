"""The commands in the README run, and its API table lists existing names."""

import json
import re
from importlib import import_module
from pathlib import Path

import jax.numpy as jnp
import pytest

import calmoe_jax as cm
from calmoe_jax import cli
from calmoe_jax.study.records import read_results

pytestmark = pytest.mark.every_case

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = TEXT.split("## API")[1].split("## Symbols")[0]
ROWS = re.findall(r"^\| (`[^|]*) \|[^|]*\| (`[^|]*) \|$", TABLE, re.MULTILINE)


@pytest.mark.exhaustive
def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(code, names)
    assert names["y"].shape == (16, 8)
    assert jnp.isfinite(names["loss"])
    assert 0 <= names["ece"] <= 1
    assert jnp.allclose(names["probs"].sum(-1), 1)
    assert {r.method for r in names["results"].records} == {"vanilla", "worst_half"}
    commands = re.findall(r"^calmoe (run my_.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert cli.main(command.split()) == 0
    capsys.readouterr()
    of_file, of_function = (read_results(Path("runs") / n) for n in ("my_task", "make_task"))
    vanilla = tuple(r for r in of_file.records if r.method == "vanilla")
    assert vanilla == of_function.records


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_names_what_is_there(row):
    for namespace in re.findall(r"`([^`]*)`", row[0]):
        name = namespace.replace("cm", "calmoe_jax", 1) if namespace.startswith("cm") else namespace
        module = cm if name == "calmoe_jax" else import_module(name)
        found = [hasattr(module, each) for each in re.findall(r"`([^`]*)`", row[1])]
        assert any(found), namespace
        if row[0].count("`") == 2:
            assert all(found), namespace


def test_the_table_of_scaling_is_that_of_its_results():
    results = Path(__file__).parents[1] / "benchmarks" / "scaling.json"
    if not results.is_file():
        pytest.skip("the results are not installed")
    from benchmarks.scaling import table

    assert table(json.loads(results.read_text())) in TEXT


def test_every_namespace_has_a_row():
    assert len(ROWS) >= 15
