"""Ridge logistic regression, by Newton steps that cannot overshoot far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_MAX_STEPS = 30


class _Fit(NamedTuple):
    beta: Float[Array, " d"]
    step: Int[Array, ""]
    moved: Float[Array, ""]


def ridge_logistic(
    rows: Float[Array, "n d"],
    label: Float[Array, " n"],
    weight: Float[Array, " n"],
    penalty: float,
) -> Float[Array, " coefficients"]:
    """Coefficients of the columns, and the intercept, which is hardly penalised.

    Args:
        rows: columns of each row, of about one scale.
        label: 1 or 0, or the probability of 1.
        weight: weight of each row.
        penalty: `penalty / 2 |beta|^2` is added to the weighted sum of the log losses.
    """
    design = jnp.concatenate([rows, jnp.ones((len(rows), 1), rows.dtype)], axis=1)
    ridge = jnp.full(design.shape[1], penalty, rows.dtype).at[-1].set(1e-3)

    def unfinished(fit: _Fit) -> Bool[Array, ""]:
        return (fit.step < _MAX_STEPS) & (fit.moved > 1e-4)

    def newton(fit: _Fit) -> _Fit:
        probs = jax.nn.sigmoid(design @ fit.beta)
        gradient = design.T @ (weight * (probs - label)) + ridge * fit.beta
        # at least the curvature at a probability of 0.1: a full step then never overshoots far
        curvature = weight * jnp.maximum(probs * (1 - probs), 0.09)
        hessian = (design * curvature[:, None]).T @ design + jnp.diag(ridge)
        step = jnp.linalg.solve(hessian, gradient)
        return _Fit(fit.beta - step, fit.step + 1, jnp.max(jnp.abs(step)))

    start = _Fit(
        jnp.zeros(design.shape[1], rows.dtype), jnp.asarray(0), jnp.asarray(jnp.inf, rows.dtype)
    )
    return jax.lax.while_loop(unfinished, newton, start).beta
