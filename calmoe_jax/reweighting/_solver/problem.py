"""Entropy balancing in standard units: the solver's inputs, and quantities of its solution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName, pmax, psum
from calmoe_jax.reweighting._solver import dual as _dual
from calmoe_jax.reweighting._solver.units import Units, mean_of, units
from calmoe_kernels.xla import dual

# Problems of at least this many examples start from the solution for one in so many of them.
_LARGE = 2**16
_ONE_IN = 16
# Units from 0 within which the rounding error of a mean is small beside them.
_NEAR = 2.0


class Inputs(NamedTuple):
    """The arguments of a problem, in one dtype; see `entropy_balance`."""

    signal: Float[Array, " examples"]
    constraints: Float[Array, "examples m"]
    targets: Float[Array, " m"] | None
    weights: Float[Array, " examples"] | None
    eta: Float[Array, ""] | None
    radius: Float[Array, ""] | None
    ridge: Float[Array, ""]
    slack: Float[Array, " m"]


class StandardProblem(NamedTuple):
    """The problem in standard units.

    Attributes:
        columns: constraints with what standardises them.
        scale: units of the constraints.
        aim: the columns' targets, where they are not 0 for the resolution of the centres.
        log_base: log of the base weights.
        signal: signal minus its maximum, in units of `signal_scale`; `-inf` for examples that must
            not count.
        signal_scale: unit of the signal.
    """

    columns: dual.Columns
    scale: Float[Array, " m"]
    aim: Float[Array, " m"] | None
    log_base: Float[Array, " examples"]
    signal: Float[Array, " examples"]
    signal_scale: Float[Array, ""]


def standardise(
    inputs: Inputs, where: Bool[Array, " examples"] | None, axis_name: AxisName
) -> StandardProblem:
    """Converts a problem to standard units.

    Args:
        inputs: the problem.
        where: examples that count.
        axis_name: device axis that the examples are sharded over.
    """
    signal, columns = inputs.signal, inputs.constraints
    log_base = jnp.zeros_like(signal) if inputs.weights is None else jnp.log(inputs.weights)
    if where is not None:
        log_base = jnp.where(where, log_base, -jnp.inf)
    masked = where is not None or inputs.weights is not None
    if masked:
        # values that do not count may be anything
        columns = jnp.where(jnp.isneginf(log_base)[:, None], 0, columns)
        signal = jnp.where(jnp.isneginf(log_base), -jnp.inf, signal)
    total = _dual.log_sum(log_base, axis_name)
    log_base -= jnp.where(jnp.isneginf(total), 0, total)

    # the largest signal becomes 0; several of +inf share the weight
    counted = ~jnp.isneginf(log_base)
    top = pmax(jnp.max(signal, where=counted, initial=-jnp.inf), axis_name)
    infinite = jnp.isposinf(top)
    signal = jnp.where(infinite, jnp.where(signal == top, 0, -jnp.inf), signal)
    signal = jnp.where(jnp.isneginf(signal), signal, signal - jnp.where(jnp.isinf(top), 0, top))
    range_ = jnp.max(-signal, where=counted & ~jnp.isneginf(signal), initial=0)
    range_ = pmax(range_, axis_name)
    unit = jax.lax.stop_gradient(jnp.where((range_ > 0) & jnp.isfinite(range_), range_, 1))

    share = jnp.exp(log_base)
    # the shares sum to one up to rounding, which would show in a constant column
    whole = psum(jnp.sum(share), axis_name)
    share /= jnp.where(whole > 0, whole, 1)
    make = _standard if stride_of(len(share)) == 1 else _centred
    standard, scale, aim = make(columns, share, inputs.targets, masked, axis_name)
    return StandardProblem(standard, scale, aim, log_base, signal / unit, unit)


def _standard(
    columns: Float[Array, "examples m"],
    share: Float[Array, " examples"],
    targets: Float[Array, " m"] | None,
    masked: bool,
    axis_name: AxisName,
) -> tuple[dual.Columns, Float[Array, " m"], None]:
    """Columns in standard units, and their units.

    Args:
        columns: constraints, 0 where they do not count.
        share: base weights, of sum one.
        targets: the targets; by default the means.
        masked: whether some of the base weights may be 0.
        axis_name: device axis.
    """
    found = units(columns, share, masked=masked, axis_name=axis_name)
    if targets is None:
        scale = jnp.where(found.constant, jnp.inf, found.deviation)
        off = (columns - found.pivot[None]) - found.mean[None]
        # the pivot may be far from the mean
        off -= mean_of(off, share, axis_name)[None]
    else:
        scale, off = _scale(found, targets), columns - targets[None]
    return dual.Columns(off / scale[None]), scale, None


def _centred(
    columns: Float[Array, "examples m"],
    share: Float[Array, " examples"],
    targets: Float[Array, " m"] | None,
    masked: bool,
    axis_name: AxisName,
) -> tuple[dual.Columns, Float[Array, " m"], Float[Array, " m"] | None]:
    """Columns with their centres and units, and what of the means the centres leave.

    A copy of many columns would take as long as a few steps. Their units are those of a subset.

    Args:
        columns: constraints, 0 where they do not count.
        share: base weights, of sum one.
        targets: the targets; by default the means.
        masked: whether some of the base weights may be 0.
        axis_name: device axis.
    """
    centre = targets
    if centre is None:
        centre = mean_of(columns, share, axis_name)

    def of(every: int) -> Units:
        return units(columns[::every], share[::every], masked=masked, axis_name=axis_name)

    found = of(_ONE_IN)
    # a column that is constant in the subset may vary elsewhere
    found = jax.lax.cond(found.constant.any(), lambda: of(1), lambda: found)
    scale = _scale(found, centre)
    standard = dual.Columns(columns, centre, scale)
    if targets is not None:
        return standard, scale, None
    # the rounding error of a mean is large in units of columns far from 0
    aim = jax.lax.cond(
        dual.distance(standard) > _NEAR,
        lambda: standard_sum(share, standard, axis_name),
        lambda: jnp.zeros_like(scale),
    )
    return standard, scale, aim


def _scale(found: Units, targets: Float[Array, " m"]) -> Float[Array, " m"]:
    """Units of columns for given targets.

    A constant column at its target gets an infinite unit, so it never matters; a constant column
    elsewhere gets its distance from the target.
    """
    away = jnp.abs((found.pivot - targets) + found.mean)
    least = jnp.maximum(jnp.abs(found.pivot), jnp.abs(targets))
    least *= 32 * float(jnp.finfo(away.dtype).eps)
    return jnp.where(found.constant, jnp.where(away > least, away, jnp.inf), found.deviation)


def stride_of(size: int) -> int:
    """Stride of the subset of examples that represents all."""
    return _ONE_IN if size >= _LARGE else 1


def scores(problem: StandardProblem, eta: Float[Array, ""]) -> Float[Array, " examples"]:
    """`log q_i + eta s_i`, in standard units."""
    tilt = jnp.where(jnp.isneginf(problem.signal), -jnp.inf, eta * problem.signal)
    return problem.log_base + tilt


def log_weights_at(
    problem: StandardProblem,
    eta: Float[Array, ""],
    potentials: Float[Array, " m"],
    axis_name: AxisName,
) -> Float[Array, " examples"]:
    """Log weights for an inverse temperature and potentials, both in standard units."""
    logits = scores(problem, eta) + dual.shifts(problem.columns, potentials)
    # the sum is then of the size of the weights' logarithms, not of large potentials
    peak = pmax(jax.lax.stop_gradient(jnp.max(logits, initial=-jnp.inf)), axis_name)
    logits -= jnp.where(jnp.isfinite(peak), peak, 0)
    total = _dual.log_sum(logits, axis_name)
    return logits - jnp.where(jnp.isneginf(total), 0, total)


def ridge_of(inputs: Inputs, problem: StandardProblem, eta: Float[Array, ""]) -> Float[Array, ""]:
    """The dual's ridge: the given one over the inverse temperature in the caller's units."""
    plain = eta / jax.lax.stop_gradient(problem.signal_scale)
    return inputs.ridge / jnp.where(plain > 0, plain, 1)


def divergence(
    log_weights: Float[Array, " examples"],
    log_base: Float[Array, " examples"],
    axis_name: AxisName,
) -> Float[Array, ""]:
    """`KL(w || q)`, of log weights."""
    some = ~jnp.isneginf(log_weights) & ~jnp.isneginf(log_base)
    share, base = jnp.exp(log_weights), jnp.exp(log_base)
    ratio = jnp.where(some, log_weights - log_base, -jnp.inf)
    return divergence_of_ratio(ratio, share, base, axis_name)


def divergence_of_ratio(
    ratio: Float[Array, " examples"],
    share: Float[Array, " examples"],
    base: Float[Array, " examples"],
    axis_name: AxisName,
) -> Float[Array, ""]:
    """`sum q (r exp r - exp r + 1)` with `r = log w / q`: no term is negative, so none cancel.

    Args:
        ratio: `r`; -inf where either is 0.
        share: `w`, instead of `q exp r`, which may overflow where the ratio is large.
        base: `q`.
        axis_name: device axis that the examples are sharded over.
    """
    some = ~jnp.isneginf(ratio)
    ratio = jnp.where(some, ratio, 0)
    small = base * (ratio * jnp.exp(jnp.minimum(ratio, 1)) - jnp.expm1(jnp.minimum(ratio, 1)))
    terms = jnp.where(ratio < 1, small, share * ratio - share + base)
    return psum(jnp.sum(jnp.where(some, terms, base)), axis_name)


def standard_sum(
    weights: Float[Array, " examples"], columns: dual.Columns, axis_name: AxisName
) -> Float[Array, " m"]:
    """`sum_i weights_i a_i`."""
    return psum(dual.standard_sum(weights, columns), axis_name)
