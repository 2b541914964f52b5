"""(f) Hard, top-2 and dense mixtures of one task under exact reweightings of real examples.

Mixtures of `portal` are trained with each routing, their experts calibrated on their views of one
half of the held-out survey periods. Examples of the other half are then weighted:

1. by features of the routing configuration S: less or more confidence, entropy of the routing,
   load of an expert;
2. by the direction within S in which accuracy is under- or overstated, learnt (ridge regression of
   correctness minus confidence on features of S) on the half that was fitted: the shift of the
   theory, which a mixture survives only if confidence is right in every configuration;
3. by being wrong: a shift that depends on the label, which no routing survives.

Weights are `exp(s z)` with z of mean 0 and standard deviation 1; the strength is s, and shifts in
both directions of z are averaged. The error is the top-label calibration error without its bias of
few examples, with a 95 % interval over survey periods, both averaged over seeds. All is done twice:
with calibrated experts, and with one temperature for the aggregate besides.

Hard routing keeps its calibration only where experts are calibrated in every slice of S, and here
they are by a fit of 22 numbers to the examples of their view. So first the premise is made exact
(`exact_premise`). Errors are drawn against the root of the chi-square radius of the weights, along
which theory has straight lines, since equal strengths weigh the examples of different mixtures
differently. Whether hard routing is better where S moves is not seen from intervals of each, which
may overlap all the same: its difference from the others has intervals of its own, at equal radii
(`paired`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from calmoe_jax import mixture
from calmoe_jax.calibration import calibrators, intervals
from calmoe_jax.drawing.style import look
from calmoe_jax.routing.kinds import RoutingKind
from calmoe_jax.shift.repair import usable_temperature
from experiments.theory import exact_premise, paired
from experiments.theory.exact_premise import standardised
from experiments.theory.mixtures import EPOCHS, SEEDS, Pool, calibrated, mixed, trained_pool

TITLE = (
    "Real held-out examples of portal, reweighted: what theory promises, and what fitting leaves"
)
TASK = "portal"
ROUTINGS: tuple[tuple[str, RoutingKind], ...] = (
    ("dense", "dense"), ("top-2", "top_k"), ("hard", "hard"),
)  # fmt: skip
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SHIFTS = ("features of S", "learnt direction in S", "being wrong")
TREATMENTS = ("calibrated experts", "and one temperature")
NUM_REPLICATES = 300
_CALIBRATOR = "vector"
_RIDGE = 10.0


def features(probs: np.ndarray, routing: np.ndarray) -> np.ndarray:
    """Features of the configuration: what the active experts say, and the predicted class.

    Args:
        probs: of the experts, `[examples, experts, classes]`.
        routing: weights, 0 for those that are not active.
    """
    config = mixture.configuration(jnp.log(np.float32(probs)), np.float32(routing))
    active = config._replace(
        expert_confidences=jnp.where(routing > 0, config.expert_confidences, 0)
    )
    told = mixed(probs, routing)
    columns = np.asarray(mixture.configuration_features(active), np.float64)
    return np.concatenate([columns, np.eye(told.shape[-1])[told.argmax(-1)]], axis=1)


def learnt_direction(columns: np.ndarray, outcome: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """A ridge regression of an outcome on features, from some examples, for all.

    Args:
        columns: features of the examples.
        outcome: to predict.
        fitted: the examples to learn from.
    """
    mean, scale = columns[fitted].mean(0), columns[fitted].std(0)
    x = (columns - mean) / np.where(scale > 1e-6, scale, np.inf)
    gram = x[fitted].T @ x[fitted] + _RIDGE * np.eye(x.shape[1])
    return x @ np.linalg.solve(gram, x[fitted].T @ (outcome[fitted] - outcome[fitted].mean()))


def tilts(
    columns: np.ndarray, experts: int, confidence: np.ndarray, correct: np.ndarray,
    fitted: np.ndarray,
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    """Standardised z of every shift, for the examples that were not fitted.

    Args:
        columns: features of the configuration.
        experts: number of experts.
        confidence: of the aggregate.
        correct: whether its predicted class is right.
        fitted: the examples that experts were calibrated on.
    """
    load = columns[:, 8 : 8 + experts]
    busiest = load[:, load[fitted].mean(0).argmax()]
    learnt = learnt_direction(columns, correct - confidence, fitted)
    drawn = {
        SHIFTS[0]: [confidence, columns[:, 6], busiest],
        SHIFTS[1]: [learnt],
        SHIFTS[2]: [-correct],
    }
    return {name: [standardised(z[~fitted]) for z in some] for name, some in drawn.items()}


@partial(jax.jit, static_argnames=("num_clusters", "num_replicates"))
def _intervals(
    confidence: jax.Array, correct: jax.Array, weights: jax.Array, clusters: jax.Array,
    *, num_clusters: int, num_replicates: int,
) -> tuple[jax.Array, ...]:  # fmt: skip
    def one(given: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        bins = intervals.cluster_bins(
            given[0], given[1], clusters, num_clusters=num_clusters, weights=given[2]
        )
        return intervals.clustered_calibration_error(
            jax.random.key(0), bins, num_replicates=num_replicates
        )

    return jax.lax.map(one, (confidence, correct, weights))


def aggregates(pool: Pool, probs: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Aggregates by the half that was fitted, `[halves, examples, classes]`, without and with T.

    Args:
        pool: predictions.
        probs: calibrated experts, by the half that was fitted.
        seed: position of the seed.
    """
    told = np.stack([mixed(probs[half, seed], pool.routing[seed]) for half in (0, 1)])
    scaled = []
    for half in (0, 1):
        log_probs = jnp.log(jnp.maximum(np.float32(told[half]), 1e-30))
        fit = _temperature(log_probs, pool.labels, np.float32(pool.half == half))
        found = calibrators.scale_log_probs(log_probs, usable_temperature(fit)[None])
        scaled.append(np.asarray(jnp.exp(found), np.float64))
    return dict(zip(TREATMENTS, (told, np.stack(scaled)), strict=True))


@jax.jit
def _temperature(
    log_probs: jax.Array, labels: jax.Array, weights: jax.Array
) -> calibrators.TemperatureFit:
    return calibrators.fit_temperature(log_probs, labels, weights=weights)


class Direction(NamedTuple):
    """A direction in which one mixture's held-out examples are weighted.

    Attributes:
        treatment: one of `TREATMENTS`.
        shift: one of `SHIFTS`.
        confidence: of the predicted class, by the half that was fitted, `[halves, examples]`.
        correct: whether that class is right, likewise.
        z: of the examples that were not fitted, by the half that was.
        signs: the ways to go.
    """

    treatment: str
    shift: str
    confidence: np.ndarray
    correct: np.ndarray
    z: tuple[np.ndarray, ...]
    signs: tuple[float, ...]


def directions(pool: Pool) -> list[Direction]:
    """All directions of one routing's mixtures, seed by seed.

    Args:
        pool: their predictions.
    """
    probs = np.float64(calibrated(pool, _CALIBRATOR))
    experts = pool.routing.shape[-1]
    found = []
    for seed, routing in enumerate(np.float64(pool.routing)):
        columns = [features(probs[half, seed], routing) for half in (0, 1)]
        for name, told in aggregates(pool, probs, seed).items():
            confidence = told.max(-1)
            correct = np.float64(told.argmax(-1) == pool.labels)
            by_half = [
                tilts(columns[h], experts, confidence[h], correct[h], pool.half == h)
                for h in (0, 1)
            ]
            for shift in SHIFTS:
                # a shift towards wrong examples has one direction
                signs = (1.0,) if shift == SHIFTS[2] else (1.0, -1.0)
                for z in zip(*(tilt[shift] for tilt in by_half), strict=True):
                    found.append(Direction(name, shift, confidence, correct, z, signs))
    return found


def weighted(
    pool: Pool, direction: Direction, strengths: tuple[float, float]
) -> tuple[np.ndarray, ...]:
    """Confidence, correctness and weight of every example, by the fit of the other half.

    Args:
        pool: predictions.
        direction: of the weights.
        strengths: with their sign, by the half that was fitted.
    """
    rows = np.empty((3, len(pool.labels)))
    for h, (z, strength) in enumerate(zip(direction.z, strengths, strict=True)):
        other = pool.half != h
        weights = np.exp(strength * z)
        weights /= weights.mean()
        rows[:, other] = direction.confidence[h][other], direction.correct[h][other], weights
    return tuple(rows)


def measured(pool: Pool, found: list[Direction], *, num_replicates: int) -> dict[str, Any]:
    """Errors by treatment, shift and strength of one routing's mixtures.

    Args:
        pool: their predictions.
        found: their directions.
        num_replicates: of the bootstrap over clusters.
    """
    drawn: dict[tuple[str, str, float], list[tuple[np.ndarray, ...]]] = {}
    for one in found:
        for strength in STRENGTHS:
            rows = drawn.setdefault((one.treatment, one.shift, strength), [])
            rows += [weighted(pool, one, (sign * strength,) * 2) for sign in one.signs]
    accuracy = [
        np.mean([one.correct[h][pool.half != h].mean() for h in (0, 1)])
        for one in found
        if one.shift == SHIFTS[1]  # one direction of each mixture
    ]
    lines: dict[str, Any] = {"accuracy": float(np.mean(accuracy)), "errors": {}}
    for (name, shift, strength), rows in drawn.items():
        confidence, correct, weights = (np.float32(x) for x in zip(*rows, strict=True))
        each = [
            np.asarray(x, np.float64)
            for x in _intervals(
                confidence, correct, weights, pool.clusters,
                num_clusters=int(pool.clusters.max()) + 1, num_replicates=num_replicates,
            )
        ]  # fmt: skip
        radius = np.mean([paired.radius_of(w) for w in np.float64(weights)])
        line = dict(zip(("error", "low", "high"), (float(x.mean()) for x in each), strict=True))
        by_shift = lines["errors"].setdefault(name, {}).setdefault(shift, [])
        by_shift.append({"strength": strength, "radius": float(radius), **line})
    return lines


def of_one_size(
    pool: Pool, found: list[Direction], treatment: str
) -> dict[float, tuple[np.ndarray, ...]]:
    """Examples weighted along the learnt direction, by radius, as for `paired.difference`.

    Args:
        pool: predictions of one routing's mixtures.
        found: their directions.
        treatment: one of `TREATMENTS`.
    """
    learnt = [x for x in found if (x.treatment, x.shift) == (treatment, SHIFTS[1])]
    by_radius = {}
    for radius in paired.RADII:
        rows = []
        for one in learnt:
            for sign in one.signs:
                first, second = (sign * paired.strength_of(sign * z, radius) for z in one.z)
                rows.append(weighted(pool, one, (first, second)))
        by_radius[radius] = tuple(np.stack(x) for x in zip(*rows, strict=True))
    return by_radius


def compute(
    *, seeds: int = SEEDS, epochs: int = EPOCHS[TASK], num_replicates: int = NUM_REPLICATES
) -> dict[str, Any]:
    """Trains, calibrates and measures the mixtures of all routings.

    Args:
        seeds: mixtures of each.
        epochs: passes over the training examples.
        num_replicates: of the bootstrap over survey periods.
    """
    found = {}
    sized: dict[str, dict[str, Any]] = {name: {} for name in TREATMENTS}
    with tqdm(ROUTINGS, unit="routing", disable=None, leave=False, desc="(f)") as bar:
        for name, routing in bar:
            bar.set_postfix_str("training")
            pool = trained_pool(TASK, routing, epochs=epochs, seeds=seeds)
            bar.set_postfix_str("intervals")
            ways = directions(pool)
            found[name] = measured(pool, ways, num_replicates=num_replicates)
            found[name]["exact_premise"] = exact_premise.errors(pool, STRENGTHS)
            for treatment in TREATMENTS:
                sized[treatment][name] = of_one_size(pool, ways, treatment)
    # the examples of all routings are the same
    differences = {name: paired.against(rows, pool.clusters) for name, rows in sized.items()}
    return {"task": TASK, "routings": found, "differences": differences}


def draw(found: dict[str, Any]) -> Figure:
    """Error against the size of the shift: the exact premise, then the three shifts.

    Args:
        found: as from `compute`.
    """
    figure = Figure(figsize=(10.4, 8.0), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    better, worse, pairs = paired.beyond(found["differences"][TREATMENTS[0]])
    titles = (
        "Experts calibrated exactly: hard routing alone keeps 0",
        "Experts fitted on other examples: features of S harm none",
        "The same, S moved to where confidence errs: in pairs at equal ρ\n"
        f"hard is better beyond the interval in {better} of {pairs}, worse in {worse}",
        "The same: favouring wrong examples breaks all alike",
    )
    for i, (routing, lines) in enumerate(found["routings"].items()):
        exact = lines["exact_premise"]["errors"]
        x = [point["radius"] ** 0.5 for point in exact]
        panels[0].plot(
            x, [point["error"] for point in exact], label=routing, ms=6, lw=1.4, **look(i + 1)
        )
        for ax, shift in zip(panels[1:], SHIFTS, strict=True):
            points = lines["errors"][TREATMENTS[0]][shift]
            x = [point["radius"] ** 0.5 for point in points]
            y = np.array([point["error"] for point in points])
            low, high = (np.array([point[k] for point in points]) for k in ("low", "high"))
            ax.errorbar(
                x, y, (np.maximum(y - low, 0), np.maximum(high - y, 0)), label=routing,
                capsize=2, ms=6, lw=1.4, **look(i + 1),
            )  # fmt: skip
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(title, fontsize=10.5)
        ax.set_ylim(bottom=-0.004 if ax is panels[0] else 0)
        ax.set_xlabel("√ρ, the size of the shift, ρ = E[(w − 1)²]")
    panels[0].set_ylabel("sum of classwise calibration errors")
    for ax in panels[1:]:
        ax.set_ylabel("ECE of the top label, 95 % interval")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncol=3, frameon=False)
    figure.suptitle(TITLE)
    return figure
