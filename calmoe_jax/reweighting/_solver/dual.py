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

from calmoe_jax._numerics import AxisName, pmax, psum
from calmoe_jax.reweighting._solver.linear import solve_semidefinite
from calmoe_kernels import selection
from calmoe_kernels.xla import dual

# Up to how much longer than the potentials, and one, a step may be.
_LONGEST = 20.0
# Share of the tolerance that is aimed at.
_AIM = 0.2
# A kernel of its own pays from this many examples on; fewer are XLA's, also under `vmap`.
_LEAST_FOR_KERNEL = 2**15


class DualProblem(NamedTuple):
    """What is minimised.

    Attributes:
        columns: constraints, 0 at the targets in units of their own.
        scores: log of what an example weighs without potentials; -inf for none.
        ridge: at least 0.
        slack: by how much each column may miss its target, at least 0.
    """

    columns: dual.Columns
    scores: Float[Array, " examples"]
    ridge: Float[Array, ""]
    slack: Float[Array, " m"]


class DualState(NamedTuple):
    """Where a search stands.

    Attributes:
        potentials: `v`.
        value: `F(v)`.
        mean: `E_w a`.
        residual: largest violation of optimality, in units of the columns.
        second: Hessian, or what secants have made of one.
        direction: of the next step.
        size: share of it to try next, on the way to a start.
        damping: what is added to the Hessian's diagonal.
        separated: whether `a_i v` is above 0 for every example: no weights meet the targets.
        slow: whether the last step brought little; a Hessian from elsewhere is then not enough.
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
    return jnp.where(shares == 0, -jnp.inf, jnp.log(jnp.where(shares == 0, 1, shares))) + peak


def begin(
    problem: DualProblem,
    start: Float[Array, " m"],
    second: Float[Array, "m m"] | None = None,
    *,
    axis_name: AxisName = None,
) -> DualState:
    """A search that stands at 0 and will first go to a start.

    Args:
        problem: what to minimise.
        start: potentials to try first; 0 where they are not finite.
        second: a Hessian for a search that keeps it.
        axis_name: device axis that the examples are spread over.
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
    """What stays the same in a search; see `minimise`."""

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
        problem: what to minimise; at least one example must count.
        found: where to go on from.
        keep: whether to go on with its Hessian, which secants correct, so that no second moments
            are needed; the search ends where that is not good enough.
        tolerance: of the residual; less is aimed at.
        max_steps: passes over the columns, at most.
        axis_name: device axis that the examples are spread over.
        implementation: of the passes.

    Returns:
        Where it ended.
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
        # as much as rounding may have taken away
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
    """Tries a step, takes it where it helps, and chooses the next one."""
    problem = search.problem
    epsilon = float(jnp.finfo(problem.scores.dtype).eps)
    gradient = _subgradient(problem, old.potentials, old.mean)
    trial = old.potentials + old.size * old.direction
    sign = jnp.where(old.potentials == 0, -jnp.sign(gradient), jnp.sign(old.potentials))
    trial = jnp.where((problem.slack > 0) & (trial * sign < 0), 0, trial)
    new = _evaluate(search, trial, old.second)
    # nothing is promised of the way from 0 to a start
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
    # before anything was taken there is a start to go to, and no direction of Newton's
    still = first & ~taken
    size_left = jnp.where(still, old.size / 4, 1)
    towards = jnp.where(size_left > 0.01, old.direction, 0)  # else the start is of no use
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
    """Minimises the dual with few second moments, where they take most of a pass.

    A Hessian, corrected by secants, is kept as long as steps take away half of the residual.

    Args:
        problem: as for `minimise`.
        found: where to go on from, with a Hessian to begin with.
        tolerance: as for `minimise`.
        max_steps: as for `minimise`.
        axis_name: as for `minimise`.
        implementation: as for `minimise`.

    Returns:
        Where it ended.
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
    """The Hessian of Broyden, Fletcher, Goldfarb and Shanno: right along the last step."""
    along, expected = jnp.sum(moved * change), hessian @ moved
    energy = jnp.sum(moved * expected)
    # far enough from rounding that the matrix stays positive
    sound = (along > 1e-3 * energy) & (energy > 0)
    new = change[:, None] * change[None] / jnp.where(sound, along, 1)
    old = expected[:, None] * expected[None] / jnp.where(sound, energy, 1)
    return jnp.where(sound, hessian + new - old, hessian)


def _unfinished(found: DualState, tolerance: float) -> Bool[Array, ""]:
    # a direction that must be damped so much leads nowhere
    stuck = (found.size < 1e-3) | (found.damping > 1e8 * found.residual)
    # near enough, and rounding allows no more
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
    return result if axis_name is None else dual.over_devices(result, axis_name)
