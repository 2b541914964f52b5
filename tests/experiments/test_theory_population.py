"""Exact populations against sums over single outcomes, and the exact parts of the results."""

import json
import random
from fractions import Fraction as F
from pathlib import Path

import pytest

from experiments.theory import hard_routing, soft_routing
from experiments.theory.population import (
    Atom,
    error,
    expert_error,
    frequency,
    groups,
    hardened,
    mass,
    of_inputs,
    shifted,
    weight_covariance,
)

COMMITTED = json.loads((Path(hard_routing.__file__).parent / "results.json").read_text())["parts"]


def random_population(seed, size=9):
    rng = random.Random(seed)
    sizes = [rng.randint(1, 9) for _ in range(size)]
    atoms = []
    for weight in sizes:
        first = F(rng.randint(1, 4), 5)
        told = (F(rng.randint(1, 3), 4), F(rng.randint(1, 3), 4))
        chance = F(rng.randint(0, 5), 5)
        atoms.append(Atom(F(weight, sum(sizes)), chance, (first, 1 - first), told))
    return tuple(atoms)


def outcomes(population, weight=None):
    """Mass of every atom and label under the weights, normalised."""
    rows = []
    for atom in population:
        for y, chance in ((0, 1 - atom.chance), (1, atom.chance)):
            rows.append((atom, y, atom.mass * chance * (weight(atom)[y] if weight else 1)))
    total = sum(m for _, _, m in rows)
    return [(atom, y, m / total) for atom, y, m in rows]


def random_weight(population, seed):
    rng = random.Random(seed)
    drawn = {id(a): (F(rng.randint(0, 4)), F(rng.randint(1, 5))) for a in population}
    return lambda atom: drawn[id(atom)]


@pytest.mark.parametrize("seed", range(4))
def test_shifts_and_errors_equal_sums_over_outcomes(seed):
    population = random_population(seed)
    weight = random_weight(population, seed)
    rows = outcomes(population, weight)
    moved = shifted(population, weight)
    assert mass(moved) == 1
    assert frequency(moved) == sum(m * y for _, y, m in rows)
    told = {sum(r * f for r, f in zip(a.routing, a.experts, strict=True)) for a, _, _ in rows}
    expected = F(0)
    for level in told:
        some = [(y, m) for a, y, m in rows if a.prediction == level]
        held = sum(m for _, m in some)
        if held:
            expected += held * abs(sum(m * y for y, m in some) / held - level)
    assert error(moved) == expected > 0
    for k in range(2):
        of_views = F(0)
        for level in {a.experts[k] for a in population}:
            some = [m * a.routing[k] * (y - level) for a, y, m in rows if a.experts[k] == level]
            of_views += abs(sum(some))
        assert expert_error(moved, k) == of_views > 0


def test_a_slice_moves_by_its_covariance():
    population = random_population(7)
    weight = random_weight(population, 7)
    source = outcomes(population)
    for some in groups(population, lambda atom: atom.experts).values():
        rows = [(m, weight(a)[y], y) for a, y, m in source if any(a is x for x in some)]
        held = sum(m for m, _, _ in rows)
        mean_w, mean_y, both = (
            sum(m * f(w, y) for m, w, y in rows) / held
            for f in (lambda w, y: w, lambda w, y: y, lambda w, y: w * y)
        )
        assert weight_covariance(some, weight) == (both - mean_w * mean_y) / mean_w
        after = sum(m * w * y for m, w, y in rows) / sum(m * w for m, w, y in rows)
        assert after - mean_y == weight_covariance(some, weight)


@pytest.mark.parametrize("seed", range(3))
def test_hardened_experts_are_calibrated_at_their_source_under_every_shift_of_what_they_say(seed):
    population = random_population(seed)
    hard = hardened(population, population)
    assert {a.routing for a in hard} <= {(1, 0), (0, 1)}
    assert error(hard) == 0
    rng = random.Random(seed)
    drawn = {(k, a.experts[k]): rng.randint(1, 9) for a in hard for k in range(2)}
    by_slice = of_inputs(lambda a: drawn[a.chosen, a.experts[a.chosen]])
    assert error(shifted(hard, by_slice)) == 0
    assert error(shifted(hard, lambda _: (F(1), F(2)))) > 0


def test_a_uniform_weight_moves_nothing_and_no_weight_leaves_nothing():
    population = random_population(0)
    assert shifted(population, of_inputs(lambda _: 3)) == population
    kept = shifted(population, of_inputs(lambda a: a is population[0]))
    assert [a.mass for a in kept] == [1]
    assert kept[0].chance == population[0].chance


@pytest.mark.parametrize("seed", range(3))
def test_theorem_h_under_random_weights_of_the_slices(seed):
    population = hard_routing.calibrated_population()
    rng = random.Random(seed)
    drawn = {key: rng.randint(1, 99) for key in groups(population, hard_routing.slice_of)}
    moved = shifted(population, of_inputs(lambda a: drawn[hard_routing.slice_of(a)]))
    assert error(moved) == 0
    assert error(shifted(population, lambda a: (F(1), F(drawn[hard_routing.slice_of(a)])))) > 0


def test_shifts_of_hard_routing_and_their_committed_numbers():
    found = hard_routing.compute()
    assert json.loads(json.dumps(found)) == COMMITTED["a"]["numbers"]
    assert found["source_error"] == "0"
    for name, curve in found["shifts"].items():
        errors = [F(x) for x in curve["errors"]]
        assert errors[0] == 0
        assert (set(errors) == {0}) == curve["keeps"], name
        if not curve["keeps"]:
            assert errors == sorted(errors)
    # one class of 9/10 and one of 7/10 at .8: w puts 1/2 and 1/2 to w/(1+w)
    leaves_out = found["shifts"]["a class, where S leaves it out"]["errors"]
    assert [F(x) for x in leaves_out] == [
        F(1, 10) * (w - 1) / (w + 1) for w in hard_routing.FACTORS
    ]
    counts = found["covariance"]
    assert counts["equal"] == counts["slices"] == len(counts["points"]) > 400
    assert all(x == y for x, y in counts["points"])
    assert found["stability"] == {"shifts": 40, "within_bound": 40}


def test_soft_counterexamples_and_their_committed_numbers():
    found = soft_routing.compute()
    assert json.loads(json.dumps(found)) == COMMITTED["b"]["numbers"]
    shares = soft_routing.SHARES
    nothing = ["0"] * len(shares)
    first, second, third = (found[k] for k in ("softened", "balancing", "active_calibrated"))
    assert [F(x) for x in first["soft"]] == [F(4, 25) * v for v in shares]
    assert [F(x) for x in first["bound"]] == [F(768, 10000) * v for v in shares]
    for g, error_found, at_level in zip(
        shares, second["soft"], second["frequency_at_0.8"], strict=True
    ):
        rest = (1 - g) / 2 * F(8, 100)
        level = g / 2 * F(1, 10)
        assert F(error_found) == level + abs(level - rest) + rest
        assert F(at_level) == F(8, 10) + (level - rest) / (g / 2 + (1 - g) / 2)
    assert second["balanced_frequency_at_0.8"] == "4/5"
    assert F(second["balanced_soft"]) == F(2, 45)
    assert [F(x) for x in third["soft"]] == [F(44, 100) * t for t in shares]
    for lines in (first, second):
        assert lines["hard"] == nothing
        assert lines["experts"] == [["0", "0"]] * len(shares)
    assert third["experts_active"] == [["0", "0"]] * len(shares)
    # where the premise of view calibration fails, hard routing breaks as well
    assert F(third["hard"][0]) == 0
    assert F(third["hard"][-1]) == F(8, 100)
    assert all(F(x[0]) > 0 for x in third["experts_on_views"])


def test_the_source_of_the_third_population_has_mass_one_and_the_targets_configurations():
    source, target = (soft_routing.active_calibrated(F(t)) for t in (0, 1))
    assert mass(source) == mass(target) == 1
    assert len(source) == 12
    seen = {(a.routing, a.experts, a.chance) for a in source}
    assert {(a.routing, a.experts, a.chance) for a in target} < seen
    assert error(source) == 0
    assert sum(a.mass * a.disagreement for a in source) > 0
