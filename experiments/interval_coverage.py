"""How often 95 % intervals cover the truth, in simulated problems whose truth is known.

`python -m experiments.interval_coverage [--problems N] [--replicates N] [--studies NAME ...]`

Scores: logits of five classes, labels drawn from their softmax, and a model that divides them by
a temperature; a second model adds noise. The truth is the mean over two million examples.
Calibration errors: four densities of confidence and nine ways to spread an error of a given size
over 15 bins (the same everywhere, tilted, waves, random signs or sizes, half of the bins, two,
one), in turn. Prints the share of intervals that cover, and that lie above or below the truth.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from calmoe_jax.calibration import intervals
from calmoe_jax.calibration.intervals import Interval, ScoreIntervals, cluster_bins
from calmoe_jax.calibration.metrics.binning import ReliabilityBins

SIZES = (200, 1000, 5000, 20_000)
ERRORS = (0.0, 0.02, 0.05, 0.1)
BINS = 15
POPULATION = 2_000_000
CLASSES = 5

DENSITIES: dict[str, Callable[[np.random.RandomState, int], np.ndarray]] = {
    "uniform": lambda rng, n: rng.uniform(0.05, 1, n),
    "middle": lambda rng, n: rng.beta(4, 3, n),
    "high": lambda rng, n: rng.beta(6, 1.5, n),
    "certain": lambda rng, n: 1 - rng.beta(0.5, 4, n),
}
SPREADS: dict[str, Callable[[np.random.RandomState, np.ndarray, np.ndarray], np.ndarray]] = {
    "everywhere": lambda rng, share, level: np.ones(BINS),
    "hump": lambda rng, share, level: level * (1 - level),
    "tilt": lambda rng, share, level: level - share @ level,
    "waves": lambda rng, share, level: np.sin(4 * np.pi * level),
    "signs": lambda rng, share, level: rng.choice([-1.0, 1.0], BINS),
    "sizes": lambda rng, share, level: rng.randn(BINS),
    "half": lambda rng, share, level: rng.choice([-1.0, 0.0, 0.0, 1.0], BINS),
    "two bins": lambda rng, share, level: _few(rng, share, 2),
    "one bin": lambda rng, share, level: _few(rng, share, 1),
}


def _few(rng: np.random.RandomState, share: np.ndarray, count: int) -> np.ndarray:
    gaps = np.zeros(BINS)
    gaps[rng.choice(BINS, count, replace=False, p=share)] = rng.choice([-1.0, 1.0], count)
    return gaps


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _bins_of(confidence: np.ndarray) -> np.ndarray:
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def _population(density: str) -> tuple[np.ndarray, np.ndarray]:
    confidence = DENSITIES[density](np.random.RandomState(0), POPULATION)
    bins = _bins_of(confidence)
    count = np.bincount(bins, minlength=BINS)
    mean = np.bincount(bins, confidence, minlength=BINS) / np.maximum(count, 1)
    return count / POPULATION, mean


def make_gaps(
    rng: np.random.RandomState, spread: str, share: np.ndarray, level: np.ndarray, error: float
) -> np.ndarray | None:
    """Gaps of that mean size with every accuracy inside [0, 1]; `None` where none are found."""
    low = np.arange(BINS) / BINS
    high = low + 1 / BINS
    for _ in range(100):
        gaps = SPREADS[spread](rng, share, level) * (share > 1e-4)
        # an accuracy cannot be above 1: there the gap changes sign, or is cut off
        for _ in range(50):
            size = share @ np.abs(gaps)
            if size == 0:
                break
            gaps = gaps * error / size
            outside = (low - gaps < 0) | (high - gaps > 1)
            inside = (low + gaps >= 0) & (high + gaps <= 1)
            gaps = np.clip(np.where(outside & inside, -gaps, gaps), high - 1, low)
        if abs(share @ np.abs(gaps) - error) < 0.01 * error + 1e-9:
            return gaps
    return None


def error_problems(
    rng: np.random.RandomState, size: int, error: float, problems: int
) -> Iterator[tuple[np.ndarray, float, float]]:
    """Sums of bins, and the true error in both norms."""
    populations = {density: _population(density) for density in DENSITIES}
    kinds = [(density, spread) for density in DENSITIES for spread in SPREADS]
    made = tried = 0
    while made < problems:
        density, spread = kinds[tried % len(kinds)]
        tried += 1
        share, level = populations[density]
        gaps = make_gaps(rng, spread, share, level, error) if error else np.zeros(BINS)
        if gaps is None:  # one bin may be too small to hold the error
            continue
        made += 1
        confidence = DENSITIES[density](rng, size)
        bins = _bins_of(confidence)
        residual = confidence - (rng.rand(size) < confidence - gaps[bins])
        count, *sums = (
            np.bincount(bins, values, minlength=BINS)
            for values in (np.ones(size), confidence, residual, residual**2)
        )
        table = np.stack([count, sums[0], sums[1], count, sums[2], sums[1]])
        yield table, share @ np.abs(gaps), float(np.sqrt(share @ gaps**2))


def _covered(interval: Interval, truth: np.ndarray) -> str:
    low, high = np.asarray(interval.low), np.asarray(interval.high)
    above, below = (low > truth).mean(), (high < truth).mean()
    width = (high - low).mean()
    share = ((low <= truth) & (truth <= high)).mean()
    return f"{100 * share:5.1f} {100 * above:6.1f} {100 * below:6.1f} {width:8.4f}"


def _print(name: str, size: int, truth: str, line: str) -> None:
    tqdm.write(f"{name:34} {size:6} {truth:>7} {line}")


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a key and data sets, over the data sets; compiled once for each size."""
    run = jax.jit(lambda *xs: jax.lax.map(lambda x: function(*x), xs, batch_size=10))

    def over(seed: int, *columns: jax.Array) -> Any:
        return run(jax.random.split(jax.random.key(seed), len(columns[0])), *columns)

    return over


def scores(problems: int, replicates: int, seed: int) -> None:
    """Accuracy, NLL, Brier score, gap, and their paired differences."""
    rng = np.random.RandomState(seed)
    true_logits = 2 * rng.randn(POPULATION, CLASSES)
    probs = _softmax(true_logits)
    labels = (np.cumsum(probs, axis=1)[:, :-1] < rng.rand(POPULATION, 1)).sum(axis=1)
    logits = true_logits / 0.6
    other = (true_logits + 0.7 * rng.randn(POPULATION, CLASSES)) / 1.2

    def expected(logits: np.ndarray) -> list[float]:
        """Over labels as they are distributed, not as they were drawn."""
        forecast = _softmax(logits)
        top = np.arange(POPULATION), forecast.argmax(axis=1)
        right = probs[top].mean()
        brier = 1 + (forecast**2).sum(axis=1) - 2 * (probs * forecast).sum(axis=1)
        nll = -(probs * np.log(forecast)).sum(axis=1)
        return [right, nll.mean(), brier.mean(), forecast[top].mean() - right]

    truths = np.array([expected(logits), expected(other)])
    options = {"from_logits": True, "num_replicates": replicates}

    def both(
        key: jax.Array, a: jax.Array, b: jax.Array, y: jax.Array
    ) -> tuple[ScoreIntervals, ScoreIntervals]:
        return (
            intervals.scores(key, a, y, **options),
            intervals.score_differences(key, a, b, y, **options),
        )

    run = _mapped(both)
    for size in tqdm(SIZES[:2], desc="scores"):
        rows = rng.randint(POPULATION, size=(problems, size))
        first, second = (jnp.asarray(x[rows], jnp.float32) for x in (logits, other))
        found = run(seed, first, second, jnp.asarray(labels[rows]))
        for table, truth, kind in zip(
            found, (truths[0], truths[0] - truths[1]), ("", ", difference"), strict=True
        ):
            for (name, interval), value in zip(table._asdict().items(), truth, strict=True):
                _print(name + kind, size, f"{value:.3f}", _covered(interval, value))


def calibration_errors(problems: int, replicates: int, seed: int) -> None:
    """Expected and root mean square calibration error, at all sizes and errors."""
    rng = np.random.RandomState(seed)

    def one(key: jax.Array, table: jax.Array) -> tuple[Interval, Interval]:
        bins = ReliabilityBins(*table)
        l1, l2 = (
            intervals.calibration_error(key, bins, norm=norm, num_replicates=replicates)
            for norm in ("l1", "l2")
        )
        return l1, l2

    run = _mapped(one)
    for size in tqdm(SIZES, desc="calibration errors"):
        for error in ERRORS:
            tables, *truths = zip(*error_problems(rng, size, error, problems), strict=True)
            found = run(seed, jnp.asarray(np.stack(tables), jnp.float32))
            for norm, interval, truth in zip(("l1", "l2"), found, truths, strict=True):
                line = _covered(interval, np.array(truth))
                _print(f"calibration error, {norm}", size, f"{np.mean(truth):.3f}", line)


def squared_differences(problems: int, replicates: int, seed: int) -> None:
    """Squared calibration errors of two distortions of the truth, on the same examples."""
    rng = np.random.RandomState(seed)
    chance = rng.beta(2, 1, POPULATION)
    log_odds = np.log(chance / (1 - chance))
    models = {
        "truth": chance,
        "sharp": 1 / (1 + np.exp(-1.4 * log_odds)),
        "sharper": 1 / (1 + np.exp(-1.7 * log_odds)),
        "high": np.clip(chance + 0.05, 0, 1),
        "low": np.clip(chance - 0.05, 0, 1),
    }
    bins = {name: _bins_of(forecast) for name, forecast in models.items()}
    squares = {}
    for name, forecast in models.items():
        count = np.bincount(bins[name], minlength=BINS)
        residual = np.bincount(bins[name], forecast - chance, minlength=BINS)
        squares[name] = np.sum(residual**2 / np.maximum(count, 1)) / POPULATION

    def one(key: jax.Array, a: jax.Array, b: jax.Array, y: jax.Array) -> Interval:
        dealt = jnp.arange(y.shape[0]) % 200
        sums = (cluster_bins(c, y, dealt, num_clusters=200) for c in (a, b))
        return intervals.squared_error_difference(key, *sums, num_replicates=replicates)

    run = _mapped(one)
    for size in tqdm(SIZES[:3], desc="squared differences"):
        for names in (("sharp", "truth"), ("sharper", "sharp"), ("high", "low"), ("high", "sharp")):
            rows = rng.randint(POPULATION, size=(problems, size))
            outcome = jnp.asarray(rng.rand(problems, size) < chance[rows], jnp.float32)
            pair = [jnp.asarray(models[name][rows], jnp.float32) for name in names]
            truth = squares[names[0]] - squares[names[1]]
            line = _covered(run(seed, *pair, outcome), np.asarray(truth))
            _print(f"squared difference, {names[0]} {names[1]}", size, f"{truth:.4f}", line)


STUDIES = {
    "scores": scores,
    "calibration_errors": calibration_errors,
    "squared_differences": squared_differences,
}


def main() -> None:
    """Prints the table of the chosen studies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=1000, help="simulated data sets a line")
    parser.add_argument("--replicates", type=int, default=1000, help="of each bootstrap")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--studies", nargs="*", choices=STUDIES, default=list(STUDIES))
    arguments = parser.parse_args()
    print(f"{'interval':34} {'n':>6} {'truth':>7} cover  above  below    width")
    for name in arguments.studies:
        STUDIES[name](arguments.problems, arguments.replicates, arguments.seed)


if __name__ == "__main__":
    main()
