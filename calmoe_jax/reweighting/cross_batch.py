"""An adversary with state across batches: weights relative to the full data set."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive, check_range
from calmoe_jax._numerics import AxisName, at_least_float32, pmax, psum, two_sum
from calmoe_jax._signatures import checked


class CrossBatchState(NamedTuple):
    """Running statistics of the batches so far.

    Attributes:
        log_partition: running `log mean exp(eta L)` of each stratum.
        num_updates: number of batches with examples of each stratum.
        remainder: what rounding leaves of `log_partition`, so that losses far from 0 keep their
            digits.
    """

    log_partition: Float[Array, " strata"]
    num_updates: Int[Array, " strata"]
    remainder: Float[Array, " strata"]


class CrossBatchAdversary(NamedTuple):
    """A stateful adversary, in the form of an optimiser.

    Attributes:
        init: `() -> state`.
        update: `(losses, state, strata=None, where=None, *, axis_name=None) -> (log_weights,
            state)`. The weights of a batch sum to about one; on average over batches, to one.
            NaN in a loss that counts gives NaN in its stratum, in the state as well; a stratum
            outside `[0, num_strata)` gives an example NaN.
    """

    init: Callable[[], CrossBatchState]
    update: Callable[..., tuple[Float[Array, " examples"], CrossBatchState]]


def cross_batch_tilt(*, eta: float, decay: float = 0.9, num_strata: int = 1) -> CrossBatchAdversary:
    """The tilt `w = exp(eta L) / Z` with the `Z` of the data set instead of the batch.

    `log Z <- log(decay Z + (1 - decay) mean_batch exp(eta L))`, for each stratum, and
    `w_i = exp(eta L_i - log Z) / n`. A batch of easy examples then gets less total weight than one
    of hard examples. With weights normalised per batch it would not, and the worst case would be
    underestimated by an amount that depends on the batch size.

    Args:
        eta: inverse temperature of the adversary, above 0.
        decay: decay of the running mean, in [0, 1); with 0 the weights are the batch's own tilt.
            The first batches are averaged.
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
        number = jnp.zeros(num_strata, jnp.int32)
        return CrossBatchState(jnp.zeros(num_strata), number, jnp.zeros(num_strata))

    @checked
    def update(
        losses: Float[Array, " examples"],
        state: CrossBatchState,
        strata: Int[Array, " examples"] | None = None,
        where: Bool[Array, " examples"] | None = None,
        *,
        axis_name: AxisName = None,
    ) -> tuple[Float[Array, " examples"], CrossBatchState]:
        losses = jax.lax.stop_gradient(at_least_float32(losses))
        of = jnp.zeros(losses.shape, jnp.int32) if strata is None else strata
        member = jax.nn.one_hot(of, num_strata, dtype=bool)
        if where is not None:
            member &= where[:, None]
        # everything is relative to the largest loss of a stratum
        most = pmax(jnp.max(losses[:, None], axis=0, where=member, initial=-jnp.inf), axis_name)
        most = jnp.where(jnp.isneginf(most), 0, most)
        scores = jnp.where(member, eta * (losses[:, None] - most[None]), -jnp.inf)
        sums = psum(jnp.sum(jnp.exp(scores), axis=0), axis_name)
        counts = psum(jnp.sum(member.astype(losses.dtype), axis=0), axis_name)
        seen = counts > 0
        mean = jnp.log(jnp.where(seen, sums, 1)) - jnp.log(jnp.where(seen, counts, 1))
        number = state.num_updates + seen.astype(state.num_updates.dtype)
        keep = jnp.minimum(decay, (number - 1) / jnp.maximum(number, 1))
        log_keep = jnp.log(jnp.where(keep > 0, keep, 1))
        level, lost = _product(jnp.asarray(eta, losses.dtype), most)
        old = (state.log_partition - level) + (state.remainder - lost)
        old = jnp.where(keep > 0, old + log_keep, -jnp.inf)
        mixed = jnp.logaddexp(old, mean + jnp.log1p(-keep))
        total, remainder = two_sum(level, mixed + lost)
        moved = CrossBatchState(
            jnp.where(seen, total, state.log_partition),
            number,
            jnp.where(seen, remainder, state.remainder),
        )
        number_here = jnp.asarray(len(losses)) if where is None else jnp.sum(where)
        size = psum(number_here.astype(losses.dtype), axis_name)
        inside = (of >= 0) & (of < num_strata)
        of = jnp.clip(of, 0, num_strata - 1)
        log_weights = eta * (losses - most[of]) - mixed[of] - jnp.log(size)
        log_weights = jnp.where(inside, log_weights, jnp.nan)
        return log_weights if where is None else jnp.where(where, log_weights, -jnp.inf), moved

    return CrossBatchAdversary(init, update)


def _product(
    a: Float[Array, ""], b: Float[Array, " strata"]
) -> tuple[Float[Array, " strata"], Float[Array, " strata"]]:
    """`a b` and its rounding error (Dekker, A Floating-Point Technique, 1971)."""

    def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        scaled = x * (2.0 ** ((jnp.finfo(x.dtype).nmant + 2) // 2) + 1)
        high = scaled - (scaled - x)
        return high, x - high

    product, (a_high, a_low), (b_high, b_low) = a * b, split(a), split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    # the split of a number near the largest overflows
    return product, jnp.where(jnp.isfinite(error), error, 0)
