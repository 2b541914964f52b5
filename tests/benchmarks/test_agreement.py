"""The comparison with the naive formulation: it passes what is right, and finds every error."""

import jax
import jax.numpy as jnp
import pytest
from benchmarking import SMALL

from benchmarks import parts
from benchmarks.agreement import differences, disagreements, reference
from benchmarks.problems import make_inputs
from benchmarks.rivals import FAIR, NAIVE


def test_library_and_rivals_agree():
    problem = SMALL._replace(scores="sigmoid", num_groups=4, groups_per_token=2, biased=True)
    variants = [parts.VARIANTS["xla"], FAIR, NAIVE]
    assert disagreements(problem, variants) == {"xla": [], "fair": [], "naive": []}


@pytest.fixture(scope="module")
def layer():
    inputs = make_inputs(SMALL)
    run = jax.jit(lambda inputs: parts.forward_backward(FAIR, SMALL, inputs))
    return run(inputs), jax.jit(lambda inputs: reference(SMALL, inputs))(inputs)


BREAKS = {
    "expert_indices": lambda x: x.at[3, 0].add(1),
    "positions": lambda x: x[::-1],
    "slot_indices": lambda x: jnp.roll(x, 1),
    "group_sizes": lambda x: x.at[0].add(1).at[1].add(-1),
    "weights": lambda x: x + 1e-4,
    "rows": lambda x: x.at[7, 3].multiply(1.01),
    "y": lambda x: x * 1.02,
    "d_outputs": lambda x: x.at[5].set(0),
    "d_weights": lambda x: x[:, ::-1],
    "d_x": lambda x: x.at[0, 0].set(jnp.nan),
    "d_logits": lambda x: 0 * x,
}


def test_what_is_right_differs_in_nothing(layer):
    got, expected = layer
    assert got.keys() == expected.keys() == BREAKS.keys()
    assert differences(got, expected) == []


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_caught(layer, name):
    got, expected = layer
    (found,) = differences(got | {name: BREAKS[name](got[name])}, expected)
    assert found.startswith(f"{name} differs")
    (found,) = differences(got | {name: got[name][:-1]}, expected)
    assert found.startswith(f"{name} has shape")
