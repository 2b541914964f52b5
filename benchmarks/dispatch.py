"""Routing and dispatch against their rivals and the bandwidth of a copy.

`python -m benchmarks.dispatch [--check] [--problems NAME ...] [--out FILE] [--plot FILE]
[--seconds N] [--agree]`

First every implementation that runs here must agree with the naive formulation. Then the parts
are timed: on a GPU or TPU the device time of dependent calls in one jitted loop, on a CPU the wall
time of calls, interleaved, of problems cut to 8192 tokens and a width of 512. `limit` is the ratio
that a copy's bandwidth would allow. A part whose program is that of another variant, as `None` on
a CPU is that of `xla`, is timed once.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax

from benchmarks import bounds, clocks, parts, roofline, show
from benchmarks.agreement import disagreements
from benchmarks.harness import environment, ratio, report, write_json
from benchmarks.problems import PROBLEMS, Problem, cut, make_inputs
from benchmarks.rivals import Variant
from calmoe_kernels.availability import implementations

Rounds = dict[str, list[float]]

_TARGET = 0.015  # seconds of a loop on the device


class Benchmark:
    """One run, and what it has found so far.

    Args:
        problems: what to measure.
        on_device: whether to measure device time.
        seconds: after how many seconds nothing more is begun.
    """

    def __init__(self, problems: Sequence[Problem], *, on_device: bool, seconds: float) -> None:
        self.problems = list(problems)
        self.disagreements: dict[str, dict[str, list[str]]] = {}
        self.declined: dict[str, str] = {i.name: i.reason for i in implementations() if i.reason}
        self._on_device = on_device
        self._deadline = time.perf_counter() + seconds
        self._seconds: dict[tuple[str, str], Rounds] = {}
        self._memory: dict[str, float | None] = {}
        self._bandwidth = 0.0

    @property
    def measured(self) -> bounds.Measured:
        """What has been measured so far."""
        return bounds.Measured(self._seconds, self._memory, self._bandwidth)

    @property
    def late(self) -> bool:
        """Whether its time is up."""
        return time.perf_counter() > self._deadline

    @property
    def wrong(self) -> list[str]:
        """Variants that disagree with the naive formulation, and where."""
        return [
            f"{name} on {problem}"
            for problem, each in self.disagreements.items()
            for name, found in each.items()
            if found
        ]

    def measure_copy(self) -> None:
        """Measures the bandwidth that everything is compared with.

        Raises:
            RuntimeError: if the loop that measures device time turns out to leave work out.
        """
        array = roofline.copied_array(jax.default_backend())
        copy = {"copy": clocks.Program(roofline.copy, (array,))}
        walls = clocks.wall_seconds(clocks.compile_timers(copy, device=False), target=0.5)
        seconds = wall = median(walls["copy"])
        if self._on_device:
            timers = clocks.compile_timers(copy, device=True)
            seconds = median(clocks.device_seconds(timers, target=_TARGET)["copy"])
            if seconds < 0.5 * wall:
                raise RuntimeError(
                    f"A copy takes {wall:.3g} s, and {seconds:.3g} s in a loop: the compiler has "
                    "left it out of the loop, whose times mean nothing. Use --clock wall."
                )
        self._bandwidth = roofline.copied_bytes(array) / seconds
        print(f"copy: {self._bandwidth / 1e9:.1f} GB/s", flush=True)

    def check(self, problem: Problem, variants: Sequence[Variant]) -> list[Variant]:
        """Compares the variants that run here with the naive formulation.

        Args:
            problem: sizes; compared at a width of 512 at most.
            variants: which.

        Returns:
            Those that run and agree.
        """
        # the reference is in float32, and at full width would fill a GPU
        narrow = problem._replace(d=min(problem.d, 512))
        inputs = jax.eval_shape(partial(make_inputs, narrow))
        running = []
        for variant in variants:
            try:
                jax.eval_shape(partial(parts.forward_backward, variant, narrow), inputs)
                running.append(variant)
            except (NotImplementedError, ImportError) as error:
                if variant.name == "None":  # which always works, or is broken
                    raise
                self._decline(variant.name, str(error))
        found = disagreements(narrow, running)
        self.disagreements[problem.name] = found
        for name, differences in found.items():
            if differences:
                print(f"{name} DISAGREES on {problem.name}: {'; '.join(differences)}", flush=True)
        return [variant for variant in running if not found[variant.name]]

    def _decline(self, name: str, reason: str) -> None:
        if self.declined.setdefault(name, reason) is reason:
            print(f"{name} does not run: {reason}", flush=True)

    def measure(self, problem: Problem, variants: Sequence[Variant]) -> None:
        """Times the parts of a problem, and prints a row for each variant."""
        inputs = make_inputs(problem)
        # on a GPU the parts of the naive one are not timed singly: its residuals are large
        composed_only = {variant.name for variant in variants if self._on_device} & {"naive"}
        programs = {
            (part, name): program
            for part, each in parts.programs(
                variants, problem, inputs, composed_only=composed_only
            ).items()
            for name, program in each.items()
        }
        timers = clocks.compile_timers(programs, device=self._on_device)
        print(f"\n{show.title(problem)}\n{show.HEADER}", flush=True)
        for part in sorted(parts.PARTS, key=lambda part: part not in parts.COMPOSED):
            if self.late:
                print(f"{part}: no time left", flush=True)
                continue
            some = {name: timer for (of, name), timer in timers.items() if of == part}
            times = self._time(some, 2.0 if part == "forward_backward" else 0.5)
            self._seconds[problem.name, part] = times
            for name in times:
                print(show.row(problem, part, name, times, self._bandwidth), flush=True)
        for variant in variants:
            if variant.name == "None" and not self.late:
                self._memory[problem.name] = parts.memory_ratio(variant, problem, inputs)

    def _time(self, timers: dict[str, clocks.Timer], target: float) -> Rounds:
        first: dict[str, str] = {}
        for name, timer in timers.items():
            first.setdefault(timer.text, name)
        distinct = {name: timers[name] for name in first.values()}
        if self._on_device:
            times = clocks.device_seconds(distinct, target=_TARGET)
        else:
            times = clocks.wall_seconds(distinct, target=target)
        return {name: times[first[timer.text]] for name, timer in timers.items()}

    def details(self, *, complete: bool) -> dict[str, Any]:
        """Everything that was found, for a JSON file."""
        return {
            "complete": complete,
            "clock": "device" if self._on_device else "wall",
            "copy_bandwidth": self._bandwidth,
            "problems": [problem._asdict() for problem in self.problems],
            "declined": self.declined,
            "disagreements": self.disagreements,
            "memory": self._memory,
            "measurements": [
                self._measurement(problem, part, name)
                for problem in self.problems
                for part in parts.PARTS
                for name in self._seconds.get((problem.name, part), {})
            ],
        }

    def _measurement(self, problem: Problem, part: str, name: str) -> dict[str, Any]:
        times = self._seconds[problem.name, part]
        seconds = median(times[name])
        return {
            "problem": problem.name,
            "part": part,
            "variant": name,
            "seconds": seconds,
            "rounds": times[name],
            "bytes": roofline.bytes_of(problem, part),
            "per_cent_of_copy": bounds.per_cent(problem, part, seconds, self._bandwidth),
            "fair_over_this": ratio(times, "fair", name) if "fair" in times else None,
        }


def run(arguments: argparse.Namespace, variants: Sequence[Variant] | None = None) -> int:
    """Checks, times, prints and writes.

    Args:
        arguments: as from `parse`.
        variants: what to measure; by default the library's implementations and their rivals.

    Returns:
        The exit code: 1 where implementations disagree or, with `check`, a bound is broken.
    """
    platform, device = jax.default_backend(), jax.devices()[0].device_kind
    on_device = platform != "cpu" if arguments.clock is None else arguments.clock == "device"
    problems = [PROBLEMS[name] for name in arguments.problems]
    if platform == "cpu":
        problems = [cut(problem) for problem in problems]
    benchmark = Benchmark(problems, on_device=on_device, seconds=arguments.seconds)
    chosen = list(parts.VARIANTS.values() if variants is None else variants)
    for name in {variant.name for variant in chosen} & benchmark.declined.keys():
        print(f"{name} does not run here: {benchmark.declined[name]}")
    if not arguments.agree:
        benchmark.measure_copy()
    for problem in problems:
        if benchmark.late:
            print(f"{problem.name}: no time left", flush=True)
            continue
        agreeing = benchmark.check(problem, chosen)
        names = ", ".join(variant.name for variant in agreeing)
        print(f"{problem.name}: {names} agree with the naive formulation", flush=True)
        if not arguments.agree:
            benchmark.measure(problem, agreeing)
            if arguments.out is not None:
                so_far = benchmark.details(complete=False)
                write_json(arguments.out, {"environment": environment(arguments.commit)} | so_far)
    code = 0 if arguments.agree else _report(benchmark, arguments, platform, device)
    if benchmark.wrong:
        print(f"FAILED: {', '.join(benchmark.wrong)}: not as the naive formulation", flush=True)
        return 1
    return code


def _report(benchmark: Benchmark, arguments: argparse.Namespace, platform: str, device: str) -> int:
    print()
    details = benchmark.details(complete=True)
    if arguments.plot is not None:
        show.plot(arguments.plot, details["measurements"])
    found = bounds.figures(benchmark.problems, benchmark.measured, platform=platform, device=device)
    return report(
        "dispatch",
        found,
        arguments.out,
        check=arguments.check,
        commit=arguments.commit,
        details=details,
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where a bound is broken")
    parser.add_argument("--agree", action="store_true", help="check agreement and time nothing")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--out", type=Path, help="where to write everything as JSON")
    parser.add_argument("--plot", type=Path, help="where to draw it, if matplotlib is here")
    parser.add_argument(
        "--seconds", type=float, default=1200, help="begin nothing more after that long"
    )
    parser.add_argument("--clock", choices=("wall", "device"), help="by default that of the device")
    parser.add_argument("--commit", help="commit of a tree without its repository")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(parse()))
