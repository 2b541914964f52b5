"""An adversary over groups with state across batches: group DRO."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive
from calmoe_jax._numerics import AxisName, at_least_float32, pmax, psum, safe_divide
from calmoe_jax._signatures import checked


class GroupState(NamedTuple):
    """State of an adversary over groups.

    Attributes:
        log_weights: log weight of each group; they sum to one.
    """

    log_weights: Float[Array, " groups"]


class GroupAdversary(NamedTuple):
    """A stateful adversary over groups, in the form of an optimiser.

    Attributes:
        init: `() -> state`.
        update: `(losses, groups, state, where=None, *, axis_name=None) -> (log_weights, state)`,
            with a log weight for each example. NaN in a loss that counts, or a group outside
            `[0, num_groups)`, gives NaN, in the state as well.
    """

    init: Callable[[], GroupState]
    update: Callable[..., tuple[Float[Array, " examples"], GroupState]]


def group_dro(*, num_groups: int, step_size: float) -> GroupAdversary:
    """The worst mixture of groups by exponentiated gradient: group DRO.

    `q_g <- q_g exp(step_size L_g) / Z` with `L_g` the group's mean loss in the batch; the loss is
    `sum_g q_g L_g`. A group without examples in the batch keeps its weight for later batches.

    Args:
        num_groups: number of groups.
        step_size: step size of the exponentiated gradient, above 0.

    Returns:
        A `GroupAdversary`.

    Raises:
        ValueError: if `num_groups` is less than 1 or `step_size` not above 0.

    Example:
        >>> adversary = group_dro(num_groups=2, step_size=1.0)
        >>> losses, groups = jnp.array([0.0, 0.0, 1.0]), jnp.array([0, 0, 1])
        >>> log_weights, state = adversary.update(losses, groups, adversary.init())
        >>> jnp.exp(log_weights).round(3)
        Array([0.134, 0.134, 0.731], dtype=float32)

    References:
        Sagawa et al., Distributionally Robust Neural Networks for Group Shifts, 2020.
    """
    check_at_least("num_groups", num_groups, 1)
    check_positive("step_size", step_size)

    def init() -> GroupState:
        return GroupState(jnp.full(num_groups, -jnp.log(float(num_groups))))

    @checked
    def update(
        losses: Float[Array, " examples"],
        groups: Int[Array, " examples"],
        state: GroupState,
        where: Bool[Array, " examples"] | None = None,
        *,
        axis_name: AxisName = None,
    ) -> tuple[Float[Array, " examples"], GroupState]:
        losses = jax.lax.stop_gradient(at_least_float32(losses))
        counted = jnp.ones(losses.shape, bool) if where is None else where
        member = jax.nn.one_hot(groups, num_groups, dtype=bool) & counted[:, None]
        astray = jnp.sum(counted & ~member.any(axis=1)).astype(losses.dtype)
        unknown = jnp.where(psum(astray, axis_name) > 0, jnp.nan, 0)
        sizes = psum(jnp.sum(member.astype(losses.dtype), axis=0), axis_name)
        # relative to the largest, which keeps the digits of losses far from 0
        most = pmax(jnp.max(jnp.where(counted, losses, -jnp.inf), initial=-jnp.inf), axis_name)
        most = jnp.where(jnp.isfinite(most), most, 0)
        off = jnp.where(member, (losses - most)[:, None], 0)
        means = safe_divide(psum(jnp.sum(off, axis=0), axis_name), sizes)
        # the loss of a group without examples is 0
        tilted = state.log_weights + step_size * jnp.where(sizes > 0, means, -most)
        moved = GroupState(jax.nn.log_softmax(tilted + unknown))
        present = jnp.where(sizes > 0, moved.log_weights, -jnp.inf)
        present -= jnp.where(jnp.isneginf(present).all(), 0, jax.nn.logsumexp(present))
        of_each = present - jnp.log(jnp.where(sizes > 0, sizes, 1)) + unknown
        picked = of_each[jnp.clip(groups, 0, num_groups - 1)]
        return jnp.where(counted, picked, -jnp.inf), moved

    return GroupAdversary(init, update)
