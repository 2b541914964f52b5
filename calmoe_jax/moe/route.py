"""Gate logits to a routing, its plan and the statistics of its gate, in one call.

Policies of `jax.checkpoint` can save the routing by the name `ROUTING_NAME` and the plan by
`PLAN_NAME`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from calmoe_jax._signatures import checked
from calmoe_jax.moe.plan import DispatchPlan, named_plan, present_experts
from calmoe_jax.moe.priority import gate_priority, plan_by_priority
from calmoe_jax.routing._top_k import check_top_k, choose, largest
from calmoe_jax.routing.kinds import Routing
from calmoe_jax.routing.statistics import GateStatistics, count_tokens, gate_statistics
from calmoe_kernels import layout, selection
from calmoe_kernels.varying import vary_along, varying_axes
from calmoe_kernels.xla.plan import plan as plan_in_xla

ROUTING_NAME = layout.ROUTING_NAME
_in_triton = selection.lazy("triton.route", "route")

_Logits = Float[Array, "tokens experts"]
_Bias = Float[Array, " experts"] | None
_Where = Bool[Array, " tokens"] | None


class Routed(NamedTuple):
    """A routing with its plan and the statistics of its gate.

    Attributes:
        routing: expert and weight of each slot.
        plan: rows of the slots, grouped by expert.
        statistics: statistics of the gate logits, for the losses of the gate.
    """

    routing: Routing
    plan: DispatchPlan
    statistics: GateStatistics


_Parts = tuple[Routing, DispatchPlan, GateStatistics]


@checked
def route(
    gate_logits: Float[Array, "tokens experts"],
    selection_bias: Float[Array, " experts"] | None = None,
    *,
    where: Bool[Array, " tokens"] | None = None,
    k: int,
    scores: str = "softmax",
    renormalize: bool = True,
    num_groups: int = 1,
    groups_per_token: int = 1,
    capacity: int | None = None,
    prioritized: bool = False,
    block_size: int | None = None,
    implementation: str | None = None,
) -> Routed:
    """Routes tokens and plans their dispatch in one call.

    The same as `top_k_routing`, `plan_dispatch` with its weights and `gate_statistics` in sequence;
    on a GPU, the kernels read the logits once.

    Args:
        gate_logits: gate logits, in float32, bfloat16 or float16; `-inf` masks an expert.
        selection_bias: added to the scores in the choice of experts only; must be finite.
        where: tokens that count; all by default. The others (padding) may hold anything.
        k: experts per token, in `[1, experts]`.
        scores: `"softmax"` or `"sigmoid"`.
        renormalize: whether each token's weights sum to one.
        num_groups: number of groups of consecutive experts.
        groups_per_token: groups a token's experts may come from.
        capacity: rows per expert; `None` for dropless.
        prioritized: whether experts beyond their capacity drop the tokens with the lowest gate
            scores (the largest score of each token counts), instead of the last ones, as
            `plan_by_priority` does. In XLA only: a kernel that is given by name declines.
        block_size: every group starts at a multiple of it.
        implementation: see `calmoe_jax.moe.dispatch`; `"pallas_tpu"` only computes the top-k.

    Returns:
        A `Routed`. Gradients flow to the logits from the weights, the mean gate probabilities and
        the logsumexp. Slots of weight exactly 0 (where fewer than `k` experts can be chosen, or a
        weight underflows) have no row in the plan, no capacity and no load. Tokens that cannot be
        routed have experts `0, ..., k - 1`, NaN weights, and are counted in
        `statistics.num_unroutable`; a bias that is not finite makes all weights NaN and is not
        counted. Tokens outside `where` have experts `0, ..., k - 1`, weights of 0 and no gradient.

    Raises:
        ValueError: as `top_k_routing` and `plan_dispatch`.
        NotImplementedError: if the implementation declines.

    Example:
        >>> routed = route(jnp.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]]), k=2)
        >>> routed.plan.group_sizes.tolist(), routed.plan.positions.tolist()
        ([1, 1, 2], [[1, 2], [0, 3]])
    """
    tokens, num_experts = gate_logits.shape
    choice: dict[str, Any] = {
        "k": k,
        "scores": scores,
        "num_groups": num_groups,
        "groups_per_token": groups_per_token,
    }
    check_top_k(gate_logits, selection_bias, **choice)
    layout.check_layout(tokens, k, num_experts, capacity, block_size)
    limits = {"capacity": capacity, "block_size": block_size}

    statics = choice | {"renormalize": renormalize}

    def triton(logits: _Logits, bias: _Bias, where: _Where) -> _Parts:
        *parts, mean, log_sums, unroutable = _in_triton(logits, bias, where, **statics, **limits)
        statistics = GateStatistics(mean, log_sums, unroutable, count_tokens(tokens, where))
        return Routing(*parts[:2]), DispatchPlan(*parts[2:]), statistics

    xla, pallas_tpu = (
        partial(_composed, top_k, statics, limits, prioritized)
        for top_k in (largest, selection.lazy("pallas_tpu.top_k", "top_k"))
    )
    attempts: dict[str, Callable[..., _Parts]] = {
        "xla": xla,
        "triton": triton if tokens else xla,
        "pallas_tpu": pallas_tpu,
    }
    if prioritized:
        attempts = {"xla": xla}
    axes = varying_axes(gate_logits, selection_bias, where)
    given = vary_along((gate_logits, selection_bias, where), axes)
    routing, plan, statistics = selection.run(attempts, implementation, *given, operation="route")
    routing = jax.tree.map(lambda x: checkpoint_name(x, ROUTING_NAME), routing)
    return Routed(routing, named_plan(plan), statistics)


def _composed(
    top_k: Callable[..., Any],
    statics: dict[str, Any],
    limits: dict[str, Any],
    prioritized: bool,
    logits: _Logits,
    bias: _Bias,
    where: _Where,
) -> _Parts:
    """The parts one after the other, with any top-k."""
    if where is not None:
        logits = jnp.where(where[:, None], logits, 0)  # may be NaN, and gets no gradient
    indices, weights = choose(partial(_named_top_k, top_k), logits, bias, **statics)
    if where is not None:
        first = jnp.arange(indices.shape[1], dtype=indices.dtype)[None]
        indices = jnp.where(where[:, None], indices, first)
        weights = jnp.where(where[:, None], weights, 0)
    num_experts = logits.shape[1]
    if prioritized and limits["capacity"] is not None:
        plan = plan_by_priority(
            gate_priority(logits, scores=statics["scores"]), indices, weights, where=where,
            num_experts=num_experts, capacity=limits["capacity"],
        )  # fmt: skip
    else:
        sent = present_experts(indices, weights, None, num_experts=num_experts)
        plan = DispatchPlan(*plan_in_xla(sent, num_experts=num_experts, **limits))
    statistics = gate_statistics(logits, where=where, scores=statics["scores"])
    return Routing(indices, weights), plan, statistics


def _named_top_k(top_k: Any, values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    top, indices = top_k(values, k)
    return checkpoint_name(top, ROUTING_NAME), checkpoint_name(indices, ROUTING_NAME)
