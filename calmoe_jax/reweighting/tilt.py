"""The entropic adversary in closed form: weights that tilt towards large signals."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._checks import check_positive
from calmoe_jax._numerics import AxisName, pmax, psum, wide_dtype
from calmoe_jax._signatures import checked


@checked
def tilted_log_weights(
    signal: Float[Array, " examples"],
    *,
    eta: float | Float[Array, ""],
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, " examples"]:
    """Log weights of the adversary that maximises the signal with an entropy penalty.

    `w = argmax_w <w, s> - (1 / eta) KL(w || q)` over the simplex, which is
    `w_i = q_i exp(eta s_i) / sum_j q_j exp(eta s_j)`.

    Args:
        signal: what the adversary maximises, for example a loss, in nats.
        eta: inverse temperature of the adversary, above 0; towards 0 the weights are uniform.
        weights: base weights `q`, at least 0; need not sum to one; uniform by default.
        where: examples that may get weight; all by default.
        axis_name: device axis over which the weights are normalised, in `pmap` or `shard_map`.

    Returns:
        `log w`, at least float32; `-inf` outside `where`, and everywhere if no example is left.
        A NaN signal or weight inside `where`, a negative weight or a traced `eta` below 0 makes all
        weights NaN. Several signals of `+inf` share the
        weight in proportion to their base weights.

    Raises:
        ValueError: if a plain-number `eta` is not above 0, or `where` has another shape.

    Example:
        >>> jnp.exp(tilted_log_weights(jnp.log(jnp.array([1.0, 3.0])), eta=1.0))
        Array([0.25, 0.75], dtype=float32)

    References:
        Wong et al., Toward Calibrated Mixture-of-Experts Under Distribution Shift, 2026; Li et
        al., Tilted Empirical Risk Minimization, 2021.
    """
    check_positive("eta", eta)
    floats = (signal,) if weights is None else (signal, weights)
    dtype = wide_dtype(*(x.dtype for x in floats))
    signal = signal.astype(dtype)
    log_base = None
    if weights is not None:
        log_base = jnp.log(weights.astype(dtype))
        signal = jnp.where(jnp.isneginf(log_base), -jnp.inf, signal)
    if where is not None:
        signal = jnp.where(where, signal, -jnp.inf)
    peak = jax.lax.stop_gradient(jnp.max(signal, initial=-jnp.inf))
    peak = pmax(peak, axis_name)
    infinite = jnp.isposinf(peak)
    signal = jnp.where(infinite, jnp.where(signal == peak, 0, -jnp.inf), signal)
    # relative to the largest before the product, which would round a signal far from 0 once more
    below = signal - jnp.where(infinite | jnp.isneginf(peak), 0, peak)
    factor = jnp.where(eta >= 0, eta, jnp.nan).astype(dtype)
    shifted = jnp.where(jnp.isneginf(below), -jnp.inf, below * factor)
    if log_base is not None:
        shifted += jnp.where(jnp.isneginf(shifted), 0, log_base)
    total = psum(jnp.sum(jnp.exp(shifted)), axis_name)
    return shifted - jnp.log(jnp.where(total == 0, 1, total))
