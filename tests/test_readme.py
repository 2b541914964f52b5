"""The commands in the README run, and its API table lists existing names."""

import json
import re
from importlib import import_module
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from audit_logs import write
from deployed_logs import fill, make_deployed, make_sharpened

import calmoe_jax as cm
from calmoe_jax import cli
from calmoe_jax.study.records import read_results

pytestmark = pytest.mark.every_case

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
TABLE = TEXT.split("## API")[1].split("## Symbols")[0]
ROWS = re.findall(r"^\| (`[^|]*) \|[^|]*\| (`[^|]*) \|$", TABLE, re.MULTILINE)

OF_NUMPY = re.findall(r"```python\n(# apply repair.json.*?)```", TEXT, re.DOTALL)[0]


@pytest.mark.exhaustive
def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        if code != OF_NUMPY:
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
    assert cli.main(["audit", "ensemble.npz"]) == 0
    capsys.readouterr()
    of_file, of_function = (read_results(Path("runs") / n) for n in ("my_task", "make_task"))
    vanilla = tuple(r for r in of_file.records if r.method == "vanilla")
    assert vanilla == of_function.records


def test_a_repair_is_applied_in_plain_numpy(tmp_path, monkeypatch):
    """By the very lines, after the very commands; as the library does."""
    monkeypatch.chdir(tmp_path)
    arrays, labels = make_deployed()
    write(tmp_path, arrays)
    label, repair = re.findall(r"^calmoe ((?:label|repair) logs.*?) +#", TEXT, re.MULTILINE)
    assert cli.main(label.split()) == 0
    fill(tmp_path / "ask.csv", labels, tmp_path / "ask.csv")
    assert cli.main(repair.split()) == 0
    assert "calmoe" not in OF_NUMPY.replace('"calmoe repair"', "")
    names = {}
    exec(OF_NUMPY, names)
    found = cm.audit.load_repair("repair.json")
    assert found.temperature > found.held_out_temperature
    expected = cm.audit.apply_repair(
        found, jnp.log(arrays["expert_probs"]), jnp.asarray(arrays["routing_weights"])
    )
    np.testing.assert_allclose(names["repaired"], jnp.exp(expected), atol=1e-6)


@pytest.mark.exhaustive
def test_a_refit_is_applied_in_plain_numpy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays, _ = make_sharpened()
    write(tmp_path, arrays)
    assert cli.main(["repair", "logs.npz", "--mode", "refit", "--out", "repair.json"]) == 0
    names = {}
    exec(OF_NUMPY, names)
    found = cm.audit.load_repair("repair.json")
    assert found.expert_temperatures is not None
    expected = cm.audit.apply_repair(
        found, jnp.log(arrays["expert_probs"]), jnp.asarray(arrays["routing_weights"])
    )
    np.testing.assert_allclose(names["repaired"], jnp.exp(expected), atol=1e-6)


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
