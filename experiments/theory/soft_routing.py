"""(b) Soft routing breaks though its experts stay calibrated: three exact populations.

1. *Softer weights.* The router gives the second expert, who knows nothing, .4 on a share v of the
   examples. Both experts are calibrated on their views for every v; the aggregate's error is .16 v.
2. *Configurations that balance.* At the source all that is predicted at .8 happens with frequency
   .8: one configuration happens more often, another less. A shift of their shares breaks that; the
   experts are calibrated on their views throughout. With hard routing by the same weights, and
   experts calibrated on their regions, the error is 0 for every share.
3. *Experts calibrated without the router's weights.* The aggregate is calibrated exactly at the
   source, and wrong by .44 after a shift over the same configurations, while both experts are
   calibrated all along where they are active (not on their views: by the disagreement identity the
   aggregate could not be calibrated then). This shift moves labels within what a hard router
   shows of a configuration, and so breaks hard routing as well, by .08.
"""

from fractions import Fraction as F
from typing import Any

from matplotlib.figure import Figure

from calmoe_jax.drawing.style import look
from experiments.theory.population import (
    Atom,
    Population,
    error,
    expert_error,
    frequency,
    groups,
    hardened,
)

TITLE = "Soft mixtures of calibrated experts are miscalibrated, or become so under a shift"
BALANCED_SHARE = F(4, 9)  # of the first two configurations of `balancing`
SHARES = tuple(sorted({BALANCED_SHARE, *(F(k, 10) for k in range(11))}))
LEVEL = F(4, 5)


def softened(share: F) -> Population:
    """The first population.

    Args:
        share: of the examples with soft weights, in [0, 1].
    """
    return tuple(
        Atom(F(1, 2) * mass, chance, routing, (chance, F(1, 2)))
        for chance in (F(1, 10), F(9, 10))
        for mass, routing in ((1 - share, (F(1), F(0))), (share, (F(3, 5), F(2, 5))))
        if mass
    )


def balancing(share: F) -> Population:
    """The second population: masses share / 2 (twice) and (1 - share) / 2 (twice).

    Args:
        share: of the first two configurations, in [0, 1].
    """
    rows = (
        (share, (F(3, 4), F(1, 4)), (F(9, 10), F(1, 2)), F(9, 10)),
        (share, (F(3, 4), F(1, 4)), (F(1, 10), F(1, 2)), F(1, 10)),
        (1 - share, (F(4, 5), F(1, 5)), (F(77, 100), F(92, 100)), F(72, 100)),
        (1 - share, (F(1, 5), F(4, 5)), (F(77, 100), F(92, 100)), F(97, 100)),
    )
    return tuple(Atom(mass / 2, chance, r, f) for mass, r, f, chance in rows if mass)


# First expert's weight, both predictions, event, mass; found by a linear program.
_SOURCE = (
    ("1/4", "1/10", "1/2", 0, "1/8"), ("1/4", "9/10", "1/2", 1, "1/8"),
    ("1/4", "3/10", "7/10", 0, "21/200"), ("1/4", "7/10", "3/10", 1, "21/200"),
    ("1/2", "1/10", "3/10", 0, "1/10"), ("1/2", "9/10", "7/10", 1, "1/10"),
    ("1/2", "1/2", "3/10", 0, "1/10"), ("1/2", "1/2", "7/10", 1, "1/10"),
    ("3/4", "1/10", "1/2", 1, "1/40"), ("3/4", "9/10", "1/2", 0, "1/40"),
    ("3/4", "3/10", "7/10", 1, "9/200"), ("3/4", "7/10", "3/10", 0, "9/200"),
)  # fmt: skip
_TARGET = {
    ("1/4", "1/10", "1/2"): F(9, 20),
    ("1/4", "9/10", "1/2"): F(9, 20),
    ("3/4", "1/10", "1/2"): F(1, 20),
    ("3/4", "9/10", "1/2"): F(1, 20),
}


def active_calibrated(moved: F) -> Population:
    """The third population: a mixture of its source and its target, over the same configurations.

    Args:
        moved: share of the target, in [0, 1].
    """
    atoms = []
    for first, one, two, event, mass in _SOURCE:
        weight = (1 - moved) * F(mass) + moved * _TARGET.get((first, one, two), F(0))
        if weight:
            routing = (F(first), 1 - F(first))
            atoms.append(Atom(weight, F(event), routing, (F(one), F(two))))
    return tuple(atoms)


def _at_level(population: Population) -> F:
    """Frequency of the event where `LEVEL` is predicted."""
    return frequency(groups(population, lambda atom: atom.prediction)[LEVEL])


def _errors(population: Population, *, weighted: bool) -> list[str]:
    return [str(expert_error(population, k, weighted=weighted)) for k in range(2)]


def compute() -> dict[str, Any]:
    """Errors of the three populations along their shifts; all exact."""
    first = [softened(share) for share in SHARES]
    second = [balancing(share) for share in SHARES]
    third = [active_calibrated(share) for share in SHARES]
    balanced = balancing(BALANCED_SHARE)

    def hard(along: list[Population], source: Population) -> list[str]:
        return [str(error(hardened(population, source))) for population in along]

    return {
        "shares": [str(share) for share in SHARES],
        "softened": {
            "soft": [str(error(p)) for p in first],
            "hard": hard(first, softened(F(1, 2))),
            "experts": [_errors(p, weighted=True) for p in first],
            "bound": [str(2 * sum(a.mass * a.disagreement for a in p)) for p in first],
        },
        "balancing": {
            "soft": [str(error(p)) for p in second],
            "hard": hard(second, balanced),
            "experts": [_errors(p, weighted=True) for p in second],
            "frequency_at_0.8": [str(_at_level(p)) for p in second],
            "balanced_share": str(BALANCED_SHARE),
            "balanced_frequency_at_0.8": str(_at_level(balanced)),
            "balanced_soft": str(error(balanced)),
        },
        "active_calibrated": {
            "soft": [str(error(p)) for p in third],
            "hard": hard(third, third[0]),
            "experts_active": [_errors(p, weighted=False) for p in third],
            "experts_on_views": [_errors(p, weighted=True) for p in third],
        },
    }


def draw(found: dict[str, Any]) -> Figure:
    """A panel for each population.

    Args:
        found: as from `compute`.
    """
    figure = Figure(figsize=(11.4, 4.2), layout="constrained")
    panels = figure.subplots(1, 3)
    shares = [float(F(x)) for x in found["shares"]]

    def numbers(values: list[str]) -> list[float]:
        return [float(F(x)) for x in values]

    names = (
        ("softened", "1: the router softens", "share of examples with soft weights"),
        ("balancing", "2: balanced configurations move", "share of the first configurations"),
        (
            "active_calibrated",
            "3: experts calibrated unweighted",
            "share of the shifted population",
        ),
    )
    for ax, (key, title, label) in zip(panels, names, strict=True):
        lines = found[key]
        experts = lines.get("experts") or lines["experts_active"]
        ax.plot(shares, numbers(lines["soft"]), label="soft mixture", **look(2))
        ax.plot(
            shares, [max(numbers(x)) for x in experts], label="its experts, the larger", **look(1)
        )
        ax.set_title(title)
        ax.set_xlabel(label)
        ax.set_xlim(-0.03, 1.03)
        hard = look(3) | {"ms": 9, "mfc": "none"}
        ax.plot(shares, numbers(lines["hard"]), label="hard mixture", **hard)
    bound = numbers(found["softened"]["bound"])
    panels[0].plot(shares, bound, label="lower bound, 2 E[disagreement]", color="#7F7F7F", ls=":")
    middle = found["balancing"]
    off = [abs(x - float(LEVEL)) for x in numbers(middle["frequency_at_0.8"])]
    panels[1].plot(shares, off, label="soft mixture at level .8", **look(4))
    at = float(F(middle["balanced_share"]))
    panels[1].axvline(at, color="#7F7F7F", lw=1)
    panels[1].text(at, 0.095, " the source", fontsize=9)
    panels[0].set_ylabel("calibration error, exact")
    handles = {}
    for ax in panels:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncol=5, frameon=False, fontsize=9
    )
    figure.suptitle(TITLE)
    return figure
