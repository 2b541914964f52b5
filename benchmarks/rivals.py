"""What the library is measured against: a fair XLA formulation, and the naive one.

Written without the library, so that they are oracles too.

* `fair` has none of the avoidable traffic: `lax.top_k` on `[tokens, experts]`, a stable sort of
  integers, the inverse by scatter, nothing repeated, gradients as gathers, indices promised in
  bounds.
* `naive` is what one writes first: `top_k(softmax)`, `argsort` of floats and again for the
  inverse, `jnp.repeat`, gradients by autodiff, whose gathers become scatter-adds.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.problems import Problem


class RivalPlan(NamedTuple):
    """Where the slots lie, as in `calmoe_jax.DispatchPlan`.

    Attributes:
        positions: row of each slot.
        slot_indices: slot of each row.
        group_sizes: rows of each expert.
    """

    positions: jax.Array
    slot_indices: jax.Array
    group_sizes: jax.Array


class Variant(NamedTuple):
    """One way to do everything.

    Attributes:
        name: as in the table.
        route: `(problem, logits, bias) -> (expert indices, weights, plan)`.
        permute: `(x, plan) -> rows`.
        combine: `(rows, plan, weights) -> y`.
        slack: 1 where sums are in float32; otherwise how many roundings of the dtype are allowed.
    """

    name: str
    route: Callable[[Problem, jax.Array, jax.Array | None], tuple[jax.Array, jax.Array, Any]]
    permute: Callable[[jax.Array, Any], jax.Array]
    combine: Callable[[jax.Array, Any, jax.Array], jax.Array]
    slack: int = 1


def _take(array: jax.Array, indices: jax.Array) -> jax.Array:
    return array.at[indices].get(mode="promise_in_bounds")


def _best_groups(problem: Problem, values: jax.Array) -> jax.Array:
    """Values of the experts in the best groups; a group is worth its two largest values."""
    grouped = values.reshape(len(values), problem.num_groups, -1)
    worth = jax.lax.top_k(grouped, 2)[0].sum(-1)
    best = jax.lax.top_k(worth, problem.groups_per_token)[1]
    mask = (best[:, :, None] == jnp.arange(problem.num_groups)[None, None]).any(1)
    return jnp.where(mask[..., None], grouped, -jnp.inf).reshape(values.shape)


def _fair_weights(
    problem: Problem, logits: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    logits = logits.astype(jnp.float32)
    if problem.scores == "softmax" and bias is None and problem.num_groups == 1:
        indices = jax.lax.top_k(jax.lax.stop_gradient(logits), problem.k)[1]
        chosen = _choose(logits, indices)
        if problem.renormalize:
            return indices, jax.nn.softmax(chosen, axis=-1)
        return indices, jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
    score = jax.nn.sigmoid if problem.scores == "sigmoid" else partial(jax.nn.softmax, axis=-1)
    scores = score(logits)
    values = jax.lax.stop_gradient(scores)
    values = values if bias is None else values + bias[None]
    values = values if problem.num_groups == 1 else _best_groups(problem, values)
    indices = jax.lax.top_k(values, problem.k)[1]
    weights = _choose(scores, indices)
    return indices, weights / weights.sum(-1, keepdims=True) if problem.renormalize else weights


@jax.custom_vjp
def _choose(values: jax.Array, indices: jax.Array) -> jax.Array:
    """`values[t, indices[t, j]]`; the indices of a row differ, so its gradient adds nothing."""
    return jnp.take_along_axis(values, indices, axis=-1, mode="promise_in_bounds")


def _choose_backward(
    saved: tuple[jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, None]:
    values, indices = saved
    rows = jnp.arange(len(indices))[:, None]
    zeros = jnp.zeros_like(values)
    set_ = zeros.at[rows, indices].set
    return set_(cotangent, unique_indices=True, mode="promise_in_bounds"), None


_choose.defvjp(lambda values, indices: (_choose(values, indices), (values, indices)),
               _choose_backward)  # fmt: skip


def _fair_route(
    problem: Problem, logits: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array, RivalPlan]:
    indices, weights = _fair_weights(problem, logits, bias)
    flat = indices.reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    rows = jnp.arange(len(flat), dtype=jnp.int32)
    inverse = jnp.zeros_like(order).at[order]
    positions = inverse.set(rows, unique_indices=True, mode="promise_in_bounds")
    ends = jnp.searchsorted(
        _take(flat, order), jnp.arange(problem.experts), side="right", method="scan_unrolled"
    )
    sizes = jnp.diff(ends, prepend=0).astype(jnp.int32)
    return indices, weights, RivalPlan(positions.reshape(indices.shape), order, sizes)


def _sum_slots(rows: jax.Array, positions: jax.Array, weights: jax.Array | None) -> jax.Array:
    taken = _take(rows, positions).astype(jnp.float32)
    if weights is not None:
        taken *= weights[..., None]
    return taken.sum(1).astype(rows.dtype)


@jax.custom_vjp
def _fair_permute(x: jax.Array, plan: RivalPlan) -> jax.Array:
    return _take(x, plan.slot_indices // plan.positions.shape[1])


_fair_permute.defvjp(
    lambda x, plan: (_fair_permute(x, plan), plan),
    lambda plan, cotangent: (_sum_slots(cotangent, plan.positions, None), None),
)


@jax.custom_vjp
def _fair_combine(rows: jax.Array, plan: RivalPlan, weights: jax.Array) -> jax.Array:
    return _sum_slots(rows, plan.positions, weights)


def _fair_combine_backward(
    saved: tuple[jax.Array, RivalPlan, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, None, jax.Array]:
    rows, plan, weights = saved
    slots = plan.slot_indices
    taken = _take(cotangent, slots // plan.positions.shape[1]).astype(jnp.float32)
    to_rows = (taken * _take(weights.reshape(-1), slots)[:, None]).astype(rows.dtype)
    dots = jnp.sum(taken * rows.astype(jnp.float32), axis=1)
    return to_rows, None, _take(dots, plan.positions)


_fair_combine.defvjp(
    lambda rows, plan, weights: (_fair_combine(rows, plan, weights), (rows, plan, weights)),
    _fair_combine_backward,
)


def _naive_route(
    problem: Problem, logits: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array, RivalPlan]:
    logits = logits.astype(jnp.float32)
    scores = jax.nn.sigmoid(logits) if problem.scores == "sigmoid" else jax.nn.softmax(logits)
    values = scores if bias is None else scores + bias[None]
    if problem.num_groups > 1:
        values = _best_groups(problem, values)
    if values is scores:
        weights, indices = jax.lax.top_k(scores, problem.k)
    else:
        indices = jax.lax.top_k(values, problem.k)[1]
        weights = jnp.take_along_axis(scores, indices, axis=-1)
    if problem.renormalize:
        weights = weights / weights.sum(-1, keepdims=True)
    flat = indices.reshape(-1)
    order = jnp.argsort(flat.astype(jnp.float32))
    positions = jnp.argsort(order).reshape(indices.shape)
    sizes = jnp.bincount(flat, length=problem.experts)
    return indices, weights, RivalPlan(positions, order, sizes)


def _naive_permute(x: jax.Array, plan: RivalPlan) -> jax.Array:
    return jnp.repeat(x, plan.positions.shape[1], axis=0)[plan.slot_indices]


def _naive_combine(rows: jax.Array, plan: RivalPlan, weights: jax.Array) -> jax.Array:
    return jnp.sum(rows[plan.positions] * weights[..., None], axis=1).astype(rows.dtype)


FAIR = Variant("fair", _fair_route, _fair_permute, _fair_combine)
# its gradient to x is summed in the dtype of x, up to 8 terms of it
NAIVE = Variant("naive", _naive_route, _naive_permute, _naive_combine, slack=16)
