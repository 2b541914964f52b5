"""The experiment that chooses a rule without labels of targets: its parts, and what it looks up."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import calmoe_jax as cm
from calmoe_jax.data import Split, Task
from experiments import choose_rule, simulated


def a_task(dtype=np.float32):
    """Two classes of four clouds each, and the cloud that each example is of."""
    rng = np.random.RandomState(0)
    sizes, centres = (40, 25, 15, 10), np.array([[0, 0], [50, 0], [0, 50], [50, 50]])
    rows = np.concatenate([c + rng.randn(s, 2) for c, s in zip(centres, sizes, strict=True)])
    want = np.tile(np.repeat(np.arange(4), sizes), 2)
    inputs = np.concatenate([rows, rows + 100]) + 10
    labels = np.repeat([0, 1], 90).astype(np.int32)
    order = rng.permutation(180)

    def split(some, kind):
        return Split(kind, kind, inputs[some].astype(dtype), labels[some], some, "")

    train, held_out = order[:150], order[150:]
    task = Task("t", ("a", "b"), split(train, "train"), split(held_out, "calibration"), (), "")
    return task, (want[train], want[held_out])


def test_each_class_is_split_and_the_largest_part_comes_first():
    task, want = a_task()
    for found, wanted in zip(simulated.subpopulations(task), want, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_what_is_left_out_is_seen_in_targets_alone(dtype):
    task, parts = a_task(dtype)
    without, targets = simulated.leave_out(task, parts, 1)
    # each example is its own cluster, which identifies it
    part = dict(zip(task.train.clusters, parts[0], strict=True))
    part |= dict(zip(task.calibration.clusters, parts[1], strict=True))
    inside = np.concatenate([without.train.clusters, without.calibration.clusters])
    assert not any(part[i] == 1 for i in inside)
    new = {name: np.mean([part[i] == 1 for i in x.clusters]) for name, x in targets.items()}
    mixed = {"none": 0, "25% new": 0.25, "50% new": 0.5, "75% new": 0.75, "100% new": 1}
    for name, share in new.items():
        np.testing.assert_allclose(share, mixed.get(name, 0), atol=0.02)
    for split in targets.values():
        assert len(split) == len(targets["none"]) > 20
        assert split.inputs.dtype == dtype
        assert set(split.labels) == {0, 1}
        assert not set(split.clusters) & set(inside)


def test_noise_and_fading_have_the_given_size():
    task, parts = a_task()
    without, targets = simulated.leave_out(task, parts, 0)
    mean, scale = (f(without.train.inputs, axis=0) for f in (np.mean, np.std))
    plain = targets["none"].inputs
    for share in (0.75, 0.5, 0.25):
        want = mean + share * (plain - mean)
        np.testing.assert_allclose(targets[f"faded to {share}"].inputs, want, rtol=1e-4)
    for level in (0.25, 0.5, 1.0):
        noise = (targets[f"noise {level}"].inputs - plain) / scale
        np.testing.assert_allclose(noise.std(), level, rtol=0.3)


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
    part = {name: SimpleNamespace(name=name, error_inside=x) for name, x in inside.items()}
    tried = choose_rule.try_all({"task": [part, part], "other": [part]})
    want = np.mean([table["mild"], table["severe"]], axis=0)
    np.testing.assert_allclose(choose_rule.mean_error(tried), want)
    assert choose_rule.choose(tried, watched=lambda name: True) == grid[2]
    assert choose_rule.choose(tried, watched=lambda name: name == "none") == grid[1]
    assert choose_rule.choose(tried, watched=lambda name: False) == grid[0]
    harms = choose_rule.greatest_harms(tried, grid[1])
    assert harms["other"][0] == "mild"
    np.testing.assert_allclose(harms["other"][1], 0.03)
    table["none"] = [0.1] * 4
    with pytest.raises(ValueError, match="all constants"):
        choose_rule.choose(choose_rule.try_all({"task": [part]}), watched=lambda name: True)


def test_the_more_cautious_temperature_is_looked_up():
    logs = choose_rule._LOG_TEMPERATURES
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
    # neither an uninformative estimate nor a more confident one changes a temperature
    silent = cm.shift.NeighbourSupport(jnp.full(2, jnp.nan), jnp.full(2, 0.1), sure)
    at = at._replace(
        supports={15: (supports[15][0], silent)},
        agreements=(agreements[0], agreements[0]),
        confidence=np.array([0.99, 0.99]),
    )
    for found in (
        choose_rule.neighbours_temperatures(at, rule),  # NaN
        choose_rule.seeds_temperatures(at, rule),  # more confidence than in distribution
    ):
        np.testing.assert_allclose(found, np.log(at.inside), rtol=1e-6)
