"""An adversary over groups with state across batches: group DRO."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive, check_where
from calmoe_jax._numerics import AxisName, at_least_float32, psum, safe_divide


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
            with a log weight for each example.
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

    def update(
        losses: Float[Array, " examples"],
        groups: Int[Array, " examples"],
        state: GroupState,
        where: Bool[Array, " examples"] | None = None,
        *,
        axis_name: AxisName = None,
    ) -> tuple[Float[Array, " examples"], GroupState]:
        check_where("where", where, losses.shape)
        losses = jax.lax.stop_gradient(at_least_float32(losses))
        member = jax.nn.one_hot(groups, num_groups, dtype=losses.dtype)
        if where is not None:
            member = jnp.where(where[:, None], member, 0)
        sizes = psum(jnp.sum(member, axis=0), axis_name)
        # the loss of a group without examples may be anything
        known = jnp.where(member.any(axis=1), losses, 0)
        means = safe_divide(psum(known @ member, axis_name), sizes)
        tilted = state.log_weights + step_size * means
        moved = GroupState(jax.nn.log_softmax(tilted))
        present = jnp.where(sizes > 0, moved.log_weights, -jnp.inf)
        present -= jnp.where(jnp.isneginf(present).all(), 0, jax.nn.logsumexp(present))
        of_each = present - jnp.log(jnp.where(sizes > 0, sizes, 1))
        log_weights = jnp.where(member.any(axis=1), of_each[groups], -jnp.inf)
        return log_weights, moved

    return GroupAdversary(init, update)
