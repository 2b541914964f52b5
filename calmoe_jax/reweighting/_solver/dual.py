"""The dual of entropy balancing: a smooth convex function of as many unknowns as constraints.

With standardised columns `a_i` (of mean 0 at the targets), scores `u_i = log q_i + eta s_i` and
potentials `v`: `F(v) = log sum_i exp(u_i - a_i v) + ridge/2 |v|^2 + slack |v|_1`. Its gradient is
`ridge v - E_w a`, its Hessian `Cov_w a + ridge I`, with `w = softmax(u - A v)`.

Newton's method with a line search; for a slack, on the orthant that the signs of `v` and of the
gradient span (Andrew and Gao, Scalable Training of L1-Regularized Log-Linear Models, 2007).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calmoe_jax._numerics import AxisName, log_or_neginf, pmax, psum
from calmoe_jax.reweighting._solver.linear import solve_semidefinite
from calmoe_kernels import selection
from calmoe_kernels.xla import dual

# Largest length of a step, as a multiple of one plus the length of the potentials.
_LONGEST = 20.0
# Fraction of the tolerance at which the search stops.
_AIM = 0.2
# A kernel is faster from this many examples on; fewer use XLA, also under `vmap`.
_LEAST_FOR_KERNEL = 2**15


class DualProblem(NamedTuple):
    """The problem to minimise.

    Attributes:
        columns: standardised constraints.
        aim: their targets, where they are not 0.
        scores: log weight of each example without potentials; -inf for weight 0.
        ridge: coefficient of the ridge penalty, at least 0.
        slack: distance by which each column may miss its target, at least 0.
    """

    columns: dual.Columns
    aim: Float[Array, " m"] | None
    scores: Float[Array, " examples"]
    ridge: Float[Array, ""]
    slack: Float[Array, " m"]


class DualState(NamedTuple):
    """State of a search.

    Attributes:
        potentials: `v`.
        value: `F(v)`.
        mean: `E_w a`.
        residual: largest violation of optimality, in units of the columns.
        second: Hessian, or its secant approximation.
        direction: direction of the next step.
        size: step size to try next.
        damping: added to the Hessian's diagonal.
        separated: whether `a_i v` is above 0 for every example: no weights meet the targets.
        slow: whether the last step made little progress; a kept Hessian is then not good enough.
        num_steps: passes over the columns.
    """

    potentials: Float[Array, " m"]
    value: Float[Array, ""]
    mean: Float[Array, " m"]
    residual: Float[Array, ""]
    second: Float[Array, "m m"]
    direction: Float[Array, " m"]
    size: Float[Array, ""]
    damping: Float[Array, ""]
    separated: Bool[Array, ""]
    slow: Bool[Array, ""]
    num_steps: Int[Array, ""]


def log_sum(scores: Float[Array, " examples"], axis_name: AxisName) -> Float[Array, ""]:
    """`log sum_i exp u_i` over all devices; -inf where nothing counts."""
    total = jax.nn.logsumexp(scores) if scores.shape[0] else jnp.full((), -jnp.inf, scores.dtype)
    if axis_name is None:
        return total
    peak = pmax(total, axis_name)
    peak = jnp.where(jnp.isneginf(peak), 0, peak)
    shares = psum(jnp.exp(total - peak), axis_name)
    return log_or_neginf(shares) + peak


def begin(
    problem: DualProblem,
    start: Float[Array, " m"],
    second: Float[Array, "m m"] | None = None,
    *,
    axis_name: AxisName = None,
) -> DualState:
    """A search at 0 that first tries given potentials.

    Args:
        problem: the problem to minimise.
        start: potentials to try first; 0 where they are not finite.
        second: a Hessian, for a search that keeps it.
        axis_name: device axis that the examples are sharded over.
    """
    dtype, zeros = problem.scores.dtype, jnp.zeros_like(problem.slack)
    size = zeros.shape[0]
    return DualState(
        potentials=zeros,
        value=log_sum(problem.scores, axis_name),
        mean=zeros,
        residual=jnp.full((), jnp.inf, dtype),
        second=jnp.zeros((size, size), dtype) if second is None else second,
        direction=jnp.where(jnp.isfinite(start).all(), start, zeros).astype(dtype),
        size=jnp.ones((), dtype),
        damping=jnp.zeros((), dtype),
        separated=jnp.zeros((), bool),
        slow=jnp.zeros((), bool),
        num_steps=jnp.zeros((), jnp.int32),
    )


class _Search(NamedTuple):
    """The constants of a search; see `minimise`."""

    problem: DualProblem
    keep: bool
    axis_name: AxisName
    implementation: str | None


def minimise(
    problem: DualProblem,
    found: DualState,
    *,
    keep: bool,
    tolerance: float,
    max_steps: int | Int[Array, ""],
    axis_name: AxisName = None,
    implementation: str | None = None,
) -> DualState:
    """Minimises the dual.

    Args:
        problem: the problem to minimise; at least one example must count.
        found: state to continue from.
        keep: whether to keep its Hessian, corrected by secants, so that no second moments are
            needed; the search ends when that is not good enough.
        tolerance: tolerance of the residual; the search aims below it.
        max_steps: passes over the columns, at most.
        axis_name: device axis that the examples are sharded over.
        implementation: implementation of the passes.

    Returns:
        The final state.
    """
    search = _Search(problem, keep, axis_name, implementation)

    def unfinished(found: DualState) -> Bool[Array, ""]:
        useful = ~found.slow if keep else True
        return _unfinished(found, tolerance) & useful & (found.num_steps < max_steps)

    start = found._replace(slow=jnp.zeros((), bool))
    return jax.lax.while_loop(unfinished, partial(_step, search), start)


def _evaluate(
    search: _Search, potentials: Float[Array, " m"], known: Float[Array, "m m"]
) -> DualState:
    """Value, gradient and Hessian at some potentials; `known` is the Hessian that may be kept."""
    problem, dtype = search.problem, search.problem.scores.dtype
    epsilon = float(jnp.finfo(dtype).eps)
    stats = _moments(problem, potentials, not search.keep, search.axis_name, search.implementation)
    value = stats.log_sum + jnp.sum(
        0.5 * problem.ridge * potentials**2 + problem.slack * jnp.abs(potentials)
    )
    if stats.second is None:
        hessian = known
    else:
        covariance = stats.second - stats.mean[:, None] * stats.mean[None]
        # the rounding error of the value
        lost = 8 * epsilon * jnp.diagonal(stats.second)
        hessian = covariance + jnp.diag(lost + problem.ridge)
    gradient = _subgradient(problem, potentials, stats.mean)
    reach = stats.reach + jnp.sum(problem.slack * jnp.abs(potentials))
    margin = 100 * epsilon * jnp.sum(jnp.abs(potentials))
    return DualState(
        potentials=potentials,
        value=value,
        mean=stats.mean,
        residual=jnp.max(jnp.abs(gradient), initial=0),
        second=hessian,
        direction=jnp.zeros(potentials.shape[0], dtype),
        size=jnp.ones((), dtype),
        damping=jnp.zeros((), dtype),
        separated=(reach < -margin) & (problem.ridge == 0),
        slow=jnp.zeros((), bool),
        num_steps=jnp.zeros((), jnp.int32),
    )


def _step(search: _Search, old: DualState) -> DualState:
    """Tries a step, takes it if it helps, and chooses the next one."""
    problem = search.problem
    epsilon = float(jnp.finfo(problem.scores.dtype).eps)
    gradient = _subgradient(problem, old.potentials, old.mean)
    trial = old.potentials + old.size * old.direction
    sign = jnp.where(old.potentials == 0, -jnp.sign(gradient), jnp.sign(old.potentials))
    trial = jnp.where((problem.slack > 0) & (trial * sign < 0), 0, trial)
    new = _evaluate(search, trial, old.second)
    # the step from 0 to the start need not decrease the value steadily
    first = jnp.isinf(old.residual)
    promised = jnp.where(first, 0, jnp.sum(gradient * (trial - old.potentials)))
    noise = 16 * epsilon * (1 + jnp.abs(old.value))
    lower = new.value <= old.value + 1e-4 * promised + noise
    # where rounding hides the value, the residual decides
    nearer = (jnp.abs(promised) > noise) | (new.residual < old.residual)
    taken = lower & nearer & jnp.isfinite(new.residual)
    slow = ~taken | (~first & (new.residual > 0.5 * old.residual))
    if search.keep:
        moved = jnp.where(first, 0, trial - old.potentials)
        change = problem.ridge * moved - (new.mean - old.mean)
        new = new._replace(second=_secant(old.second, moved, change))
    chosen = jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)
    least = 0.05 * chosen.residual
    damping = jnp.where(taken, old.damping / 8, jnp.maximum(8 * old.damping, least))
    damping = jnp.where(taken & (damping < 0.02 * least), 0, damping)
    # before the first accepted step the direction leads to the start and is not a Newton step
    still = first & ~taken
    size_left = jnp.where(still, old.size / 4, 1)
    towards = jnp.where(size_left > 0.01, old.direction, 0)  # otherwise the start is discarded
    return chosen._replace(
        direction=jnp.where(still, towards, _direction(problem, chosen, damping)),
        size=size_left,
        damping=jnp.where(still, 0, damping),
        slow=slow,
        num_steps=old.num_steps + 1,
    )


def _direction(
    problem: DualProblem, at: DualState, damping: Float[Array, ""]
) -> Float[Array, " m"]:
    """Newton's step, damped and of bounded length."""
    gradient = _subgradient(problem, at.potentials, at.mean)
    active = (at.potentials != 0) | (gradient != 0) | (problem.slack == 0)
    size, dtype = at.potentials.shape[0], problem.scores.dtype
    damped = at.second + damping * jnp.eye(size, dtype=dtype)
    direction = -solve_semidefinite(damped, gradient, active)
    longest = _LONGEST * (1 + jnp.max(jnp.abs(at.potentials), initial=0))
    norm = jnp.max(jnp.abs(direction), initial=0)
    return direction * jnp.minimum(1, longest / jnp.where(norm > 0, norm, 1))


def minimise_sparingly(
    problem: DualProblem,
    found: DualState,
    *,
    tolerance: float,
    max_steps: int,
    axis_name: AxisName = None,
    implementation: str | None = None,
) -> DualState:
    """Minimises the dual with few evaluations of the Hessian, for problems where it is expensive.

    A Hessian, corrected by secants, is kept as long as steps halve the residual.

    Args:
        problem: as for `minimise`.
        found: state to continue from, with a Hessian to start with.
        tolerance: as for `minimise`.
        max_steps: as for `minimise`.
        axis_name: as for `minimise`.
        implementation: as for `minimise`.

    Returns:
        The final state.
    """
    go = partial(
        minimise,
        problem,
        tolerance=tolerance,
        axis_name=axis_name,
        implementation=implementation,
    )

    def unfinished(found: DualState) -> Bool[Array, ""]:
        return _unfinished(found, tolerance) & (found.num_steps < max_steps)

    def renew(found: DualState) -> DualState:
        found = go(found, keep=False, max_steps=found.num_steps + 1)
        return go(found, keep=True, max_steps=max_steps)

    return jax.lax.while_loop(unfinished, renew, go(found, keep=True, max_steps=max_steps))


def _secant(
    hessian: Float[Array, "m m"], moved: Float[Array, " m"], change: Float[Array, " m"]
) -> Float[Array, "m m"]:
    """The BFGS update of the Hessian: exact along the last step."""
    along, expected = jnp.sum(moved * change), hessian @ moved
    energy = jnp.sum(moved * expected)
    # well above rounding errors, so that the matrix stays positive definite
    sound = (along > 1e-3 * energy) & (energy > 0)
    new = change[:, None] * change[None] / jnp.where(sound, along, 1)
    old = expected[:, None] * expected[None] / jnp.where(sound, energy, 1)
    return jnp.where(sound, hessian + new - old, hessian)


def _unfinished(found: DualState, tolerance: float) -> Bool[Array, ""]:
    # with this much damping no step makes progress
    stuck = (found.size < 1e-3) | (found.damping > 1e8 * found.residual)
    # close enough, and rounding prevents further progress
    stuck |= found.slow & (found.residual <= tolerance)
    return (found.residual > _AIM * tolerance) & ~found.separated & ~stuck


def _subgradient(
    problem: DualProblem, potentials: Float[Array, " m"], mean: Float[Array, " m"]
) -> Float[Array, " m"]:
    """The smallest subgradient: 0 at the minimum."""
    smooth = problem.ridge * potentials - mean
    shrunk = jnp.sign(smooth) * jnp.maximum(jnp.abs(smooth) - problem.slack, 0)
    return jnp.where(potentials == 0, shrunk, smooth + problem.slack * jnp.sign(potentials))


def _moments(
    problem: DualProblem,
    potentials: Float[Array, " m"],
    with_second: bool,
    axis_name: AxisName,
    implementation: str | None,
) -> dual.Moments:
    name = "moments" if with_second else "means"
    attempts = {"xla": getattr(dual, name)}
    if len(problem.scores) >= _LEAST_FOR_KERNEL or implementation == "triton":
        attempts["triton"] = selection.lazy("triton.dual", name)
    args = problem.columns, problem.scores, potentials
    result: dual.Moments = selection.run(attempts, implementation, *args, operation=name)
    result = result if axis_name is None else dual.over_devices(result, axis_name)
    return result if problem.aim is None else dual.recentre(result, problem.aim, potentials)
