"""The gradient of a batch in parts: the memory of one part, and the loss of the whole batch.

Means of the parts' gradients, as `optax.MultiSteps` takes them, are not enough here: an adversary
weighs all examples of a batch against each other, and losses of gates and calibration are not
means over examples either. So there are two passes. The first keeps the predictions alone, which
are small; they give the loss, and its gradient to each of them. The second computes each part
again and pulls its share of that gradient back to the parameters. The price is one more forward
pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from calmoe_jax.mixture import Prediction
from calmoe_jax.routing import GateStatistics
from calmoe_jax.training.state import zeros_beside
from calmoe_kernels.varying import vary_along, varying_axes

Apply = Callable[[PyTree, PyTree, PyTree], tuple[Prediction, PyTree]]


def gradient_in_parts(
    apply: Apply,
    losses: Callable[[Prediction, PyTree], tuple[Float[Array, " losses"], Any]],
    params: PyTree,
    network_state: PyTree,
    inputs: PyTree,
    chosen: Float[Array, " losses"],
    *,
    parts: int,
) -> tuple[PyTree, Any]:
    """The gradient of chosen losses of a batch whose predictions are computed part by part.

    Batch statistics are those of each part, one after the other; without them the gradient is that
    of the batch at once, to rounding.

    Args:
        apply: `(params, network_state, inputs) -> (prediction, network_state)`.
        losses: losses of the whole batch's prediction, and whatever else; the same after each part.
        params: parameters.
        network_state: state of the network before the batch.
        inputs: inputs of the batch, with examples along the first axis of each array.
        chosen: factors of the losses.
        parts: number of parts, a divisor of the number of examples.

    Returns:
        The gradient, and what else `losses` returns.

    Raises:
        ValueError: if the parts do not divide the examples.
    """
    size = jax.tree.leaves(inputs)[0].shape[0]
    if parts < 1 or size % parts:
        raise ValueError(f"parts must divide the {size} examples of a device, got parts={parts}.")
    split = jax.tree.map(lambda x: x.reshape(parts, size // parts, *x.shape[1:]), inputs)
    axes = varying_axes(inputs)
    own, sum_over_devices = jax.vjp(lambda p: vary_along(p, axes), params)
    start = jax.tree.map(lambda x: vary_along(x, axes) if _is_float(x) else x, network_state)

    def forward(state: PyTree, part: PyTree) -> tuple[PyTree, Prediction]:
        prediction, state = apply(own, state, part)
        return state, prediction

    last, predictions = jax.lax.scan(forward, start, split)

    def of_all(predictions: Prediction) -> tuple[Float[Array, " losses"], Any]:
        return losses(joined(predictions), last)

    values, pull_back, left = jax.vjp(of_all, predictions, has_aux=True)
    (cotangents,) = pull_back(chosen.astype(values.dtype))

    def backward(
        carry: tuple[PyTree, PyTree], given: tuple[PyTree, PyTree]
    ) -> tuple[tuple[PyTree, PyTree], None]:
        state, total = carry
        part, cotangent = given
        _, pull_back, state = jax.vjp(lambda p: apply(p, state, part), own, has_aux=True)
        (gradient,) = pull_back(cotangent)
        return (state, jax.tree.map(jnp.add, total, gradient)), None

    (_, gradient), _ = jax.lax.scan(backward, (start, zeros_beside(own)), (split, cotangents))
    return sum_over_devices(gradient)[0], left


def joined(predictions: Prediction) -> Prediction:
    """The prediction of a batch from those of its parts.

    Args:
        predictions: with a leading axis of parts in every array.

    Returns:
        What the network would have predicted at once.
    """

    def rows(x: Array) -> Array:
        return x.reshape(-1, *x.shape[2:])

    gate = predictions.gate
    counts = gate.num_tokens.astype(gate.mean_gate_probs.dtype)
    total = jnp.maximum(jnp.sum(counts), 1)
    whole = GateStatistics(
        mean_gate_probs=jnp.sum(counts[:, None] * gate.mean_gate_probs, axis=0) / total,
        logsumexp=rows(gate.logsumexp),
        num_unroutable=jnp.sum(gate.num_unroutable),
        num_tokens=jnp.sum(gate.num_tokens),
    )
    layers = jax.tree.map(lambda x: jnp.sum(x, axis=0), predictions.layers)
    by_rows: Any = predictions._replace(gate=None, layers=None)  # type: ignore[arg-type]
    result: Prediction = jax.tree.map(rows, by_rows)._replace(gate=whole, layers=layers)
    return result


def _is_float(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))
