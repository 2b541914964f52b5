"""Calibration against its peers: errors, temperature, and the bootstrap of an error.

`python -m benchmarks.calibration [--check] [--problems NAME ...] [--size N] [--classes C]
[--rounds N] [--seconds N] [--out FILE] [--commit SHA]`

All libraries start from the same float32 numbers, in the dtype, layout and kind of array that suits
them best, made before the clock starts, without validation where it can be left out. Values must
agree before anything is timed. Then each has turns of a few runs, after a rest; a figure is the
median over the rounds of a peer's time in units of ours. A peer that is not installed is named, and
its bound is not checked.

* expected: top-label error, 15 bins, from probabilities. Also against JAX: bayes-hdc's, and a plain
  argmax, max and scatter without any check, which takes its place where it is absent; and the same
  with our checks.
* wide: the same of 50,000 examples of 1,000 classes, and of 200,000 of 100, against five lines of
  NumPy; and the fit of a temperature to the former, in units of one pass of `logsumexp`.
* smooth: smooth error, from probabilities; and from pairs of confidence and outcome.
* temperature: the fit, from logits.
* bootstrap: 1000 replicates of the expected error in units of one pass over the examples.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import (
    Figure,
    benchmark_parser,
    ratio,
    report,
    time_in_turns,
    time_interleaved,
)
from calmoe_jax.calibration import intervals
from calmoe_jax.calibration.calibrators.temperature import fit_temperature
from calmoe_jax.calibration.metrics.binning import top_label_bins
from calmoe_jax.calibration.metrics.errors import calibration_error, expected_calibration_error
from calmoe_jax.calibration.metrics.scores import top_label
from calmoe_jax.calibration.metrics.smooth import smooth_calibration_error

_NUM_BINS = 15
_NUM_REPLICATES = 1000
WIDE = ((50_000, 1_000), (200_000, 100))
# Replicates of the examples that the spread of ours is held against; it is good to 10 %.
_NUM_ORACLES = 50

# Least time of a peer in units of ours, and most time of ours in units of another; libraries are
# farther behind on more than two cores, and the fastest of JAX checks no row. Against relplot 49
# was measured on two idle cores: its sums are in float64, while ours add runs in pairs so as not to
# stagnate in float32, which costs a fifth of the time.
LEAST = {
    "expected: netcal / ours": 18.0,
    "expected: torchmetrics / ours": 4.0,
    "wide: numpy / ours, 50000 x 1000": 1.0,
    "wide: numpy / ours, 200000 x 100": 1.0,
    "smooth: relplot / ours": 40.0,
    "temperature: scikit-learn / ours": 3.0,
}
MOST = {
    "expected: ours / fastest of JAX": 2.0,
    "expected: ours / plain JAX with the same checks": 1.0,
    "wide: fit of a temperature / pass, 50000 x 1000": 12.0,
    "bootstrap: replicates / pass": 2.0,
}


class Given(NamedTuple):
    """Logits whose best temperature is 1.6, and their probabilities; float32."""

    logits: np.ndarray
    probs: np.ndarray
    labels: np.ndarray


class Peer(NamedTuple):
    """A peer's way to a value.

    Attributes:
        run: gives the value.
        tolerance: how far it may be from ours.
    """

    run: Callable[[], Any]
    tolerance: float


Found = tuple[list[Figure], dict[str, Any]]


def make(size: int, classes: int) -> Given:
    """Random predictions, of which no confidence is 1 and none lies on an edge of the bins."""
    rng = np.random.RandomState(0)
    logits = (2 * rng.standard_normal((size, classes))).astype(np.float32)
    labels = np.argmax(logits / 1.6 + rng.gumbel(size=logits.shape), axis=1)
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Given(logits, probs / probs.sum(axis=1, keepdims=True), labels)


def _absent(name: str, module: str) -> bool:
    missing = find_spec(module) is None
    if missing:
        print(f"{name} is not installed: not compared", flush=True)
    return missing


def expected_by_numpy(probs: np.ndarray, labels: np.ndarray) -> float:
    """In float64, with `bincount`."""
    confidence = probs.max(axis=1)
    residual = confidence - (probs.argmax(axis=1) == labels)
    bins = np.minimum((confidence * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    return float(np.abs(np.bincount(bins, residual, _NUM_BINS)).sum() / len(labels))


def expected_by_jax(probs: jax.Array, labels: jax.Array) -> jax.Array:
    """The plain formulation: argmax, max, scatter, and no check of anything."""
    confidence = jnp.max(probs, axis=-1)
    residual = confidence - (jnp.argmax(probs, axis=-1) == labels)
    bins = jnp.minimum((confidence * _NUM_BINS).astype(jnp.int32), _NUM_BINS - 1)
    sums = jnp.zeros(_NUM_BINS, probs.dtype).at[bins].add(residual)
    return jnp.sum(jnp.abs(sums)) / len(labels)


def expected_with_checks(probs: jax.Array, labels: jax.Array) -> jax.Array:
    """The plain formulation with the checks of ours: distributions, and labels of their classes."""
    confidence = jnp.max(probs, axis=-1)
    total = jnp.dot(probs, jnp.ones(probs.shape[1], probs.dtype))
    valid = (jnp.min(probs, axis=-1) >= 0) & (jnp.abs(total - 1) <= 1e-3)
    valid &= (labels >= 0) & (labels < probs.shape[1])
    residual = jnp.where(valid, confidence, jnp.nan) - (jnp.argmax(probs, axis=-1) == labels)
    bins = jnp.minimum((jnp.where(valid, confidence, 0) * _NUM_BINS).astype(jnp.int32), 14)
    sums = jnp.zeros(_NUM_BINS, probs.dtype).at[bins].add(residual)
    return jnp.sum(jnp.abs(sums)) / len(labels)


def expected_peers(given: Given) -> dict[str, Peer]:
    """The expected error by libraries that are not JAX's."""
    fine, labels = given.probs.astype(np.float64), given.labels
    peers = {"numpy": Peer(lambda: expected_by_numpy(fine, labels), 1e-6)}
    if not _absent("netcal", "netcal"):
        from netcal.metrics import ECE

        error = ECE(bins=_NUM_BINS)
        peers["netcal"] = Peer(lambda: error.measure(fine, labels), 1e-6)
    if not _absent("torchmetrics", "torchmetrics"):
        import torch
        from torchmetrics.functional.classification import multiclass_calibration_error

        probs, truth = torch.as_tensor(given.probs), torch.as_tensor(labels)
        classes = probs.shape[1]

        def by_torchmetrics() -> Any:
            return multiclass_calibration_error(
                probs, truth, num_classes=classes, n_bins=_NUM_BINS, validate_args=False
            )

        # its sums in float32 drift
        peers["torchmetrics"] = Peer(by_torchmetrics, 1e-4)
    return peers


def jax_peers(probs: jax.Array, labels: jax.Array) -> dict[str, Peer]:
    """The expected error in JAX: the plain formulation, and bayes-hdc's where it is installed."""
    plain, checked = jax.jit(expected_by_jax), jax.jit(expected_with_checks)
    peers = {
        "plain JAX": Peer(lambda: plain(probs, labels), 1e-4),
        "plain JAX with the same checks": Peer(lambda: checked(probs, labels), 1e-4),
    }
    if not _absent("bayes-hdc", "bayes_hdc"):
        from bayes_hdc.metrics import expected_calibration_error as by_bayes_hdc

        theirs = jax.jit(lambda p, y: by_bayes_hdc(p, y, n_bins=_NUM_BINS))
        peers["bayes-hdc"] = Peer(lambda: theirs(probs, labels), 1e-4)
    return peers


def measure_expected(given: Given, rounds: int) -> Found:
    """Expected error: against libraries of other arrays, then against JAX."""
    probs, labels = jnp.asarray(given.probs), jnp.asarray(given.labels)
    jitted = jax.jit(partial(expected_calibration_error, num_bins=_NUM_BINS))
    ours = partial(jitted, probs, labels)
    figures, details = compare("expected", ours, expected_peers(given), rounds)
    found, alike = compare("expected", ours, jax_peers(probs, labels), rounds)
    seconds = alike["seconds"]
    rivals = [name for name in seconds if name == "bayes-hdc"] or ["plain JAX"]
    fastest = min(rivals, key=lambda name: median(seconds[name]))
    print(f"fastest of JAX: {fastest}", flush=True)
    for label, rival in (("fastest of JAX", fastest), ("plain JAX with the same checks",) * 2):
        name = f"expected: ours / {label}"
        found.append(Figure(name, ratio(seconds, "ours", rival), MOST[name]))
    return figures + found, {"numpy": details, "jax": alike | {"fastest": fastest}}


def measure_wide(_: Given, rounds: int) -> Found:
    """Expected error of many classes against NumPy, and the fit of a temperature to them."""
    figures, details = [], {}
    jitted = jax.jit(partial(expected_calibration_error, num_bins=_NUM_BINS))
    for i, (size, classes) in enumerate(WIDE):
        given = make(size, classes)
        name = f"{size} x {classes}"
        probs, labels = jnp.asarray(given.probs), jnp.asarray(given.labels)
        off = abs(float(jitted(probs, labels)) - expected_by_numpy(given.probs, given.labels))
        figures.append(Figure(f"wide: numpy differs by, {name}", off, 1e-5))
        calls: dict[str, Callable[[], Any]] = {
            "ours": partial(jitted, probs, labels),
            "numpy": partial(expected_by_numpy, given.probs, given.labels),
        }
        if i == 0:
            logits = jnp.asarray(given.logits)
            calls["fit"] = partial(jax.jit(fit_temperature), logits, labels)
            calls["pass"] = partial(jax.jit(partial(jax.nn.logsumexp, axis=-1)), logits)
        seconds = time_in_turns(calls, rounds=rounds)
        show("wide", seconds)
        for over, under, what in (("numpy", "ours", "numpy / ours"),
                                  ("fit", "pass", "fit of a temperature / pass")):  # fmt: skip
            if over in seconds:
                label, value = f"wide: {what}, {name}", ratio(seconds, over, under)
                figures.append(Figure(label, value, MOST.get(label), least=LEAST.get(label)))
        details[name] = {"seconds": seconds}
    return figures, details


def measure_smooth(given: Given, rounds: int) -> Found:
    """Smooth error, from probabilities and from pairs."""
    probs, labels = jnp.asarray(given.probs), jnp.asarray(given.labels)
    of_probs = jax.jit(lambda p, y: smooth_calibration_error(*top_label(p, y)).value)
    pairs = jax.block_until_ready(jax.jit(top_label)(probs, labels))
    of_pairs = jax.jit(
        lambda confidence, correct: smooth_calibration_error(confidence, correct).value
    )
    from_probs: dict[str, Peer] = {}
    from_pairs: dict[str, Peer] = {}
    if not _absent("relplot", "relplot"):
        import relplot

        fine = given.probs.astype(np.float64)
        confidence, correct = (np.asarray(x, np.float64) for x in pairs)

        def by_relplot() -> float:
            return relplot.smECE(
                *relplot.metrics.multiclass_logits_to_confidences(fine, given.labels, probs=True)
            )

        # it rounds its bandwidth to 2^-10, and averages over 200 points
        from_probs["relplot"] = Peer(by_relplot, 1e-3)
        from_pairs["relplot"] = Peer(lambda: relplot.smECE(confidence, correct), 1e-3)
    figures, details = compare("smooth", lambda: of_probs(probs, labels), from_probs, rounds)
    found, less = compare("smooth of pairs", lambda: of_pairs(*pairs), from_pairs, rounds)
    return figures + found, {"probabilities": details, "pairs": less}


def measure_temperature(given: Given, rounds: int) -> Found:
    """The fit of a temperature; scikit-learn's class is private, and its public way adds to it."""
    logits, labels = jnp.asarray(given.logits), jnp.asarray(given.labels)
    fit = jax.jit(fit_temperature)
    peers: dict[str, Peer] = {}
    import sklearn.calibration

    scaling = getattr(sklearn.calibration, "_TemperatureScaling", None)
    if scaling is None:
        print("scikit-learn has no temperature scaling: not compared", flush=True)
    else:
        fine = given.logits.astype(np.float64)
        peers["scikit-learn"] = Peer(lambda: 1 / scaling().fit(fine, given.labels).beta_, 1e-5)
        # less to compute, and less exact
        peers["scikit-learn float32"] = Peer(
            lambda: 1 / scaling().fit(given.logits, given.labels).beta_, 1e-2
        )
    figures, details = compare(
        "temperature", lambda: fit(logits, labels).temperature, peers, rounds
    )
    solution = fit(logits, labels)
    figures.insert(0, Figure("temperature: converged", float(solution.converged), least=1))
    return figures, details | {"num_steps": int(solution.num_steps)}


def errors_by_numpy(probs: np.ndarray, labels: np.ndarray, replicates: int) -> np.ndarray:
    """Expected errors of replicates that draw every example a Poisson(1) number of times."""
    rng = np.random.RandomState(0)
    confidence = probs.max(axis=1)
    residual = confidence - (probs.argmax(axis=1) == labels)
    bins = np.minimum((confidence * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    errors = []
    for _ in range(replicates):
        times = rng.poisson(1.0, len(labels))
        sums = np.bincount(bins, times * residual, _NUM_BINS)
        errors.append(np.abs(sums).sum() / times.sum())
    return np.array(errors)


def measure_bootstrap(given: Given, rounds: int) -> Found:
    """Replicates of the expected error on its bins, and its interval, against one pass."""
    probs, labels = jnp.asarray(given.probs), jnp.asarray(given.labels)
    key = jax.random.key(0)
    once = jax.jit(lambda p, y: expected_calibration_error(p, y, num_bins=_NUM_BINS))
    bins = jax.jit(lambda p, y: top_label_bins(p, y, num_bins=_NUM_BINS))(probs, labels)

    @jax.jit
    def replicates(key: jax.Array, bins: Any) -> jax.Array:
        drawn = intervals.bootstrap_bins(key, bins, num_replicates=_NUM_REPLICATES)
        return calibration_error(drawn)

    interval = jax.jit(
        lambda key, bins: intervals.calibration_error(key, bins, num_replicates=_NUM_REPLICATES)
    )
    start = time.perf_counter()
    oracle = errors_by_numpy(given.probs.astype(np.float64), given.labels, _NUM_ORACLES)
    numpy = (time.perf_counter() - start) * _NUM_REPLICATES / _NUM_ORACLES
    spread = float(np.std(replicates(key, bins)) / oracle.std())
    figures = [Figure("bootstrap: spread / that of examples", spread, 1.5, least=0.65)]
    seconds = time_interleaved(
        {
            "pass": lambda: once(probs, labels),
            "replicates": lambda: replicates(key, bins),
            "interval": lambda: interval(key, bins),
        },
        rounds=5 * rounds,
        warmup=2,
    )
    show("bootstrap", seconds)
    for name in ("replicates", "interval"):
        label = f"bootstrap: {name} / pass"
        figures.append(Figure(label, ratio(seconds, name, "pass"), MOST.get(label)))
    times = numpy / median(seconds["replicates"])
    figures.append(Figure("bootstrap: of the examples in NumPy / ours", times))
    return figures, {"seconds": seconds, "numpy seconds": numpy}


def show(name: str, seconds: Mapping[str, list[float]]) -> None:
    for who, times in seconds.items():
        print(f"{name:<16}{who:<22}{median(times) * 1e3:12.3f} ms", flush=True)


def compare(
    name: str, ours: Callable[[], jax.Array], peers: Mapping[str, Peer], rounds: int
) -> Found:
    """Checks that peers agree with our value, then times them in turns."""
    value = float(ours())
    figures = []
    for who, peer in peers.items():
        off = abs(float(peer.run()) - value)
        figures.append(Figure(f"{name}: {who} differs by", off, peer.tolerance))
    calls = {"ours": ours} | {who: peer.run for who, peer in peers.items()}
    seconds = time_in_turns(calls, rounds=rounds)
    show(name, seconds)
    for who in peers:
        label = f"{name}: {who} / ours"
        figures.append(Figure(label, ratio(seconds, who, "ours"), least=LEAST.get(label)))
    return figures, {"value": value, "seconds": seconds}


PROBLEMS: dict[str, Callable[[Given, int], Found]] = {
    "expected": measure_expected,
    "wide": measure_wide,
    "smooth": measure_smooth,
    "temperature": measure_temperature,
    "bootstrap": measure_bootstrap,
}


def run(arguments: argparse.Namespace) -> int:
    """Checks, times and reports.

    Returns:
        The exit code: with `check`, 1 where a value differs or a bound is broken.
    """
    given = make(arguments.size, arguments.classes)
    figures: list[Figure] = []
    details: dict[str, Any] = {"size": arguments.size, "classes": arguments.classes}
    start = time.perf_counter()
    for name in arguments.problems or PROBLEMS:
        if time.perf_counter() - start > arguments.seconds:
            print(f"{name}: no time left", flush=True)
            continue
        found, details[name] = PROBLEMS[name](given, arguments.rounds)
        figures += found
    return report(
        "calibration", figures, arguments.out, check=arguments.check, commit=arguments.commit,
        details={"problems": details},
    )  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = benchmark_parser(__doc__, PROBLEMS)
    parser.add_argument("--size", type=int, default=1_000_000, help="examples")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(parse()))
