"""The worst shift against duality and a general solver."""

import json
import math
from fractions import Fraction as F
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from experiments.theory import worst_shift

COMMITTED = json.loads((Path(worst_shift.__file__).parent / "results.json").read_text())["parts"]


def dual(shares, biases, radius):
    """`min_v v + sqrt((1 + rho) E (b - v)_+^2)`, an upper bound that is attained."""
    q, b = np.array(shares, float), np.array(biases, float)

    def value(v):
        return v + math.sqrt((1 + radius) * float(q @ np.maximum(b - v, 0) ** 2))

    low = b.min() - 30 * np.ptp(b)
    found = minimize_scalar(
        value, bounds=(low, b.max()), method="bounded", options={"xatol": 1e-13}
    )
    return found.fun


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("radius", [F(1, 50), F(1), F(3), F(40)])
def test_equals_its_dual(seed, radius):
    shares, biases = worst_shift.random_configurations(2 + seed, seed)
    assert sum(shares) == 1
    assert sum(q * b for q, b in zip(shares, biases, strict=True)) == 0
    found = worst_shift.worst_up(shares, biases, radius)
    np.testing.assert_allclose(found, dual(shares, biases, radius), rtol=1e-6)
    assert found <= math.sqrt(radius * worst_shift.variance(shares, biases)) + 1e-12
    assert found <= max(biases) + 1e-12
    both = worst_shift.worst(shares, biases, radius)
    np.testing.assert_allclose(both, worst_shift.searched(shares, biases, radius), rtol=1e-5)
    assert max(worst_shift.feasible(shares, biases, radius, seed)) <= both + 1e-9


def test_ties_and_no_spread():
    third = F(1, 3)
    tied = [F(1, 10), F(1, 10), F(-1, 5)]
    for radius in (F(1, 4), F(1, 2), F(2)):
        found = worst_shift.worst_up([third] * 3, tied, radius)
        np.testing.assert_allclose(found, dual([third] * 3, tied, radius), rtol=1e-7)
    assert worst_shift.worst_up([third] * 3, tied, F(2)) == 0.1
    assert worst_shift.worst([F(1, 2)] * 2, [F(0), F(0)], F(1)) == 0


def test_the_formula_is_attained_up_to_its_last_radius():
    shares, biases = worst_shift.random_configurations(12, 1)
    last = worst_shift.last_exact_radius(shares, biases)
    sd = math.sqrt(worst_shift.variance(shares, biases))
    for radius, exact in ((last * F(99, 100), True), (last, True), (last * F(11, 10), False)):
        found, formula = worst_shift.worst(shares, biases, radius), math.sqrt(radius) * sd
        assert (abs(found - formula) < 1e-12) == exact
        assert found <= formula + 1e-12


def test_committed_numbers():
    found = COMMITTED["d"]["numbers"]
    assert [F(x) for x in found["radii"]] == list(worst_shift.RADII)
    for name, (shares, biases) in (
        ("two", worst_shift.two_configurations()),
        ("twelve", worst_shift.random_configurations(12, 1)),
    ):
        lines = found[name]
        assert [F(x) for x in lines["shares"]] == shares
        assert [F(x) for x in lines["biases"]] == biases
        assert F(lines["last_exact_radius"]) == worst_shift.last_exact_radius(shares, biases)
        exact = [worst_shift.worst(shares, biases, r) for r in worst_shift.RADII]
        np.testing.assert_allclose(lines["exact"], exact, rtol=1e-12)
        # the search and the library know only the constraints
        np.testing.assert_allclose(lines["searched"], exact, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(lines["library"], exact, rtol=1e-5, atol=1e-7)
        assert all(max(x) <= y + 1e-9 for x, y in zip(lines["random"], exact, strict=True))
    two = found["two"]
    assert (F(two["variance"]), F(two["last_exact_radius"])) == (F(1, 125), F(5, 4))
    assert two["exact"][-1] == 0.1 < two["formula"][-1]
