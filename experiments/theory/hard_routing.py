"""(a) Hard routing stays calibrated under shifts that keep P(Y | S), and breaks under others.

Every expert is calibrated on its region: the predicted class is right as often as the confidence
says, within each slice S of selected expert, predicted class and confidence. Inside a slice some
inputs are right more often than others. A shift `dQ = w dP` moves a slice's accuracy by exactly
`Cov_P(w, Y | S) / E_P[w | S]`, so the mixture stays calibrated where that is 0 and not where it is
not: whatever moves experts, classes and confidences is harmless, and so are inputs that say nothing
about being right; weights that depend on the label, or on inputs that do, are not.
"""

import itertools
import random
from collections.abc import Callable, Hashable
from fractions import Fraction as F
from typing import Any

from matplotlib.figure import Figure

from calmoe_jax.drawing.style import look
from experiments.theory.population import (
    Atom,
    Population,
    Weight,
    error,
    frequency,
    groups,
    mass,
    of_inputs,
    shifted,
    weight_covariance,
)

TITLE = "Hard routing keeps its calibration exactly where the shift keeps P(Y | S)"
# Weight of the favoured examples; of the others it is 1.
FACTORS = tuple(F(2) ** k for k in range(6))
RANDOM_SHIFTS = 40
_CLASSES = 3
_CONFIDENCES = ((F(3, 5), F(9, 10)), (F(3, 5), F(7, 10)))  # by expert
_APART = F(1, 20)  # between the accuracy of an input and its slice's
_HARD = ((F(1), F(0)), (F(0), F(1)))


def slice_of(atom: Atom) -> Hashable:
    """Selected expert, predicted class, and confidence.

    Args:
        atom: of which the first trait is the predicted class.
    """
    return atom.chosen, atom.traits[0], atom.prediction


def calibrated_population() -> Population:
    """A hard-routed mixture of two experts, calibrated within each slice.

    Traits are the predicted class; whether the input is one of those more often right; and another
    property of inputs that has nothing to do with that. The expert that is not selected knows the
    second.
    """
    rng = random.Random(0)
    masses = itertools.product(range(2), range(_CLASSES), range(2))
    sizes = {key: rng.randint(1, 9) for key in masses}
    total = 4 * sum(sizes.values())
    atoms = []
    for (expert, label, level), size in sizes.items():
        confidence = _CONFIDENCES[expert][level]
        for easy, other in itertools.product((0, 1), repeat=2):
            told = [F(1, 2) + F(easy, 4)] * 2
            told[expert] = confidence
            atoms.append(
                Atom(
                    F(size, total),
                    confidence + (2 * easy - 1) * _APART,
                    _HARD[expert],
                    tuple(told),
                    (label, easy, other),
                )
            )
    return tuple(atoms)


def without_classes() -> Population:
    """One expert, right as often as it says, but not for each predicted class."""
    return tuple(
        Atom(F(1, 2), F(4, 5) + side * F(1, 10), _HARD[0], (F(4, 5), F(1, 2)), (label, 0, 0))
        for label, side in enumerate((1, -1))
    )


def cancelling_experts() -> Population:
    """Two experts that err by as much in opposite directions: calibrated together, not each."""
    return tuple(
        Atom(F(1, 2), F(4, 5) + (1 - 2 * k) * F(7, 100), _HARD[k], (F(4, 5), F(4, 5)), (0, 0, 0))
        for k in range(2)
    )


def _favour(which: Callable[[Atom], bool]) -> Callable[[F], Weight]:
    return lambda factor: of_inputs(lambda atom: factor if which(atom) else 1)


# name, population, weights by the factor, whether P(Y | S) stays
_Shift = tuple[str, Callable[[], Population], Callable[[F], Weight], bool]
SHIFTS: tuple[_Shift, ...] = (
    ("the first expert's examples", calibrated_population, _favour(lambda a: a.chosen == 0), True),
    ("one predicted class", calibrated_population, _favour(lambda a: a.traits[0] == 0), True),
    ("confident examples", calibrated_population, _favour(lambda a: a.prediction > F(3, 5)), True),
    ("inputs unrelated to being right", calibrated_population, _favour(lambda a: a.traits[2] == 1),
     True),
    ("examples that are right", calibrated_population, lambda f: lambda _: (F(1), f), False),
    ("what the other expert says", calibrated_population,
     _favour(lambda a: a.experts[1 - a.chosen] > F(1, 2)), False),
    ("a class, where S leaves it out", without_classes, _favour(lambda a: a.traits[0] == 0), False),
    ("an expert, calibrated on average only", cancelling_experts,
     _favour(lambda a: a.chosen == 0), False),
)  # fmt: skip


def random_weights(population: Population, seed: int) -> Weight:
    """A weight from 1 to 9 for each atom and label.

    Args:
        population: the atoms.
        seed: of the numbers.
    """
    rng = random.Random(seed)
    drawn = {atom: (F(rng.randint(1, 9)), F(rng.randint(1, 9))) for atom in population}
    return drawn.__getitem__


def stability_bound(population: Population, weight: Weight) -> F:
    """`E_Q |Cov_P(w, Y | S)| / E_P[w | S]`, which the error under the shift cannot exceed.

    Args:
        population: calibrated within each slice.
        weight: of the shift.
    """
    after = {
        key: mass(atoms) for key, atoms in groups(shifted(population, weight), slice_of).items()
    }
    bound = F(0)
    for key, atoms in groups(population, slice_of).items():
        bound += after.get(key, F(0)) * abs(weight_covariance(atoms, weight))
    return bound


def compute() -> dict[str, Any]:
    """Errors under each shift, and the condition on random ones; all exact."""
    curves = {
        name: {
            "keeps": keeps,
            "errors": [str(error(shifted(make(), weight(factor)))) for factor in FACTORS],
        }
        for name, make, weight, keeps in SHIFTS
    }
    population = calibrated_population()
    before = {key: frequency(atoms) for key, atoms in groups(population, slice_of).items()}
    points, exact, bounded = [], 0, 0
    for seed in range(RANDOM_SHIFTS):
        weight = random_weights(population, seed)
        moved = shifted(population, weight)
        after = {key: frequency(atoms) for key, atoms in groups(moved, slice_of).items()}
        for key, atoms in groups(population, slice_of).items():
            said = weight_covariance(atoms, weight)
            exact += after[key] - before[key] == said
            points.append((str(said), str(after[key] - before[key])))
        bounded += error(moved) <= stability_bound(population, weight)
    return {
        "factors": [str(factor) for factor in FACTORS],
        "source_error": str(error(population)),
        "shifts": curves,
        "covariance": {"slices": len(points), "equal": exact, "points": points},
        "stability": {"shifts": RANDOM_SHIFTS, "within_bound": bounded},
    }


def draw(found: dict[str, Any]) -> Figure:
    """Error by shift, and the covariance condition.

    Args:
        found: as from `compute`.
    """
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
    factors = [float(F(x)) for x in found["factors"]]
    for i, (name, curve) in enumerate(found["shifts"].items()):
        errors = [float(F(x)) for x in curve["errors"]]
        # four lines lie on 0: their markers take turns
        turns = (i % 4, 4) if curve["keeps"] else None
        left.plot(factors, errors, label=name, markevery=turns, ms=6, **look(i))
    left.set_xscale("log", base=2)
    left.set_xticks(factors, [f"{x:g}" for x in factors])
    left.set_ylim(bottom=-0.008)
    left.set_xlabel("weight of the favoured examples")
    left.set_ylabel("calibration error under the shift, exact")
    left.set_title("Favouring ...")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=4, frameon=False, fontsize=8.5)
    points = [[float(F(x)) for x in pair] for pair in found["covariance"]["points"]]
    x, y = zip(*points, strict=True)
    ends = min(x), max(x)
    right.plot(ends, ends, color="#7F7F7F", lw=1)
    right.plot(x, y, "o", ms=3.5, color=look(1)["color"], alpha=0.5)
    right.set_xlabel("Cov(w, right | S) / E[w | S]")
    right.set_ylabel("change of the slice's accuracy")
    count = found["covariance"]
    right.set_title(f"The change is that number: {count['equal']} of {count['slices']} slices")
    figure.suptitle(TITLE)
    return figure
