"""What dispatch promises on each device, as figures with bounds."""

from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

from benchmarks.harness import Figure, ratio
from benchmarks.problems import Problem
from benchmarks.roofline import bytes_of

# seconds of each round, by problem, part and variant
Seconds = Mapping[tuple[str, str], Mapping[str, list[float]]]

# microseconds of a route on an H100, all its launches: see the issue of the kernels
_ROUTE_MICROSECONDS = {"route_128_k2": 32.0, "route_128_k8": 62.0, "route_256_k8": 20.0}
# per cent of the copy's bandwidth, at 65536 tokens, k = 2, d = 4096, bfloat16
_BANDWIDTH_PROBLEM = "route_128_k2"
_PER_CENT = {"permute": 92.0, "combine": 94.0, "permute_backward": 88.0, "combine_backward": 88.0}
_SPEEDUP = {"route_permute": 1.7, "forward_backward": 1.3}  # over fair, from 8192 tokens on
_NOISE = 0.03
_MEMORY = 1.1


class Measured(NamedTuple):
    """All that was measured in a run.

    Attributes:
        seconds: of the library's variants and their rivals.
        memory: peak in units of inputs, outputs and plan, by problem.
        bandwidth: bytes a second of a copy.
    """

    seconds: Seconds
    memory: Mapping[str, float | None]
    bandwidth: float


def figures(
    problems: list[Problem], measured: Measured, *, platform: str, device: str
) -> list[Figure]:
    """The figures that a device must keep, and of how many problems one is missing.

    Args:
        problems: the requested problems.
        measured: what was measured of them.
        platform: JAX's name of the platform: other bounds hold on a CPU.
        device: kind of device; absolute times are those of an H100.

    Returns:
        Figures; of those that hold for many problems the worst, which is named.
    """
    found: list[Figure] = []
    missing: list[str] = []

    def speedups(part: str, rival: str, ours: str, least_tokens: int = 0) -> dict[str, float]:
        values = {}
        for problem in problems:
            if problem.tokens < least_tokens:
                continue
            times = measured.seconds.get((problem.name, part), {})
            if rival in times and ours in times:
                values[problem.name] = ratio(times, rival, ours)
            else:
                missing.append(problem.name)
        return values

    if platform == "cpu":
        part = "forward_backward"
        found += _worst(f"{part}: naive / xla", speedups(part, "naive", "xla"), least=1.0)
    else:
        names = {problem.name: problem for problem in problems}
        if "H100" in device:
            found += _route_times(names, measured, missing)
        if _BANDWIDTH_PROBLEM in names:
            found += _per_cents(names[_BANDWIDTH_PROBLEM], measured, missing)
        for part, least in _SPEEDUP.items():
            values = speedups(part, "fair", "None", least_tokens=8192)
            found += _worst(f"{part}: fair / None, from 8192 tokens", values, least=least)
        everything = {}
        for part in (*_PER_CENT, "route", "route_backward", *_SPEEDUP):
            for name, value in speedups(part, "fair", "None").items():
                everything[f"{part} of {name}"] = value
        found += _worst("fair / None, any part", everything, least=1 - _NOISE)
    memory = {name: value for name, value in measured.memory.items() if value is not None}
    missing += [problem.name for problem in problems if problem.name not in memory]
    found += _worst("memory of dispatch and combine / needed", memory, bound=_MEMORY)
    absent = list(dict.fromkeys(missing))
    listed = f" ({', '.join(absent)})" if absent else ""
    return [*found, Figure(f"problems not fully measured{listed}", len(absent), 0)]


def _worst(
    name: str, values: Mapping[str, float], *, least: float | None = None,
    bound: float | None = None,
) -> list[Figure]:  # fmt: skip
    """The worst of many figures, with its problem in the name, or all that break the bound."""
    if not values:
        return []
    worst = (min if least is not None else max)(values, key=lambda key: values[key])
    broken = [
        key for key, value in values.items() if not Figure("", value, bound, least=least).holds
    ]
    label = f"{name}, worst of {len(values)} ({', '.join(broken or [worst])})"
    return [Figure(label, values[worst], bound, least=least)]


def _route_times(
    names: Mapping[str, Problem], measured: Measured, missing: list[str]
) -> list[Figure]:
    found = []
    for name, most in _ROUTE_MICROSECONDS.items():
        times = measured.seconds.get((name, "route"), {})
        if name in names and "None" in times:
            found.append(Figure(f"route of {name}", median(times["None"]) * 1e6, most, "us"))
        elif name in names:
            missing.append(name)
    return found


def _per_cents(problem: Problem, measured: Measured, missing: list[str]) -> list[Figure]:
    found = []
    for part, least in _PER_CENT.items():
        times = measured.seconds.get((problem.name, part), {})
        if "None" in times:
            value = per_cent(problem, part, median(times["None"]), measured.bandwidth)
            found.append(Figure(f"{part} of {problem.name}", value, None, "%", least))
        else:
            missing.append(problem.name)
    return found


def per_cent(problem: Problem, part: str, seconds: float, bandwidth: float) -> float:
    """Bytes that a part must move, a second, in per cent of a copy's bandwidth."""
    return 100 * bytes_of(problem, part) / seconds / bandwidth
