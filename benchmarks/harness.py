"""What the benchmarks share: timing in turns, facts about the machine, figures with bounds."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from calmoe_jax._environment import describe_environment
from calmoe_jax._files import to_json, write_whole


class Figure(NamedTuple):
    """A measured figure and the bounds it must keep.

    Attributes:
        name: what was measured.
        value: the figure.
        bound: the largest value allowed, if there is one.
        unit: `s`, `GB`, or empty for a ratio.
        least: the smallest value allowed, if there is one.
    """

    name: str
    value: float
    bound: float | None = None
    unit: str = ""
    least: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the figure is within its bounds."""
        return (self.bound is None or self.value <= self.bound) and (
            self.least is None or self.value >= self.least
        )


def time_interleaved(
    variants: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each variant in each round, in turn, so that a slow minute slows them all."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_number in range(warmup + rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if round_number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def time_in_turns(
    variants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    turn: float = 0.1,
    rest: float = 0.1,
) -> dict[str, list[float]]:
    """Seconds of variants that have threads of their own: each rests first, then runs repeatedly.

    The threads of NumPy's BLAS, torch and XLA wait for more work for a while and take a core: what
    runs right after them is up to twice as slow.

    Args:
        variants: what is timed.
        rounds: how often each has a turn.
        turn: seconds that a turn lasts, if it has two runs by then; 20 runs at most.
        rest: seconds without work before a turn.

    Returns:
        The median of each turn's runs but the first, which warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, call in variants.items():
            time.sleep(rest)
            runs: list[float] = []
            while len(runs) < 2 or (sum(runs) < turn and len(runs) < 20):
                start = time.perf_counter()
                jax.block_until_ready(call())
                runs.append(time.perf_counter() - start)
            seconds[name].append(statistics.median(runs[1:]))
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, to: str) -> float:
    """Median over the rounds of one variant's time in units of another's."""
    pairs = zip(seconds[name], seconds[to], strict=True)
    return statistics.median(a / b for a, b in pairs)


def environment(commit: str | None = None) -> dict[str, Any]:
    """What a figure depends on.

    Args:
        commit: commit of the tree, where it is a copy without its repository.

    Returns:
        Versions, devices, processor, load and commit.
    """
    known = describe_environment()
    return known | {
        "processor": platform.processor() or platform.machine(),
        "load": os.getloadavg(),
        "commit": commit or known["commit"],
    }


def benchmark_parser(description: str, problems: Iterable[str]) -> argparse.ArgumentParser:
    """The options of a benchmark of named problems.

    Args:
        description: of which the first line is shown.
        problems: their names.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is broken")
    parser.add_argument("--problems", nargs="+", choices=list(problems))
    parser.add_argument(
        "--seconds", type=float, default=1200, help="begin no problem after that long"
    )
    parser.add_argument("--out", type=Path, help="where to write everything as JSON")
    parser.add_argument("--commit", help="commit of a tree without its repository")
    return parser


def write_json(out: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole, and its folder where there is none."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, to_json(content))


def report(
    name: str,
    figures: list[Figure],
    out: Path | None,
    *,
    check: bool,
    commit: str | None = None,
    details: Mapping[str, Any] | None = None,
) -> int:
    """Prints the figures, writes them as JSON, and returns the exit code.

    With `check` the code is 1 where a figure breaks its bound, and the last line has all figures.
    """
    for figure in figures:
        bound = "" if figure.bound is None else f"   at most {figure.bound:g}"
        least = "" if figure.least is None else f"   at least {figure.least:g}"
        print(f"{figure.name:<52} {figure.value:10.3f} {figure.unit:<3}{bound}{least}")
    if out is not None:
        content = {
            "benchmark": name,
            "environment": environment(commit),
            "figures": [figure._asdict() for figure in figures],
        }
        write_json(out, content | dict(details or {}))
    if check:
        failed = [figure.name for figure in figures if not figure.holds]
        line = ", ".join(f"{figure.name} {figure.value:.3g}{figure.unit}" for figure in figures)
        print(f"{'FAILED ' + ', '.join(failed) if failed else 'ok'}: {line}", flush=True)
        return 1 if failed else 0
    return 0
