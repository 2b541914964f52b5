"""The experiment that chooses a rule without labels of targets: a small run, and its choices."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from experimenting import run_small

import calmoe_jax as cm
from experiments import choose_rule

pytestmark = pytest.mark.exhaustive


@pytest.mark.exhaustive
@pytest.mark.slow
def test_a_small_run(tmp_path, monkeypatch, capsys):
    grid = (choose_rule.SHIPPED, choose_rule.Constants(15, 10.0, 3.0, 10.0, 2.0))
    monkeypatch.setattr(choose_rule, "GRID", grid)
    monkeypatch.setattr(choose_rule, "NUM_NEIGHBOURS", (15,))
    monkeypatch.setattr(choose_rule, "SUBPOPULATIONS", 1)
    monkeypatch.setattr(choose_rule, "ALLOWED_WITHOUT", 1.0)
    monkeypatch.setattr(choose_rule, "ALLOWED_HARM", 1.0)
    found = run_small(choose_rule, tmp_path, monkeypatch)["rules"]
    assert list(found)[-1] == "shipped"
    assert len(found) == 3
    shipped = found["shipped"]
    assert shipped["constants"] == choose_rule.SHIPPED._asdict()
    assert set(shipped["greatest_harm"]) == set(shipped["simulated_harm"]) == {"portal"}
    assert 0 < shipped["best"] <= shipped["temperature"] + 0.01 < 1
    printed = capsys.readouterr().out
    assert printed.count("of the gap") == 3


def test_constants_that_do_harm_on_any_shift_are_not_chosen(monkeypatch):
    grid = tuple(choose_rule.Constants(5, i, 0, 0, 0) for i in range(4))
    monkeypatch.setattr(choose_rule, "GRID", grid)
    # errors of the four: the best harms without a shift, the next under a mild one
    table = {
        "none": [0.016, 0.014, 0.01, 0.01],
        "mild": [0.02, 0.08, 0.055, 0.09],
        "severe": [0.01, 0.01, 0.2, 0.25],
    }
    inside = {"none": 0.01, "mild": 0.05, "severe": 0.3}
    monkeypatch.setattr(choose_rule, "errors_of", lambda at, _: np.array(table[at.name]))
    shifts = {name: SimpleNamespace(name=name, error_inside=x) for name, x in inside.items()}
    tried = choose_rule.try_all({"task": [shifts, shifts], "other": [shifts]})
    expected = np.mean([table["mild"], table["severe"]], axis=0)
    np.testing.assert_allclose(choose_rule.mean_error(tried), expected)
    assert choose_rule.choose(tried, watched=lambda name: True) == grid[2]
    assert choose_rule.choose(tried, watched=lambda name: name == "none") == grid[1]
    assert choose_rule.choose(tried, watched=lambda name: False) == grid[0]
    harms = choose_rule.greatest_harms(tried, grid[1])
    assert harms["other"][0] == "mild"
    np.testing.assert_allclose(harms["other"][1], 0.03)
    table["none"] = [0.1] * 4
    with pytest.raises(ValueError, match="all constants"):
        choose_rule.choose(choose_rule.try_all({"task": [shifts]}), watched=lambda name: True)


def test_the_more_cautious_temperature_is_looked_up():
    logs = choose_rule.LOG_TEMPERATURES
    confidences = np.stack([1 / (1 + np.exp(logs - 1)), 1 / (1 + np.exp(logs - 2))], axis=1)
    errors = np.stack([logs, 2 * logs], axis=1)
    sure = jnp.zeros(2)
    supports = {
        15: (
            cm.shift.NeighbourSupport(jnp.full(2, 0.9), jnp.full(2, 0.1), sure),
            cm.shift.NeighbourSupport(jnp.array([0.5, 0.9]), jnp.full(2, 0.1), sure),
        )
    }
    agreements = (
        cm.shift.Agreement(jnp.ones(2), sure),
        cm.shift.Agreement(jnp.array([1.0, 0.5]), sure),
    )
    at = choose_rule.Shift(
        np.array([1.1, 1.2]), 0.0, 0.0, np.array([0.8, 0.8]), supports, agreements,
        np.full(2, 0.1), errors, confidences, 10,
    )  # fmt: skip
    rule = choose_rule.Constants(15, 0.0, 0.0, 0.0, 0.0)
    # half of what is above chance: .45, of the first seed by neighbours, of the second by seeds
    wanted = np.log(1 / 0.45 - 1) + np.array([1, 2])
    error = np.mean([wanted[0], 2 * wanted[1]])
    np.testing.assert_allclose(choose_rule.errors_of(at, (rule, rule)), error, rtol=1e-3)
    # neither NaN nor what would make a prediction more confident changes a temperature
    silent = cm.shift.NeighbourSupport(jnp.full(2, jnp.nan), jnp.full(2, 0.1), sure)
    at = at._replace(
        supports={15: (supports[15][0], silent)},
        agreements=(agreements[0], agreements[0]),
        confidence=np.array([0.99, 0.99]),
    )
    for found in (
        choose_rule.neighbours_temperatures(at, rule),
        choose_rule.seeds_temperatures(at, rule),
    ):
        np.testing.assert_allclose(found, np.log(at.inside), rtol=1e-6)
