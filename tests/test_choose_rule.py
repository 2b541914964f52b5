"""The experiment that chooses a rule without labels of targets: its parts, and what it looks up."""

import jax.numpy as jnp
import numpy as np

import calmoe_jax as cm
from calmoe_jax.data import Split, Task
from experiments import choose_rule


def test_each_class_is_parted_and_the_largest_part_comes_first():
    rng = np.random.RandomState(0)
    sizes, centres = (40, 25, 15, 10), np.array([[0, 0], [50, 0], [0, 50], [50, 50]])
    rows = np.concatenate([c + rng.randn(s, 2) for c, s in zip(centres, sizes, strict=True)])
    want = np.repeat(np.arange(4), sizes)
    inputs = np.concatenate([rows, rows + 500]).astype(np.float32)
    labels, want = np.repeat([0, 1], 90).astype(np.int32), np.tile(want, 2)
    order = rng.permutation(180)

    def split(some, kind):
        return Split(kind, kind, inputs[some], labels[some], np.arange(len(some)), "")

    train, held_out = order[:150], order[150:]
    task = Task("t", ("a", "b"), split(train, "train"), split(held_out, "calibration"), (), "")
    parts = choose_rule.subpopulations(task)
    np.testing.assert_array_equal(parts[0], want[train])
    np.testing.assert_array_equal(parts[1], want[held_out])


def test_the_more_cautious_temperature_is_looked_up():
    logs = choose_rule._LOG_TEMPERATURES
    confidences = np.stack([1 / (1 + np.exp(logs - 1)), 1 / (1 + np.exp(logs - 2))], axis=1)
    errors = np.stack([logs, 2 * logs], axis=1)
    sure = jnp.zeros(2)
    supports = {
        15: (
            cm.NeighbourSupport(jnp.full(2, 0.9), jnp.full(2, 0.1), sure),
            cm.NeighbourSupport(jnp.array([0.5, 0.9]), jnp.full(2, 0.1), sure),
        )
    }
    agreements = cm.Agreement(jnp.ones(2), sure), cm.Agreement(jnp.array([1.0, 0.5]), sure)
    at = choose_rule.Shift(
        np.array([1.1, 1.2]), 0.0, 0.0, np.array([0.8, 0.8]), supports, agreements,
        np.full(2, 0.1), errors, confidences, 10,
    )  # fmt: skip
    rule = choose_rule.Constants(15, 0.0, 0.0, 0.0, 0.0)
    # half of what is above chance: .45, of the first seed by neighbours, of the second by seeds
    wanted = np.log(1 / 0.45 - 1) + np.array([1, 2])
    error = np.mean([wanted[0], 2 * wanted[1]])
    np.testing.assert_allclose(choose_rule.errors_of(at, (rule, rule)), error, rtol=1e-3)
    # neither what says nothing nor what would be bolder changes a temperature
    silent = cm.NeighbourSupport(jnp.full(2, jnp.nan), jnp.full(2, 0.1), sure)
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
