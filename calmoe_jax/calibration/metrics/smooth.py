"""Smooth calibration errors: without hard bins, so they vary smoothly with the predictions."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive, check_range
from calmoe_jax._numerics import AxisName, example_weights, psum, safe_divide
from calmoe_jax._signatures import checked
from calmoe_jax.calibration._inputs import event
from calmoe_jax.calibration._sums import sum_by_bin, total

# Number of grid points for the residuals, least bandwidth, and most steps in the search for one.
_GRID = 2048
_LEAST = 0.5 / _GRID
_MOST_STEPS = 40
# Share of the examples below which a soft bin does not count.
_LEAST_SHARE = 1e-12


class SmoothCalibrationError(NamedTuple):
    """A smooth calibration error and the bandwidth it was found at.

    Attributes:
        value: the error, in [0, 1].
        bandwidth: standard deviation of the kernel, in units of probability.
    """

    value: Float[Array, ""]
    bandwidth: Float[Array, ""]


class _Bracket(NamedTuple):
    """A search for the bandwidth that equals its error.

    Attributes:
        low: the error is larger than the bandwidth.
        of_low: by how much, or half of it.
        high: it is smaller.
        of_high: the negative difference, or half of it.
        at: the current bandwidth.
        excess: the error there minus the bandwidth.
        above: whether the last step moved the lower end.
        num_steps: steps taken.
    """

    low: Float[Array, ""]
    of_low: Float[Array, ""]
    high: Float[Array, ""]
    of_high: Float[Array, ""]
    at: Float[Array, ""]
    excess: Float[Array, ""]
    above: Bool[Array, ""]
    num_steps: Int[Array, ""]


class SmoothNullLevel(NamedTuple):
    """Smooth calibration error expected of a perfectly calibrated forecast.

    Attributes:
        mean: mean of the error.
        quantile: quantile of the error, by default the 95 % quantile.
    """

    mean: Float[Array, ""]
    quantile: Float[Array, ""]


@checked
def smooth_calibration_error(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    bandwidth: float | Float[Array, ""] | None = None,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> SmoothCalibrationError:
    """Calibration error smoothed by a Gaussian kernel with an automatic bandwidth (smECE).

    For bandwidth `s` the error is `int_0^1 |mean_i K_s(t, p_i) (p_i - y_i)| dt`, with `K_s` a
    Gaussian reflected at 0 and 1. The automatic bandwidth is the fixed point at which error and
    bandwidth are equal. Residuals are spread linearly over a grid of 2048 cells and smoothed by
    the heat equation (a product in the space of cosines), so the cost is that of one pass and a
    few short transforms. Condition: that of the event (top-label for the confidence in the
    predicted class and its being right).

    Args:
        confidence: predicted probability of the event, in [0, 1] (for the top-label condition:
            the confidence in the predicted class).
        outcome: whether the event happened (the prediction was right), or its probability.
        bandwidth: standard deviation of the kernel, above 0, in units of probability; below
            about 0.002 the grid smooths more. `None`: the fixed point.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        Error and bandwidth; the automatic bandwidth is never below half a grid cell. The error is
        NaN where nothing counts, or a confidence or outcome that counts is outside [0, 1]. It is
        never debiased: a perfectly calibrated forecast of n examples has about `n^(-1/3)` times a
        constant, not 0 (see `smooth_null_level`). Gradients are those of the fixed point, with
        the bandwidth moving along.

    Raises:
        ValueError: if `bandwidth` is not above 0.

    Example:
        >>> p = jnp.full(100, 0.75)
        >>> smooth_calibration_error(p, jnp.arange(100) < 50).value.round(3)
        Array(0.25, dtype=float32)

    References:
        Błasiok and Nakkiran, Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing,
        2023.
    """
    check_positive("bandwidth", bandwidth)
    confidence, outcome = event(confidence, outcome)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    level = jnp.where(weight == 0, 0, confidence)
    residual = jnp.where(weight == 0, 0, confidence - outcome) * weight
    return _smoothed(level, residual, total(weight), bandwidth)


@checked
def smooth_null_level(
    key: jax.Array,
    confidence: Float[Array, " examples"],
    *,
    bandwidth: float | Float[Array, ""] | None = None,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    num_replicates: int = 200,
    probability: float = 0.95,
) -> SmoothNullLevel:
    """The smooth calibration error of the same forecast if it were perfectly calibrated.

    Repeatedly draws each outcome with its forecast probability, and takes the error of each draw
    (consistency resampling). An observed error below the quantile is no evidence against
    calibration. One replicate costs one `smooth_calibration_error`; they run one by one.

    Args:
        key: random key.
        confidence: predicted probability of the event, in [0, 1].
        bandwidth: as in `smooth_calibration_error`.
        weights: non-negative weight of each example, not chosen by its outcome; 1 by default.
        where: examples that count; all by default.
        num_replicates: number of draws, at least 1.
        probability: which quantile, in [0, 1].

    Returns:
        Mean and quantile of the error; NaN where nothing counts, or a confidence that counts is
        outside [0, 1].

    Raises:
        ValueError: if `bandwidth` is not above 0, `num_replicates` is less than 1 or
            `probability` is outside [0, 1].

    Example:
        >>> null = smooth_null_level(jax.random.key(0), jnp.linspace(0, 1, 100), num_replicates=20)
        >>> bool(0.03 < null.mean < null.quantile < 0.15)
        True

    References:
        Bröcker and Smith, Increasing the Reliability of Reliability Diagrams, 2007.
    """
    check_positive("bandwidth", bandwidth)
    check_at_least("num_replicates", num_replicates, 1)
    check_range("probability", probability, 0, 1)
    confidence, _ = event(confidence, jnp.zeros(confidence.shape, bool))
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    level = jnp.where(weight == 0, 0, confidence)
    held = total(weight)

    def replicate(key: jax.Array) -> Float[Array, ""]:
        happened = jax.random.uniform(key, level.shape, level.dtype) < level
        return _smoothed(
            level, (level - happened.astype(level.dtype)) * weight, held, bandwidth
        ).value

    errors = jax.lax.map(replicate, jax.random.split(key, num_replicates))
    return SmoothNullLevel(jnp.mean(errors), jnp.quantile(errors, probability))


def _smoothed(
    level: Float[Array, " examples"],
    residual: Float[Array, " examples"],
    held: Float[Array, ""],
    bandwidth: float | Float[Array, ""] | None,
) -> SmoothCalibrationError:
    """The error of weighted residuals of this total weight."""
    dtype = level.dtype
    spectrum = jax.scipy.fft.dct(_spread(level, residual)) / held

    if bandwidth is not None:
        chosen = jnp.asarray(bandwidth, dtype)
        return SmoothCalibrationError(_error_at(spectrum, chosen), chosen)

    found = _search(jax.lax.stop_gradient(spectrum))
    # The root is implicit: a Newton step from there hardly moves, but has the root's derivative.
    error, slope = jax.jvp(partial(_error_at, spectrum), (found,), (jnp.ones_like(found),))
    step = (error - found) / (1 - jax.lax.stop_gradient(slope))
    chosen = found + jnp.where(found > _LEAST, step, 0)
    return SmoothCalibrationError(_error_at(spectrum, chosen), chosen)


def _error_at(spectrum: Float[Array, " grid"], bandwidth: Float[Array, ""]) -> Float[Array, ""]:
    """The error of residuals of this spectrum."""
    frequency = jnp.pi * jnp.arange(_GRID, dtype=spectrum.dtype)
    smoothed = spectrum * jnp.exp(-0.5 * jnp.square(bandwidth * frequency))
    return jnp.sum(jnp.abs(jax.scipy.fft.idct(smoothed)))


def _search(spectrum: Float[Array, " grid"]) -> Float[Array, ""]:
    """The bandwidth that equals its error, near enough for a Newton step; or the least one.

    The error falls with the bandwidth, towards the size of the mean residual: the root is at least
    that, and at most the error there. The ends move to where the line between them is 0, and a
    value that stays counts half (the Illinois method), so that both move.
    """
    dtype = spectrum.dtype
    near = float(jnp.finfo(dtype).eps) ** 0.5

    def excess(at: Float[Array, ""]) -> Float[Array, ""]:
        return _error_at(spectrum, at) - at

    def unfinished(bracket: _Bracket) -> Bool[Array, ""]:
        return (jnp.abs(bracket.excess) > near * bracket.at) & (bracket.num_steps < _MOST_STEPS)

    def step(old: _Bracket) -> _Bracket:
        above = old.excess > 0
        low, high = jnp.where(above, old.at, old.low), jnp.where(above, old.high, old.at)
        # the value at the end that stays for the second time
        of_low = jnp.where(above, old.excess, old.of_low * jnp.where(old.above, 1, 0.5))
        of_high = jnp.where(above, old.of_high * jnp.where(old.above, 0.5, 1), old.excess)
        at = low + (high - low) * (of_low / (of_low - of_high))
        at = jnp.where((at > low) & (at < high), at, (low + high) / 2)
        return _Bracket(low, of_low, high, of_high, at, excess(at), above, old.num_steps + 1)

    mean = spectrum[0] / 2  # by the definition of the transform
    low = jnp.clip(jnp.abs(mean), _LEAST, 1).astype(dtype)
    of_low = excess(low)
    high = jnp.clip(low + of_low, low, 1)
    begin = _Bracket(
        low, of_low, high, -of_low, high, excess(high), jnp.zeros((), bool), jnp.int32(0)
    )
    found = jax.lax.while_loop(unfinished, step, begin)
    return jnp.where(of_low > 0, found.at, low)


def _spread(
    level: Float[Array, " examples"], values: Float[Array, " examples"]
) -> Float[Array, " grid"]:
    """Adds values to the cells of a grid on [0, 1], shared linearly by the two nearest centres."""
    position = level * _GRID - 0.5
    lower = jnp.floor(position)
    share = position - lower
    # the cell to the left of the first stands for it, that to the right of the last likewise
    index = jnp.where(jnp.isnan(lower), 0, lower).astype(jnp.int32) + 1
    # two independent sums: a CPU runs them in parallel
    left = sum_by_bin(values * (1 - share), index, _GRID + 1)
    right = sum_by_bin(values * share, index, _GRID + 1)
    return left[1:].at[0].add(left[0]) + right[:-1].at[-1].add(right[-1])


@checked
def soft_binned_error(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    num_bins: int = 15,
    bin_temperature: float = 0.01,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Differentiable calibration error with soft membership in bins (SB-ECE, L2).

    With bin centres `x_j` and memberships `c_ij = softmax_j(-(p_i - x_j)^2 / T)`:
    `sqrt(sum_j (S_j / sum_j S_j) (A_j - C_j)^2)`, where `S_j = sum_i w_i c_ij` and `A_j`, `C_j`
    are the means of outcome and confidence under the weights `w_i c_ij`. Condition: that of the
    event.

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened, or its probability.
        num_bins: number of bins, at least 1.
        bin_temperature: softness `T` of the membership, in squared probability, above 0.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.
        axis_name: device axis that the examples are sharded over.

    Returns:
        The error, in [0, 1], with a finite gradient everywhere (zero where the error is 0); 0
        where nothing counts, so that the penalty of an empty batch is 0. NaN where a confidence
        or outcome that counts is outside [0, 1].

    Raises:
        ValueError: if `num_bins` is less than 1 or `bin_temperature` is not above 0.

    Example:
        >>> soft_binned_error(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]))
        Array(0., dtype=float32)

    References:
        Karandikar et al., Soft Calibration Objectives for Neural Networks, 2021.
    """
    check_at_least("num_bins", num_bins, 1)
    check_positive("bin_temperature", bin_temperature)
    confidence, outcome = event(confidence, outcome)
    weight = example_weights(confidence.shape, weights, where, confidence.dtype)
    level = jnp.where(weight == 0, 0, confidence)
    residual = jnp.where(weight == 0, 0, outcome - confidence)
    centres = (jnp.arange(num_bins, dtype=level.dtype) + 0.5) / num_bins
    membership = weight[:, None] * jax.nn.softmax(
        -jnp.square(level[:, None] - centres[None, :]) / bin_temperature, axis=-1
    )
    held = psum(jnp.sum(membership), axis_name)
    sums = jnp.stack([jnp.sum(membership, axis=0), jnp.sum(membership * residual[:, None], axis=0)])
    sums = psum(sums, axis_name)
    share, residuals = safe_divide(sums, jnp.broadcast_to(held, sums.shape))
    # distant bins have a tiny share: dividing by it would overflow the gradient
    near = ~(share <= _LEAST_SHARE)  # so that NaN is near
    square = jnp.sum(jnp.square(jnp.where(near, residuals, 0)) / jnp.where(near, share, 1))
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))
