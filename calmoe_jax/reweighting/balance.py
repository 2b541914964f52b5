"""Entropy balancing: the adversary's weights under moment constraints, with a certificate."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._checks import check_at_least, check_non_negative, check_positive
from calmoe_jax._numerics import AxisName, psum, wide_dtype
from calmoe_jax._signatures import checked
from calmoe_jax.reweighting._solver import dual as _dual
from calmoe_jax.reweighting._solver import problem as _problem
from calmoe_jax.reweighting._solver import radius as _radius
from calmoe_jax.reweighting._solver.implicit import differentiable_log_weights
from calmoe_jax.reweighting._solver.linear import solve_semidefinite
from calmoe_jax.reweighting.tilt import tilted_log_weights


class BalanceSolution(NamedTuple):
    """Weights with a certificate of optimality.

    Attributes:
        log_weights: `log w`; they sum to one. `-inf` for examples that do not count.
        potentials: `v`, with `log w_i = log q_i + eta s_i - (a_i - b) v - log Z`, in units of log
            weight per unit of a constraint. `v / eta` is the shadow price of the targets.
        eta: inverse temperature: the given one, or the one that meets the radius.
        kl: `KL(w || q)`, in nats.
        effective_sample_size: `1 / sum w^2`.
        residual: largest violation of optimality among the constraints, in standard deviations
            of their columns under `q`; without ridge, the distance from a target beyond its slack.
        duality_gap: dual minus primal value, times `eta`, in nats; 0 at the optimum.
        feasible: False if no weights can meet the targets (a hyperplane separates them from the
            examples), no example counts, or the radius is too small.
        converged: whether the residual is within the tolerance, and the radius met.
        num_steps: passes over the constraints.
    """

    log_weights: Float[Array, " examples"]
    potentials: Float[Array, " m"]
    eta: Float[Array, ""]
    kl: Float[Array, ""]
    effective_sample_size: Float[Array, ""]
    residual: Float[Array, ""]
    duality_gap: Float[Array, ""]
    feasible: Bool[Array, ""]
    converged: Bool[Array, ""]
    num_steps: Int[Array, ""]


@checked
def entropy_balance(
    signal: Float[Array, " examples"],
    constraints: Float[Array, "examples m"] | None = None,
    targets: Float[Array, " m"] | None = None,
    *,
    eta: float | Float[Array, ""] | None = None,
    radius: float | Float[Array, ""] | None = None,
    weights: Float[Array, " examples"] | None = None,
    where: Bool[Array, " examples"] | None = None,
    ridge: float | Float[Array, ""] = 0.0,
    slack: float | Float[Array, ""] | Float[Array, " m"] = 0.0,
    start: Float[Array, " m"] | None = None,
    implicit: bool = False,
    tolerance: float | None = None,
    max_steps: int = 100,
    axis_name: AxisName = None,
    implementation: str | None = None,
) -> BalanceSolution:
    """Weights that maximise a signal near the base weights, and meet moment constraints exactly.

    `max_w <w, s> - (1 / eta) KL(w || q)` over the simplex with `A^T w = b`. Without constraints it
    is the tilt `w = q exp(eta s) / Z`, bit for bit that of `tilted_log_weights`; with the
    indicators of a partition it is a tilt within each part. With a zero signal it is entropy
    balancing. With `radius` it is `max_w <w, s>` over `KL(w || q) <= radius` instead, and `eta` is
    found.

    Newton's method on the dual. From 65536 examples on it starts from the solution for every
    sixteenth; on a CPU it then keeps that Hessian, corrected by secants, while progress is fast.

    Args:
        signal: what the adversary maximises, for example a loss. `-inf` gives weight 0.
        constraints: columns of `A`; collinear and constant ones are fine.
        targets: `b`; by default the moments of the base weights, which can always be met.
        eta: inverse temperature, above 0. Either it or `radius` must be given.
        radius: divergence in nats, at least 0.
        weights: base weights `q`, at least 0; need not sum to one; uniform by default.
        where: examples that count; all by default.
        ridge: missing a target by `d` standard deviations costs `d^2 / (2 ridge)`; 0 for exact
            balance.
        slack: standard deviations by which a target may be missed at no cost.
        start: potentials to start from, from a previous solve.
        implicit: whether gradients flow to signal, constraints, targets and weights, by the
            implicit function theorem; otherwise the result is a constant for gradients, which is
            right for `<w, loss>` as long as constraints do not depend on the parameters (Danskin;
            see `balanced_robust_loss`).
        tolerance: tolerance of the residual; by default 5e-6 in float32 and 1e-9 in float64. The
            search aims at a fifth of it, as far as rounding allows.
        max_steps: Newton steps at most, for each inverse temperature that is tried.
        axis_name: device axis that the examples are sharded over, in `pmap` or `shard_map`: each
            step sums `1 + m + m^2` numbers over it.
        implementation: implementation of the passes: `None`, `"xla"` or `"triton"`.

    Returns:
        A `BalanceSolution`, at least float32. If no example counts all log weights are `-inf`. NaN
        in an example that counts gives NaN. For a radius above the largest divergence that the
        signal can reach, the solution is that of a large `eta`, and counts as converged.

    Raises:
        ValueError: if not exactly one of `eta` and `radius` is given, shapes do not match, a plain
            number is out of range, or `implicit` is set with a nonzero `slack`.
        NotImplementedError: if the implementation declines.

    Example:
        >>> signal, classes = jnp.array([0.0, 1.0, 5.0]), jnp.array([[1.0], [1.0], [0.0]])
        >>> solution = entropy_balance(signal, classes, eta=1.0)
        >>> [round(w, 2) for w in jnp.exp(solution.log_weights).tolist()]
        [0.18, 0.49, 0.33]

    References:
        Hainmueller, Entropy Balancing for Causal Effects, 2012; Wong et al., Toward Calibrated
        Mixture-of-Experts Under Distribution Shift, 2026, for the tilt.
    """
    _check(constraints, targets, eta, radius, slack, start, implicit)
    for name, value in (("radius", radius), ("ridge", ridge), ("slack", slack)):
        check_non_negative(name, value)
    check_at_least("max_steps", max_steps, 1)
    if eta is not None:
        check_positive("eta", eta)
    if tolerance is not None:
        check_positive("tolerance", tolerance)
    inputs = _inputs(signal, constraints, targets, eta, radius, weights, ridge, slack)
    dtype, size = inputs.signal.dtype, inputs.constraints.shape[1]
    options = _Options(
        tolerance or (5e-6 if dtype == jnp.float32 else 1e-9), max_steps, axis_name, implementation
    )
    begin = jnp.zeros(size, dtype) if start is None else start.astype(dtype)
    fixed = jax.lax.stop_gradient(inputs)
    solution, found = _solve(fixed, where, jax.lax.stop_gradient(begin), options)
    if eta is not None and size == 0:
        log_weights = tilted_log_weights(
            signal.astype(dtype), eta=eta, weights=weights, where=where, axis_name=axis_name
        )
        solution = solution._replace(
            log_weights=log_weights if implicit else jax.lax.stop_gradient(log_weights)
        )
    elif implicit:
        solution = solution._replace(
            log_weights=differentiable_log_weights(inputs, where, found, solution.eta, axis_name)
        )
    return solution


def _inputs(
    signal: Float[Array, " examples"],
    constraints: Float[Array, "examples m"] | None,
    targets: Float[Array, " m"] | None,
    eta: float | Float[Array, ""] | None,
    radius: float | Float[Array, ""] | None,
    weights: Float[Array, " examples"] | None,
    ridge: float | Float[Array, ""],
    slack: float | Float[Array, ""] | Float[Array, " m"],
) -> _problem.Inputs:
    """The problem in one dtype, at least float32."""
    floats = [x for x in (signal, constraints, targets, weights) if x is not None]
    dtype = wide_dtype(*(x.dtype for x in floats))
    size = 0 if constraints is None else constraints.shape[1]
    columns = jnp.zeros((len(signal), 0)) if constraints is None else constraints
    return _problem.Inputs(
        signal.astype(dtype),
        columns.astype(dtype),
        None if targets is None else targets.astype(dtype),
        None if weights is None else weights.astype(dtype),
        None if eta is None else jnp.asarray(eta, dtype),
        None if radius is None else jnp.asarray(radius, dtype),
        jnp.asarray(ridge, dtype),
        jnp.broadcast_to(jnp.asarray(slack, dtype), (size,)),
    )


class _Options(NamedTuple):
    tolerance: float
    max_steps: int
    axis_name: AxisName
    implementation: str | None


# Jitted, because outside `jit` the loops would be compiled again at every call.
@partial(jax.jit, static_argnums=3)
def _solve(
    inputs: _problem.Inputs,
    where: Bool[Array, " examples"] | None,
    start: Float[Array, " m"],
    options: _Options,
) -> tuple[BalanceSolution, _dual.DualState]:
    problem = _problem.standardise(inputs, where, options.axis_name)
    # a constant column has an infinite unit, and no potential
    begin = jnp.where(jnp.isinf(problem.scale), 0, start * problem.scale)
    stride = _problem.stride_of(len(problem.signal))
    near: tuple[Float[Array, " m"], Float[Array, ""], Float[Array, "m m"] | None]
    near = begin, jnp.zeros_like(problem.signal_scale), None
    if stride > 1:
        part = problem._replace(
            columns=problem.columns._replace(rows=problem.columns.rows[::stride]),
            log_base=problem.log_base[::stride],
            signal=problem.signal[::stride],
        )
        found, eta, _, _ = _find(part, inputs, near, options)
        known = jnp.isfinite(found.residual)
        near = jnp.where(known, found.potentials, begin), jnp.where(known, eta, 0), found.second
    found, eta, num_steps, limited = _find(problem, inputs, near, options)

    log_weights = _problem.log_weights_at(problem, eta, found.potentials, options.axis_name)
    kl = _problem.divergence(log_weights, problem.log_base, options.axis_name)
    squares = _dual.log_sum(2 * log_weights, options.axis_name)
    some = ~jnp.isneginf(squares)
    feasible = some & ~found.separated & ~jnp.isnan(kl)
    converged = found.residual <= options.tolerance
    if inputs.radius is not None:
        # 1e-6 nats for a radius of about 0
        allowed = 1e-4 * inputs.radius + 1e-6
        feasible &= kl <= inputs.radius + allowed
        converged &= (jnp.abs(kl - inputs.radius) <= allowed) | limited
    return (
        BalanceSolution(
            log_weights=log_weights,
            potentials=found.potentials / problem.scale,
            eta=eta / problem.signal_scale if inputs.eta is None else inputs.eta,
            kl=kl,
            effective_sample_size=jnp.where(some, jnp.exp(-squares), 0),
            residual=found.residual,
            duality_gap=_gap(found, _problem.ridge_of(inputs, problem, eta), inputs.slack),
            feasible=feasible,
            converged=converged & feasible,
            num_steps=num_steps,
        ),
        found,
    )


def _find(
    problem: _problem.StandardProblem,
    inputs: _problem.Inputs,
    near: tuple[Float[Array, " m"], Float[Array, ""], Float[Array, "m m"] | None],
    options: _Options,
) -> tuple[_dual.DualState, Float[Array, ""], Int[Array, ""], Bool[Array, ""]]:
    """The minimum near given potentials, inverse temperature and Hessian.

    Returns:
        The minimum, its inverse temperature in standard units, passes over the columns, and
        whether the radius is met or cannot be reached.
    """
    potentials, first, second = near

    def minimum(eta: Float[Array, ""], potentials: Float[Array, " m"]) -> _dual.DualState:
        to_minimise = _dual.DualProblem(
            problem.columns,
            problem.aim,
            _problem.scores(problem, eta),
            _problem.ridge_of(inputs, problem, eta),
            inputs.slack,
        )
        axis_name, implementation = options.axis_name, options.implementation
        method: Callable[..., _dual.DualState] = partial(_dual.minimise, keep=False)
        if second is not None and jax.default_backend() == "cpu":
            method = _dual.minimise_sparingly
        return method(
            to_minimise,
            _dual.begin(to_minimise, potentials, second, axis_name=axis_name),
            tolerance=options.tolerance,
            max_steps=options.max_steps,
            axis_name=axis_name,
            implementation=implementation,
        )

    if inputs.radius is None:
        assert inputs.eta is not None
        largest = jnp.finfo(inputs.eta.dtype).max
        eta = jnp.minimum(inputs.eta * problem.signal_scale, largest)
        found = minimum(eta, potentials)
        return found, eta, found.num_steps, jnp.ones((), bool)

    def tilted(eta: Float[Array, ""], potentials: Float[Array, " m"]) -> _radius.Tilted:
        return _tilted(problem, eta, minimum(eta, potentials), options.axis_name)

    state = _radius.find_eta(
        tilted, inputs.radius, first, potentials, tolerance=2 * options.tolerance
    )
    return state.tilted.found, state.eta, state.num_steps, state.limited


def _tilted(
    problem: _problem.StandardProblem,
    eta: Float[Array, ""],
    found: _dual.DualState,
    axis_name: AxisName,
) -> _radius.Tilted:
    log_weights = _problem.log_weights_at(problem, eta, found.potentials, axis_name)
    share = jnp.exp(log_weights)
    signal = jnp.where(share > 0, problem.signal, 0)
    middle = psum(jnp.sum(share * signal), axis_name)
    away = share * (signal - middle)
    common = _problem.standard_sum(away, problem.columns, axis_name)
    drift = solve_semidefinite(found.second, common, jnp.ones(common.shape, bool))
    variance = psum(jnp.sum(away * (signal - middle)), axis_name) - common @ drift
    kl = _problem.divergence(log_weights, problem.log_base, axis_name)
    return _radius.Tilted(found, kl, jnp.maximum(variance, 0), drift)


def _gap(
    found: _dual.DualState, ridge: Float[Array, ""], slack: Float[Array, " m"]
) -> Float[Array, ""]:
    """Dual minus primal value, times `eta`."""
    v, mean = found.potentials, found.mean
    beyond = jnp.maximum(jnp.abs(mean) - slack, 0)
    penalty = jnp.where(ridge > 0, beyond**2 / (2 * jnp.where(ridge > 0, ridge, 1)), 0)
    return jnp.sum(ridge / 2 * v**2 + slack * jnp.abs(v) - v * mean + penalty)


def _check(
    constraints: jax.Array | None,
    targets: jax.Array | None,
    eta: object,
    radius: object,
    slack: object,
    start: jax.Array | None,
    implicit: bool,
) -> None:
    if (eta is None) == (radius is None):
        raise ValueError(
            f"exactly one of eta and radius must be given, got eta={eta} and radius={radius}."
        )
    if constraints is None:
        for name, given in (("targets", targets), ("start", start)):
            if given is not None:
                raise ValueError(f"constraints must be given with {name}, got constraints=None.")
    if implicit and not (isinstance(slack, int | float) and slack == 0):
        raise ValueError(f"slack must be 0 with implicit=True, got slack={slack}.")
