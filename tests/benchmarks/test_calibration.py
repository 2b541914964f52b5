"""The benchmark of calibration: absent peers are left out, and it reports and checks bounds."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import references
from benchmarking import quick_turns

from benchmarks import calibration


def without(monkeypatch, *modules):
    """As if these modules were not installed."""
    find = calibration.find_spec
    monkeypatch.setattr(
        calibration, "find_spec", lambda name: None if name in modules else find(name)
    )


PEERS = ("netcal", "torchmetrics", "bayes_hdc", "relplot")


def test_its_own_formulations_equal_a_loop():
    given = calibration.make(500, 4)
    np.testing.assert_allclose(given.probs.sum(1), 1, rtol=1e-6)
    confidence, correct = references.top_label(given.probs, given.labels)
    expected = references.calibration_error(confidence, correct, num_bins=15)
    assert abs(np.mean(confidence) - np.mean(correct)) > 0.01
    probs = given.probs.astype(np.float64)
    found = calibration.expected_by_numpy(probs, given.labels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = calibration.expected_by_jax(jnp.asarray(given.probs), jnp.asarray(given.labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = calibration.expected_with_checks(jnp.asarray(given.probs), jnp.asarray(given.labels))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for bad in (jnp.full(4, 0.5), jnp.array([-0.5, 0.5, 0.5, 0.5])):
        strange = jnp.asarray(given.probs).at[3].set(bad)
        assert jnp.isnan(calibration.expected_with_checks(strange, jnp.asarray(given.labels)))
    drawn = calibration.errors_by_numpy(probs, given.labels, 200)
    assert abs(drawn.mean() - expected) < 5 * drawn.std()


@pytest.mark.exhaustive
@pytest.mark.parametrize(("most", "code"), [(1e9, 0), (1e-9, 1)])
def test_it_runs_writes_and_checks(tmp_path, monkeypatch, capsys, most, code):
    without(monkeypatch, *PEERS)
    bounds = {name: most for name in calibration.MOST if not name.startswith("wide")}
    bounds["wide: fit of a temperature / pass, 60 x 70"] = most
    monkeypatch.setattr(calibration, "MOST", bounds)
    monkeypatch.setattr(calibration, "LEAST", {})
    monkeypatch.setattr(calibration, "time_in_turns", quick_turns)
    monkeypatch.setattr(calibration, "WIDE", ((60, 70), (70, 5)))
    out = tmp_path / "calibration.json"
    options = "--problems expected wide bootstrap --size 2000 --rounds 1 --check --out"
    arguments = calibration.parse([*options.split(), str(out)])
    assert calibration.run(arguments) == code
    written = json.loads(out.read_text())
    names = {figure["name"] for figure in written["figures"]}
    assert {*bounds, "expected: numpy / ours", "bootstrap: interval / pass"} <= names
    assert written["problems"]["expected"]["jax"]["fastest"] == "plain JAX"
    printed = capsys.readouterr().out.splitlines()
    assert "netcal is not installed: not compared" in printed
    assert printed[-1].startswith("FAILED" if code else "ok")


def test_a_value_that_differs_is_caught(monkeypatch):
    without(monkeypatch, *PEERS)
    monkeypatch.setattr(calibration, "expected_by_numpy", lambda probs, labels: 0.5)
    monkeypatch.setattr(calibration, "time_in_turns", quick_turns)
    found, _ = calibration.measure_expected(calibration.make(200, 3), 1)
    broken = [figure.name for figure in found if "differs" in figure.name and not figure.holds]
    assert broken == ["expected: numpy differs by"]


@pytest.mark.peers
@pytest.mark.slow
def test_every_bound_is_of_a_figure(monkeypatch):
    """A bound under another name would never be checked."""
    for module in PEERS:
        if calibration.find_spec(module) is None:
            pytest.skip(f"needs {module}")
    given = calibration.make(300, 3)
    monkeypatch.setattr(calibration, "time_in_turns", quick_turns)
    figures = [x for measure in calibration.PROBLEMS.values() for x in measure(given, 1)[0]]
    checked = {x.name for x in figures if x.bound is not None or x.least is not None}
    assert {*calibration.MOST, *calibration.LEAST} <= checked
    differing = [x.name for x in figures if "differs" in x.name and not x.holds]
    assert differing == []
