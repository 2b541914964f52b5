"""Smooth calibration errors: no hard bins, so that they vary smoothly with the predictions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_positive
from calmoe_jax._numerics import at_least_float32, example_weights, safe_divide

# Points of the grid that residuals are spread over, and halvings of the bandwidth's bracket.
_GRID = 2048
_HALVINGS = 24
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


def smooth_calibration_error(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
) -> SmoothCalibrationError:
    """Calibration error with a Gaussian kernel that chooses its own bandwidth (smECE).

    For bandwidth `s` the error is `int_0^1 |mean_i K_s(t, p_i) (p_i - y_i)| dt`, with `K_s` a
    Gaussian reflected at 0 and 1; the value reported is the fixed point at which error and
    bandwidth are equal. Residuals are spread linearly over a grid of 2048 cells and smoothed by
    the heat equation (a product in the space of cosines), so the cost is that of one pass and a
    few short transforms.

    Args:
        confidence: predicted probability of the event, in [0, 1] (for the top-label condition:
            the confidence in the predicted class).
        outcome: whether the event happened (the prediction was right), or its probability.
        weights: non-negative weight of each example; 1 by default.
        where: examples that count; all by default.

    Returns:
        Error and bandwidth; the bandwidth is never below half a grid cell. The error is NaN where
        nothing counts. It is never debiased: a perfectly calibrated forecast of n examples has
        about `n^(-1/3)` times a constant, not 0.

    Example:
        >>> p = jnp.full(100, 0.75)
        >>> smooth_calibration_error(p, jnp.arange(100) < 50).value.round(3)
        Array(0.25, dtype=float32)

    References:
        Błasiok and Nakkiran, Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing,
        2023.
    """
    confidence = at_least_float32(confidence)
    dtype = confidence.dtype
    weight = example_weights(confidence.shape, weights, where, dtype)
    level = jnp.where(weight == 0, 0, confidence)
    residual = jnp.where(weight == 0, 0, confidence - outcome.astype(dtype)) * weight
    spectrum = jax.scipy.fft.dct(_spread(level, residual) / jnp.sum(weight))
    frequency = jnp.pi * jnp.arange(_GRID, dtype=dtype)

    def error_at(bandwidth: Float[Array, ""]) -> Float[Array, ""]:
        smoothed = spectrum * jnp.exp(-0.5 * jnp.square(bandwidth * frequency))
        return jnp.sum(jnp.abs(jax.scipy.fft.idct(smoothed)))

    def halve(
        _: Int[Array, ""], bracket: tuple[Float[Array, ""], Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        low, high = bracket
        middle = (low + high) / 2
        above = error_at(middle) > middle  # the error falls with the bandwidth
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    bracket = (jnp.asarray(0.5 / _GRID, dtype), jnp.asarray(1, dtype))
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, bracket)
    bandwidth = (low + high) / 2
    return SmoothCalibrationError(error_at(bandwidth), bandwidth)


def _spread(
    level: Float[Array, " examples"], values: Float[Array, " examples"]
) -> Float[Array, " grid"]:
    """Adds values to the cells of a grid on [0, 1], shared linearly by the two nearest centres."""
    position = jnp.clip(level, 0, 1) * _GRID - 0.5
    lower = jnp.floor(position)
    share = position - lower
    index = jnp.where(jnp.isnan(lower), 0, lower).astype(jnp.int32)
    grid = jnp.zeros(_GRID, values.dtype)
    grid = grid.at[jnp.maximum(index, 0)].add(values * (1 - share))
    return grid.at[jnp.minimum(index + 1, _GRID - 1)].add(values * share)


def soft_binned_calibration_error(
    confidence: Float[Array, " examples"],
    outcome: Float[Array, " examples"] | Bool[Array, " examples"],
    *,
    num_bins: int = 15,
    bin_temperature: float = 0.01,
    where: Bool[Array, " examples"] | None = None,
) -> Float[Array, ""]:
    """Differentiable calibration error with soft membership in bins (SB-ECE, L2).

    With bin centres `x_j` and memberships `c_ij = softmax_j(-(p_i - x_j)^2 / T)`:
    `sqrt(sum_j (S_j / n) (A_j - C_j)^2)`, where `S_j = sum_i c_ij` and `A_j`, `C_j` are the
    membership-weighted mean outcome and confidence.

    Args:
        confidence: predicted probability of the event, in [0, 1].
        outcome: whether the event happened.
        num_bins: number of bins, at least 1.
        bin_temperature: softness `T` of the membership, in squared probability, above 0.
        where: examples that count; all by default.

    Returns:
        The error, in [0, 1], with a finite gradient everywhere (zero where the error is 0); 0
        where nothing counts.

    Raises:
        ValueError: if `num_bins` is less than 1 or `bin_temperature` is not above 0.

    Example:
        >>> soft_binned_calibration_error(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0]))
        Array(0., dtype=float32)

    References:
        Karandikar et al., Soft Calibration Objectives for Neural Networks, 2021.
    """
    check_at_least("num_bins", num_bins, 1)
    check_positive("bin_temperature", bin_temperature)
    confidence = at_least_float32(confidence)
    if where is not None:
        confidence = jnp.where(where, confidence, 0)
    centres = (jnp.arange(num_bins, dtype=confidence.dtype) + 0.5) / num_bins
    membership = jax.nn.softmax(
        -jnp.square(confidence[:, None] - centres[None, :]) / bin_temperature, axis=-1
    )
    residual = outcome.astype(confidence.dtype) - confidence
    if where is not None:
        membership = jnp.where(where[:, None], membership, 0)
        residual = jnp.where(where, residual, 0)
    total = jnp.sum(membership)
    sums = jnp.stack([jnp.sum(membership, axis=0), jnp.sum(membership * residual[:, None], axis=0)])
    share, residuals = safe_divide(sums, jnp.broadcast_to(total, sums.shape))
    # far bins hold next to nothing: dividing by it would overflow the gradient
    held = ~(share <= _LEAST_SHARE)  # so that NaN is held
    square = jnp.sum(jnp.square(jnp.where(held, residuals, 0)) / jnp.where(held, share, 1))
    zero = square == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))
