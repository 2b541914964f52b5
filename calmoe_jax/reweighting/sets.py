"""Worst-case weights within a distance of the base weights: sets of adversaries, one interface.

Each function takes a signal (for example a loss of each example) and gives the weights that make
its mean largest, with a dual value that bounds it from above: what a distributionally robust loss
is made of. The gradient of `<w, loss>` with the weights constant is that of the worst case
(Danskin).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_positive, check_range, check_where
from calmoe_jax._numerics import AxisName, at_least_float32, pmax, pmin, psum, safe_divide
from calmoe_jax._signatures import checked
from calmoe_jax.reweighting.balance import entropy_balance
from calmoe_jax.reweighting.tilt import tilted_log_weights

_BISECTIONS = 64


class WorstCase(NamedTuple):
    """The worst weights of a set.

    Attributes:
        log_weights: `log w`; they sum to one; `-inf` for examples without weight.
        value: `<w, s>`, minus the penalty if there is one.
        dual_value: an upper bound of the value over the set, equal to it up to rounding.
        effective_sample_size: `1 / sum w^2`.
        converged: whether value and dual value agree up to rounding, and some example counts.
    """

    log_weights: Float[Array, " examples"]
    value: Float[Array, ""]
    dual_value: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    converged: Bool[Array, ""]


@checked
def kl_penalty(
    signal: Float[Array, " examples"],
    *,
    eta: float | Float[Array, ""],
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> WorstCase:
    """The adversary with a divergence penalty: `max_w <w, s> - KL(w || q) / eta`.

    The weights are `q exp(eta s) / Z` and the value is `log(sum q exp(eta s)) / eta`.

    Args:
        signal: signal that the adversary maximises.
        eta: inverse of the penalty's coefficient, above 0.
        weights: base weights `q`, at least 0; uniform by default.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        A `WorstCase`.

    Raises:
        ValueError: if a plain-number `eta` is not above 0.

    Example:
        >>> kl_penalty(jnp.log(jnp.array([1.0, 3.0])), eta=1.0).value.round(4)
        Array(0.6931, dtype=float32)

    References:
        Li et al., Tilted Empirical Risk Minimization, 2021.
    """
    case = _Case(signal, weights, where, axis_name)
    log_weights = tilted_log_weights(
        case.signal, eta=eta, weights=weights, where=where, axis_name=axis_name
    )
    share = jnp.exp(log_weights)
    ratio = jnp.where(share > 0, log_weights, 0) - jnp.where(share > 0, case.log_base, 0)
    penalty = case.sum(share * ratio) / eta
    # log Z relative to the largest signal, which cannot overflow
    dual = case.top + jnp.log(case.sum(case.base * jnp.exp(eta * (case.filled - case.top)))) / eta
    return case.worst(log_weights, dual, penalty)


@checked
def kl_ball(
    signal: Float[Array, " examples"],
    *,
    radius: float | Float[Array, ""],
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> WorstCase:
    """The worst case among weights with `KL(w || q) <= radius`.

    Its dual value is `min_eta (radius + log sum q exp(eta s)) / eta`, at the `eta` found.

    Args:
        signal: signal that the adversary maximises.
        radius: divergence in nats, at least 0.
        weights: base weights `q`, at least 0; uniform by default.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        A `WorstCase`.

    Raises:
        ValueError: if a plain-number radius is negative.

    Example:
        >>> round(float(kl_ball(jnp.array([0.0, 1.0]), radius=0.1).value), 2)
        0.72

    References:
        Levy et al., Large-Scale Methods for Distributionally Robust Optimization, 2020.
    """
    solution = entropy_balance(
        signal, radius=radius, weights=weights, where=where, axis_name=axis_name
    )
    case = _Case(signal, weights, where, axis_name)
    eta = solution.eta
    log_sum = jnp.log(case.sum(case.base * jnp.exp(eta * (case.filled - case.top))))
    bound = case.top + (radius + log_sum) / jnp.where(eta > 0, eta, 1)
    dual = jnp.where(eta > 0, bound, case.mean)
    # beyond the largest divergence that the signal can reach, the bound is its largest value
    return case.worst(solution.log_weights, jnp.minimum(dual, case.top))


@checked
def chi_square_ball(
    signal: Float[Array, " examples"],
    *,
    radius: float | Float[Array, ""],
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> WorstCase:
    """The worst case among weights with `sum q (w / q - 1)^2 / 2 <= radius`.

    The weights are `w = q (s - nu)_+ / Z`, the dual value `min_nu nu + sqrt((1 + 2 radius) sum q
    (s - nu)_+^2)`. Where all examples have weight, `nu` is the mean less `sd / sqrt(2 radius)`.

    Args:
        signal: signal that the adversary maximises; finite where it counts.
        radius: at least 0.
        weights: base weights `q`, at least 0; uniform by default.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        A `WorstCase`. With a large enough radius the largest signal gets all the weight.

    Raises:
        ValueError: if a plain-number radius is negative.

    Example:
        >>> jnp.exp(chi_square_ball(jnp.array([0.0, 1.0]), radius=0.125).log_weights)
        Array([0.25, 0.75], dtype=float32)

    References:
        Namkoong and Duchi, Variance-based Regularization with Convex Objectives, 2017.
    """
    check_range("radius", radius, 0, float("inf"))
    case = _Case(signal, weights, where, axis_name)
    level = jnp.asarray(1 + 2 * radius, case.signal.dtype)
    # relative to the largest, in units of the range: squares of 1e30 would overflow
    unit = jnp.where(case.top > case.bottom, case.top - case.bottom, 1)
    depth = (case.filled - case.top) / unit
    mean = case.sum(case.base * depth)
    spread = jnp.sqrt(case.sum(case.base * (depth - mean) ** 2))

    def above(nu: jax.Array) -> jax.Array:
        return jnp.maximum(depth - nu, 0)

    def too_low(nu: jax.Array) -> jax.Array:
        first, second = case.sum(case.base * above(nu)), case.sum(case.base * above(nu) ** 2)
        return second < level * first**2

    def halve(
        _: int | jax.Array, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        middle = (bounds[0] + bounds[1]) / 2
        raise_ = too_low(middle)
        return jnp.where(raise_, middle, bounds[0]), jnp.where(raise_, bounds[1], middle)

    # where all examples have weight; nu is never lower
    low = mean - spread / jnp.sqrt(jnp.maximum(level - 1, 1e-12))
    nu, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, (low, jnp.zeros_like(low)))
    mass = case.sum(case.base * above(nu))
    highest = depth == 0
    at_top = case.sum(jnp.where(highest, case.base, 0))
    # the signal's largest value takes all, or all signals are equal
    corner = (level * at_top >= 1) | (mass <= 0)
    plain = (spread <= 0) | (level <= 1)
    share = jnp.where(highest, case.base / jnp.where(at_top > 0, at_top, 1), 0)
    inside = case.base * above(nu) / jnp.where(mass > 0, mass, 1)
    share = jnp.where(plain, case.base, jnp.where(corner, share, inside))
    bound = nu + jnp.sqrt(level * case.sum(case.base * above(nu) ** 2))
    dual = jnp.where(plain, mean, jnp.where(corner, 0, bound))
    return case.worst(jnp.log(share), case.top + unit * dual)


@checked
def cvar(
    signal: Float[Array, " examples"],
    *,
    alpha: float | Float[Array, ""],
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> WorstCase:
    """The worst case among weights with `w <= q / alpha`: the mean of the largest share `alpha`.

    The dual value is `min_t t + sum q (s - t)_+ / alpha`, at the quantile `t`.

    Args:
        signal: signal that the adversary maximises.
        alpha: share of the base weights, in (0, 1].
        weights: base weights `q`, at least 0; uniform by default.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        A `WorstCase`. Examples at the quantile share the remaining weight in proportion to their
        base weights, so that the order of the examples does not matter.

    Raises:
        ValueError: if a plain-number `alpha` is outside (0, 1].

    Example:
        >>> jnp.exp(cvar(jnp.array([1.0, 2.0, 3.0, 4.0]), alpha=0.5).log_weights)
        Array([0. , 0. , 0.5, 0.5], dtype=float32)

    References:
        Rockafellar and Uryasev, Optimization of Conditional Value-at-Risk, 2000.
    """
    check_positive("alpha", alpha)
    check_range("alpha", alpha, 0, 1)
    case = _Case(signal, weights, where, axis_name)
    # the quantile, bit by bit: floats in the order of integers
    keys = _ordered(jnp.where(case.base > 0, case.filled, -jnp.inf))
    low, high = _ordered(case.bottom) - 1, _ordered(case.top)

    def halve(
        _: int | jax.Array, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        # the terms have both signs, so the sum could overflow
        middle = (bounds[0] & bounds[1]) + ((bounds[0] ^ bounds[1]) >> 1)
        above = case.sum(jnp.where(keys > middle, case.base, 0))
        enough = above <= alpha
        return jnp.where(enough, bounds[0], middle), jnp.where(enough, middle, bounds[1])

    _, key = jax.lax.fori_loop(0, jnp.iinfo(keys.dtype).bits, halve, (low, high))
    beyond, at = keys > key, (keys == key) & (case.base > 0)
    quantile = jnp.max(jnp.where(at, case.filled, -jnp.inf), initial=-jnp.inf)
    quantile = pmax(quantile, axis_name)
    taken = case.sum(jnp.where(beyond, case.base, 0)) / alpha
    left = safe_divide(jnp.maximum(1 - taken, 0), case.sum(jnp.where(at, case.base, 0)))
    share = jnp.where(beyond, case.base / alpha, jnp.where(at, case.base * left, 0))
    excess = jnp.where(beyond, case.filled - quantile, 0)
    return case.worst(jnp.log(share), quantile + case.sum(case.base * excess) / alpha)


class _Case:
    """A signal with its base weights, and sums over all devices."""

    def __init__(
        self,
        signal: Float[Array, " examples"],
        weights: Float[Array, " examples"] | None,
        where: Bool[Array, " examples"] | None,
        axis_name: AxisName,
    ) -> None:
        check_where("where", where, signal.shape)
        if weights is not None and weights.shape != signal.shape:
            raise ValueError(
                f"weights must have the shape of signal, {signal.shape}, got "
                f"weights.shape={weights.shape}."
            )
        self.signal = jax.lax.stop_gradient(at_least_float32(signal))
        base = jnp.ones_like(self.signal) if weights is None else at_least_float32(weights)
        base = base if where is None else jnp.where(where, base, 0)
        # a signal of -inf gets no weight in any worst case
        base = jnp.where(jnp.isneginf(self.signal), 0, base)
        self._axis_name = axis_name
        total = self.sum(base)
        self.some = total > 0
        self.base = base / jnp.where(self.some, total, 1)
        self.log_base = jnp.log(self.base)
        counted = self.base > 0
        self.filled = jnp.where(counted, self.signal, 0)
        top = jnp.max(self.signal, where=counted, initial=-jnp.inf)
        bottom = jnp.min(self.signal, where=counted, initial=jnp.inf)
        top, bottom = pmax(top, axis_name), pmin(bottom, axis_name)
        self.top, self.bottom = jnp.where(self.some, top, 0), jnp.where(self.some, bottom, 0)
        self.filled = jnp.where(counted, self.filled, self.bottom)
        self.mean = self.sum(self.base * self.filled)

    def sum(self, values: jax.Array) -> jax.Array:
        """Sum over the examples of all devices."""
        return psum(jnp.sum(values), self._axis_name)

    def worst(
        self, log_weights: jax.Array, dual: jax.Array, penalty: jax.Array | float = 0.0
    ) -> WorstCase:
        """The `WorstCase` of weights and a dual value."""
        share = jnp.exp(log_weights)
        value = self.sum(share * jnp.where(share > 0, self.filled, 0)) - penalty
        scale = 1 + jnp.abs(value) + jnp.abs(self.top - self.bottom)
        # bisection and sums of many examples: 3e-5 in float32
        near = jnp.abs(dual - value) <= jnp.finfo(share.dtype).eps ** 0.65 * scale
        return WorstCase(
            log_weights=jnp.where(self.some, log_weights, -jnp.inf),
            value=value,
            dual_value=dual,
            effective_sample_size=safe_divide(
                jnp.where(self.some, 1.0, 0.0).astype(share.dtype), self.sum(share**2)
            ),
            converged=near & self.some,
        )


def _ordered(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Floats as integers in the same order; -0 as 0."""
    integer = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x).astype(x.dtype), integer)
    return jnp.where(bits < 0, jnp.iinfo(integer).min - bits, bits)
