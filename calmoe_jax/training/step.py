"""One step of training on one batch, as a pure function: forward, gradient, update."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from calmoe_jax import fgr, mixture, reweighting
from calmoe_jax._numerics import AxisName, psum
from calmoe_jax.mixture import Prediction
from calmoe_jax.nn.network import Network, as_float
from calmoe_jax.training.accumulation import gradient_in_parts
from calmoe_jax.training.batch import Batch
from calmoe_jax.training.objective import Objective, Rectification
from calmoe_jax.training.objectives._parts import dense_weights
from calmoe_jax.training.state import StepLog, TrainState, all_finite
from calmoe_kernels.varying import vary_along, varying_axes


class StepLeft(NamedTuple):
    """What the passes over a batch leave besides gradients.

    Attributes:
        network_state: the network's state after the batch.
        log: statistics of the batch.
        objective_state: the objective's state after the batch.
    """

    network_state: PyTree
    log: StepLog
    objective_state: PyTree


def train_step(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    network: Network,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    parts: int = 1,
    axis_name: AxisName = None,
) -> tuple[TrainState, StepLog]:
    """Takes one step: the gradient of the objective on a batch, rectified if set, and an update.

    Pure, so that any training loop can call it: a scan over an epoch, a loop over a stream, `jit`
    with the state donated, `shard_map` or `pmap` over devices that each hold a part of the batch.

    Args:
        state: state from `init_state` or the previous step; it may be donated.
        batch: inputs of any kind, labels, and which examples count.
        key: random key of the step (for FGR's filter).
        network: the classifier.
        objective: objective to minimise.
        optimizer: gradients to updates.
        parts: parts that a device's examples are computed in, to save memory, as in
            `calmoe_jax.training.accumulation`; loss and gradient are those of the whole batch.
        axis_name: device axis that the batch is sharded over: losses, weights and gradients are
            then those of the full batch, and running statistics of the network are averaged.
            The state is the same on every device, before and after.

    Returns:
        The new state, and the log of the step. If the loss or a number of the new state is not
        finite, the log's `finite` is false; the new state is returned as computed. With
        `optax.apply_if_finite` around the optimiser a step whose gradient is not finite changes
        nothing but its counters, also of the network's and the objective's state, and is `finite`.

    Example:
        >>> import optax
        >>> from calmoe_jax import nn
        >>> from calmoe_jax.training import Batch, init_state, objectives, train_step
        >>> network = nn.from_nnx(
        ...     lambda rngs: nn.MoEClassifier(nn.MLP(2, (4,), rngs=rngs), 2, rngs=rngs))
        >>> optimizer, objective = optax.sgd(0.5), objectives.robust(eta=2.0)
        >>> state = init_state(network, objective, optimizer, jax.random.key(0))
        >>> batch = Batch(jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 1]))
        >>> for _ in range(20):
        ...     state, log = train_step(state, batch, jax.random.key(1),
        ...         network=network, objective=objective, optimizer=optimizer)
        >>> bool(log.accuracy == 1)
        True
    """
    gradients, left = step_gradients(
        state, batch, key,
        network=network, objective=objective, parts=parts, axis_name=axis_name,
    )  # fmt: skip
    return apply_gradients(state, gradients, left, optimizer=optimizer)


def step_gradients(
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    *,
    network: Network,
    objective: Objective,
    parts: int = 1,
    axis_name: AxisName = None,
) -> tuple[tuple[PyTree, ...], StepLeft]:
    """The first half of a step: the passes over the batch, without the update.

    Apart from `apply_gradients`, so that parameters that are sharded over devices can be updated
    outside `shard_map`, where norms and products of gradients are those of all shards.

    Args:
        state: as in `train_step`.
        batch: as in `train_step`.
        key: as in `train_step`.
        network: as in `train_step`.
        objective: as in `train_step`.
        parts: as in `train_step`.
        axis_name: as in `train_step`.

    Returns:
        The gradient of the objective and, if it has a rectification, that of the second loss; and
        what else the passes leave.
    """
    one = partial(_gradient, network=network, objective=objective, parts=parts, axis_name=axis_name)
    if objective.rectification is None:
        gradient, left = one(state, batch, jnp.ones(1, jnp.float32))
        return (gradient,), left
    return _two_gradients(one, state, batch, key, objective.rectification)


def apply_gradients(
    state: TrainState,
    gradients: tuple[PyTree, ...],
    left: StepLeft,
    *,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, StepLog]:
    """The second half of a step: rectifies if there are two gradients, and updates.

    Args:
        state: state before the step.
        gradients: from `step_gradients`.
        left: from `step_gradients`.
        optimizer: gradients to updates.

    Returns:
        As `train_step`.
    """
    gradient = gradients[0] if len(gradients) == 1 else fgr.rectify_gradient(*gradients)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    rest = left.network_state, left.objective_state
    fine = jnp.isfinite(left.log.loss)
    skipped = _skipped(opt_state)
    if skipped is not None:
        before = state.network_state, state.objective_state
        rest = jax.tree.map(lambda old, new: jnp.where(skipped, old, new), before, rest)
        fine |= skipped
    state = TrainState(params, rest[0], opt_state, rest[1])
    # of the full state: Adam's moments can overflow while the parameters stay finite
    return state, left.log._replace(finite=fine & all_finite(state))


def _skipped(opt_state: PyTree) -> Bool[Array, ""] | None:
    """Whether `optax.apply_if_finite` left the step out; `None` where nobody asked it to."""

    def asks(x: PyTree) -> bool:
        return isinstance(x, optax.ApplyIfFiniteState)

    found = [x for x in jax.tree.leaves(opt_state, is_leaf=asks) if asks(x)]
    return ~found[0].last_finite if found else None


def _gradient(
    state: TrainState,
    batch: Batch,
    chosen: Float[Array, " losses"],
    *,
    network: Network,
    objective: Objective,
    parts: int,
    axis_name: AxisName,
) -> tuple[PyTree, StepLeft]:
    """Gradient of a mean of the losses: the objective alone, or it and the second loss."""
    # Marked here, and not wherever a parameter meets an example: the gradient of a bias would else
    # be summed over devices row by row, before it is summed over the rows.
    followed = varying_axes(batch.labels)

    def apply(params: PyTree, network_state: PyTree, inputs: PyTree) -> tuple[Prediction, PyTree]:
        return network.apply(
            vary_along(params, followed), network_state, inputs, train=True,
            sparse=not objective.needs_all_experts,
        )  # fmt: skip

    def losses(
        prediction: Prediction, network_state: PyTree
    ) -> tuple[Float[Array, " losses"], StepLeft]:
        log, objective_state = batch_loss(
            objective, prediction, batch, state.objective_state, axis_name=axis_name
        )
        values = [log.loss]
        if len(chosen) > 1:
            assert objective.rectification is not None
            values.append(objective.rectification.loss(prediction, batch, axis_name=axis_name))
        return jnp.stack(values), StepLeft(
            _mean_state(network_state, axis_name), log, objective_state
        )

    gradient: PyTree
    if parts == 1:
        values, pull_back, left = jax.vjp(
            lambda params: losses(*apply(params, state.network_state, batch.inputs)),
            state.params,
            has_aux=True,
        )
        (gradient,) = pull_back(chosen.astype(values.dtype))
    else:
        gradient, left = gradient_in_parts(
            apply, losses, state.params, state.network_state, batch.inputs, chosen, parts=parts
        )
    return _total(gradient, batch, axis_name), left


def _two_gradients(
    one: Callable[..., tuple[PyTree, StepLeft]],
    state: TrainState,
    batch: Batch,
    key: jax.Array,
    rectification: Rectification,
) -> tuple[tuple[PyTree, ...], StepLeft]:
    """The gradients of the objective and of the second loss; logs are of the objective."""
    # A loop of two passes of one program: side by side, XLA holds the activations of both
    # (5.3 GB instead of 2.7 for the benchmark's step) and the step takes a fifth longer.
    inputs = as_float(batch.inputs)
    seen = jax.tree.map(lambda *x: jnp.stack(x), rectification.perturb(inputs, key), inputs)

    def one_pass(given: tuple[jax.Array, PyTree]) -> tuple[PyTree, StepLeft]:
        chosen, inputs = given
        return one(state, batch._replace(inputs=inputs), chosen)

    gradients, left = jax.lax.map(one_pass, (jnp.eye(2, dtype=jnp.float32), seen))
    both = tuple(jax.tree.map(lambda x, i=i: x[i], gradients) for i in range(2))
    return both, jax.tree.map(lambda x: x[0], left)


def batch_loss(
    objective: Objective,
    prediction: Prediction,
    batch: Batch,
    objective_state: PyTree,
    *,
    axis_name: AxisName = None,
) -> tuple[StepLog, PyTree]:
    """The objective of a batch, its log, and the objective's new state.

    Args:
        objective: objective to minimise.
        prediction: prediction for the batch.
        batch: the batch.
        objective_state: state before the batch.
        axis_name: device axis that the batch is sharded over.
    """
    losses = mixture.mixture_losses(
        prediction.expert_log_probs, prediction.routing.combine_weights, batch.labels,
        prediction.log_probs,
    )  # fmt: skip
    loss, log_weights, objective_state = objective.loss(
        losses, prediction, batch, objective_state, axis_name=axis_name
    )
    right = jnp.argmax(prediction.log_probs, axis=-1) == batch.labels

    def mean(values: Float[Array, " examples"]) -> Float[Array, ""]:
        return reweighting.erm_loss(values, where=batch.where, axis_name=axis_name)

    log = StepLog(
        loss=loss,
        nll=mean(losses.loss),
        accuracy=mean(right.astype(jnp.float32)),
        effective_sample_size=_effective_sample_size(log_weights, axis_name),
        importance=jax.vmap(mean, in_axes=1)(dense_weights(prediction)),
        finite=jnp.array(True),
    )
    return log, objective_state


def _effective_sample_size(
    log_weights: Float[Array, " examples"], axis_name: AxisName
) -> Float[Array, ""]:
    """`(sum w)^2 / sum w^2`."""
    if axis_name is None:
        total, squares = (jax.nn.logsumexp(factor * log_weights) for factor in (1, 2))
        return jnp.exp(2 * total - squares)
    weights = jnp.exp(log_weights)
    total, squares = (psum(jnp.sum(weights**power), axis_name) for power in (1, 2))
    return total**2 / squares


def _total(gradient: PyTree, batch: Batch, axis_name: AxisName) -> PyTree:
    """The gradient of the full batch's loss.

    The loss is a sum over all devices. Where `shard_map` follows which values differ between
    devices (its default), the gradient to what they share is already summed. Elsewhere (`pmap`,
    `check_vma=False`) a sum's transpose is a sum, each device's gradient is its part times their
    number, and the mean is the total.
    """
    if axis_name is None or _followed(batch, axis_name):
        return gradient
    mean: PyTree = jax.lax.pmean(gradient, axis_name)
    return mean


def _followed(batch: Batch, axis_name: AxisName) -> bool:
    """Whether an enclosing `shard_map` follows which values differ along an axis."""
    varying = varying_axes(batch.labels)
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    return any(name in varying for name in names)


def _mean_state(network_state: PyTree, axis_name: AxisName) -> PyTree:
    """Running statistics averaged over devices; integers and keys are the same on all."""
    if axis_name is None:
        return network_state

    def one(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        mean: jax.Array = jax.lax.pmean(x, axis_name)
        return mean

    return jax.tree.map(one, network_state)
