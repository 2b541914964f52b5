"""Worst-case weights within a distance of the base weights: sets of adversaries, one interface.

Each function takes a signal (for example a loss of each example) and gives the weights that make
its mean largest, with a dual value that bounds it from above: what a distributionally robust loss
is made of. The gradient of `<w, loss>` with the weights constant is that of the worst case
(Danskin).

Examples with a signal of `-inf` are left out, like those outside `where`. NaN in a signal or a
weight that counts, or a negative weight, makes everything NaN.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_positive, check_range
from calmoe_jax._numerics import (
    AxisName,
    at_least_float32,
    example_weights,
    pmax,
    pmin,
    psum,
    safe_divide,
)
from calmoe_jax._signatures import checked
from calmoe_jax.reweighting._solver.problem import divergence_of_ratio
from calmoe_jax.reweighting.balance import entropy_balance
from calmoe_jax.reweighting.tilt import tilted_log_weights

_BISECTIONS = {jnp.dtype(jnp.float32): 48, jnp.dtype(jnp.float64): 64}


class WorstCase(NamedTuple):
    """The worst weights of a set.

    Attributes:
        log_weights: `log w`; they sum to one; `-inf` for examples without weight.
        value: `<w, s>`, minus the penalty if there is one.
        dual_value: an upper bound of the value over the set, equal to it up to rounding.
        effective_sample_size: `1 / sum w^2`.
        converged: whether value and dual value agree up to rounding, beside the range of the
            signal, and some example counts.
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
        case.signal, eta=eta, weights=weights, where=case.counted, axis_name=axis_name
    )
    slope = case.slope(eta)
    scores, log_sum = case.tilt(slope)
    ratio = jnp.where(case.base > 0, scores - log_sum, -jnp.inf)
    kl = divergence_of_ratio(ratio, jnp.exp(log_weights), case.base, axis_name)
    some = slope > _flat(slope)
    safe = jnp.where(some, slope, 1)
    dual = jnp.where(some, log_sum / safe, case.mean)
    return case.worst(log_weights, dual, jnp.where(some, kl / safe, 0))


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
    case = _Case(signal, weights, where, axis_name)
    solution = entropy_balance(
        case.signal, radius=radius, weights=weights, where=case.counted, axis_name=axis_name
    )
    slope = case.slope(solution.eta)
    some = slope > _flat(slope)
    bound = (radius + case.tilt(slope)[1]) / jnp.where(some, slope, 1)
    # beyond the largest divergence that the signal can reach, the bound is its largest value
    dual = jnp.minimum(jnp.where(some, bound, case.mean), 0)
    return case.worst(solution.log_weights, dual)


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
    # `sum w^2 / q` is at most 1 more than this; the sum would lose a small radius
    excess = jnp.asarray(2 * radius, case.signal.dtype)
    depth, mean = case.depth, case.mean
    spread = jnp.sqrt(case.sum(case.base * (depth - mean) ** 2))

    def above(nu: jax.Array) -> jax.Array:
        return jnp.maximum(depth - nu, 0)

    def too_low(nu: jax.Array) -> jax.Array:
        first, second = case.sum(case.base * above(nu)), case.sum(case.base * above(nu) ** 2)
        return second < (1 + excess) * first**2

    def halve(
        _: int | jax.Array, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        middle = (bounds[0] + bounds[1]) / 2
        raise_ = too_low(middle)
        return jnp.where(raise_, middle, bounds[0]), jnp.where(raise_, bounds[1], middle)

    # where all examples have weight
    slope = jnp.sqrt(excess) / jnp.where(spread > 0, spread, 1)
    even = 1 + slope * (depth - mean)
    plain = jnp.min(jnp.where(case.base > 0, even, jnp.inf), initial=jnp.inf)
    plain = (pmin(plain, case.axis_name) >= 0) | (spread <= 0)
    bounds = -jnp.ones_like(mean), jnp.zeros_like(mean)
    nu, _ = jax.lax.fori_loop(0, _BISECTIONS[mean.dtype], halve, bounds)
    mass = case.sum(case.base * above(nu))
    highest = depth == 0
    at_top = case.sum(jnp.where(highest, case.base, 0))
    # the signal's largest value takes all
    corner = ((1 + excess) * at_top >= 1) | (mass <= 0)
    share = jnp.where(highest, case.base / jnp.where(at_top > 0, at_top, 1), 0)
    inside = case.base * above(nu) / jnp.where(mass > 0, mass, 1)
    share = jnp.where(plain, case.base * even, jnp.where(corner, share, inside))
    bound = nu + jnp.sqrt((1 + excess) * case.sum(case.base * above(nu) ** 2))
    bound = jnp.where(corner, 0, bound)
    dual = jnp.where(plain, mean + jnp.sqrt(excess) * spread, bound)
    return case.worst(jnp.log(share), dual)


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
    keys = _ordered(jnp.where(case.counted, case.signal, -jnp.inf))
    least = _ordered(case.bottom)

    def halve(
        _: int | jax.Array, bounds: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        # the terms have both signs, so the sum could overflow
        middle = (bounds[0] & bounds[1]) + ((bounds[0] ^ bounds[1]) >> 1)
        above = case.sum(jnp.where(keys > middle, case.base, 0))
        enough = above <= alpha
        return jnp.where(enough, bounds[0], middle), jnp.where(enough, middle, bounds[1])

    bounds = least - 1, _ordered(case.top)
    _, key = jax.lax.fori_loop(0, jnp.iinfo(keys.dtype).bits, halve, bounds)
    # with an alpha of 1 nothing is left out
    key = jnp.maximum(key, least)
    beyond, at = keys > key, (keys == key) & case.counted
    quantile = jnp.max(jnp.where(at, case.depth, -jnp.inf), initial=-jnp.inf)
    quantile = pmax(quantile, axis_name)
    taken = case.sum(jnp.where(beyond, case.base, 0)) / alpha
    left = safe_divide(jnp.maximum(1 - taken, 0), case.sum(jnp.where(at, case.base, 0)))
    share = jnp.where(beyond, case.base / alpha, jnp.where(at, case.base * left, 0))
    excess = jnp.where(beyond, case.depth - quantile, 0)
    return case.worst(jnp.log(share), quantile + case.sum(case.base * excess) / alpha)


def _flat(slope: jax.Array) -> float:
    """A slope at which a tilt cannot be distinguished from none."""
    return float(jnp.finfo(slope.dtype).eps) ** 2


class _Case:
    """A signal with its base weights, and sums over all devices.

    Values are relative to the largest signal, in units of the range: differences of a signal far
    from 0 keep their digits, and squares cannot overflow.

    Attributes:
        signal: the signal, at least float32, a constant for gradients.
        counted: the examples that count.
        base: their base weights, of sum one.
        depth: their signals, in [-1, 0]; -1 for the other examples.
        mean: base mean of the depth.
    """

    def __init__(
        self,
        signal: Float[Array, " examples"],
        weights: Float[Array, " examples"] | None,
        where: Bool[Array, " examples"] | None,
        axis_name: AxisName,
    ) -> None:
        self.axis_name = axis_name
        self.signal = jax.lax.stop_gradient(at_least_float32(signal))
        base = example_weights(signal.shape, weights, where, self.signal.dtype)
        base = jnp.where(jnp.isneginf(self.signal), 0, base)
        self.counted = base != 0
        total = self.sum(base)
        self.some = total != 0
        self.base = base / jnp.where(self.some, total, 1)
        unknown = jnp.where(self.counted, jnp.isnan(self.signal), False) | jnp.isnan(self.base)
        self._unknown = self.sum(unknown.astype(jnp.int32)) > 0
        top = jnp.max(self.signal, where=self.counted, initial=-jnp.inf)
        bottom = jnp.min(self.signal, where=self.counted, initial=jnp.inf)
        top, bottom = pmax(top, axis_name), pmin(bottom, axis_name)
        self.top, self.bottom = jnp.where(self.some, top, 0), jnp.where(self.some, bottom, 0)
        # in halves: the difference of large numbers of opposite signs would overflow
        half = self.top / 2 - self.bottom / 2
        self._half = jnp.where((half > 0) & jnp.isfinite(half), half, 0.5)
        depth = (self.signal / 2 - self.top / 2) / self._half
        depth = jnp.where(self.signal == self.top, 0, jnp.clip(depth, -1, 0))
        self.depth = jnp.where(self.counted, depth, -1)
        self.mean = self.sum(self.base * self.depth)

    def sum(self, values: jax.Array) -> jax.Array:
        """Sum over the examples of all devices."""
        return psum(jnp.sum(values), self.axis_name)

    def slope(self, eta: float | Float[Array, ""]) -> Float[Array, ""]:
        """An inverse temperature in units of the range."""
        largest = jnp.finfo(self.depth.dtype).max
        return jnp.minimum(jnp.asarray(eta * self._half, self.depth.dtype) * 2, largest)

    def tilt(self, slope: Float[Array, ""]) -> tuple[Float[Array, " examples"], Float[Array, ""]]:
        """`slope depth` and `log sum q exp(slope depth)`, also for slopes near 0."""
        scores = slope * self.depth
        below = self.sum(self.base * jnp.expm1(scores))
        log_sum = jnp.log(self.sum(self.base * jnp.exp(scores)))
        return scores, jnp.where(below > -0.5, jnp.log1p(jnp.maximum(below, -0.5)), log_sum)

    def worst(
        self, log_weights: jax.Array, dual: jax.Array, penalty: jax.Array | float = 0.0
    ) -> WorstCase:
        """The `WorstCase` of weights; dual value and penalty are in units of the range."""
        share = jnp.exp(log_weights)
        value = self.sum(jnp.where(self.base > 0, share * self.depth, 0)) - penalty
        # bisection and sums of many examples: 3e-5 in float32
        near = jnp.abs(dual - value) <= jnp.finfo(share.dtype).eps ** 0.65
        values = (self.top + x * self._half + x * self._half for x in (value, dual))
        one = jnp.where(self.some, 1.0, 0.0).astype(share.dtype)
        size = safe_divide(one, self.sum(share**2))
        log_weights = jnp.where(self.some, log_weights, -jnp.inf)
        value, dual = (jnp.where(self.some, x, 0) for x in values)
        log_weights, value, dual, size = (
            jnp.where(self._unknown, jnp.nan, x) for x in (log_weights, value, dual, size)
        )
        return WorstCase(log_weights, value, dual, size, near & self.some & ~self._unknown)


def _ordered(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Floats as integers in the same order; -0 as 0."""
    integer = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x).astype(x.dtype), integer)
    return jnp.where(bits < 0, jnp.iinfo(integer).min - bits, bits)
