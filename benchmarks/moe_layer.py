"""The sparse layer and its products against what one would use instead.

`python -m benchmarks.moe_layer [--check] [--problems NAME ...] [--seconds N] [--out FILE]
[--commit SHA]`

* products: `grouped_matmul` and its two gradients against one batched product of equal groups
  with the same number of operations, for balanced, Zipf and partly empty groups, and `ragged_dot`.
* layer: `sparse_layer`, forward and forward + backward, against the same layer on `ragged_dot`,
  with a capacity of 1.25 and batched products (which drops slots, so it is no equal), and with all
  experts; and its parts. `products` are those of equal groups alone, batched, with the activation:
  what no layer can beat. tokamax is a rival too where it is installed.

Before anything is timed, the dropless layers must agree with the one that computes all experts, its
weights masked. Device time on a GPU or TPU, wall time of interleaved rounds on a CPU. What XLA's
own flags for ragged products change is seen by running it with them in XLA_FLAGS.
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

import calmoe_jax as cm
from benchmarks import clocks
from benchmarks.harness import Figure, benchmark_parser, ratio, report


class Products(NamedTuple):
    """Grouped products.

    Attributes:
        rows: rows in all.
        experts: groups.
        d: columns of the rows.
        f: columns of the result.
        load: `balanced`, `zipf` or `empty` (every second group).
        least: of the batched product's rate, on an H100; gradients get `least_gradient`.
        least_gradient: the same for gradients.
    """

    rows: int
    experts: int
    d: int
    f: int
    load: str
    least: float
    least_gradient: float = 0.8


class Layer(NamedTuple):
    """A layer of experts with one hidden layer and GELU.

    Attributes:
        tokens: tokens.
        experts: experts.
        k: experts per token.
        d: width.
        hidden: hidden units.
        load: `balanced`, `zipf` or `one_expert`.
        dtype: of tokens and experts.
        with_dense: whether the layer that computes all experts fits and is timed.
    """

    tokens: int
    experts: int
    k: int
    d: int
    hidden: int
    load: str = "balanced"
    dtype: str = "bfloat16"
    with_dense: bool = False


PRODUCTS = {
    "64 groups": Products(32768, 64, 2048, 1024, "balanced", 0.9),
    "64 groups, zipf": Products(32768, 64, 2048, 1024, "zipf", 0.8),
    "64 groups, half empty": Products(32768, 64, 2048, 1024, "empty", 0.8),
    "8 groups": Products(65536, 8, 4096, 4096, "balanced", 0.95),
}
LAYERS = {
    # the size that the bound for CPUs names
    "small": Layer(4096, 16, 2, 256, 512, dtype="float32", with_dense=True),
    "small_zipf": Layer(4096, 16, 2, 256, 512, "zipf", "float32", with_dense=True),
    "small_one_expert": Layer(4096, 16, 2, 256, 512, "one_expert", "float32", with_dense=True),
    "mixtral_8x7b": Layer(8192, 8, 2, 4096, 14336),
    "qwen3_moe": Layer(16384, 128, 8, 2048, 768),
    "qwen3_moe_zipf": Layer(16384, 128, 8, 2048, 768, "zipf"),
}
_ON_CPU = ("small", "small_zipf", "small_one_expert")


def group_sizes(problem: Products) -> np.ndarray:
    """Rows of each group; they sum to the rows of the problem."""
    share = np.ones(problem.experts)
    if problem.load == "zipf":
        share = 1 / (1 + np.random.RandomState(0).permutation(problem.experts))
    elif problem.load == "empty":
        share[::2] = 0
    sizes = np.floor(problem.rows * share / share.sum()).astype(np.int32)
    sizes[np.argmax(sizes)] += problem.rows - sizes.sum()
    return sizes


def measure_products(problem: Products, seconds: Callable[..., dict[str, list[float]]]) -> Any:
    """Seconds of the grouped and the batched product and their gradients."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (problem.rows, problem.d), jnp.bfloat16)
    w = jax.random.normal(keys[1], (problem.experts, problem.d, problem.f), jnp.bfloat16) / 45
    dy = jax.random.normal(keys[2], (problem.rows, problem.f), jnp.bfloat16)
    sizes = jnp.asarray(group_sizes(problem))

    def grouped(x: jax.Array, w: jax.Array) -> jax.Array:
        return cm.grouped_matmul(x, w, sizes)

    def ragged(x: jax.Array, w: jax.Array) -> jax.Array:
        return cm.grouped_matmul(x, w, sizes, implementation="ragged_dot")

    def batched(x: jax.Array, w: jax.Array) -> jax.Array:
        groups = x.reshape(problem.experts, -1, problem.d)
        return jnp.einsum("erd,edf->erf", groups, w).reshape(problem.rows, problem.f)

    def to_x(f: Any, x: jax.Array, w: jax.Array, dy: jax.Array) -> Any:
        return jax.vjp(lambda x: f(x, w), x)[1](dy)

    def to_w(f: Any, x: jax.Array, w: jax.Array, dy: jax.Array) -> Any:
        return jax.vjp(lambda w: f(x, w), w)[1](dy)

    programs = {}
    for name, f in (("grouped", grouped), ("batched", batched), ("ragged_dot", ragged)):
        programs[name] = clocks.Program(f, (x, w))
        programs[f"{name} to x"] = clocks.Program(partial(to_x, f), (x, w, dy))
        programs[f"{name} to w"] = clocks.Program(partial(to_w, f), (x, w, dy))
    return seconds(programs)


class Arrays(NamedTuple):
    """Arguments of a layer."""

    x: jax.Array
    gate_logits: jax.Array
    params: cm.ExpertParams


def make_arrays(problem: Layer) -> Arrays:
    """Tokens, logits with the load of the problem, and parameters."""
    keys = jax.random.split(jax.random.key(1), 4)
    shape = problem.experts, problem.d, problem.hidden
    preference = {
        "balanced": jnp.zeros(problem.experts),
        "zipf": -jnp.log1p(jnp.arange(problem.experts)),
        "one_expert": jnp.zeros(problem.experts).at[0].set(16.0),
    }[problem.load]
    logits = jax.random.normal(keys[1], (problem.tokens, problem.experts)) + preference[None]
    w_in = jax.random.normal(keys[2], shape) / problem.d**0.5
    w_out = jax.random.normal(keys[3], (shape[0], shape[2], shape[1])) / problem.hidden**0.5
    x = jax.random.normal(keys[0], (problem.tokens, problem.d))
    params = cm.ExpertParams(w_in.astype(problem.dtype), w_out.astype(problem.dtype))
    return Arrays(x.astype(problem.dtype), logits, params)


def layers(problem: Layer) -> dict[str, Callable[..., jax.Array]]:
    """The layer and its rivals, as functions of `Arrays`."""

    def sparse(x: jax.Array, logits: jax.Array, params: cm.ExpertParams) -> jax.Array:
        return cm.sparse_layer(x, logits, params, k=problem.k).output

    def built_on(name: str, x: jax.Array, logits: jax.Array, params: cm.ExpertParams) -> jax.Array:
        routed = cm.route(logits, k=problem.k)
        rows = cm.dispatch(x, routed.plan)
        outputs = cm.expert_mlp(rows, routed.plan, params, implementation=name)
        return cm.combine(outputs, routed.plan, routed.routing.combine_weights)

    def capacity(x: jax.Array, logits: jax.Array, params: cm.ExpertParams) -> jax.Array:
        room = cm.expert_capacity(
            num_tokens=problem.tokens, k=problem.k, num_experts=problem.experts,
            capacity_factor=1.25,
        )  # fmt: skip
        return cm.sparse_layer(x, logits, params, k=problem.k, capacity=room).output

    found: dict[str, Callable[..., jax.Array]] = {"sparse": sparse, "capacity": capacity}
    found |= {name: partial(built_on, name) for name in dropless_rivals()}
    return found | ({"dense": partial(dense, problem)} if problem.with_dense else {})


def dropless_rivals() -> list[str]:
    """Layers with the same result as ours, built on other grouped products."""
    return ["ragged_dot"] + (["tokamax"] if find_spec("tokamax") else [])


def equal_products(x: jax.Array, gate_logits: jax.Array, params: cm.ExpertParams) -> jax.Array:
    """The experts' products and activation for equal groups, without routing and dispatch."""
    rows = x.reshape(gate_logits.shape[1], -1, x.shape[1])
    inner = jax.nn.gelu(jnp.einsum("erd,edf->erf", rows, params.w_in), approximate=False)
    return jnp.einsum("erf,efd->erd", inner, params.w_out)


def parts(problem: Layer, arrays: Arrays) -> dict[str, clocks.Program]:
    """What the layer does one after the other, each as a program of its own."""
    block_size = cm.moe.preferred_block_size()
    route = partial(cm.route, k=problem.k, block_size=block_size)
    routed = jax.jit(route)(arrays.gate_logits)
    rows = jax.jit(cm.dispatch)(arrays.x, routed.plan)
    experts = partial(cm.expert_mlp, block_size=block_size)
    weights = routed.routing.combine_weights
    return {
        "route": clocks.Program(route, (arrays.gate_logits,)),
        "dispatch": clocks.Program(cm.dispatch, (arrays.x, routed.plan)),
        "experts": clocks.Program(experts, (rows, routed.plan, arrays.params)),
        "combine": clocks.Program(cm.combine, (rows, routed.plan, weights)),
    }


def dense(problem: Layer, x: jax.Array, logits: jax.Array, params: cm.ExpertParams) -> jax.Array:
    """The layer that computes all experts, and masks those that were not chosen."""
    routing = cm.top_k_routing(logits, k=problem.k)
    weights = cm.routing_weights(routing, num_experts=problem.experts)
    hidden = jnp.einsum("td,edh->eth", x, params.w_in)
    outputs = jnp.einsum("eth,ehd->etd", jax.nn.gelu(hidden, approximate=False), params.w_out)
    return jnp.einsum("etd,te->td", outputs, weights.astype(x.dtype))


def gradient(layer: Callable[..., jax.Array], *arrays: Any) -> Any:
    """Gradient of a loss to tokens, logits and parameters: forward and backward."""

    def loss(*arrays: Any) -> jax.Array:
        return jnp.sum(jnp.square(layer(*arrays).astype(jnp.float32)))

    return jax.grad(loss, argnums=(0, 1, 2))(*arrays)


def disagreement(problem: Layer, layer: Callable[..., jax.Array], arrays: Arrays) -> float:
    """Largest difference of a layer's output from the dense one's, in units of its largest."""
    some = min(problem.tokens, 512)  # all experts of all tokens may not fit
    cut = Arrays(arrays.x[:some], arrays.gate_logits[:some], arrays.params)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), cut)
    got = jax.jit(layer)(*cut).astype(jnp.float32)
    want = jax.jit(partial(dense, problem))(*wide)
    worst = jnp.max(jnp.abs(got - want)) / jnp.max(jnp.abs(want))
    return float(worst) if bool(jnp.isfinite(got).all()) else float("inf")


def memory_ratio(problem: Layer, arrays: Arrays) -> float | None:
    """Peak memory of the gradient, in units of the bytes that must exist."""
    layer = layers(problem)["sparse"]
    analysis = jax.jit(partial(gradient, layer)).lower(*arrays).compile().memory_analysis()
    if analysis is None:
        return None
    size = jnp.dtype(problem.dtype).itemsize
    slots = problem.tokens * problem.k
    # rows in and out and their cotangents; hidden units before and after, and a cotangent
    needed = slots * (4 * problem.d + 3 * problem.hidden) * size
    given = sum(a.nbytes for a in jax.tree.leaves(arrays))
    return (analysis.temp_size_in_bytes + 2 * given) / (needed + 2 * given)


def run(arguments: argparse.Namespace) -> int:
    """Checks, times and reports."""
    on_cpu = jax.default_backend() == "cpu"
    h100 = "H100" in jax.devices()[0].device_kind

    def seconds(programs: dict[str, clocks.Program]) -> dict[str, list[float]]:
        timers = clocks.compile_timers(programs, device=not on_cpu)
        if on_cpu:
            return clocks.wall_seconds(timers, target=5.0)
        return clocks.device_seconds(timers, target=0.015)

    figures: list[Figure] = []
    details: dict[str, Any] = {}
    names = arguments.problems or [
        name for name in (*PRODUCTS, *LAYERS) if not on_cpu or name in _ON_CPU
    ]
    start = time.perf_counter()
    for name in names:
        if time.perf_counter() - start > arguments.seconds:
            print(f"{name}: no time left", flush=True)
            continue
        if name in PRODUCTS:
            problem = PRODUCTS[name]
            times = measure_products(problem, seconds)
            for suffix in ("", " to x", " to w"):
                least = problem.least_gradient if suffix else problem.least
                value = ratio(times, f"batched{suffix}", f"grouped{suffix}")
                label = f"{name}{suffix}: rate / batched product's"
                figures.append(Figure(label, value, least=least if h100 else None))
            operations = 2 * problem.rows * problem.d * problem.f
            for each, rounds in times.items():
                rate = operations / median(rounds) / 1e12
                print(f"{name:<24}{each:<20}{median(rounds) * 1e6:12.1f} us {rate:8.1f} TF/s")
        else:
            times = _measure_layer(name, LAYERS[name], seconds, figures, on_cpu=on_cpu, h100=h100)
        details[name] = times
    return report(
        "moe_layer", figures, arguments.out, check=arguments.check, commit=arguments.commit,
        details={"seconds": details},
    )  # fmt: skip


def _measure_layer(
    name: str,
    problem: Layer,
    seconds: Callable[..., dict[str, list[float]]],
    figures: list[Figure],
    *,
    on_cpu: bool,
    h100: bool,
) -> dict[str, list[float]]:
    arrays, every = make_arrays(problem), layers(problem)
    tolerance = 1e-4 if problem.dtype == "float32" else 2e-2
    rivals = dropless_rivals()
    for rival in ("sparse", *rivals):
        worst = disagreement(problem, every[rival], arrays)
        figures.append(Figure(f"{name}: {rival} differs from dense by", worst, tolerance))
    slots = jnp.concatenate([arrays.x] * problem.k)
    equal = arrays._replace(x=slots)
    programs = {each: clocks.Program(partial(gradient, f), arrays) for each, f in every.items()}
    programs["products"] = clocks.Program(partial(gradient, equal_products), equal)
    times = seconds(programs)
    forward = {each: clocks.Program(f, arrays) for each, f in every.items()}
    forward["products"] = clocks.Program(equal_products, equal)
    times |= {f"{each} forward": t for each, t in seconds(forward).items()}
    of_parts = seconds(parts(problem, arrays))
    # two products of each slot, and twice as much backward
    operations = 3 * 2 * 2 * problem.tokens * problem.k * problem.d * problem.hidden
    for each, rounds in times.items():
        done = operations / 3 if each.endswith("forward") else operations
        rate = done / median(rounds) / 1e12
        print(f"{name:<24}{each:<20}{median(rounds) * 1e6:12.1f} us {rate:8.3f} TF/s of use")
    for each, rounds in of_parts.items():
        print(f"{name:<24}{'part: ' + each:<20}{median(rounds) * 1e6:12.1f} us")
    times |= {f"part: {each}": rounds for each, rounds in of_parts.items()}
    if problem.with_dense:
        bound = 0.22 if on_cpu and name == "small" else None
        figures.append(Figure(f"{name}: sparse / dense", ratio(times, "sparse", "dense"), bound))
        rivals = [*rivals, "dense"]
    for suffix in ("", " forward"):
        best = min(rivals, key=lambda rival: median(times[rival + suffix]))
        value = ratio(times, f"sparse{suffix}", best + suffix)
        # 2 % for the noise of two medians
        figures.append(Figure(f"{name}: sparse / best rival{suffix}", value, 1.02))
        reached = 100 * ratio(times, f"products{suffix}", f"sparse{suffix}")
        figures.append(Figure(f"{name}: of equal products' rate{suffix}", reached, unit="%"))
    speedup = ratio(times, "ragged_dot", "sparse")
    figures.append(Figure(f"{name}: ragged_dot / sparse", speedup, least=10 if h100 else 1))
    memory = memory_ratio(problem, arrays)
    if memory is not None:
        figures.append(Figure(f"{name}: memory / what must exist", memory, 1.15))
    return times


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    return benchmark_parser(__doc__, [*PRODUCTS, *LAYERS]).parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run(parse()))
