"""Two ways to time compiled programs: wall time of a call, and device time inside a loop."""

import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.harness import time_interleaved

# The loop's own cost, about 10 us an iteration on a GPU, is not subtracted but shared by the calls.
_CALLS = 8
_ITERATIONS = 8
# Outputs that would fill the memory are not held until the end of an iteration, and the calls that
# write them are slow enough to need fewer iterations.
_LARGE, _ITERATIONS_IF_LARGE = 2**27, 2


class Program(NamedTuple):
    """A function of arrays, and the arrays to call it with.

    Attributes:
        function: a pure function.
        args: its arguments, pytrees of arrays.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]


class Timer(NamedTuple):
    """A compiled program that can be timed.

    Attributes:
        run: `run(n)` does `n` units of work, not yet finished when it returns.
        calls: calls of the program in a unit.
        text: the compiled program; of equal ones one needs to be timed.
    """

    run: Callable[[int], Any]
    calls: int
    text: str


def looped(program: Program) -> tuple[Callable[..., jax.Array], int]:
    """A loop of dependent calls: `f(repeats, *args)`, and the calls in each repeat.

    Every call waits for the outputs of all calls before it, and every output is whole in memory,
    though one element of it is read: optimization barriers around arguments and outputs, which
    XLA's GPU pipeline keeps until the program is fused and scheduled. So nothing is hoisted out
    of the loop, shared between calls, or left out. (The CPU's pipeline removes barriers before
    fusion: there this loop runs, and its times mean nothing.)

    Args:
        program: what to call.

    Returns:
        The function, to be jitted with a traced `repeats`, and its calls a repeat.
    """
    outputs = jax.tree.leaves(jax.eval_shape(program.function, *program.args))
    large = sum(x.size * x.dtype.itemsize for x in outputs) > _LARGE
    iterations = _ITERATIONS_IF_LARGE if large else _ITERATIONS

    def read(done: list[Any]) -> jax.Array:
        total, *results = jax.lax.optimization_barrier(done)
        firsts = [x[(0,) * x.ndim] for x in jax.tree.leaves(results) if x.size]
        return total + sum(first.astype(jnp.float32) for first in firsts)

    def iteration(_: Any, total: jax.Array, args: tuple[Any, ...]) -> jax.Array:
        done: list[Any] = [total]
        for _ in range(_CALLS):
            args, done = jax.lax.optimization_barrier((args, done))
            done = [*done, program.function(*args)]
            if large:
                done = [read(done)]
        return read(done)

    def inner(_: Any, total: jax.Array, args: tuple[Any, ...]) -> jax.Array:
        # a number of iterations that is known to the compiler costs no transfer to the host
        return jax.lax.fori_loop(0, iterations, partial(iteration, args=args), total)

    def loop(repeats: jax.Array, *args: Any) -> jax.Array:
        return jax.lax.fori_loop(0, repeats, partial(inner, args=args), jnp.float32(0))

    return loop, iterations * _CALLS


def compile_timers(programs: Mapping[str, Program], *, device: bool) -> dict[str, Timer]:
    """Compiles programs, several at once, for device or wall time."""
    sources, calls = [], []
    for program in programs.values():
        if device:
            loop, number = looped(program)
            sources.append((jax.jit(loop), (jnp.int32(1), *program.args)))
        else:
            number = 1
            sources.append((jax.jit(program.function), program.args))
        calls.append(number)
    run = _run_loop if device else _run_calls
    rows = zip(programs.items(), compile_all(sources), calls, strict=True)
    return {
        name: Timer(partial(run, compiled, program.args), number, _text(compiled))
        for (name, program), compiled, number in rows
    }


def compile_all(sources: Sequence[tuple[Any, tuple[Any, ...]]]) -> list[Any]:
    """Traces jitted functions for their arguments one by one, and compiles them at once."""
    lowered = [function.lower(*args) for function, args in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda each: each.compile(), lowered))


def _text(compiled: Any) -> str:
    """The instructions of a compiled program, without where they come from."""
    lines = (re.sub(r", metadata=\{[^}]*\}", "", x) for x in compiled.as_text().splitlines())
    return "\n".join(line for line in lines if line.startswith(("  ", "ENTRY", "%")))


def _run_loop(compiled: Callable[..., Any], args: tuple[Any, ...], number: int) -> Any:
    return compiled(jnp.int32(number), *args)


def _run_calls(compiled: Callable[..., Any], args: tuple[Any, ...], number: int) -> Any:
    result = None
    for _ in range(number):
        result = compiled(*args)
    return result


def wall_seconds(timers: Mapping[str, Timer], *, target: float) -> dict[str, list[float]]:
    """Seconds of a call in each of 5 to 25 interleaved rounds, about `target` in all."""
    first = time_interleaved({n: partial(t.run, 1) for n, t in timers.items()}, rounds=1)
    # a round of very short calls would measure the clock
    numbers = {name: max(1, math.ceil(0.002 / each[0])) for name, each in first.items()}
    a_round = sum(numbers[name] * each[0] for name, each in first.items())
    rounds = min(25, max(5, round(target / a_round)))
    calls = {name: partial(timer.run, numbers[name]) for name, timer in timers.items()}
    seconds = time_interleaved(calls, rounds=rounds, warmup=0)
    return {name: [s / numbers[name] for s in each] for name, each in seconds.items()}


def device_seconds(timers: Mapping[str, Timer], *, target: float) -> dict[str, list[float]]:
    """Seconds of a call on the device: the difference of n and 2 n repeats of its loop.

    Args:
        timers: loops.
        target: seconds that `n` repeats should take.

    Returns:
        Five interleaved rounds of each.
    """
    numbers = {}
    for name, timer in timers.items():
        jax.block_until_ready(timer.run(1))
        numbers[name] = max(1, math.ceil(target / _seconds(timer, 1)))
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(5):
        for name, timer in timers.items():
            n = numbers[name]
            difference = _seconds(timer, 2 * n) - _seconds(timer, n)
            seconds[name].append(difference / (n * timer.calls))
    return seconds


def _seconds(timer: Timer, number: int) -> float:
    start = time.perf_counter()
    jax.block_until_ready(timer.run(number))
    return time.perf_counter() - start
