"""The measurements of kernels: what is measured, and that the library reads what is written."""

import json

import jax.numpy as jnp
import pytest

from benchmarks import gpu_check, kernels
from calmoe_kernels import measurements, selection


@pytest.fixture
def timed(monkeypatch):
    """Times that are known: a kernel takes half as long."""
    monkeypatch.setattr(kernels.clocks, "compile_timers", lambda programs, device: programs)
    monkeypatch.setattr(
        kernels.clocks, "wall_seconds", lambda timers, target: {"kernel": [1.0], "xla": [2.0]}
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "layer", ["8 experts", pytest.param("128 experts", marks=pytest.mark.exhaustive)]
)
def test_every_operation_is_measured_in_its_class_and_read_again(
    layer, timed, tmp_path, monkeypatch
):
    monkeypatch.setattr(kernels, "LAYERS", {layer: kernels.LAYERS[layer]})
    out = tmp_path / "kernels.json"
    arguments = kernels.parse(["--classes", "16", "--out", str(out), "--commit", "abc"])
    assert kernels.run(arguments, "xla") == 0
    written = json.loads(out.read_text())
    path = gpu_check.keep_measurements(written, tmp_path / "results")
    assert path.name == f"{measurements.slug(written['device_kind'])}.json"
    found = measurements.read(path.parent, written["device_kind"])
    assert found.problem == ""
    assert {entry.operation for entry in found.entries} == set(selection.OPERATIONS)
    assert {entry.size_class for entry in found.entries} <= {16, 18}
    for operation in selection.OPERATIONS:
        assert 16 in measurements.won(found.entries, operation=operation, implementation="xla")
    assert written["commit"] == "abc"
    assert {entry["ratio"] for entry in written["entries"]} == {0.5}


def test_what_is_wrong_is_found(timed, monkeypatch):
    case = next(kernels.cases(12))
    wrong = case._replace(run=lambda name, x: x + (name != "xla"))
    assert not kernels.measure(wrong, "triton").correct
    assert kernels.measure(case._replace(run=lambda name, x: x), "triton").correct


def test_agreement():
    x = jnp.array([1.0, -3.0])
    for dtype, off in ((jnp.float32, 1e-5), (jnp.bfloat16, 2.0**-7)):
        assert kernels.agree(x.astype(dtype), (x * (1 + 0.9 * off)).astype(dtype))
        assert not kernels.agree(x.astype(dtype), (x * (1 + 4 * off)).astype(dtype))
    assert not kernels.agree(jnp.array([jnp.nan]), jnp.array([jnp.nan]))
    assert not kernels.agree(jnp.array([1, 2]), jnp.array([1, 3]))
    assert kernels.agree((jnp.array([1]), x), (jnp.array([1]), x))


def test_without_a_kernel_nothing_is_written(tmp_path, capsys):
    assert kernels.run(kernels.parse(["--out", str(tmp_path / "a.json")]), None) == 0
    assert "nothing was measured" in capsys.readouterr().out
    assert gpu_check.keep_measurements(None, tmp_path) is None
    assert list(tmp_path.iterdir()) == []
