"""An adversary that remembers: weights relative to the whole data set, batch by batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive, check_range, check_where
from calmoe_jax._numerics import AxisName, at_least_float32, pmax, psum


class CrossBatchState(NamedTuple):
    """What is remembered of the batches so far.

    Attributes:
        log_partition: running `log mean exp(eta L)` of each stratum.
        num_updates: batches in which each stratum was seen.
    """

    log_partition: Float[Array, " strata"]
    num_updates: Int[Array, " strata"]


class CrossBatchAdversary(NamedTuple):
    """A stateful adversary, in the form of an optimiser.

    Attributes:
        init: `() -> state`.
        update: `(losses, state, strata=None, where=None, *, axis_name=None) -> (log_weights,
            state)`. The weights sum to about one over a batch, and exactly so in the mean over
            batches.
    """

    init: Callable[[], CrossBatchState]
    update: Callable[..., tuple[Float[Array, " examples"], CrossBatchState]]


def cross_batch_tilt(*, eta: float, decay: float = 0.9, num_strata: int = 1) -> CrossBatchAdversary:
    """The tilt `w = exp(eta L) / Z` with the `Z` of the data set instead of the batch's.

    `log Z <- log(decay Z + (1 - decay) mean_batch exp(eta L))`, for each stratum by itself, and
    `w_i = exp(eta L_i - log Z) / n`. A batch of easy examples then gets less weight in all than one
    of hard ones; normalised by itself it would not, and its worst case is too mild by an amount
    that depends on the size of the batch.

    Args:
        eta: inverse temperature of the adversary, above 0.
        decay: of the running mean, in [0, 1); 0 forgets all, which gives the batch's own tilt. The
            first batches are averaged.
        num_strata: number of strata; each keeps its share of a batch.

    Returns:
        A `CrossBatchAdversary`.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> adversary = cross_batch_tilt(eta=1.0, decay=0.5)
        >>> _, state = adversary.update(jnp.zeros(4), adversary.init())
        >>> log_weights, state = adversary.update(jnp.log(jnp.full(4, 3.0)), state)
        >>> jnp.exp(log_weights).sum()
        Array(1.5, dtype=float32)

    References:
        Li et al., Tilted Empirical Risk Minimization, 2021 (stochastic TERM).
    """
    check_positive("eta", eta)
    check_range("decay", decay, 0, 1)
    if decay == 1:
        raise ValueError("decay must be less than 1, got decay=1.")
    check_at_least("num_strata", num_strata, 1)

    def init() -> CrossBatchState:
        return CrossBatchState(jnp.zeros(num_strata), jnp.zeros(num_strata, jnp.int32))

    def update(
        losses: Float[Array, " examples"],
        state: CrossBatchState,
        strata: Int[Array, " examples"] | None = None,
        where: Bool[Array, " examples"] | None = None,
        *,
        axis_name: AxisName = None,
    ) -> tuple[Float[Array, " examples"], CrossBatchState]:
        check_where("where", where, losses.shape)
        losses = jax.lax.stop_gradient(at_least_float32(losses))
        of = jnp.zeros(losses.shape, jnp.int32) if strata is None else strata
        member = jax.nn.one_hot(of, num_strata, dtype=bool)
        if where is not None:
            member &= where[:, None]
        scores = jnp.where(member, (eta * losses)[:, None], -jnp.inf)
        peak = pmax(jnp.max(scores, axis=0, initial=-jnp.inf), axis_name)
        peak = jnp.where(jnp.isneginf(peak), 0, peak)
        sums = psum(jnp.sum(jnp.exp(scores - peak[None]), axis=0), axis_name)
        counts = psum(jnp.sum(member.astype(losses.dtype), axis=0), axis_name)
        seen = counts > 0
        mean = peak + jnp.log(jnp.where(seen, sums, 1)) - jnp.log(jnp.where(seen, counts, 1))
        number = state.num_updates + seen
        keep = jnp.minimum(decay, (number - 1) / jnp.maximum(number, 1))
        log_keep = jnp.log(jnp.where(keep > 0, keep, 1))
        old = jnp.where(keep > 0, state.log_partition + log_keep, -jnp.inf)
        mixed = jnp.logaddexp(old, mean + jnp.log1p(-keep))
        moved = CrossBatchState(jnp.where(seen, mixed, state.log_partition), number)
        number_here = jnp.asarray(len(losses)) if where is None else jnp.sum(where)
        size = psum(number_here.astype(losses.dtype), axis_name)
        log_weights = eta * losses - moved.log_partition[of] - jnp.log(size)
        return log_weights if where is None else jnp.where(where, log_weights, -jnp.inf), moved

    return CrossBatchAdversary(init, update)
