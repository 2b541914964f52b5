"""(d) The worst shift of configurations at one level: a formula against exact and blind search.

At a level p of the aggregate, configurations with shares q_i happen by b_i more often than p
(`sum q_i b_i = 0`: balanced at the source). Among all weights with `E[w] = 1` and
`E[(w - 1)^2] <= rho` the frequency moves from p by at most `sqrt(rho) sd(b)`. That is attained
while the weights `1 + sqrt(rho) b_i / sd(b)` are not negative; beyond it is an upper bound only:
the worst weights then are 0 for some configurations, and found exactly by trying how many.
"""

import math
import random
from fractions import Fraction as F
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import minimize
from tqdm import tqdm

from calmoe_jax import reweighting
from calmoe_jax.drawing.style import look
from experiments.theory.population import groups, mass
from experiments.theory.soft_routing import BALANCED_SHARE, LEVEL, balancing

TITLE = "The worst shift in a chi-square ball is √ρ times the spread of configurations, or less"
# up to 4; 5/4 is the last at which the formula is attained for the two configurations
RADII = tuple(sorted({F(5, 4), *(F(k, 5) ** 2 for k in range(11))}))
_CONFIGURATIONS = 12
_RANDOM_WEIGHTS = 60


def two_configurations() -> tuple[list[F], list[F]]:
    """Shares and biases at level .8 of the second population of `soft_routing`."""
    atoms = groups(balancing(BALANCED_SHARE), lambda atom: atom.prediction)[LEVEL]
    shares = [atom.mass / mass(atoms) for atom in atoms]
    return shares, [atom.chance - LEVEL for atom in atoms]


def random_configurations(number: int, seed: int) -> tuple[list[F], list[F]]:
    """Shares and balanced biases of random configurations, with at most .2 of bias.

    Args:
        number: of configurations, 2 or more.
        seed: of the random numbers.
    """
    rng = random.Random(seed)
    sizes = [rng.randint(1, 9) for _ in range(number)]
    shares = [F(size, sum(sizes)) for size in sizes]
    biases = [F(rng.randint(-100, 100), 500) for _ in range(number)]
    mean = sum(q * b for q, b in zip(shares, biases, strict=True))
    biases = [b - mean for b in biases]
    most = max(abs(b) for b in biases)
    return shares, [b * F(1, 5) / most for b in biases]


def variance(shares: list[F], biases: list[F]) -> F:
    """`E[b^2]` of balanced biases, exactly."""
    return sum((q * b**2 for q, b in zip(shares, biases, strict=True)), F(0))


def last_exact_radius(shares: list[F], biases: list[F]) -> F:
    """The largest radius at which the formula is attained, in one direction or the other.

    Args:
        shares: of the configurations.
        biases: balanced, not all 0.
    """
    return variance(shares, biases) / min(max(biases), -min(biases)) ** 2


def worst_up(shares: list[F], biases: list[F], radius: F) -> float:
    """The largest mean bias of weights in the ball.

    With the j largest biases, of mass q, mean m and variance v, weights
    `(1 + c (b - m)) / q` with `c^2 v = q (1 + rho) - 1` are on the sphere; the right j is the
    largest for which they are not negative. Where the sphere is beyond the simplex, the largest
    bias takes all.

    Args:
        shares: of the configurations.
        biases: of the configurations.
        radius: `rho`.
    """
    order = sorted(range(len(biases)), key=lambda i: -biases[i])
    for count in range(len(order), 0, -1):
        some = order[:count]
        held = sum((shares[i] for i in some), F(0))
        mean = sum((shares[i] * biases[i] for i in some), F(0)) / held
        spread = sum((shares[i] * (biases[i] - mean) ** 2 for i in some), F(0)) / held
        excess = held * (1 + radius) - 1
        # 1 + c (b - m) >= 0 for the least of them, compared in squares
        below = mean - biases[some[-1]]
        if spread == 0 or (excess >= 0 and excess * below**2 <= spread):
            return float(mean) + math.sqrt(excess * spread)
    raise AssertionError("the largest bias alone is always one of them")


def worst(shares: list[F], biases: list[F], radius: F) -> float:
    """The largest error of weights in the ball, in either direction.

    Args:
        shares: of the configurations.
        biases: of the configurations.
        radius: `rho`.
    """
    return max(worst_up(shares, b, radius) for b in (biases, [-x for x in biases]))


def searched(shares: list[F], biases: list[F], radius: F) -> float:
    """The same by a general solver, which knows the constraints and not the solution.

    Args:
        shares: of the configurations.
        biases: of the configurations.
        radius: `rho`.
    """
    q, b = np.array(shares, float), np.array(biases, float)

    def towards(sign: float) -> float:
        found = minimize(
            lambda w: -sign * 10 * (q * w) @ b,
            1 + 0.01 * sign * b,
            jac=lambda w: -sign * 10 * q * b,
            bounds=[(0, None)] * len(q),
            constraints=[
                {"type": "eq", "fun": lambda w: q @ w - 1, "jac": lambda w: q},
                {"type": "ineq", "fun": lambda w: float(radius) - q @ (w - 1) ** 2,
                 "jac": lambda w: -2 * q * (w - 1)},
            ],
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 500},
        )  # fmt: skip
        return float(sign * (q * found.x) @ b)

    return max(towards(1.0), towards(-1.0)) if radius else 0.0


def by_library(shares: list[F], biases: list[F], radius: F) -> float:
    """The same by `reweighting.chi_square_ball`, whose radius is half of `rho`.

    Args:
        shares: of the configurations.
        biases: of the configurations.
        radius: `rho`.
    """
    q, b = np.array(shares, np.float32), np.array(biases, np.float32)
    return max(float(_in_ball(sign * b, q, float(radius) / 2)) for sign in (1, -1))


@jax.jit
def _in_ball(signal: jax.Array, shares: jax.Array, radius: jax.Array) -> jax.Array:
    return reweighting.chi_square_ball(signal, radius=radius, weights=shares).value


def feasible(shares: list[F], biases: list[F], radius: F, seed: int) -> list[float]:
    """Errors under random weights on the ball's boundary, or the simplex's where that is nearer.

    Args:
        shares: of the configurations.
        biases: of the configurations.
        radius: `rho`.
        seed: of the random directions.
    """
    rng = np.random.RandomState(seed)
    q, b = np.array(shares, float), np.array(biases, float)
    steps = rng.standard_normal((_RANDOM_WEIGHTS, len(q)))
    steps -= (steps @ q)[:, None]
    sizes = math.sqrt(radius) / np.sqrt(steps**2 @ q)
    reach = np.min(np.where(steps < 0, 1 / np.maximum(-steps, 1e-300), np.inf), axis=1)
    weights = 1 + np.minimum(sizes, reach)[:, None] * steps
    return np.abs(weights * q @ b).tolist()


def compute() -> dict[str, Any]:
    """Formula, exact solution, both searches, and random weights, by radius."""
    cases = {
        "two": two_configurations(),
        "twelve": random_configurations(_CONFIGURATIONS, seed=1),
    }
    found: dict[str, Any] = {"radii": [str(radius) for radius in RADII]}
    for name, (shares, biases) in cases.items():
        sd = math.sqrt(variance(shares, biases))
        lines: dict[str, Any] = {
            "shares": [str(x) for x in shares],
            "biases": [str(x) for x in biases],
            "variance": str(variance(shares, biases)),
            "last_exact_radius": str(last_exact_radius(shares, biases)),
            "formula": [math.sqrt(radius) * sd for radius in RADII],
        }
        for key, solve in (("exact", worst), ("searched", searched), ("library", by_library)):
            bar = tqdm(RADII, unit="radius", disable=None, leave=False, desc=f"(d) {name}, {key}")
            lines[key] = [solve(shares, biases, radius) for radius in bar]
        lines["random"] = [
            feasible(shares, biases, radius, seed) for seed, radius in enumerate(RADII)
        ]
        found[name] = lines
    return found


def draw(found: dict[str, Any]) -> Figure:
    """A panel for the two configurations of (b), and one for twelve.

    Args:
        found: as from `compute`.
    """
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    radii = [math.sqrt(F(x)) for x in found["radii"]]
    titles = {"two": "two configurations at level .8, as in (b)", "twelve": "twelve configurations"}
    for ax, (name, title) in zip(panels, titles.items(), strict=True):
        lines = found[name]
        for radius, errors in zip(radii, lines["random"], strict=True):
            ax.plot([radius] * len(errors), errors, ".", color="#B0B0B0", ms=3)
        ax.plot([], [], ".", color="#B0B0B0", ms=6, label="random weights in the ball")
        ax.plot(radii, lines["formula"], color=look(2)["color"], ls="--", label="√ρ sd(b)")
        ax.plot(radii, lines["exact"], color=look(1)["color"], label="worst, exact")
        ax.plot(radii, lines["searched"], "s", mfc="none", ms=7, color=look(3)["color"],
                label="worst, by a general solver")  # fmt: skip
        last = math.sqrt(F(lines["last_exact_radius"]))
        ax.axvline(last, color="#7F7F7F", lw=1, ls=":")
        ax.text(last, 0.98, "the formula is\nattained to here ", transform=ax.get_xaxis_transform(),
                fontsize=9, ha="right", va="top")  # fmt: skip
        ax.set_title(title)
        ax.set_xlabel("√ρ, of the ball E[(w − 1)²] ≤ ρ")
        ax.set_ylim(bottom=-0.004)
    panels[0].set_ylabel("calibration error at the level")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=4, frameon=False)
    figure.suptitle(TITLE)
    return figure
