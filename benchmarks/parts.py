"""The parts of a layer that are timed, for the library's implementations and its rivals."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import calmoe_jax as cm
from benchmarks.clocks import Program, compile_all
from benchmarks.problems import Inputs, Problem
from benchmarks.rivals import FAIR, NAIVE, Variant

COMPOSED = ("route_permute", "forward_backward")
PARTS = (
    "route",
    "route_backward",
    "permute",
    "permute_backward",
    "combine",
    "combine_backward",
    *COMPOSED,
)


def library(implementation: str | None) -> Variant:
    """The library's operations by one implementation; `None` is what its selection picks."""

    def route(problem: Problem, logits: jax.Array, bias: jax.Array | None) -> Any:
        routed = cm.route(
            logits,
            bias,
            k=problem.k,
            scores=problem.scores,
            renormalize=problem.renormalize,
            num_groups=problem.num_groups,
            groups_per_token=problem.groups_per_token,
            implementation=implementation,
        )
        return routed.routing.expert_indices, routed.routing.combine_weights, routed.plan

    return Variant(
        str(implementation),
        route,
        partial(cm.dispatch, implementation=implementation),
        partial(cm.combine, implementation=implementation),
    )


VARIANTS = {
    variant.name: variant
    for variant in (library("xla"), library("triton"), library(None), FAIR, NAIVE)
}


def planned(plan: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What every variant's plan holds: positions, slot of each row, sizes of the groups."""
    return plan.positions, plan.slot_indices, plan.group_sizes


class Passes(NamedTuple):
    """The forward passes of a layer, and its backward passes as functions of cotangents.

    Attributes:
        expert_indices: expert of each slot.
        weights: weight of each slot.
        plan: the variant's plan.
        rows: dispatched rows.
        y: combined tokens.
        back_route: gradient of the weights to `(logits,)`.
        back_permute: gradient of the rows to `(x,)`.
        back_combine: gradient of `y` to the experts' outputs and the weights.
    """

    expert_indices: jax.Array
    weights: jax.Array
    plan: Any
    rows: jax.Array
    y: jax.Array
    back_route: Callable[[jax.Array], tuple[jax.Array]]
    back_permute: Callable[[jax.Array], tuple[jax.Array]]
    back_combine: Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def passes(variant: Variant, problem: Problem, inputs: Inputs) -> Passes:
    """Runs one layer forward, its experts cut out.

    What the experts return, and what comes back from them, are inputs, so that nothing is fused
    across the place where they would be.

    Args:
        variant: how.
        problem: sizes.
        inputs: arrays.

    Returns:
        Its `Passes`.

    Raises:
        NotImplementedError: if an operation declines.
    """

    def route(logits: jax.Array) -> tuple[jax.Array, Any]:
        indices, weights, plan = variant.route(problem, logits, inputs.bias)
        return weights, (indices, plan)

    weights, back_route, (indices, plan) = jax.vjp(route, inputs.logits, has_aux=True)
    rows, back_permute = jax.vjp(lambda x: variant.permute(x, plan), inputs.x)
    y, back_combine = jax.vjp(
        lambda outputs, w: variant.combine(outputs, plan, w), inputs.outputs, weights
    )
    return Passes(indices, weights, plan, rows, y, back_route, back_permute, back_combine)


def forward_backward(variant: Variant, problem: Problem, inputs: Inputs) -> dict[str, jax.Array]:
    """Everything that one layer computes without its experts, by name."""
    done = passes(variant, problem, inputs)
    positions, slot_indices, group_sizes = planned(done.plan)
    d_outputs, d_weights = done.back_combine(inputs.d_y)
    return {
        "expert_indices": done.expert_indices,
        "positions": positions,
        "slot_indices": slot_indices,
        "group_sizes": group_sizes,
        "weights": done.weights,
        "rows": done.rows,
        "y": done.y,
        "d_outputs": d_outputs,
        "d_weights": d_weights,
        "d_x": done.back_permute(inputs.d_rows)[0],
        "d_logits": done.back_route(d_weights)[0],
    }


def programs(
    variants: Sequence[Variant],
    problem: Problem,
    inputs: Inputs,
    *,
    composed_only: Collection[str] = (),
) -> dict[str, dict[str, Program]]:
    """Each part of each variant, with its arguments; a backward pass starts from its residuals.

    Args:
        variants: which.
        problem: sizes.
        inputs: arrays.
        composed_only: names of variants of which only the composed parts are made.

    Returns:
        Programs by part and by variant.

    Raises:
        NotImplementedError: if an operation declines.
    """

    def prepared(variant: Variant, inputs: Inputs) -> Passes:
        return passes(variant, problem, inputs)._replace(rows=None, y=None)

    single = [variant for variant in variants if variant.name not in composed_only]
    compiled = compile_all([(jax.jit(partial(prepared, v)), (inputs,)) for v in single])
    found: dict[str, dict[str, Program]] = {part: {} for part in PARTS}
    for variant in variants:
        for part, program in _composed(variant, problem, inputs).items():
            found[part][variant.name] = program
    for variant, program in zip(single, compiled, strict=True):
        for part, each in _single(variant, problem, inputs, program(inputs)).items():
            found[part][variant.name] = each
    return found


def _composed(variant: Variant, problem: Problem, inputs: Inputs) -> dict[str, Program]:
    def route_permute(logits: jax.Array, bias: jax.Array | None, x: jax.Array) -> Any:
        indices, weights, plan = variant.route(problem, logits, bias)
        return indices, weights, planned(plan), variant.permute(x, plan)

    return {
        "route_permute": Program(route_permute, (inputs.logits, inputs.bias, inputs.x)),
        "forward_backward": Program(partial(forward_backward, variant, problem), (inputs,)),
    }


def _single(variant: Variant, problem: Problem, inputs: Inputs, done: Passes) -> dict[str, Program]:
    def route(logits: jax.Array, bias: jax.Array | None) -> Any:
        indices, weights, plan = variant.route(problem, logits, bias)
        return indices, weights, planned(plan)

    def back(pull: Callable[[jax.Array], Any], cotangent: jax.Array) -> Any:
        return pull(cotangent)

    d_weights = jnp.ones_like(done.weights) * jnp.arange(problem.k, dtype=jnp.float32)[None]
    return {
        "route": Program(route, (inputs.logits, inputs.bias)),
        "route_backward": Program(back, (done.back_route, d_weights)),
        "permute": Program(variant.permute, (inputs.x, done.plan)),
        "permute_backward": Program(back, (done.back_permute, inputs.d_rows)),
        "combine": Program(variant.combine, (inputs.outputs, done.plan, done.weights)),
        "combine_backward": Program(back, (done.back_combine, inputs.d_y)),
    }


def memory_ratio(variant: Variant, problem: Problem, inputs: Inputs) -> float | None:
    """Peak memory of `dispatch` and `combine`, in units of their inputs, outputs and plan."""

    def both(x: jax.Array, outputs: jax.Array, plan: Any, weights: jax.Array) -> Any:
        return variant.permute(x, plan), variant.combine(outputs, plan, weights)

    _, weights, plan = jax.jit(partial(variant.route, problem))(inputs.logits, inputs.bias)
    args = inputs.x, inputs.outputs, plan, weights
    arrays = jax.tree.leaves((args, jax.eval_shape(both, *args)))
    needed = sum(x.size * x.dtype.itemsize for x in arrays)
    analysis = jax.jit(both).lower(*args).compile().memory_analysis()
    if analysis is None:
        return None
    return (needed + analysis.temp_size_in_bytes) / needed
