"""What is minimised: an objective as a pair of pure functions, in the form of an optimiser."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
from jaxtyping import Array, Float, PyTree

from calmoe_jax._numerics import AxisName
from calmoe_jax.mixture import MixtureLosses, Prediction
from calmoe_jax.training.batch import Batch


class LossFn(Protocol):
    """The loss of a batch.

    Given are the examples' losses (of the aggregate and of each expert), the whole prediction,
    the batch, and the state after the batch before. Returned are the loss, the log of the weights
    that it gives to the examples (summing to one; for the record) and the new state. With an
    `axis_name` the examples are spread over that device axis, and loss and weights are those of
    all of them.
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
        perturb: `(inputs, key) -> inputs`: what the main loss is taken on; the second is taken
            on the inputs as they are.
        loss: `(prediction, batch, *, axis_name) -> loss`: the second loss.
    """

    perturb: Callable[[PyTree, jax.Array], PyTree]
    loss: Callable[..., Float[Array, ""]]


class Objective(NamedTuple):
    """What training minimises.

    Attributes:
        init: `() -> state`: what the objective remembers from batch to batch; `()` for nothing.
        loss: see `LossFn`.
        needs_all_experts: whether it looks at experts that were not chosen, which then must be
            computed for every example.
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
