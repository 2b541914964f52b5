"""Part of (f): experts that are calibrated exactly, since the examples are the population.

The held-out examples are taken as the whole population. Each expert's probability of each class is
put into 15 bins and replaced by the frequency of the class in its bin on the expert's
routing-weighted view: `E[r_k (Y - f_k) | f_k] = 0` then holds exactly, class by class, for dense,
top-2 and hard routing alike. Weights are `exp(s z)` for z a function of the configuration of that
class: routing weights, what the active experts say, their disagreement, the entropy of the routing.
A hard mixture must keep its calibration under every one of them, a soft one need not have it.
"""

import jax
import numpy as np

from calmoe_jax.calibration import calibrators
from experiments.theory.mixtures import Pool

NUM_BINS = 15
_LARGEST = 3.0  # of z, in standard deviations


def standardised(values: np.ndarray) -> np.ndarray:
    """With mean 0 and deviation 1, at most 3; zeros where all are equal.

    Args:
        values: of the examples that are weighted.
    """
    spread = values.std()
    scaled = (values - values.mean()) / (spread if spread > 1e-6 else np.inf)
    return np.clip(scaled, -_LARGEST, _LARGEST)


@jax.jit
def _by_frequency(probs: jax.Array, views: jax.Array, events: jax.Array) -> jax.Array:
    def one_class(column: jax.Array, view: jax.Array, event: jax.Array) -> jax.Array:
        fit = calibrators.fit_histogram_binning(column, event, weights=view, num_bins=NUM_BINS)
        return calibrators.apply_histogram_binning(fit, column)

    def one_expert(rows: jax.Array, view: jax.Array) -> jax.Array:
        return jax.vmap(one_class, in_axes=(1, None, 1), out_axes=1)(rows, view, events)

    return jax.vmap(one_expert, in_axes=(1, 1), out_axes=1)(probs, views)


def exact_experts(pool: Pool, seed: int) -> np.ndarray:
    """Probabilities of one seed's experts, `[examples, experts, classes]`; they need not sum to 1.

    Args:
        pool: the population.
        seed: position of the seed.
    """
    events = np.eye(pool.log_probs.shape[-1], dtype=np.float32)[pool.labels]
    probs = np.exp(pool.log_probs[seed])
    return np.float64(_by_frequency(probs, pool.routing[seed], events))


def binned_error(told: np.ndarray, event: np.ndarray, weights: np.ndarray) -> float:
    """Weighted calibration error of one class, in bins of equal width.

    Args:
        told: probability of the class.
        event: whether it is the label.
        weights: of the examples.
    """
    index = np.minimum((told * NUM_BINS).astype(int), NUM_BINS - 1)
    return float(np.abs(np.bincount(index, weights * (told - event))).sum() / weights.sum())


def view_error(pool: Pool, experts: np.ndarray, seed: int) -> float:
    """The largest view error of an expert and class: 0, but for rounding.

    Args:
        pool: the population.
        experts: as from `exact_experts`.
        seed: position of the seed.
    """
    events = np.eye(experts.shape[-1])[pool.labels]
    residual = pool.routing[seed][:, :, None] * (experts - events[:, None])
    worst = 0.0
    for k in range(experts.shape[1]):
        for c in range(experts.shape[2]):
            _, level = np.unique(experts[:, k, c], return_inverse=True)
            sums = np.bincount(level, np.float64(residual[:, k, c]))
            worst = max(worst, float(np.abs(sums).sum() / len(level)))
    return worst


def directions(experts: np.ndarray, routing: np.ndarray) -> list[np.ndarray]:
    """Functions z of the configuration of one class, standardised; constant ones are left out.

    Args:
        experts: probability of the class by each expert, `[examples, experts]`.
        routing: weights of the experts.
    """
    told = np.sum(routing * experts, axis=1)
    entropy = -np.sum(routing * np.log(np.where(routing > 0, routing, 1)), axis=1)
    distance = np.sum(routing * (experts - told[:, None]) ** 2, axis=1)
    columns = [*routing.T, *np.where(routing > 0, experts, 0).T, entropy, distance]
    return [z for z in map(standardised, columns) if z.any()]


def errors(pool: Pool, strengths: tuple[float, ...]) -> dict[str, object]:
    """Sum over the classes of the calibration error, a mean over directions and seeds, by strength.

    Args:
        pool: the population.
        strengths: s of the weights.
    """
    totals = np.zeros((len(strengths), 2))
    worst = 0.0
    for seed, routing in enumerate(np.float64(pool.routing)):
        experts = exact_experts(pool, seed)
        worst = max(worst, view_error(pool, experts, seed))
        told = np.einsum("nk,nkc->nc", routing, experts)
        for c in range(told.shape[1]):
            event = np.float64(pool.labels == c)
            drawn = directions(experts[:, :, c], routing)
            for i, strength in enumerate(strengths):
                for z in drawn:
                    for sign in (1, -1):
                        weights = np.exp(sign * strength * z)
                        radius = np.mean(weights**2) / np.mean(weights) ** 2 - 1
                        found = binned_error(told[:, c], event, weights)
                        share = 1 / (2 * len(drawn) * len(pool.routing))
                        # a sum over classes of errors, a mean of radii
                        totals[i] += share * found, share * radius / told.shape[1]
    lines = [
        {"strength": s, "radius": float(radius), "error": float(error)}
        for s, (error, radius) in zip(strengths, totals, strict=True)
    ]
    return {"largest_view_error": worst, "errors": lines}
