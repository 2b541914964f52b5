"""The entropy-balanced solve against SciPy and NumPy.

`python -m benchmarks.dual [--check] [--problems NAME ...] [--seconds N] [--out FILE]
[--commit SHA]`

Every solver gets the same dual: balancing normal columns towards shifted means, or tilting by a
random signal. SciPy's L-BFGS-B and a Newton solver in NumPy get it standardised, in float64, before
the clock starts, and stop at the same residual as ours, which gets raw float32 columns and
standardises them itself. Log weights must agree before anything is timed, and the residual stands
beside every time. Solvers take turns of a few runs, after a rest; a turn's first run is not timed.
empirical_calibration is a rival where it is installed. On a GPU: device time of the solve and of
one pass, and the pass's share of the bandwidth of a copy.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

import calmoe_jax as cm
from benchmarks import clocks
from benchmarks.harness import Figure, benchmark_parser, report, time_in_turns
from calmoe_kernels.xla import dual as passes

_TOLERANCE = 1e-6


class Problem(NamedTuple):
    """A solve, or many at once.

    Attributes:
        size: examples.
        columns: constraints.
        shift: of the targets, in standard deviations.
        eta: inverse temperature of a random signal; 0 for none.
        batch: how many solves at once, under `vmap`.
        scipy: least speed on a CPU in units of SciPy's.
        large: whether it is left to GPUs.
    """

    size: int
    columns: int
    shift: float = 0.0
    eta: float = 0.0
    batch: int = 1
    scipy: float | None = None
    large: bool = False


PROBLEMS = {
    "tiny": Problem(128, 0, eta=2.0),
    "batch": Problem(1024, 16, eta=2.0),
    # Bounds leave a third for other machines: two cores measured 3.7 to 5.2 for the first, 4.3 for
    # the second, 5 for 1e6 x 10 and 3 for 1e6 x 50. What limits the first: its five passes each
    # need 256 products of 8 x 1024 with 1024 x 8, for which XLA's batched product takes 1.3 to 1.6
    # ms and NumPy's .8 to 1.1, and read and write the columns twice more.
    "256 batches": Problem(1024, 8, eta=2.0, batch=256, scipy=3),
    "1e5 x 10": Problem(100_000, 10, shift=0.15, scipy=3),
    "1e5 x 50": Problem(100_000, 50, shift=0.3),
    "1e6 x 10": Problem(1_000_000, 10, shift=0.15, scipy=3),
    "1e6 x 16": Problem(1_000_000, 16, shift=0.15, eta=1.0),
    "1e6 x 50": Problem(1_000_000, 50, shift=0.3, scipy=1),
    "1e6 x 64": Problem(1_000_000, 64, shift=0.1),
    "1e7 x 16": Problem(10_000_000, 16, shift=0.15, large=True),
}


class Given(NamedTuple):
    """Arrays of a problem, with the batch in front."""

    signal: np.ndarray
    columns: np.ndarray
    targets: np.ndarray


class Outcome(NamedTuple):
    """Log weights of the first solve of a batch, and the largest residual."""

    log_weights: np.ndarray
    residual: float


def make(problem: Problem) -> Given:
    """Random arrays in float32."""
    rng = np.random.RandomState(0)
    shape = problem.batch, problem.size, problem.columns
    columns = rng.standard_normal(shape).astype(np.float32)
    signal = rng.standard_normal(shape[:2]).astype(np.float32) * (problem.eta > 0)
    targets = columns.mean(axis=1) + problem.shift * columns.std(axis=1)
    return Given(signal.astype(np.float32), columns, targets.astype(np.float32))


def standardise(given: Given) -> tuple[np.ndarray, np.ndarray]:
    """Signal and columns in float64, as SciPy and NumPy get them."""
    columns = given.columns.astype(np.float64)
    off = columns - given.targets[:, None]
    return given.signal.astype(np.float64), off / columns.std(axis=1, keepdims=True)


def _value(scores: np.ndarray, off: np.ndarray, v: np.ndarray) -> tuple[float, np.ndarray]:
    z = scores - off @ v
    peak = z.max()
    np.subtract(z, peak, out=z)
    np.exp(z, out=z)
    total = z.sum()
    return peak + np.log(total), -(z @ off) / total


def by_scipy(eta: float, signal: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, float]:
    """Potentials by L-BFGS-B, and the residual."""
    found = scipy.optimize.minimize(
        partial(_value, eta * signal, off), np.zeros(off.shape[1]), jac=True, method="L-BFGS-B",
        options={"gtol": _TOLERANCE, "ftol": 0.0, "maxiter": 1000, "maxfun": 2000},
    )  # fmt: skip
    return found.x, float(np.abs(found.jac).max(initial=0))


def by_numpy(eta: float, signal: np.ndarray, off: np.ndarray) -> tuple[np.ndarray, float]:
    """Potentials by Newton's method in NumPy, with steps halved as needed, and the residual."""
    scores, v = eta * signal, np.zeros(off.shape[1])
    step, value, mean = v, np.inf, v
    for _ in range(60):
        trial = v + step
        z = scores - off @ trial
        peak = z.max()
        w = np.exp(z - peak)
        total = w.sum()
        higher = peak + np.log(total) > value + 1e-12
        if higher:
            step = step / 2
            continue
        v, value = trial, peak + np.log(total)
        w /= total
        mean = w @ off
        if np.abs(mean).max(initial=0) <= _TOLERANCE:
            break
        hessian = (off * w[:, None]).T @ off - np.outer(mean, mean)
        step = np.linalg.lstsq(hessian, mean, rcond=1e-12)[0]
    return v, float(np.abs(mean).max(initial=0))


def solve_all(
    solver: Callable[..., tuple[np.ndarray, float]], eta: float, signal: np.ndarray, off: np.ndarray
) -> Outcome:
    """Solves the problems of a batch one after the other."""
    found = [solver(eta, s, a) for s, a in zip(signal, off, strict=True)]
    z = eta * signal[0] - off[0] @ found[0][0]
    return Outcome(z - scipy.special.logsumexp(z), max(residual for _, residual in found))


def by_empirical_calibration(given: Given) -> Outcome:
    """By the package of that name, which takes no signal and one problem at a time."""
    import empirical_calibration

    off = given.columns[0] - given.targets[0]
    weights, _ = empirical_calibration.calibrate(
        covariates=off.astype(np.float64),
        target_covariates=np.zeros((1, off.shape[1])),
        objective=empirical_calibration.Objective.ENTROPY,
    )
    miss = np.abs(weights @ off / given.columns[0].std(axis=0)).max()
    with np.errstate(divide="ignore"):
        return Outcome(np.log(weights), float(miss))


def ours(problem: Problem) -> Callable[..., cm.reweighting.BalanceSolution]:
    """Our solve of a problem, under `jit`, and `vmap` where there are many."""

    def solve(
        signal: jax.Array, columns: jax.Array, targets: jax.Array
    ) -> cm.reweighting.BalanceSolution:
        return cm.reweighting.entropy_balance(signal, columns, targets, eta=problem.eta or 1.0)

    return jax.jit(jax.vmap(solve) if problem.batch > 1 else solve)


def measure(name: str, problem: Problem, *, on_cpu: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Checks and times one problem."""
    given = make(problem)
    arrays = [jnp.asarray(x if problem.batch > 1 else x[0]) for x in given]
    solve = ours(problem)
    solution = solve(*arrays)
    figures = []
    residual = float(solution.residual.max())
    figures.append(Figure(f"{name}: residual", residual, 1e-5))
    solvers: dict[str, Callable[[], Any]] = {"ours": lambda: solve(*arrays)}
    eta = problem.eta or 1.0
    signal, off = standardise(given)
    outcomes = {}
    for rival, solver in (("scipy", by_scipy), ("numpy", by_numpy)):
        run = partial(solve_all, solver, eta, signal, off)
        outcomes[rival], solvers[rival] = run(), run
    plain = problem.batch == 1 and problem.eta == 0 and not problem.large
    if plain and find_spec("empirical_calibration"):
        run = partial(by_empirical_calibration, given)
        outcomes["empirical_calibration"], solvers["empirical_calibration"] = run(), run
    log_weights = solution.log_weights if problem.batch == 1 else solution.log_weights[0]
    mine = np.asarray(log_weights, np.float64)
    worst = float(np.abs(mine - outcomes["scipy"].log_weights).max())
    figures.append(Figure(f"{name}: log weights differ from SciPy's by", worst, 1e-3))
    rounds = 7 if problem.size * problem.batch <= 10**6 else 3
    times = time_in_turns(solvers, rounds=rounds)
    seconds = {key: median(values) for key, values in times.items()}
    for key, value in seconds.items():
        left = residual if key == "ours" else outcomes[key].residual
        print(f"{name:<14}{key:<24}{value * 1e3:12.2f} ms   residual {left:.1e}", flush=True)
    for rival in seconds.keys() - {"ours"}:
        least = None
        if on_cpu and rival == "scipy":
            least = problem.scipy
        elif on_cpu and rival == "empirical_calibration" and problem.size >= 100_000:
            least = 20.0
        figures.append(
            Figure(f"{name}: {rival} / ours", seconds[rival] / seconds["ours"], least=least)
        )
    details: dict[str, Any] = {
        "seconds": times,
        "num_steps": np.asarray(solution.num_steps).tolist(),
    }
    if not on_cpu:
        figures += _on_device(name, problem, arrays, details)
    return figures, details


def _on_device(
    name: str, problem: Problem, arrays: list[jax.Array], details: dict[str, Any]
) -> list[Figure]:
    """Device time of the solve, of a pass, and of a copy."""
    programs = {"solve": clocks.Program(ours(problem), tuple(arrays))}
    rows = arrays[1]
    if problem.columns and problem.batch == 1:
        unit = jnp.ones(problem.columns)
        columns = passes.Columns(rows, arrays[2], unit)
        slopes, scores = 0.1 * unit, jnp.zeros(problem.size)
        function = passes.moments
        if find_spec("jax_triton"):
            from calmoe_kernels.triton import dual as kernels

            function = kernels.moments
        programs["pass"] = clocks.Program(function, (columns, scores, slopes))
        programs["copy"] = clocks.Program(lambda x: x + 1, (rows,))
    times = clocks.device_seconds(clocks.compile_timers(programs, device=True), target=0.015)
    details["device_seconds"] = times
    seconds = {key: median(values) for key, values in times.items()}
    for key, value in seconds.items():
        print(f"{name:<14}{key + ' (device)':<24}{value * 1e3:12.3f} ms", flush=True)
    bound = 0.30 if name == "1e6 x 16" else None
    figures = [Figure(f"{name}: device time", seconds["solve"] * 1e3, bound, "ms")]
    if "pass" in seconds:
        # a copy reads and writes, a pass reads
        share = 100 * (seconds["copy"] / 2) / seconds["pass"]
        least = 60.0 if name == "1e7 x 16" else None
        figures.append(Figure(f"{name}: pass, of a copy's bandwidth", share, unit="%", least=least))
    return figures


def run(arguments: argparse.Namespace) -> int:
    """Checks, times and reports.

    Returns:
        The exit code: 1 where a solution is wrong or, with `check`, a bound is broken.
    """
    on_cpu = jax.default_backend() == "cpu"
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    start = time.perf_counter()
    names = arguments.problems or [n for n, p in PROBLEMS.items() if not (on_cpu and p.large)]
    for name in names:
        if time.perf_counter() - start > arguments.seconds:
            print(f"{name}: no time left", flush=True)
            continue
        found, details[name] = measure(name, PROBLEMS[name], on_cpu=on_cpu)
        figures += found
    return report(
        "dual", figures, arguments.out, check=arguments.check, commit=arguments.commit,
        details={"problems": details},
    )  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    return benchmark_parser(__doc__, PROBLEMS).parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(parse()))
