"""Finite populations of a mixture in exact arithmetic: calibration, and what a shift does to it.

One event is predicted: class 1, or that the predicted class is right. All numbers are fractions, so
that an error of 0 is 0.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

ZERO = Fraction(0)
ONE = Fraction(1)


@dataclass(frozen=True)
class Atom:
    """Examples that are alike in everything but their label.

    Attributes:
        mass: probability of such an example.
        chance: probability of the event for it.
        routing: routing weight of each expert; they sum to one.
        experts: probability of the event by each expert.
        traits: anything else that tells it from others.
    """

    mass: Fraction
    chance: Fraction
    routing: tuple[Fraction, ...]
    experts: tuple[Fraction, ...]
    traits: tuple[Hashable, ...] = ()

    @property
    def prediction(self) -> Fraction:
        """The aggregate's probability of the event, `sum_k r_k f_k`."""
        return sum((r * f for r, f in zip(self.routing, self.experts, strict=True)), ZERO)

    @property
    def chosen(self) -> int:
        """The expert with the largest routing weight, the first of several."""
        return self.routing.index(max(self.routing))

    @property
    def disagreement(self) -> Fraction:
        """`sum_k r_k (f_k - F)^2`, of the event's column alone."""
        pairs = zip(self.routing, self.experts, strict=True)
        return sum((r * (f - self.prediction) ** 2 for r, f in pairs), ZERO)


Population = tuple[Atom, ...]
# Weights of an example without and with the event.
Weight = Callable[[Atom], tuple[Fraction, Fraction]]


def of_inputs(weight: Callable[[Atom], Fraction | int]) -> Weight:
    """Weights that do not depend on the label.

    Args:
        weight: weight of an example.
    """

    def both(atom: Atom) -> tuple[Fraction, Fraction]:
        value = Fraction(weight(atom))
        return value, value

    return both


def groups(population: Iterable[Atom], key: Callable[[Atom], Hashable]) -> dict[Hashable, list]:
    """The atoms by their value of a key, in the order in which values appear.

    Args:
        population: the atoms.
        key: function of an atom.
    """
    found: dict[Hashable, list] = {}
    for atom in population:
        found.setdefault(key(atom), []).append(atom)
    return found


def mass(population: Iterable[Atom]) -> Fraction:
    """The whole mass.

    Args:
        population: the atoms.
    """
    return sum((atom.mass for atom in population), ZERO)


def frequency(population: Iterable[Atom]) -> Fraction:
    """Probability of the event among these atoms, which have some mass.

    Args:
        population: the atoms.
    """
    atoms = list(population)
    return sum((atom.mass * atom.chance for atom in atoms), ZERO) / mass(atoms)


def shifted(population: Iterable[Atom], weight: Weight) -> Population:
    """The population reweighted, `dQ = w dP / E_P[w]`; atoms without weight are left out.

    Args:
        population: the atoms.
        weight: not negative, and above 0 for some.
    """
    moved = []
    for atom in population:
        without, with_event = weight(atom)
        happens = atom.mass * atom.chance * with_event
        new = happens + atom.mass * (1 - atom.chance) * without
        if new:
            moved.append(replace(atom, mass=new, chance=happens / new))
    total = mass(moved)
    return tuple(replace(atom, mass=atom.mass / total) for atom in moved)


def error(population: Iterable[Atom]) -> Fraction:
    """Expected calibration error of the aggregate, `E |P(event | F) - F|`.

    Args:
        population: the atoms.
    """
    levels = groups(population, lambda atom: atom.prediction)
    gaps = (sum(a.mass * (a.chance - a.prediction) for a in atoms) for atoms in levels.values())
    return sum((abs(gap) for gap in gaps), ZERO)


def expert_error(population: Iterable[Atom], expert: int, *, weighted: bool = True) -> Fraction:
    """Calibration error of an expert on its view: 0 if `E[r_k (Y - f_k) | f_k] = 0`.

    Args:
        population: the atoms.
        expert: its number.
        weighted: whether examples count by its routing weight, or alike wherever that is above 0.
    """
    levels = groups(population, lambda atom: atom.experts[expert])
    total = ZERO
    for level, atoms in levels.items():
        views = [a.routing[expert] if weighted else Fraction(a.routing[expert] > 0) for a in atoms]
        total += abs(
            sum(v * a.mass * (a.chance - level) for v, a in zip(views, atoms, strict=True))
        )
    return total


def weight_covariance(population: Iterable[Atom], weight: Weight) -> Fraction:
    """`Cov(w, event) / E[w]` among these atoms: what the shift adds to the event's frequency.

    Args:
        population: atoms of one slice.
        weight: as in `shifted`.
    """
    atoms = list(population)
    total = mass(atoms)
    mean = with_event = ZERO
    for atom in atoms:
        share, (without, happens) = atom.mass / total, weight(atom)
        mean += share * (atom.chance * happens + (1 - atom.chance) * without)
        with_event += share * atom.chance * happens
    return (with_event - mean * frequency(atoms)) / mean


def hardened(population: Iterable[Atom], source: Iterable[Atom]) -> Population:
    """The same examples, each given to its largest weight's expert, and that calibrated there.

    What the expert says is replaced by the event's frequency at the source, among the examples that
    it is given and of which it says that.

    Args:
        population: the atoms.
        source: where the experts are calibrated; it holds all that they say of the population.
    """
    told = {
        key: frequency(some)
        for key, some in groups(source, lambda a: (a.chosen, a.experts[a.chosen])).items()
    }

    def one(atom: Atom) -> Atom:
        k = atom.chosen
        routing = tuple(Fraction(i == k) for i in range(len(atom.routing)))
        says = tuple(told[k, f] if i == k else f for i, f in enumerate(atom.experts))
        return replace(atom, routing=routing, experts=says)

    return tuple(one(atom) for atom in population)
