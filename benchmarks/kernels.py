"""Every kernel against XLA's form of its operation, by size: what `benchmarks/results` holds.

`python -m benchmarks.kernels [--operations NAME ...] [--classes N ...] [--seconds N] [--out FILE]
[--commit SHA]`

Both run on the same operands, whose results must agree; then their times are taken in turns, on the
device where there is one. `benchmarks/results/README.md` has the schema of what is written. Where
no kernel runs, nothing is measured.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import calmoe_jax as cm
from benchmarks import clocks
from benchmarks.harness import environment, write_json
from calmoe_kernels import measurements, selection
from calmoe_kernels.measurements import Measurement
from calmoe_kernels.xla.dual import Columns

CLASSES = tuple(range(30, 12, -2))
# Experts, k and width of a layer: few large experts, and many small ones.
LAYERS = {"8 experts": (8, 2, 4096), "128 experts": (128, 8, 2048)}
_COLUMNS = 16


class Case(NamedTuple):
    """An operation on some operands.

    Attributes:
        operation: a name of `selection.OPERATIONS`.
        problem: the operands, in words.
        run: `run(implementation, *arrays)`.
        arrays: what it is called with.
        operands: what the operation is called with, by which its size class is known.
    """

    operation: str
    problem: str
    run: Callable[..., Any]
    arrays: tuple[Any, ...]
    operands: tuple[Any, ...]


def cases(size_class: int) -> Iterator[Case]:
    """All operations on operands in the middle of a size class.

    Args:
        size_class: of the operands.

    Yields:
        Cases, one after the other: their arrays may fill a device.
    """
    size = 2 ** (size_class + 1)
    for layer, (experts, k, width) in LAYERS.items():
        yield from _of_routing(size, layer, experts, k)
        yield from _of_rows(size, layer, experts, k, width)
        yield from _of_products(size, layer, experts)
    yield from _of_moments(size)


def _direct(module: str, name: str) -> Callable[..., Any]:
    """A function that has the same name in each implementation's folder."""

    def run(implementation: str, *arrays: Any, **statics: Any) -> Any:
        return selection.lazy(f"{implementation}.{module}", name)(*arrays, **statics)

    return run


def _of_routing(size: int, layer: str, experts: int, k: int) -> Iterator[Case]:
    tokens = max(1, size // (4 * experts))
    logits = jax.random.normal(jax.random.key(0), (tokens, experts))

    def route(implementation: str, logits: jax.Array) -> cm.Routed:
        return cm.route(logits, k=k, implementation=implementation)

    def gradient(implementation: str, logits: jax.Array) -> jax.Array:
        def loss(logits: jax.Array) -> jax.Array:
            routed = route(implementation, logits)
            weights = routed.routing.combine_weights * jnp.arange(1.0, k + 1)[None]
            balance = routed.statistics.mean_gate_probs * jnp.arange(experts, dtype=jnp.float32)
            return jnp.sum(weights) + jnp.sum(balance) + jnp.sum(routed.statistics.logsumexp)

        return jax.grad(loss)(logits)

    for run in (route, gradient):
        problem = f"{tokens} tokens, {layer}, k={k}, {run.__name__}"
        yield Case("route", problem, run, (logits,), (logits,))
    tokens = max(1, size // (4 * k))
    indices = jax.random.randint(jax.random.key(1), (tokens, k), 0, experts)
    run = partial(_direct("plan", "plan"), num_experts=experts, capacity=None, block_size=None)
    yield Case("plan", f"{tokens} tokens, {layer}, k={k}", run, (indices,), (indices,))


def _of_rows(size: int, layer: str, experts: int, k: int, width: int) -> Iterator[Case]:
    def planned(rows_each: int) -> tuple[cm.DispatchPlan, jax.Array, str]:
        """A plan for as many tokens as fit, whose tokens have so many rows in the operands."""
        tokens = max(1, size // (2 * width * rows_each + 12 * k))
        indices = jax.random.randint(jax.random.key(2), (tokens, k), 0, experts)
        plan = jax.jit(partial(cm.plan_dispatch, num_experts=experts))(indices)
        weights = jax.random.uniform(jax.random.key(3), (tokens, k))
        return plan, weights, f"{tokens} tokens of width {width} in bfloat16, {layer}, k={k}"

    def numbers(seed: int, rows: int) -> jax.Array:
        return jax.random.normal(jax.random.key(seed), (rows, width), jnp.bfloat16)

    plan, _, problem = planned(1)
    args: tuple[Any, ...] = numbers(4, len(plan.positions)), plan.positions, plan.slot_indices
    yield Case("scatter_rows", problem, _direct("permute", "scatter_rows"), args, args)
    plan, weights, problem = planned(k)
    for word, some in (("", None), (", weighted", weights)):
        args = numbers(5, plan.positions.size), plan.positions, some
        run = _direct("permute", "gather_rows")
        yield Case("gather_rows", problem + word, run, args, args)
    plan, weights, problem = planned(k + 1)
    rows = numbers(6, plan.positions.size)
    args = numbers(7, len(plan.positions)), rows, plan.positions, plan.slot_indices, weights
    yield Case("combine_backward", problem, _direct("permute", "combine_backward"), args, args)


def _of_products(size: int, layer: str, experts: int) -> Iterator[Case]:
    d = max(16, round((size / (4 * experts)) ** 0.5) // 16 * 16)
    rows = experts * d
    keys = jax.random.split(jax.random.key(8), 3)
    x, dy = (jax.random.normal(key, (rows, d), jnp.bfloat16) for key in keys[:2])
    w = jax.random.normal(keys[2], (experts, d, d), jnp.bfloat16)
    share = 1 / (1 + np.random.RandomState(0).permutation(experts))
    sizes = np.floor(rows * share / share.sum()).astype(np.int32)
    sizes[0] += rows - sizes.sum()
    groups = jnp.asarray(sizes), jnp.asarray(np.cumsum(sizes) - sizes)
    problem = f"{rows} rows by {d} by {d} in bfloat16, {layer}"

    def product(name: str, x: jax.Array, w: jax.Array, sizes: jax.Array) -> jax.Array:
        return cm.grouped_matmul(x, w, sizes, implementation=name)

    def to_x(name: str, x: jax.Array, w: jax.Array, sizes: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: product(name, x, w, sizes), x)[1](dy)[0]

    def to_w(name: str, x: jax.Array, w: jax.Array, sizes: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda w: product(name, x, w, sizes), w)[1](dy)[0]

    yield Case("grouped_rows", problem, product, (x, w, groups[0]), (x, w, groups))
    arrays = x, w, groups[0], dy
    yield Case("grouped_rows", f"{problem}, to x", to_x, arrays, (dy, w, groups))
    yield Case("grouped_matrices", problem, to_w, arrays, (x, dy, groups))


def _of_moments(size: int) -> Iterator[Case]:
    examples = max(1, size // (4 * (_COLUMNS + 1)))
    keys = jax.random.split(jax.random.key(9), 2)
    ones = jnp.ones(_COLUMNS)
    columns = Columns(jax.random.normal(keys[0], (examples, _COLUMNS)), 0.1 * ones, ones)
    args = columns, jax.random.normal(keys[1], (examples,)), 0.1 * ones
    for name in ("moments", "means"):
        problem = f"{examples} examples of {_COLUMNS} columns"
        yield Case(name, problem, _direct("dual", name), args, args)


def agree(ours: Any, theirs: Any) -> bool:
    """Whether integers are equal, and floats within a rounding and the order of summation."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return all(bool(_close(a, b)) for a, b in pairs)


@jax.jit
def _close(a: jax.Array, b: jax.Array) -> jax.Array:
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return jnp.array_equal(a, b)
    rounding = max(1e-5, float(jnp.finfo(a.dtype).eps))
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    allowed = rounding * jnp.abs(b) + 1e-5 * jnp.max(jnp.abs(b), initial=0)
    return jnp.all(jnp.abs(a - b) <= allowed)  # NaN agrees with nothing


def measure(case: Case, kernel: str) -> Measurement:
    """Checks and times a kernel on a case.

    Args:
        case: the operation and its operands.
        kernel: name of the implementation.

    Returns:
        The measurement.

    Raises:
        NotImplementedError: if the kernel declines.
    """
    on_device = jax.default_backend() != "cpu"
    programs = {
        key: clocks.Program(partial(case.run, name), case.arrays)
        for key, name in (("kernel", kernel), ("xla", "xla"))
    }
    ours, theirs = (jax.jit(each.function)(*each.args) for each in programs.values())
    correct = agree(ours, theirs)
    del ours, theirs
    timers = clocks.compile_timers(programs, device=on_device)
    time_them = clocks.device_seconds if on_device else clocks.wall_seconds
    seconds = {name: median(rounds) for name, rounds in time_them(timers, target=0.015).items()}
    return Measurement(
        operation=case.operation,
        implementation=kernel,
        problem=case.problem,
        size_class=measurements.size_class(*case.operands),
        correct=correct,
        kernel_seconds=seconds["kernel"],
        xla_seconds=seconds["xla"],
    )


def document(entries: Sequence[Measurement], commit: str | None = None) -> dict[str, Any]:
    """The content of a file of `benchmarks/results`, whose README describes it."""
    known = environment(commit)
    return {
        "schema": measurements.SCHEMA,
        "device_kind": jax.devices()[0].device_kind,
        "versions": known["versions"],
        "commit": known["commit"],
        "date": datetime.now(UTC).date().isoformat(),
        "entries": [entry._asdict() | {"ratio": entry.ratio} for entry in entries],
    }


def run(arguments: argparse.Namespace, kernel: str | None) -> int:
    """Measures, prints and writes.

    Args:
        arguments: as from `parse`.
        kernel: name of the implementation; `None` where there is none.

    Returns:
        The exit code: 1 where a kernel is wrong.
    """
    if kernel is None:
        print("no kernel runs here: nothing was measured", flush=True)
        return 0
    entries: list[Measurement] = []
    start = time.perf_counter()
    for case in (case for size in arguments.classes for case in cases(size)):
        late = time.perf_counter() - start > arguments.seconds
        skipped = case.operation not in arguments.operations or (
            kernel not in selection.OPERATIONS[case.operation] and kernel != "xla"
        )
        if late or skipped:
            continue
        try:
            entry = measure(case, kernel)
        except NotImplementedError as error:
            print(f"{case.operation}, {case.problem}: {error}", flush=True)
            continue
        entries.append(entry)
        verdict = f"{entry.ratio:.2f} x XLA's time" if entry.correct else "WRONG"
        print(
            f"{entry.operation} 2^{entry.size_class}: {case.problem}: "
            f"{entry.kernel_seconds * 1e6:.1f} us, {verdict}",
            flush=True,
        )
        if arguments.out is not None:
            write_json(arguments.out, document(entries, arguments.commit))
    wrong = [f"{entry.operation} ({entry.problem})" for entry in entries if not entry.correct]
    print(f"FAILED: {', '.join(wrong)}" if wrong else f"ok: {len(entries)} measurements")
    return 1 if wrong else 0


def kernel_here() -> str | None:
    """The implementation whose kernels run on this machine's device, if there is one."""
    name = selection.KERNELS.get(jax.default_backend())
    runs = {each.name for each in selection.implementations() if each.runs}
    return name if name in runs else None


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--operations", nargs="+", choices=selection.OPERATIONS, default=list(selection.OPERATIONS)
    )
    parser.add_argument("--classes", nargs="+", type=int, default=CLASSES)
    parser.add_argument("--seconds", type=float, default=1200, help="begin nothing after that long")
    parser.add_argument("--out", type=Path, help="where to write the measurements")
    parser.add_argument("--commit", help="commit of a tree without its repository")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(parse(), kernel_here()))
