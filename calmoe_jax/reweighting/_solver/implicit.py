"""Derivatives of the solution of entropy balancing, by the implicit function theorem."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calmoe_jax._numerics import AxisName
from calmoe_jax.reweighting._solver import dual as _dual
from calmoe_jax.reweighting._solver.linear import solve_semidefinite
from calmoe_jax.reweighting._solver.problem import (
    Inputs,
    divergence,
    log_weights_at,
    ridge_of,
    standard_sum,
    standardise,
)


def differentiable_log_weights(
    inputs: Inputs,
    where: Bool[Array, " examples"] | None,
    found: _dual.DualState,
    eta: Float[Array, ""],
    axis_name: AxisName,
) -> Float[Array, " examples"]:
    """Log weights whose derivatives are those of the solution.

    One Newton step from the solution, with a Jacobian that is a constant: the step is 0, and its
    derivative that of the implicit function theorem.

    Args:
        inputs: the problem, not yet constant for gradients.
        where: examples that count.
        found: its solution, in standard units.
        eta: the solution's inverse temperature.
        axis_name: device axis that the examples are sharded over.
    """
    problem = standardise(inputs, where, axis_name)
    potentials = found.potentials
    tilt = eta * jax.lax.stop_gradient(problem.signal_scale)

    log_weights_of = partial(log_weights_at, problem, axis_name=axis_name)

    def violation(potentials: jax.Array, tilt: jax.Array) -> Float[Array, " unknowns"]:
        log_weights = log_weights_of(tilt, potentials)
        mean = standard_sum(jnp.exp(log_weights), problem.columns, axis_name)
        mean -= 0 if problem.aim is None else problem.aim
        stationary = mean - ridge_of(inputs, problem, tilt) * potentials
        if inputs.radius is None:
            return stationary
        kl = divergence(log_weights, problem.log_base, axis_name)
        return jnp.append(stationary, kl - inputs.radius)

    if inputs.eta is not None:  # the same value, but it may carry a derivative
        tilt = inputs.eta * jax.lax.stop_gradient(problem.signal_scale)
    # forward derivatives: a column for each unknown
    jacobian = jax.jacfwd(violation, argnums=(0, 1))(potentials, jax.lax.stop_gradient(tilt))
    if inputs.radius is None:
        matrix = jax.lax.stop_gradient(jacobian[0])
        everywhere = jnp.ones(potentials.shape, bool)
        step = solve_semidefinite(-matrix, -violation(potentials, tilt), everywhere)
        return log_weights_of(tilt, potentials - step)
    matrix = jax.lax.stop_gradient(jnp.concatenate([jacobian[0], jacobian[1][:, None]], axis=1))
    tilt = jax.lax.stop_gradient(tilt)
    step = jnp.linalg.lstsq(matrix, violation(potentials, tilt))[0]
    return log_weights_of(tilt - step[-1], potentials - step[:-1])
