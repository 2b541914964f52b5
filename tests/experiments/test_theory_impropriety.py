"""The tilt's minimisers: closed form, search, sums over batches; networks against them."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize_scalar

from calmoe_jax.training import objectives
from experiments.theory import impropriety

COMMITTED = json.loads((Path(impropriety.__file__).parent / "results.json").read_text())["parts"]
NUMBERS = COMMITTED["e"]["numbers"]


@pytest.mark.parametrize("eta", [0.5, 2.0, 8.0])
def test_closed_form_is_the_minimiser(eta):
    for truth in ((0.9, 0.1), (0.7, 0.2, 0.1), (0.4, 0.3, 0.2, 0.1)):
        closed = impropriety.tilted(truth, eta)
        np.testing.assert_allclose(closed, impropriety.population_minimiser(truth, eta), atol=1e-7)
        np.testing.assert_allclose(closed.sum(), 1)
    p = impropriety.tilted((0.9, 0.1), eta)[0]
    np.testing.assert_allclose(math.log(p / (1 - p)), math.log(9) / (1 + eta))


def expected_by_enumeration(logits, truths, eta, size):
    """Over all batches, one by one."""
    outcomes = []
    for z, truth in zip(logits, truths, strict=True):
        for sign, chance in ((1, truth), (-1, 1 - truth)):
            outcomes.append((chance / len(truths), math.log1p(math.exp(-sign * z))))
    total = 0.0
    for batch in itertools.product(outcomes, repeat=size):
        mean = sum(math.exp(eta * loss) for _, loss in batch) / size
        total += math.prod(chance for chance, _ in batch) * math.log(mean) / eta
    return total


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_integral_is_the_sum_over_batches(size):
    logits, truths = np.array([0.3, -1.2, 2.5]), np.array([0.6, 0.3, 0.9])
    value, gradient = impropriety.expected_batch_loss(logits, truths, 2.0, size)
    np.testing.assert_allclose(value, expected_by_enumeration(logits, truths, 2.0, size), rtol=1e-9)
    numeric = approx_fprime(
        logits, lambda z: impropriety.expected_batch_loss(z, truths, 2.0, size)[0], 1e-6
    )
    np.testing.assert_allclose(gradient, numeric, atol=1e-5)


def test_batches_of_one_input_by_the_binomial():
    """.900, .818, .703, .677 for batches of 1, 2, 8, 128."""
    for size, rounded in ((1, 0.9), (2, 0.818), (8, 0.703), (128, 0.677)):
        counts = np.arange(size + 1)
        log_chance = np.array(
            [math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1) for k in counts]
        ) + counts * math.log(0.9) + (size - counts) * math.log(0.1)  # fmt: skip

        def loss(p, counts=counts, log_chance=log_chance, size=size):
            mean = (counts * p**-2.0 + (size - counts) * (1 - p) ** -2.0) / size
            return float(np.exp(log_chance) @ np.log(mean)) / 2

        found = minimize_scalar(
            loss, bounds=(0.5, 0.99), method="bounded", options={"xatol": 1e-9}
        ).x
        np.testing.assert_allclose(
            impropriety.batch_minimiser((0.9,), 2.0, size)[0], found, atol=1e-5
        )
        np.testing.assert_allclose(NUMBERS["one_input_of_0.9"][str(size)], found, atol=1e-5)
        assert round(found, 3) == rounded


def test_large_batches_tend_to_the_closed_form_and_one_example_to_the_truth():
    truths = impropriety.TRUTHS
    limit = [impropriety.tilted((x, 1 - x), 2.0)[0] for x in truths]
    np.testing.assert_allclose(impropriety.batch_minimiser(truths, 2.0, 100_000), limit, atol=1e-4)
    np.testing.assert_allclose(impropriety.batch_minimiser(truths, 2.0, 1), truths, atol=1e-6)


def test_committed_minimisers():
    for eta, lines in NUMBERS["binary"].items():
        for line in lines:
            expected = impropriety.tilted((line["truth"], 1 - line["truth"]), float(eta))[0]
            np.testing.assert_allclose(line["closed"], expected, rtol=1e-12)
            np.testing.assert_allclose(line["searched"], expected, atol=1e-6)
            assert 0.5 < line["through_weights"] < line["closed"] < line["truth"]
    of_paper = next(x for x in NUMBERS["binary"]["2.0"] if x["truth"] == 0.9)
    assert [round(of_paper[k], 3) for k in ("closed", "through_weights")] == [0.675, 0.616]
    for line in NUMBERS["three_classes"]:
        np.testing.assert_allclose(line["closed"], line["searched"], atol=1e-6)


def test_committed_networks_follow_theory():
    for name, line in NUMBERS["networks"].items():
        tilt = name.startswith("tilt")
        size = int(name.split("= ")[1])
        expected = impropriety.batch_minimiser(impropriety.TRUTHS, 2.0, size)
        expected = expected if tilt else np.array(impropriety.TRUTHS)
        np.testing.assert_allclose(line["expected"], expected, atol=1e-5)
        mean = np.mean(line["found"], axis=0)
        np.testing.assert_allclose(mean, expected, atol=0.02 if size == 1 else 0.01)
        np.testing.assert_allclose(line["largest_difference"], np.abs(mean - expected).max())


@pytest.mark.parametrize(
    "kind", ["tilt", pytest.param("weights of S", marks=pytest.mark.exhaustive)]
)
def test_small_networks_follow_theory(kind):
    make = objectives.robust if kind == "tilt" else objectives.configuration_robust
    found = impropriety.trained(make(eta=2.0), batch_size=128, steps=500, seeds=1)[0]
    truths = np.array(impropriety.TRUTHS)
    curve = impropriety.batch_minimiser(truths, 2.0, 128)
    expected, other = (curve, truths) if kind == "tilt" else (truths, curve)
    assert np.abs(found - expected).max() < 0.05 < np.abs(found - other).max()
