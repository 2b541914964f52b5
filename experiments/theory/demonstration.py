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
differently.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

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
from experiments.theory import exact_premise
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


def measured(pool: Pool, *, num_replicates: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Errors by treatment, shift and strength of one routing's mixtures.

    Args:
        pool: their predictions.
        num_replicates: of the bootstrap over clusters.
        say: told what is being computed.
    """
    probs = np.float64(calibrated(pool, _CALIBRATOR))
    experts = pool.routing.shape[-1]
    drawn: dict[tuple[str, str, float], list[tuple[np.ndarray, ...]]] = {}
    accuracy = []
    for seed, routing in enumerate(np.float64(pool.routing)):
        columns = [features(probs[half, seed], routing) for half in (0, 1)]
        for name, told in aggregates(pool, probs, seed).items():
            best = told.argmax(-1)
            confidence = told.max(-1)
            correct = np.float64(best == pool.labels)
            accuracy.append(np.mean([correct[h][pool.half != h].mean() for h in (0, 1)]))
            by_half = [
                tilts(columns[h], experts, confidence[h], correct[h], pool.half == h)
                for h in (0, 1)
            ]
            for shift in SHIFTS:
                pairs = list(zip(*(z[shift] for z in by_half), strict=True))
                # a shift towards wrong examples has one direction
                signs = (1.0,) if shift == SHIFTS[2] else (1.0, -1.0)
                for strength in STRENGTHS:
                    for pair in pairs:
                        for sign in signs:
                            rows = np.empty((3, len(pool.labels)))
                            for h, z in enumerate(pair):
                                other = pool.half != h
                                weights = np.exp(sign * strength * z)
                                weights /= weights.mean()
                                rows[:, other] = confidence[h][other], correct[h][other], weights
                            drawn.setdefault((name, shift, strength), []).append(tuple(rows))
    say("intervals")
    found: dict[str, Any] = {"accuracy": float(np.mean(accuracy)), "errors": {}}
    for (name, shift, strength), rows in drawn.items():
        confidence, correct, weights = (np.float32(x) for x in zip(*rows, strict=True))
        each = [
            np.asarray(x, np.float64)
            for x in _intervals(
                confidence, correct, weights, pool.clusters,
                num_clusters=int(pool.clusters.max()) + 1, num_replicates=num_replicates,
            )
        ]  # fmt: skip
        wide = np.float64(weights)
        radius = np.mean(wide**2, 1) / np.mean(wide, 1) ** 2 - 1
        line = dict(zip(("error", "low", "high"), (float(x.mean()) for x in each), strict=True))
        by_shift = found["errors"].setdefault(name, {}).setdefault(shift, [])
        by_shift.append({"strength": strength, "radius": float(radius.mean()), **line})
    return found


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
    with tqdm(ROUTINGS, unit="routing", disable=None, leave=False, desc="(f)") as bar:
        for name, routing in bar:
            pool = trained_pool(TASK, routing, epochs=epochs, seeds=seeds)
            found[name] = measured(pool, num_replicates=num_replicates, say=bar.set_postfix_str)
            found[name]["exact_premise"] = exact_premise.errors(pool, STRENGTHS)
    return {"task": TASK, "routings": found}


def draw(found: dict[str, Any]) -> Figure:
    """Error against the size of the shift: the exact premise, then the three shifts.

    Args:
        found: as from `compute`.
    """
    figure = Figure(figsize=(10.4, 8.0), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    titles = (
        "Experts calibrated exactly: hard routing alone keeps 0",
        "Experts fitted on other examples: features of S harm none",
        "The same, S moved to where confidence errs: no clear winner",
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
