"""Objectives of training: a pair of pure functions `(init, loss)`, like an optax optimiser."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, Float, PyTree

from calmoe_jax._numerics import AxisName
from calmoe_jax.mixture import MixtureLosses, Prediction
from calmoe_jax.training.batch import Batch


class LossFn(Protocol):
    """The loss of a batch.

    Takes the examples' losses (of the aggregate and of each expert), the prediction, the batch,
    and the state after the previous batch. Returns the loss, the log weights of the examples
    (weights sum to one; for logging) and the new state. With an `axis_name` the examples are
    sharded over that device axis, and loss and weights refer to all of them.
    """

    def __call__(
        self,
        losses: MixtureLosses,
        prediction: Prediction,
        batch: Batch,
        state: PyTree,
        *,
        axis_name: AxisName = None,
    ) -> tuple[Float[Array, ""], Float[Array, " examples"], PyTree]:
        """The loss, the log weights of the examples, and the new state."""
        ...


class Rectification(NamedTuple):
    """A second loss that no step may raise: the part of the gradient that opposes it is removed.

    Attributes:
        perturb: `(inputs, key) -> inputs`: perturbs the inputs of the main loss; the second loss
            uses the original inputs.
        loss: `(prediction, batch, *, axis_name) -> loss`: the second loss.
    """

    perturb: Callable[[PyTree, jax.Array], PyTree]
    loss: Callable[..., Float[Array, ""]]


class Objective(NamedTuple):
    """Objective of training.

    Attributes:
        init: `() -> state`: initial state, carried from batch to batch; `()` if stateless.
        loss: see `LossFn`.
        needs_all_experts: whether the loss needs experts that were not chosen; all experts are
            then computed for every example.
        rectification: a loss that no step may raise, if any.

    Example:
        >>> def loss(losses, prediction, batch, state, *, axis_name=None):
        ...     log_weights = cm.reweighting.tilted_log_weights(
        ...         losses.loss, eta=1.0, where=batch.where, axis_name=axis_name)
        ...     mean = cm.reweighting.weighted_loss(log_weights, losses.loss, axis_name=axis_name)
        ...     return mean, log_weights, state
        >>> mine = Objective(lambda: (), loss)
    """

    init: Callable[[], Any]
    loss: LossFn
    needs_all_experts: bool = False
    rectification: Rectification | None = None
