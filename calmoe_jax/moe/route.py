"""Gate logits to a routing, its plan and the statistics of its gate, in one call.

Policies of `jax.checkpoint` can save the routing by the name `ROUTING_NAME` and the plan by
`PLAN_NAME`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from calmoe_jax._checks import check_axes, check_floats
from calmoe_jax.moe.plan import DispatchPlan, named_plan, present_experts
from calmoe_jax.routing._top_k import check_top_k, choose, largest
from calmoe_jax.routing.kinds import Routing
from calmoe_jax.routing.statistics import GateStatistics, gate_statistics
from calmoe_kernels import layout, selection
from calmoe_kernels.varying import vary_along, varying_axes
from calmoe_kernels.xla.plan import plan as plan_in_xla

ROUTING_NAME = layout.ROUTING_NAME
_in_triton = selection.lazy("triton.route", "route")


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


def route(
    gate_logits: Float[Array, "tokens experts"],
    selection_bias: Float[Array, " experts"] | None = None,
    *,
    k: int,
    scores: str = "softmax",
    renormalize: bool = True,
    num_groups: int = 1,
    groups_per_token: int = 1,
    capacity: int | None = None,
    block_size: int | None = None,
    implementation: str | None = None,
) -> Routed:
    """Routes tokens and plans their dispatch in one call.

    The same as `top_k_routing`, `plan_dispatch` with its weights and `gate_statistics` in sequence;
    on a GPU, the kernels read the logits once.

    Args:
        gate_logits: gate logits, in float32, bfloat16 or float16; `-inf` masks an expert.
        selection_bias: added to the scores in the choice of experts only; must be finite.
        k: experts per token, in `[1, experts]`.
        scores: `"softmax"` or `"sigmoid"`.
        renormalize: whether each token's weights sum to one.
        num_groups: number of groups of consecutive experts.
        groups_per_token: groups a token's experts may come from.
        capacity: rows per expert; `None` for dropless.
        block_size: every group starts at a multiple of it.
        implementation: see `calmoe_jax.moe.dispatch`; `"pallas_tpu"` only computes the top-k.

    Returns:
        A `Routed`. Gradients flow to the logits from the weights, the mean gate probabilities and
        the logsumexp. Slots of weight exactly 0 (where fewer than `k` experts can be chosen, or a
        weight underflows) have no row in the plan, no capacity and no load. Tokens that cannot be
        routed have experts `0, ..., k - 1`, NaN weights, and are counted in
        `statistics.num_unroutable`; a bias that is not finite makes all weights NaN and is not
        counted.

    Raises:
        ValueError: as `top_k_routing` and `plan_dispatch`.
        NotImplementedError: if the implementation declines.

    Example:
        >>> routed = route(jnp.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]]), k=2)
        >>> routed.plan.group_sizes.tolist(), routed.plan.positions.tolist()
        ([1, 1, 2], [[1, 2], [0, 3]])
    """
    check_floats("gate_logits", gate_logits)
    check_axes("gate_logits", gate_logits, 2, "tokens, experts")
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

    def composed(
        top_k: Any, logits: jax.Array, bias: jax.Array | None
    ) -> tuple[Routing, DispatchPlan, GateStatistics]:
        named = partial(_named_top_k, top_k)
        routing = Routing(*choose(named, logits, bias, renormalize=renormalize, **choice))
        sent = present_experts(*routing, num_experts=num_experts)
        plan = plan_in_xla(sent, num_experts=num_experts, **limits)
        return routing, DispatchPlan(*plan), gate_statistics(logits, scores=scores)

    def triton(logits: jax.Array, bias: jax.Array | None) -> Any:
        result = _in_triton(logits, bias, renormalize=renormalize, **choice, **limits)
        return Routing(*result[:2]), DispatchPlan(*result[2:7]), GateStatistics(*result[7:])

    attempts: dict[str, Callable[..., Any]] = {
        "xla": partial(composed, largest),
        "triton": triton if tokens else partial(composed, largest),
        "pallas_tpu": partial(composed, selection.lazy("pallas_tpu.top_k", "top_k")),
    }
    axes = varying_axes(gate_logits, selection_bias)
    given = vary_along((gate_logits, selection_bias), axes)
    routing, plan, statistics = selection.run(attempts, implementation, *given, operation="route")
    routing = jax.tree.map(lambda x: checkpoint_name(x, ROUTING_NAME), routing)
    return Routed(routing, named_plan(plan), statistics)


def _named_top_k(top_k: Any, values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    top, indices = top_k(values, k)
    return checkpoint_name(top, ROUTING_NAME), checkpoint_name(indices, ROUTING_NAME)
